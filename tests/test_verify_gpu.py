"""bench/gpu/verify, run as a command on the fake driver: what it writes, and that its checks can fail."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

import psutil
import pytest

ROOT: Final = Path(__file__).resolve().parent.parent
VERIFY: Final = ROOT / "bench" / "gpu" / "verify"
STEM: Final = "fake-verify-nvidia-h100-80gb-hbm3-595.58.03-"
HALF: Final = ("--fake-line", "device 0 gpm 5 40", "--fake-line", "device 0 gpm 7 40")


def command(out: Path, only: str, *flags: str) -> list[str]:
    fake = ("--fake", "--device", "cpu", "--quick")
    return [str(VERIFY), *fake, "--out", str(out), "--only", only, *flags]


def verify(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHON": sys.executable}
    return subprocess.run(arguments, capture_output=True, text=True, env=environment, check=False)


def report(out: Path) -> dict[str, Any]:
    [path] = out.glob(f"{STEM}*.json")
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def checks(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {check["name"]: check for check in found["checks"]}


@pytest.fixture(scope="module")
def everything(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A run of most checks; the other dtypes are the same code."""
    out = tmp_path_factory.mktemp("verify")
    only = (
        "record,gemm-bf16,gemm-int8,cycles,tensor,bandwidth,nobody,probe,intervals,zeros,latency,cost,"
        "training,fma,transfer,calibration,screens"
    )
    return out, verify(command(out, only))


