"""`flopwatch probe`: what it runs, leaves out, prints, keeps and exits with."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fakenvml import Script, build, device, env
from flopwatch.cli import app, probe_run
from flopwatch_agent.calibrations import Calibrations
from flopwatch_agent.ceilings import Ceilings
from flopwatch_agent.probing.guard import Order, Outcomes
from flopwatch_agent.probing.inbox import Inbox, Record
from flopwatch_kernels import peaks, probe
from flopwatch_kernels.goldens import Goldens
from flopwatch_kernels.messages import Mark, ProbeResult, Progress
from flopwatch_kernels.probe import ProbeError, ProbeKind
from probe_results import H100, UUID, result

FLIPPING = """
import sys
from flopwatch_kernels import sdc
from flopwatch_kernels.child import live

calls = 0

def flipped(a_mk, b_kn, dtype):
    global calls
    calls += 1
    product = sdc.library_product(a_mk, b_kn, dtype)
    if calls == 4:
        product[200, 77] += 2
    return product

sys.exit(live(sys.argv[1:], lambda spec, tell: sdc.measure(spec, tell, flipped)))
"""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the command asks of probes, which answer at once."""
    calls: list[dict[str, Any]] = []

    def run_probe(
        *, on_progress: Callable[[Progress], None] | None = None, **arguments: Any
    ) -> ProbeResult:
        calls.append(arguments)
        if arguments["dtype"] == "fp8":
            raise ProbeError("torch cannot multiply fp8 on this device")
        if on_progress is not None:
            on_progress(Progress(text="8192x8192x8192", done=1, total=1))
        sustained = arguments["sustained"]
        return result(arguments["kind"], arguments["dtype"], device="cpu", sustained=sustained)

    monkeypatch.setattr(probe_run, "run_probe", run_probe)
    return calls


