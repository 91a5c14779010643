"""`flopwatch top`: what it shows, in which width, and of an agent that really runs."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from rich.console import Console
from rich.text import Text

import processes
from fakenvml import Script, build, device, env
from flopwatch.cli import app, top, top_view
from flopwatch.cli.top_view import Who
from flopwatch_agent.estimate import Estimate
from flopwatch_agent.now import CardNow, CardProcess, DeliveryNow, Holder, HostNow, Now
from flopwatch_proto.errors import RetryableError

HELD = Holder(bucket="ACTIVE", weight=1.0, job="train-7b-41710", team="vision", user="ada")


def card(index: int = 0, **more: Any) -> CardNow:
    said: dict[str, Any] = {
        "slot": f"0000:{index:02x}:00.0",
        "kind": "gpu",
        "sku": "NVIDIA H100 80GB HBM3",
        "uuid": f"GPU-{index}",
        "age_seconds": 0.5,
        "failure": None,
        "coverage_ratio": 1.0,
        "method": "gpm",
        "clock_mhz_max": 1980.0,
        "values": {
            "sm_active_ratio": 0.9,
            "tensor_active_ratio": 0.45,
            "dram_active_ratio": 0.72,
            "sm_clock_mhz": 1755.0,
            "power_watts": 688.4,
            "power_limit_watts": 700.0,
            "temperature_celsius": 66.0,
            "memory_used_bytes": 71.0 * 2**30,
            "memory_total_bytes": 80.0 * 2**30,
            "clock_event_reasons": 4.0,
        },
        "absent": {},
        "estimate": Estimate(
            dtype="bf16", hfu=0.432, hfu_lo=0.422, hfu_hi=0.442, mfu_lo=0.304, mfu_hi=0.442
        ),
        "holders": [HELD],
        "processes": [CardProcess(pid=100 + index, memory_bytes=71 * 2**30)],
    }
    return CardNow(**{**said, **more})


def now(*cards: CardNow, **more: Any) -> Now:
    said: dict[str, Any] = {
        "node": "gpu-17",
        "cluster": "atlas",
        "agent_version": "0",
        "taken_unix_ms": 1_700_000_000_000,
        "simulated": False,
        "driver_state": "ok",
        "delivery": DeliveryNow(
            collector="c:9751",
            connected=True,
            pending_batches=0,
            pending_bytes=0,
            dropped_rows=0,
            degraded=False,
            error="",
        ),
        "host": HostNow(
            cpu_busy_ratio=0.123,
            cpu_count=64.0,
            memory_used_bytes=2.0**38,
            memory_total_bytes=2.0**40,
            nic_tx_bytes_per_second=12e6,
            nic_rx_bytes_per_second=3e6,
            rdma_tx_bytes_per_second=None,
            rdma_rx_bytes_per_second=None,
            link_errors_per_second=0.0,
            agent_cpu_cores=0.0031,
            agent_rss_bytes=70.0 * 2**20,
        ),
        "cards": list(cards),
    }
    return Now(**{**said, **more})


def who(pid: int) -> Who:
    return Who(user="ada", command=f"python train.py --rank {pid}")


def lines(answer: Now, width: int, rows: int | None = None) -> list[str]:
    console = Console(file=io.StringIO(), width=width, highlight=False, markup=False)
    console.print(top_view.screen(answer, width, who, rows))
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def line(shown: list[str], start: str) -> str:
    return next(one for one in shown if one.startswith(start))


@pytest.mark.parametrize("width", [80, 100, 120, 160])
def test_eight_cards_fit_and_each_has_its_line_whole(width: int) -> None:
    shown = lines(now(*(card(i) for i in range(8))), width)
    assert max(map(len, shown)) <= width
    for index in range(8):
        own = line(shown, f"{index:02x}:00.0 ")
        for text in (
            "train-7b-41710",
            " 90 ",
            " 45 ",
            "43.2±1.0",
            "30–44",
            "71/80",
            "688/700",
            " 66 ",
        ):
            assert text in f"{own} "
        assert "memory" in own
    assert ("1755/1980" in "".join(shown)) == (width >= top_view.WIDE_COLUMNS)
    assert "it is not MFU" in " ".join(shown)
    assert line(shown, "cpu 12.3 % of 64") == (
        "cpu 12.3 % of 64 · memory 256/1024 GiB · agent 0.31 % of a core, 70 MiB"
    )
    assert line(shown, "MB/s") == "MB/s out/in: network 12/3 · RDMA —"


def test_a_terminal_of_24_rows_holds_all_of_it() -> None:
    shown = lines(now(*(card(i) for i in range(8))), 80, rows=24)
    assert len(shown) <= 24
    assert "and 7 more" in " ".join(shown)


def test_what_is_declared_is_a_figure_and_what_is_not_is_between_bounds_or_a_dash() -> None:
    declared = Estimate(
        dtype="bf16", hfu=0.43, hfu_lo=0.42, hfu_hi=0.44, mfu=0.38, mfu_lo=0.38, mfu_hi=0.38
    )
    shown = lines(
        now(
            card(0, estimate=declared),
            card(1, estimate=Estimate(dtype="bf16"), values={}, processes=None),
        ),
        80,
    )
    assert line(shown, "00:00.0").split()[4:6] == ["43.0±1.0", "38.0"]
    assert line(shown, "01:00.0").split() == [
        *("01:00.0", "train-7b-41710", "—", "—", "—", "—", "—/—", "—/—", "—", "—", "—")
    ]


def test_a_card_that_does_not_answer_says_why_and_shows_no_number() -> None:
    shown = lines(now(card(0, failure="gpu_is_lost", values={}), card(1)), 80)
    own = line(shown, "00:00.0")
    assert own.endswith("gpu is lost")
    assert not any(character.isdigit() for character in own.partition("41710")[2])


def test_activity_that_is_late_is_said_to_be() -> None:
    assert "DCGM" not in "".join(lines(now(card()), 80))
    assert "DCGM" in "".join(lines(now(card(), card(1, method="dcgm")), 80))


def test_who_holds_a_card_is_named_with_all_its_jobs_and_its_rogues() -> None:
    holders = [
        Holder(bucket="ACTIVE", weight=0.5, job="a"),
        Holder(bucket="ACTIVE", weight=0.25, job="b", rogue=True),
        Holder(bucket="FREE", weight=0.25),
    ]
    held = Holder(bucket="MAINT", weight=1.0, job=None)
    shown = lines(now(card(0, holders=holders), card(1, holders=[held])), 80)
    assert "a, b rogue" in line(shown, "00:00.0")
    assert "maint" in line(shown, "01:00.0")


def test_trouble_of_delivery_and_driver_is_said() -> None:
    delivery = DeliveryNow(
        collector="c:9751",
        connected=False,
        pending_batches=12,
        pending_bytes=3 << 20,
        dropped_rows=4,
        degraded=True,
        error="UNAVAILABLE",
    )
    shown = lines(now(card(), delivery=delivery, driver_state="mismatch", host=None), 100)
    assert shown[0] == "gpu-17 · atlas · 22:13:20 UTC · driver mismatch"
    assert "host: not read yet" in shown
    assert "c:9751 away · 12 to send, 3.0 MiB · 4 rows lost · the spool's disk refuses" in shown[2]
    assert shown[3] == "UNAVAILABLE"


def test_names_of_other_people_cannot_speak_to_the_terminal() -> None:
    hostile = Holder(bucket="ACTIVE", weight=1.0, job="\x1b[2J[red]x", team="\x07t", user="\r\n")
    shown = "\n".join(lines(now(card(holders=[hostile])), 160))
    assert "\x1b" not in shown
    assert "\x07" not in shown
    assert "?[2J[red]x" in shown


def test_a_process_has_its_owner_and_its_command_and_one_that_went_has_none(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7/cmdline").write_bytes(b"python\0train.py\0\0")
    assert top.who(7, tmp_path).command == "python train.py"
    assert top.who(8, tmp_path) == Who(user=None, command=None)
    assert top.who(os.getpid()).user is not None


def test_an_answer_that_is_none_is_one_line_and_exit_code_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert app.run(["top", "--once", "--agent", "127.0.0.1:1"]) == 1
    assert "no agent answers at 127.0.0.1:1; start one" in capsys.readouterr().err
    monkeypatch.setenv("FLOPWATCH_METRICS__LISTEN", "127.0.0.1:0")
    assert app.run(["top"]) == 2
    assert "metrics.listen" in capsys.readouterr().err
    assert app.run(["top", "--interval", "soon"]) == 2
    assert "--interval" in capsys.readouterr().err


def test_live_goes_on_until_ctrl_c_and_leaves_no_old_numbers_standing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers: list[Now | BaseException] = [
        now(card()),
        RetryableError("no agent answers at c:1"),
        now(card(), node="gpu-18"),
        KeyboardInterrupt(),
    ]

    def ask(address: str) -> Now:
        answer = answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    monkeypatch.setattr(top, "ask", ask)
    monkeypatch.setattr("flopwatch.cli.top.time.sleep", lambda seconds: None)
    shown: list[str] = []
    silence = top_view.silence

    def noted(text: str) -> Text:
        shown.append(text)
        return silence(text)

    monkeypatch.setattr(top_view, "silence", noted)
    monkeypatch.setenv("TERM", "xterm")
    terminal = Console(file=io.StringIO(), force_terminal=True, width=80, height=24)
    monkeypatch.setattr(top, "Console", lambda **options: terminal)
    assert app.run(["top", "--agent", "c:1"]) == 130
    assert shown == ["no agent answers at c:1"]
    assert isinstance(terminal.file, io.StringIO)
    written = terminal.file.getvalue()
    assert written.index("gpu-17") < written.index("no agent answers") < written.index("gpu-18")
    assert written.endswith("\x1b[?25h\x1b[?1049l")


def test_a_real_agent_on_a_fake_driver_is_shown_without_escape_codes(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    lib = build(tmp_path_factory.getbasetemp() / "fakenvml")
    script = Script(tmp_path / "script.txt")
    gpm = {2: 90, 5: 45, 10: 30}
    script.write(device(0, gpm=gpm, sm_clock_mhz=1755), device(1, gpm=gpm))
    variables = {**processes.environment(), **env(lib, script)}
    variables["FLOPWATCH_METRICS__DCGM_NAMES"] = "true"
    variables["FLOPWATCH_SOCKET"] = str(tmp_path / "jobs.sock")
    arguments = processes.agent("127.0.0.1:1", tmp_path / "data", cluster="c", node="n")
    with processes.running(*arguments, log=tmp_path / "log", env=variables) as running:

        def address() -> str | None:
            return next(
                (w.partition("=")[2] for w in running.said().split() if w.startswith("address=")),
                None,
            )

        where = processes.awaited(address, "the address of /metrics")

        def counted() -> bool:
            cards = top.ask(where).cards
            return len(cards) == 2 and all("sm_active_ratio" in card.values for card in cards)

        processes.awaited(counted, "two cards with counters")
        plain = processes.done("top", "--agent", where)
        assert (plain.returncode, plain.stderr) == (0, "")
        assert "\x1b" not in plain.stdout
        assert "18:00.0" in plain.stdout
        assert "43.2" in plain.stdout
        said = json.loads(processes.done("top", "--json", "--agent", where).stdout)
        assert msgspec.convert(said, Now).driver_state == "ok"
        metrics = httpx.get(f"http://{where}/metrics", trust_env=False).text
        for name in ("flopwatch_card_power_watts", "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE"):
            assert metrics.count(f"\n{name}{{") == 2
        assert 'flopwatch_source_coverage_ratio{source="nvml"}' in metrics
