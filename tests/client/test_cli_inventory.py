"""`flopwatch inventory` and `flopwatch agents`, against an API that says what it is told to."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from fake_api import Answering, answering
from flopwatch.cli.agents import _certificate, _short
from flopwatch.cli.app import run

H100 = "NVIDIA H100 80GB HBM3"


def card(node: str, slot: str, **more: Any) -> dict[str, Any]:
    return {
        "cluster": "atlas", "node": node, "slot": slot, "sku": H100, "serial": None,
        "device_kind": "gpu", "simulated": False,
    } | more  # fmt: skip


def agent(node: str, version: str, seconds: int = 3, **more: Any) -> dict[str, Any]:
    return {
        "cluster": "atlas", "node": node, "version": version, "simulated": False, "left": False,
        "heard": (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat(), "driver_state": "ok",
        "spool_batches": 0, "rows_dropped": 0, "clock_skew_ms": 20,
    } | more  # fmt: skip


ANSWERS: dict[str, Any] = {
    "/api/v1/reported": {
        "truncated": False,
        "slots": [
            *(card("n0", f"0000:{i:02x}:00.0") for i in range(2)),
            card("stray", "0000:00:00.0"),
            card("sim-0", "0", cluster="sim", simulated=True),
            card("host", "cpu0", device_kind="cpu"),
        ],
    },
}


def answer(path: str) -> Any:
    """What the API says now."""
    if path != "/api/v1/agents":
        return ANSWERS[path]
    return {
        "agents": [
            agent("n0", "0.2.0", collector="east/7"),
            agent("n1", "0.1.0", seconds=600, spool_batches=40, driver_state="unresponsive"),
            agent("n2", "0.1.0", seconds=600, left=True),
        ]
    }


class _Api(Answering):
    def do_GET(self) -> None:
        self.say(200, answer(self.path.partition("?")[0]))


@pytest.fixture(scope="module")
def api() -> Iterator[str]:
    with answering(_Api) as url:
        yield url


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "inventory.toml"


def slurm(tmp_path: Path, gres: str = "gpu:h100:2") -> str:
    path = tmp_path / "sinfo.json"
    path.write_text(json.dumps({"nodes": [{"name": "n0", "state": "idle", "gres": gres}]}))
    return str(path)


def test_slurms_cards_get_the_names_their_agents_use(
    api: str, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["inventory", "import", slurm(tmp_path), "--from", "slurm", "--file", str(file)]
    assert run([*asked, "--api", api]) == 2
    assert "--cluster: name the cluster" in capsys.readouterr().err
    asked += ["--cluster", "atlas", "--api", api]
    assert run(asked) == 0
    assert "2 slots added, 0 were there" in capsys.readouterr().out
    assert 'slots = ["0000:00:00.0", "0000:01:00.0"]' in file.read_text()
    assert run(asked) == 0
    assert "0 slots added, 2 were there" in capsys.readouterr().out


def test_a_node_whose_slots_nobody_can_name_is_refused(
    api: str, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [
        "inventory",
        "import",
        slurm(tmp_path, "gpu:8"),
        "--from",
        "slurm",
        "--cluster",
        "atlas",
    ]
    asked += ["--file", str(file), "--api", api]
    assert run(asked) == 2
    assert "n0 has 8 cards and its agent reports 2" in capsys.readouterr().err
    assert run([*asked, "--slots", "0-3"]) == 2
    assert "--slots: names 4 slots, and n0 has 8 cards" in capsys.readouterr().err
    assert not file.exists()
    assert run([*asked, "--slots", "0-7", "--sku", H100, "--state", "expected"]) == 0
    assert 'slots = "[0-7]"' in file.read_text()
    assert 'state = "expected"' in file.read_text()


def test_a_table_comes_from_a_file_or_from_standard_input(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table = io.TextIOWrapper(io.BytesIO(f"node,slot,sku\nn[0-3],0-7,{H100}\n".encode()))
    monkeypatch.setattr(sys, "stdin", table)
    asked = ["inventory", "import", "-", "--from", "csv", "--cluster", "atlas", "--file", str(file)]
    assert run(asked) == 0
    assert "32 slots added" in capsys.readouterr().out
    assert run(["inventory", "list", "--file", str(file)]) == 0
    shown = capsys.readouterr().out
    assert ("in_service" in shown, "32" in shown) == (True, True)
    other = file.with_name("other.csv")
    other.write_text("node,slot,sku\nn0,0,A100\n")
    assert run([*asked[:2], str(other), *asked[3:]]) == 1
    assert "n0 0: the file says sku" in capsys.readouterr().out
    assert run([*asked[:2], "/no/such", *asked[3:]]) == 2
    assert "SOURCE: /no/such cannot be read" in capsys.readouterr().err


def test_slots_move_on_from_state_to_state(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(
        '[[slot]]\ncluster = "atlas"\nnodes = "n[0-1]"\nslots = "0-1"\nstate = "expected"\n'
    )
    move = ["inventory", "set", "n0", "--cluster", "atlas", "--file", str(file)]
    assert run([*move, "--state", "onboarding", "--slots", "1"]) == 0
    assert "1 slots are onboarding from now on" in capsys.readouterr().out
    assert run([*move, "--state", "onboarding"]) == 0
    assert "1 slots are onboarding from now on" in capsys.readouterr().out
    assert run(["inventory", "list", "--file", str(file), "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert sum(s["state"] == "onboarding" for s in listed) == 2
    assert run([*move[:2], "n7", *move[3:], "--state", "retired"]) == 2
    assert "NODES: 'n7' is not in cluster 'atlas'" in capsys.readouterr().err
    assert run([*move, "--state", "retired", "--slots", "9"]) == 2
    assert "slot '9' of node 'n0'" in capsys.readouterr().err


def test_a_difference_is_bad_news(api: str, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    head = '[[slot]]\ncluster = "atlas"\n'
    same = head + 'nodes = ["n0"]\nslots = ["0000:00:00.0", "0000:01:00.0"]\n'
    file.write_text(same + head + 'nodes = "n1"\nslots = "0-7"\n')
    asked = ["inventory", "diff", "--file", str(file), "--api", api]
    assert run(asked) == 1
    shown = capsys.readouterr().out
    assert ("missing" in shown, "0 of 8" in shown, "unknown" in shown) == (True, True, True)
    assert run([*asked, "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert len(said["differences"]) == 9
    assert {"cluster": "atlas", "node": "n1", "owned": 8, "reporting": 0} in said["counts"]
    file.write_text(same + head + 'nodes = "stray"\nslots = ["0000:00:00.0"]\n')
    assert run(asked) == 0
    assert (
        "3 slots, and everything that reports is as the inventory says" in capsys.readouterr().out
    )


def test_a_certificate_that_was_not_renewed_in_time_is_marked() -> None:
    now = datetime(2026, 11, 23, tzinfo=UTC)

    def left(days: float) -> str:
        ends = now + timedelta(days=days)
        said = {
            "certificate_starts": (ends - timedelta(days=7)).isoformat(),
            "certificate_expires": ends.isoformat(),
        }
        return _certificate(said, now)

    assert [left(6.3), left(1.75), left(1.4), left(-1)] == ["90%", "25%", "▲ 20%", "▲ 0%"]
    assert _certificate({}, now) == "—"


def test_agents_are_shown_one_by_one_and_by_version(
    api: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["agents", "--api", api]) == 0
    shown = capsys.readouterr().out
    assert ("0.2.0" in shown, "left" in shown, "unresponsive" in shown) == (True, True, True)
    assert run(["agents", "--by", "version", "--json", "--api", api]) == 0
    assert json.loads(capsys.readouterr().out) == [
        {"version": "0.1.0", "agents": 2, "late": 1, "left": 1, "behind": 1},
        {"version": "0.2.0", "agents": 1, "late": 0, "left": 0, "behind": 0},
    ]
    assert run(["agents", "--by", "driver", "--api", api]) == 0
    assert "unresponsive" in capsys.readouterr().out
    assert "east" in shown  # they are not all the same collector's
    assert run(["agents", "--by", "collector", "--json", "--api", api]) == 0
    groups = json.loads(capsys.readouterr().out)
    assert [(of["collector"], of["agents"]) for of in groups] == [(None, 2), ("east/7", 1)]
    names = {None, "", "a/1/x", "b/1/y", "b/2/z"}
    assert sorted(_short(names).values()) == ["a", "b/1", "b/2", "—", "—"]
    assert run(["agents", "--by", "colour", "--api", api]) == 2
