"""Acceptance of nodes, racks and pods: what stops it, what it keeps, and what it puts in service."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.console import Console

from fake_api import Answering, answering
from flopwatch.bringup.measured import beside_fleet, beside_peers, judged
from flopwatch.bringup.node import STAGES, Node, Probed, health, link
from flopwatch.bringup.stages import RESUME_MS, Check, Kept, load, passed, save
from flopwatch.cli import ceilings as ceilings_command
from flopwatch.cli.app import run
from flopwatch_agent.reading import Device, Process, Reading
from flopwatch_collector import inventory
from flopwatch_collector.ceilings import ceilings
from flopwatch_kernels.messages import Moment, ProbeResult
from flopwatch_proto.errors import UsageError
from flopwatch_proto.rows import SlotState

H100 = "NVIDIA H100 80GB HBM3"
NOON = 1_793_534_400_000


def result(kind: str = "gemm", flops: float = 700e12, **more: Any) -> ProbeResult:
    fields: dict[str, Any] = dict.fromkeys(ProbeResult.__struct_fields__)
    fields |= {
        "kind": kind, "device": "cuda:GPU-0", "sku": H100, "dtype": "bf16", "iterations": 50,
        "median_flops": flops, "seconds": 10.0, "sustained": False, "shapes": (), "moments": (),
        "throttle_seconds": {}, "started_at_unix_ns": NOON * 10**6, "outcome": "ok", "detail": {},
        "of_datasheet": flops / 989e12,
    } | more  # fmt: skip
    return msgspec.convert(fields, ProbeResult)


def card(index: int = 0, **more: Any) -> Reading:
    device = Device(
        slot=f"0000:{index:02x}:00.0", kind="gpu", sku=H100, uuid=f"GPU-{index}", serial=f"{index}"
    )
    fields = {"processes": (), "values": {"pcie_link_width": 16.0, "pcie_link_width_limit": 16.0}}
    return Reading(device=device, taken_unix_ms=NOON, boottime_ns=1, **(fields | more))


class Fake:
    """A host that says what a test wants."""

    cpu = rehearsal = False

    def __init__(self, **probes: Probed) -> None:
        self.probes = probes
        self.probed: list[tuple[str, str]] = []
        self.checks = [passed("driver")]
        self.bus: Sequence[str] | None = None
        self.owned: Sequence[inventory.Slot] | None = None
        self.answer: Mapping[str, Any] | None = None

    def driver(self) -> list[Check]:
        return self.checks

    def pci(self) -> Sequence[str] | None:
        return self.bus

    def readings(self) -> Sequence[Reading]:
        return [card(0), card(1)]

    def inventory(self) -> Sequence[inventory.Slot] | None:
        return self.owned

    def probe(self, card: Reading, kind: str, peer: Reading | None, *, sustained: bool) -> Probed:
        self.probed.append((card.device.slot, kind))
        good = result(kind, sustained=sustained, of_datasheet=0.9)
        return self.probes.get(kind, (good, ""))

    def under_load(self, slot: str) -> Reading | None:
        return None

    def fleet(self) -> Mapping[str, Any] | None:
        return self.answer


def accepted(host: Fake, done: Kept | None = None) -> Node:
    kept = done or Kept()
    node = Node(host, lambda: NOON, kept.stages, kept.results)
    assert len(list(node.run(host.readings()))) <= node.steps(2)
    return node


def test_a_node_passes_stage_after_stage_and_says_so_of_each_card() -> None:
    node = accepted(Fake())
    assert node.passed
    assert tuple(stage.name for stage in node.stages) == STAGES
    assert node.stages[-1].outcome == "not_run"  # nobody named a collector
    records = node.records("595.58.03", NOON)
    assert [(r.kind, r.outcome, r.slot) for r in records] == [
        ("bringup", "ok", "0000:00:00.0"),
        ("bringup", "ok", "0000:01:00.0"),
    ]
    assert set(records[0].result) == set(STAGES)


def test_a_node_stops_at_the_first_stage_that_fails() -> None:
    wrong = result("sdc", 0.0, outcome="corrupt", reason="1 of 64 products is wrong")
    host = Fake(sdc=(wrong, ""))
    node = accepted(host)
    assert not node.passed
    assert node.stages[-1].name == "sdc"
    assert {kind for _, kind in host.probed} == {"sdc"}
    assert node.records(None, NOON)[0].reason == "sdc: sdc: 1 of 64 products is wrong"


def test_of_two_cards_the_bad_one_failed_and_the_other_one_is_not_finished() -> None:
    host = Fake()
    host.owned = [slot("n1", "0000:00:00.0"), slot("n1", "0000:01:00.0", sku="B200")]
    records = accepted(host).records(None, NOON)
    assert [record.outcome for record in records] == ["aborted", "failed"]
    assert records[0].reason == "not finished: counts failed beside it"
    assert records[1].reason == f"counts: is {H100!r}, and the inventory says 'B200'"


@pytest.mark.parametrize(
    ("bus", "owned", "text"),
    [
        (["0000:00:00.0"], None, "the driver lists it, and the PCI bus does not"),
        (["0000:00:00.0", "0000:01:00.0", "0000:02:00.0"], None, "the driver does not list it"),
        (None, ["0000:00:00.0"], "here, and not in the inventory"),
        (None, ["0000:00:00.0", "0000:01:00.0", "0000:02:00.0"], "in the inventory, and not here"),
    ],
)
def test_what_is_counted_differently_fails(
    bus: list[str] | None, owned: list[str] | None, text: str
) -> None:
    host = Fake()
    host.bus = bus
    host.owned = None if owned is None else [slot("n1", name) for name in owned]
    node = accepted(host)
    assert node.stages[-1].name == "counts"
    assert text in node.stages[-1].failures()[0].text


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"values": {"pcie_link_width": 8.0, "pcie_link_width_limit": 16.0}}, "x8 of x16"),
        ({"values": {"ecc_uncorrected_total": 2.0}}, "2 memory errors"),
        ({"values": {"remapped_rows_pending": 1.0}}, "reset it"),
        ({"values": {"remapped_rows_failed": 1.0}}, "remapping"),
        ({"processes": (Process(pid=7),)}, "process 7 is on it"),
        ({"alive": False, "failure": "gpu_is_lost"}, "gpu_is_lost"),
    ],
)
def test_a_card_that_is_not_well_fails(more: dict[str, Any], text: str) -> None:
    (check,) = health(card(0, **more))
    assert check.outcome == "fail"
    assert text in check.text
    assert health(card())[0].outcome == "pass"


def test_a_link_is_judged_under_load() -> None:
    slow = {"pcie_link_generation": 1.0, "pcie_link_generation_limit": 5.0}
    assert [check.outcome for check in link(card(values=slow))] == ["fail"]
    assert health(card(values=slow))[0].outcome == "pass"
    assert link(None) == []


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (result(flops=400e12), "at least 50.0 % is right"),
        (result(sustained=True, throttle_seconds={"thermal_hw": 2.0}), "slowed by heat for 2.0"),
        (
            result(
                sustained=True,
                moments=(
                    Moment(seconds=1, flops=700e12, clock_mhz=None, power_watts=None,
                           temperature_celsius=None),
                    Moment(seconds=9, flops=600e12, clock_mhz=None, power_watts=None,
                           temperature_celsius=None),
                ),
            ),
            "fell by 14.3 %",
        ),
    ],
)  # fmt: skip
def test_a_result_that_cannot_be_right_fails(found: ProbeResult, text: str) -> None:
    check = judged(found, "s")
    assert (check.outcome, text in check.text) == ("fail", True)
    assert judged(result(sustained=True), "s").outcome == "pass"


def test_a_card_behind_the_others_of_its_node_fails() -> None:
    results = {str(i): result(flops=700e12) for i in range(7)} | {"7": result(flops=650e12)}
    assert [check.card for check in beside_peers(results)] == ["7"]
    assert beside_peers({"0": result(flops=1.0), "1": result()}) == []


def probe(index: int, flops: float = 700e12, **more: Any) -> dict[str, Any]:
    return {
        "cluster": "atlas", "node": f"r1-n{index // 8}", "slot": f"0000:{index % 8:02x}:00.0",
        "start_unix_ms": NOON, "kind": "gemm", "dtype": "bf16", "sku": H100, "serial": f"{index}",
        "device_uuid": f"GPU-{index}", "driver_version": "595.58.03", "sustained": False,
        "median_flops": flops, "median_value": 0.0, "unit": "", "outcome": "", "reason": "",
        "simulated": False,
    } | more  # fmt: skip


def test_a_card_behind_its_fleet_or_its_past_fails_at_the_last_stage() -> None:
    fleet = [probe(i, 700e12 + 1e12 * (i % 3)) for i in range(9)]
    past = [probe(0, 760e12, start_unix_ms=NOON - i) for i in range(1, 5)]
    answer = ceilings([*fleet, *past])
    checks = beside_fleet([("a", result(flops=600e12)), ("b", result(flops=701e12))], answer)
    assert [(c.card, c.outcome) for c in checks if c.outcome == "fail"] == [
        ("a", "fail"),
        ("a", "fail"),
        ("b", "fail"),  # near its fleet, and 7.8 % below what it did
    ]
    host = Fake()
    host.answer = ceilings([probe(i, 900e12, serial=f"x{i}", device_uuid="") for i in range(9)])
    node = accepted(host)
    assert node.stages[-1].name == "fleet"
    assert not node.passed


def test_what_passed_is_not_run_again_by_the_same_cards_within_a_day(tmp_path: Path) -> None:
    host = Fake(sdc=(None, "the driver does not answer"))
    first = accepted(host)
    cards = ("GPU-0", "GPU-1")
    path = tmp_path / "new" / "state.json"
    save(path, Kept(subject="n1", cards=cards, stages=tuple(first.stages)))
    kept = load(path)
    again = kept.still("n1", cards, NOON + 1)
    assert [stage.name for stage in again] == ["driver", "counts", "health"]
    host = Fake()
    assert accepted(host, replace_stages(kept, again)).passed
    assert host.probed[0] == ("0000:00:00.0", "sdc")
    assert kept.still("n1", ("GPU-0", "GPU-9"), NOON + 1) == ()
    assert kept.still("n2", cards, NOON + 1) == ()
    assert kept.still("n1", cards, NOON + RESUME_MS) == ()
    path.write_text("{")
    with pytest.raises(UsageError, match="not the state of a bring-up"):
        load(path)


def replace_stages(kept: Kept, stages: Any) -> Kept:
    return msgspec.structs.replace(kept, stages=stages)


# ---- racks and pods, against an API that says what it is told to


def slot(node: str, name: str, **more: Any) -> inventory.Slot:
    fields = {"sku": "", "serial": "", "device_kind": "gpu", "dtype": "bf16", **more}
    return inventory.Slot(
        cluster="atlas", node=node, slot=name, state=SlotState.ONBOARDING, from_unix_ms=0,
        to_unix_ms=None, **fields,
    )  # fmt: skip


class Answers:
    """What the API says."""

    def __init__(self) -> None:
        self.records: dict[tuple[str, str], dict[str, Any]] = {}
        self.probes: list[dict[str, Any]] = []
        for rack in (1, 2):
            for node in range(2):
                for place in range(2):
                    self.accept(f"r{rack}-n{node}", f"{place}")

    def accept(self, node: str, place: str, days: float = 0.1, **more: Any) -> None:
        start = datetime.now(UTC) - timedelta(days=days)
        self.records[node, place] = {
            "cluster": "atlas", "node": node, "slot": place, "start": start.isoformat(),
            "sku": H100, "serial": f"{node}{place}", "driver_version": "595.58.03",
            "outcome": "ok", "reason": None, "simulated": False,
        } | more  # fmt: skip
        self.probes = [p for p in self.probes if (p["node"], p["slot"]) != (node, place)]
        self.measure(node, place, 700e12)

    def measure(self, node: str, place: str, flops: float, **more: Any) -> None:
        self.probes.insert(
            0, probe(0, flops, node=node, slot=place, serial=f"{node}{place}", **more)
        )

    def __call__(self, path: str) -> Any:
        if path == "/api/v1/bringups":
            return {"bringups": list(self.records.values())}
        found = ceilings(self.probes)
        return found | {"truncated": False}


@pytest.fixture
def answers() -> Answers:
    return Answers()


@pytest.fixture
def api(answers: Answers) -> Iterator[str]:
    class Handler(Answering):
        def do_GET(self) -> None:
            self.say(200, answers(self.path.partition("?")[0]))

    with answering(Handler) as url:
        yield url


@pytest.fixture
def owned(tmp_path: Path) -> Path:
    path = tmp_path / "inventory.toml"
    path.write_text(
        '[[slot]]\ncluster = "atlas"\nnodes = ["r1-n[0-1]", "r2-n[0-1]"]\nslots = "0-1"\n'
        f'sku = "{H100}"\nstate = "onboarding"\n'
    )
    return path


def states(path: Path) -> set[tuple[str, str]]:
    now = datetime.now(UTC).timestamp() * 1000
    stands = [s for s in inventory.load(path) if s.to_unix_ms is None or s.to_unix_ms > now]
    return {(s.node, s.state.name.lower()) for s in stands}


def rack(owned: Path, api: str, *more: str) -> int:
    common = ("--cluster", "atlas", "--inventory", str(owned), "--api", api, "--json", *more)
    return run(["bringup", "rack", "r1", *common])


def test_a_rack_whose_cards_all_passed_is_in_service(
    owned: Path, api: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert rack(owned, api, "--judge-only") == 0
    assert states(owned) == {(f"r{r}-n{n}", "onboarding") for r in (1, 2) for n in (0, 1)}
    assert rack(owned, api) == 0
    assert states(owned) == {
        ("r1-n0", "in_service"),
        ("r1-n1", "in_service"),
        ("r2-n0", "onboarding"),
        ("r2-n1", "onboarding"),
    }
    said = json.loads(capsys.readouterr().out.rpartition("\n{\n")[2].join(("{", "")))
    assert said["passed"] is True
    assert [stage["name"] for stage in said["stages"]] == ["nodes", "alike", "ranked"]


@pytest.mark.parametrize(
    ("more", "stage", "text"),
    [
        ({"outcome": "failed", "reason": "sdc: 1 wrong"}, "nodes", "sdc: 1 wrong"),
        ({"days": 8.0}, "nodes", "8.0 days old"),
        ({"simulated": True}, "nodes", "simulated"),
        ({"driver_version": "580.1"}, "alike", "driver 580.1, and the rack has 595.58.03"),
        ({"sku": "NVIDIA H200"}, "alike", "the inventory says"),
    ],
)
def test_one_card_keeps_its_rack_out_of_service(
    owned: Path,
    api: str,
    answers: Answers,
    capsys: pytest.CaptureFixture[str],
    more: dict[str, Any],
    stage: str,
    text: str,
) -> None:
    answers.accept("r1-n1", "1", **more)
    assert rack(owned, api) == 1
    said = json.loads(capsys.readouterr().out)
    assert (said["stages"][-1]["name"], said["note"]) == (stage, None)
    wrong = [c for c in said["cards"] if not c["passed"]]
    assert [c["card"] for c in wrong] == ["r1-n1 1"]
    assert text in wrong[0]["reason"]
    assert ("r1-n0", "onboarding") in states(owned)


def test_a_card_without_acceptance_and_a_suspect_fail_their_rack(
    owned: Path, api: str, answers: Answers, capsys: pytest.CaptureFixture[str]
) -> None:
    answers.measure("r1-n0", "0", 0.0, kind="sdc", outcome="corrupt", reason="1 of 64 is wrong")
    assert rack(owned, api) == 1
    assert "corrupt: 1 × 1 of 64 is wrong" in capsys.readouterr().out
    del answers.records["r1-n0", "1"]
    assert rack(owned, api) == 1
    assert "no acceptance" in capsys.readouterr().out


def test_a_pod_stops_at_its_first_bad_rack_and_goes_on_from_there(
    owned: Path, api: str, answers: Answers, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def pod() -> Any:
        code = run(
            [
                *("bringup", "pod", "p1", "--racks", "r[1-2]", "--cluster", "atlas", "--json"),
                *("--inventory", str(owned), "--state", str(tmp_path / "pod.json"), "--api", api),
            ]
        )
        return code, json.loads(capsys.readouterr().out)

    answers.accept("r2-n0", "0", outcome="failed", reason="gemm: slow")
    code, said = pod()
    assert (code, [s["outcome"] for s in said["stages"]]) == (1, ["pass", "fail"])
    answers.accept("r2-n0", "0")
    for node in ("r2-n0", "r2-n1"):
        for place in ("0", "1"):
            answers.measure(node, place, 640e12, start_unix_ms=NOON + 1)
    code, said = pod()
    assert [s["before"] for s in said["stages"][:2]] == [True, False]
    assert (code, said["stages"][-1]["name"]) == (1, "level")
    assert "rack r2: gemm bf16 burst -4.5 %" in json.dumps(said["stages"][-1])
    assert ("r1-n0", "onboarding") in states(owned)
    for node in ("r2-n0", "r2-n1"):
        for place in ("0", "1"):
            answers.accept(node, place)
    code, said = pod()
    assert (code, len(states(owned))) == (0, 4)
    assert {state for _, state in states(owned)} == {"in_service"}


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("rack", "r9", "--cluster", "atlas"), "name its nodes: --nodes"),
        (("rack", "r1", "--cluster", "atlas", "--nodes", "r1-n[0-7]"), "'r1-n2' is not in"),
        (("node", "--device", "tpu"), "--device 'tpu': cards or cpu"),
    ],
)
def test_what_is_asked_wrongly_is_named(
    owned: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], text: str
) -> None:
    assert run(["bringup", *arguments, "--inventory", str(owned)]) == 2
    assert text in capsys.readouterr().err


# ---- ceilings


def test_ceilings_fit_into_80_columns_and_name_who_stands_out(
    api: str, answers: Answers, capsys: pytest.CaptureFixture[str]
) -> None:
    answers.probes = [probe(i, 700e12 + 1e12 * (i % 5), serial=f"16540{i:04}") for i in range(40)]
    answers.probes.append(probe(50, 640e12, serial="1654000050"))
    answers.probes.append(probe(51, 0.0, kind="sdc", outcome="corrupt", reason="1 of 64 is wrong"))
    console = Console(width=80, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(ceilings_command.view(answers("/api/v1/ceilings")))
    console.file.close()
    text = console.export_text()
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "1654000050" in text
    assert "8.8 % below 41 cards" in " ".join(text.split())
    assert "Drain its node now" in " ".join(text.split())
    assert run(["ceilings", "--api", api]) == 1
    capsys.readouterr()
    answers.probes = []
    assert run(["ceilings", "--api", api]) == 0
    assert "no results yet" in capsys.readouterr().out


def test_a_histogram_shows_every_bin_that_holds_a_card() -> None:
    assert ceilings_command.bars([0, 1, 800, 400]) == " ▁█▄"


# ---- the hook


HOOK = Path(__file__).parents[2] / "deploy/slurm/probe.sh"


def hook(tmp_path: Path, command: str, **more: str) -> tuple[int, str]:
    told = tmp_path / "told"
    stub = tmp_path / "stub"
    stub.write_text(f'#!/bin/sh\necho "$@" >{told}\n{command}\n')
    stub.chmod(0o755)
    env = {"FLOPWATCH_COMMAND": str(stub), "FLOPWATCH_PROBING_ENABLED": str(stub), **more}
    done = subprocess.run([HOOK, "epilog"], env=env, capture_output=True, check=False)
    return done.returncode, told.read_text() if told.exists() else ""


def test_a_hook_probes_the_jobs_cards_and_never_fails_it(tmp_path: Path) -> None:
    code, told = hook(tmp_path, "exit 7", SLURM_JOB_GPUS="0,3", FLOPWATCH_PROBE_SECONDS="9")
    assert code == 0
    assert told == (
        "probe --policy epilog --kind sdc --device 0,3 --wall 9 --save /var/lib/flopwatch\n"
    )
    assert hook(tmp_path, "sleep 60", SLURM_JOB_GPUS="0", FLOPWATCH_PROBE_SECONDS="1")[0] == 0


def test_a_hook_is_off_until_it_is_enabled_and_takes_no_odd_names(tmp_path: Path) -> None:
    absent = str(tmp_path / "absent")
    assert hook(tmp_path, "true", SLURM_JOB_GPUS="0", FLOPWATCH_PROBING_ENABLED=absent) == (0, "")
    assert hook(tmp_path, "true", SLURM_JOB_GPUS="0;reboot") == (0, "")
    assert hook(tmp_path, "true") == (0, "")


def test_a_probe_for_a_hook_ends_with_0_whatever_happens(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLOPWATCH_SOCKET", str(tmp_path / "run" / "jobs.sock"))
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    asked = ["probe", "--policy", "epilog", "--kind", "sdc", "--save", str(tmp_path / "data")]
    assert run([*asked, "--device", "0,GPU-7"]) == 0
    assert capsys.readouterr().err.count("not probed") == 2
    assert run([*asked, "--device", "0", "--policy", "never"]) == 2