def test_every_check_agrees_with_a_driver_that_counts_right(
    everything: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    out, done = everything
    statuses = {name: check["status"] for name, check in checks(report(out)).items()}
    assert set(statuses.values()) == {"agrees"}, done.stdout
    assert len(statuses) == 18
    assert done.returncode == 0
    assert "every check ran and agrees" in done.stdout


def test_the_report_says_what_ran_where_and_when_and_names_no_piece_of_hardware(
    everything: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    found = report(everything[0])
    assert set(found) == {
        *("format", "driver", "card", "date", "command", "quick", "versions", "agrees", "checks"),
        "tolerances",
    }
    assert found["driver"] == "fake"
    assert found["card"]["sku"] == "NVIDIA H100 80GB HBM3"
    assert found["command"].startswith("bench/gpu/verify --fake")
    for check in found["checks"]:
        assert set(check) == {"name", "status", "seconds", "findings", "values", "error"}
        for finding in check["findings"]:
            assert set(finding) == {"name", "seen", "expected", "tolerance", "agrees"}
            assert finding["tolerance"] in (None, *found["tolerances"])
    assert all(tolerance["why"] for tolerance in found["tolerances"].values())
    assert "uuid" not in json.dumps(found)


def test_the_page_for_readers_says_that_the_driver_was_fake(
    everything: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    out, done = everything
    [page] = out.glob(f"{STEM}*.md")
    text = page.read_text(encoding="utf-8")
    assert "**driver: fake.**" in text
    assert (
        "| gemm-bf16 | bf16 8192x8192x8192: kappa (known / counted FLOPs) | 0.9 to 1.05 |" in text
    )
    assert "driver: fake" in done.stdout
    assert "[1/17] record:" in done.stderr


def test_the_known_and_the_counted_flops_are_the_same_to_a_percent(
    everything: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    phases = checks(report(everything[0]))["gemm-bf16"]["values"]["phases"]
    assert [phase["kappa"] for phase in phases] == [pytest.approx(1.0, abs=0.02)] * 5
    assert [phase["hfu"] for phase in phases] == [pytest.approx(0.8 * 1755 / 1830, abs=0.01)] * 5


def test_a_training_step_is_timed_with_the_agent_and_without(
    everything: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    values = checks(report(everything[0]))["training"]["values"]
    assert [set(pair) for pair in values["step_seconds"]] == [{"with", "without"}] * 2
    estimate, low, high = values["slow_down_percent"]
    assert low <= estimate <= high


def test_the_recording_can_be_replayed_and_has_no_serial_number(
    everything: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    [path] = everything[0].glob("fake-nvml-*.json")
    calls = json.loads(path.read_text(encoding="utf-8"))["devices"][0]["calls"]
    assert calls["nvmlDeviceGetSerial"][0]["value"] == "0" * 13
    assert {answer["args"][0] for answer in calls["nvmlGpmMetricsGet"]} >= {2, 5, 7, 248, 250}


def test_counters_that_read_half_disagree(tmp_path: Path) -> None:
    done = verify(command(tmp_path, "gemm-int8", *HALF, "--fake-line", "device 0 gpm 9 40"))
    assert done.returncode == 1
    found = checks(report(tmp_path))["gemm-int8"]
    assert found["status"] == "disagrees"
    assert found["values"]["phases"][0]["kappa"] == pytest.approx(2.0, rel=0.02)
    told = r"kappa \(known / counted FLOPs\): expected 0\.9 to 1\.05, seen (2|1\.9)"
    assert re.search(told, done.stdout)


def test_cycle_counters_out_of_step_with_the_percentage_disagree(tmp_path: Path) -> None:
    done = verify(command(tmp_path, "cycles", *HALF))
    assert done.returncode == 1
    wrong = [f["name"] for f in checks(report(tmp_path))["cycles"]["findings"] if not f["agrees"]]
    assert wrong == ["the agent's own estimator", "250/248 against metric 5"]


def test_a_card_that_computes_slowly_and_wrongly_or_copies_slowly_disagrees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKECUDA", "efficiency=0.94,corrupt_block=3,copy=2e12,read=3e12,write=2e12")
    done = verify(command(tmp_path, "tensor,bandwidth"))
    assert done.returncode == 1
    found = checks(report(tmp_path))
    wrong = [f["name"] for f in found["tensor"]["findings"] if not f["agrees"]]
    assert wrong == [
        f"{dtype}: {what}"
        for dtype in ("bf16", "fp16")
        for what in ("of the peak at the measured clock", "bit for bit what the host computes")
    ]
    assert found["bandwidth"]["findings"][0]["seen"] == pytest.approx(3.0 / 3.35, rel=1e-3)
    assert found["bandwidth"]["status"] == "disagrees"


def test_a_dtype_on_another_pipe_and_a_refused_sample_disagree(tmp_path: Path) -> None:
    refused = ("--fake-line", "error nvmlGpmSampleGet NO_PERMISSION")
    done = verify(command(tmp_path, "nobody,gemm-int8", *refused))
    assert done.returncode == 1
    found = checks(report(tmp_path))
    assert found["nobody"]["status"] == "disagrees"
    assert {f["name"]: f["seen"] for f in found["gemm-int8"]["findings"]}[
        "int8: counters that move"
    ] == "none"


def test_a_driver_that_hangs_costs_its_check_and_no_other(tmp_path: Path) -> None:
    hang = ("--fake-line", "hang nvmlDeviceGetFieldValues deaf", "--check-seconds", "20")
    done = verify(command(tmp_path, "record,nobody", *hang))
    assert done.returncode == 1
    found = checks(report(tmp_path))
    assert found["record"]["status"] == "failed"
    assert "killed at its deadline of 20 s" in found["record"]["error"]
    assert found["nobody"]["status"] == "agrees"


def test_a_failing_check_is_told_with_its_place_in_the_code(tmp_path: Path) -> None:
    lost = ("--fake-line", "error nvmlDeviceGetFieldValues UNINITIALIZED")
    done = verify(command(tmp_path, "latency", *lost))
    assert done.returncode == 1
    error = checks(report(tmp_path))["latency"]["error"]
    assert error.startswith("DriverUnusable: nvmlDeviceGetFieldValues answered 1 (library.py:")


def test_a_run_that_is_killed_leaves_its_results_and_no_process(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHON": sys.executable}
    running = subprocess.Popen(
        command(tmp_path, "record,gemm-bf16"), env=environment, stderr=subprocess.PIPE, text=True
    )
    assert running.stderr is not None
    next(line for line in running.stderr if "gemm-bf16" in line)
    below: list[psutil.Process] = []
    while len(below) < 3:  # the check, its load, its driver child
        below = psutil.Process(running.pid).children(recursive=True)
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    running.wait()
    _, alive = psutil.wait_procs(below, timeout=20)
    assert alive == []
    assert [check["name"] for check in report(tmp_path)["checks"]] == ["card", "record"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--device", "cpu"], "--device cpu and --fake go together"),
        (["--fake"], "--device cpu and --fake go together"),
        (["--fake", "--device", "cpu"], "--fake needs --out"),
        (["--fake", "--device", "cpu", "--out", "docs/measured"], "--fake never writes into docs/"),
        (["--device", "gpu7"], "--device takes cuda:N"),
        (["--only", "kernels"], "--only: unknown check 'kernels'; the nearest known is"),
        (["--quik"], "unrecognized arguments: --quik; the nearest known is --quick"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(arguments: list[str], says: str) -> None:
    environment = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run(
        [str(VERIFY), *arguments],
        capture_output=True,
        text=True,
        env=environment,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert says in done.stderr


def test_missing_modules_are_named_in_one_line(tmp_path: Path) -> None:
    # An interpreter without its site packages has nothing but the standard library.
    done = subprocess.run(
        [sys.executable, "-S", "-I", str(VERIFY.with_suffix(".py"))],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("verify: missing: torch (package torch), pynvml (package nvidia-")
    assert done.stderr.count("\n") == 1


def test_a_host_without_a_driver_is_told_so(tmp_path: Path) -> None:
    done = verify([str(VERIFY), "--out", str(tmp_path)])
    assert done.returncode == 2
    assert "verify: no card to test: DriverUnusable" in done.stderr