def test_all_on_a_processor_runs_what_it_can_and_says_what_it_left_out(
    asked: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.run(["probe"]) == 0
    assert [(call["kind"], call["dtype"]) for call in asked] == [
        ("gemm", "fp32"),
        ("sdc", "bf16"),
        ("bandwidth", None),
    ]
    told = capsys.readouterr().out
    assert "left out: tensor, fma, pcie, p2p, launch: a processor has none" in told
    assert "798 TFLOP/s" in told


def test_a_card_s_table_fits_80_columns(
    asked: list[dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    guarded(monkeypatch, lambda order: result(order.kind, order.dtype))
    assert app.run(["probe", "--device", UUID]) == 0
    told = capsys.readouterr().out
    rows = {line.split()[0]: line for line in told.splitlines() if line.strip()}
    assert [len(line) <= 80 for line in told.splitlines()] == [True] * len(told.splitlines())
    assert rows["gemm"].split() == (
        ["gemm", "bf16", "798", "TFLOP/s", "780–812", "0.4", "80.7", "86.0", "1,755", "690"]
    )
    assert "3.01 TB/s" in rows["bandwidth"]
    assert "3.10 µs" in rows["launch"]
    assert "0 wrong" in rows["sdc"]
    assert "left out: p2p: it copies between two cards: --peer cuda:N" in told
    assert asked == []


def guarded(
    monkeypatch: pytest.MonkeyPatch, measure: Callable[[Order], ProbeResult | None]
) -> list[Order]:
    """Cards that are probed under guard, but measured by `measure`; returns what was ordered."""
    orders: list[Order] = []

    class Guard:
        def __init__(self, clock: object, measure: object) -> None: ...

        def run(self, order: Order, on_progress: object) -> Outcomes:
            orders.append(order)
            found = measure(order)
            record = Record(slot="0", start_unix_ms=1, kind=order.kind, reason="pid 7 came")
            return Outcomes(record=record, result=found)

    monkeypatch.setattr(probe_run, "Guard", Guard)
    return orders


def test_a_card_is_probed_by_hand_under_the_agent_s_lock_and_into_its_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    orders = guarded(monkeypatch, lambda order: result(order.kind, order.dtype))
    arguments = ["probe", "--kind", "gemm", "--device", "cuda:1", "--save", str(tmp_path)]
    assert app.run([*arguments, "--sustained", "--wall", "33", "--dtype", "fp16,bf16"]) == 0
    assert [(order.device, order.policy, order.dtype) for order in orders] == [
        ("cuda:1", "hand", "fp16"),
        ("cuda:1", "hand", "bf16"),
    ]
    assert all(order.data == str(tmp_path) and order.wall_seconds == 33 for order in orders)
    assert all(order.sustained and order.locks for order in orders)


def test_a_card_that_somebody_came_to_is_an_error_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    guarded(monkeypatch, lambda order: None)
    assert app.run(["probe", "--kind", "gemm", "--device", "cuda:1"]) == app.WRONG_USAGE
    assert "flopwatch: pid 7 came" in capsys.readouterr().err


def test_one_dtype_that_cannot_run_does_not_stop_the_others(
    asked: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.run(["probe", "--kind", "gemm", "--dtype", "all", "--json"]) == 0
    told = capsys.readouterr()
    dtypes = [each["dtype"] for each in json.loads(told.out)]
    assert dtypes == ["fp32", "fp64", "bf16", "fp16", "int8"]
    assert "left out: gemm fp8: torch cannot multiply fp8 on this device" in told.err


def test_one_kind_is_one_object_and_all_of_them_are_a_list(
    asked: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.run(["probe", "--kind", "gemm", "--json"]) == 0
    one = json.loads(capsys.readouterr().out)
    assert (one["kind"], one["median_flops"], one["outcome"]) == ("gemm", 798e12, "ok")
    assert app.run(["probe", "--kind", "all", "--json"]) == 0
    assert [each["kind"] for each in json.loads(capsys.readouterr().out)] == [
        "gemm",
        "sdc",
        "bandwidth",
    ]


def test_results_are_kept_for_the_agent(asked: list[dict[str, Any]], tmp_path: Path) -> None:
    assert app.run(["probe", "--save", str(tmp_path)]) == 0
    known = Ceilings(tmp_path)
    known.refresh()
    assert known.flops == {("cpu", "fp32"): 798e12}
    for _ in range(2):
        assert app.run(["probe", "--kind", "sdc", "--save", str(tmp_path)]) == 0
    kept = msgspec.json.decode((tmp_path / "goldens.json").read_bytes(), type=Goldens)
    [golden] = kept.goldens
    assert (golden.product, golden.devices, golden.known) == ("bb", ("cpu",), False)


def test_a_card_that_differs_from_hashes_kept_here_is_corrupt(
    asked: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.run(["probe", "--kind", "sdc", "--save", str(tmp_path)]) == 0
    path = tmp_path / "goldens.json"
    told = path.read_text().replace('"bb"', '"cc"').replace('"provenance": ""', '"provenance": "x"')
    path.write_text(told)
    assert app.run(["probe", "--kind", "sdc", "--save", str(tmp_path)]) == app.BAD_NEWS
    assert "sdc bf16: corrupt: the seeded bf16 product hashes to bb and to cc" in " ".join(
        capsys.readouterr().out.split()
    )
    path.write_text("{")
    assert app.run(["probe", "--kind", "sdc", "--save", str(tmp_path)]) == app.WRONG_USAGE


def test_a_wrong_element_in_a_real_screen_is_exit_code_1_and_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "flipping_sdc.py").write_text(FLIPPING)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    kind = ProbeKind(name="sdc", module="flipping_sdc", dtypes=("bf16",), on_cpu=True, torch=True)
    monkeypatch.setattr(probe, "PROBE_KINDS", (kind,))
    assert app.run(["probe", "--kind", "sdc", "--json"]) == app.BAD_NEWS
    said = json.loads(capsys.readouterr().out)
    assert (said["outcome"], said["median_value"], said["unit"]) == ("corrupt", 1, "mismatches")
    assert "element (200, 77) in tile (1, 0)" in said["reason"]
    assert "quarantine cpu" in said["reason"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--device", "gpu7"], "--device takes cpu, cuda:N or a card's UUID"),
        (["--kind", "gem"], "unknown probe kind 'gem': --kind takes gemm, "),
        (["--kind", "tensor"], "a CPU has no tensor probe"),
        (["--kind", "calibrate"], "a processor has no counters to calibrate"),
        (["--plot", "x.png"], "--plot x.png: it draws SVG; name it x.svg"),
        (["--policy", "sometimes"], "--policy 'sometimes': one of idle, "),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.run(["probe", *arguments]) == app.WRONG_USAGE
    assert said in capsys.readouterr().err


def test_results_are_drawn(asked: list[dict[str, Any]], tmp_path: Path) -> None:
    assert app.run(["probe", "--kind", "gemm", "--plot", str(tmp_path / "p.svg")]) == 0
    assert (tmp_path / "p.svg").read_text().startswith("<svg ")
    assert app.run(["probe", "--kind", "gemm", "--plot", str(tmp_path / "no/p.svg")]) == 2


def test_a_calibration_by_hand_reads_the_card_s_counters_beside_the_load(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    script = Script(tmp_path / "script.txt").write(
        device(0, uuid=UUID, sm_clock_mhz=1755, gpm={2: 98, 5: 80, 7: 80, 9: 0})
    )
    for name, text in env(build(tmp_path / "lib"), script).items():
        monkeypatch.setenv(name, text)
    monkeypatch.setenv("FLOPWATCH_SOCKET", str(tmp_path / "run/jobs.sock"))
    found = peaks.find(H100)
    assert found is not None
    peak = found.peaks["bf16"]
    rate = 0.8 * 1755 / (peak.ref_clock_mhz or 0.0) * peak.dense_flops

    def load(*, on_mark: Callable[[Mark], None], **arguments: Any) -> ProbeResult:
        assert arguments["stop_reason"]() is None
        began_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        while (ns := time.clock_gettime_ns(time.CLOCK_BOOTTIME) - began_ns) < 5_000_000_000:
            flops = 0.98 * rate * ns / 1e9
            on_mark(Mark(boottime_ns=began_ns + ns, flops=flops, shape=(8192, 8192, 8192)))
            time.sleep(0.05)
        return result("calibrate", "bf16")

    monkeypatch.setattr(probe_run, "run_probe", load)
    arguments = ["probe", "--kind", "calibrate", "--device", UUID, "--save", str(tmp_path / "data")]
    assert app.run(arguments) == 0
    told = capsys.readouterr().out
    known = Calibrations(tmp_path / "data")
    known.refresh()
    kappa = known.known[UUID, "595.58.03", "bf16"].kappa
    assert kappa is not None
    assert kappa == pytest.approx(0.98, rel=0.02)
    (record,) = Inbox(tmp_path / "data").take()
    assert (record.kind, record.dtype, record.kappa) == ("calibrate", "bf16", kappa)
    row = next(line for line in told.splitlines() if line.split()[:1] == ["bf16"])
    assert row.split() == ["bf16", f"{kappa:.3f}", "hmma", "—", "yes"]
