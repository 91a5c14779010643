"""`doctor`: facts stay facts, and only what should work can fail."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from flopwatch.cli import doctor, doctor_slurm, host
from processes import environment


def a_card(root: Path) -> None:
    version = root / "proc/driver/nvidia/version"
    version.parent.mkdir(parents=True)
    version.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.90\nGCC\n")
    (root / "dev").mkdir()
    (root / "dev/nvidia0").touch()
    library = root / "usr/lib/x86_64-linux-gnu"
    library.mkdir(parents=True)
    (library / "libnvidia-ml.so.1").touch()


def states(findings: list[doctor.Finding]) -> dict[str, str]:
    return {finding.name: finding.state for finding in findings}


def test_a_host_without_a_driver_has_nothing_that_should_work(tmp_path: Path) -> None:
    assert states(doctor.cards({}, dict, tmp_path)) == {"driver": "info"}


def test_a_card_that_answers_is_fine(tmp_path: Path) -> None:
    a_card(tmp_path)
    said = {"driver": "550.90", "cards": 8, "sku": "NVIDIA H100 80GB HBM3", "gpm": True}
    found = doctor.cards({}, lambda: said, tmp_path)
    assert states(found) == {"driver": "ok", "nvml": "ok", "gpm": "ok", "permissions": "ok"}
    assert found[1].text == "8 × NVIDIA H100 80GB HBM3, driver 550.90"


def test_a_driver_without_its_library_is_a_failure_with_advice(tmp_path: Path) -> None:
    a_card(tmp_path)
    (tmp_path / "usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1").unlink()
    found = doctor.cards({}, dict, tmp_path)
    assert states(found) == {"driver": "ok", "nvml": "failed"}
    assert found[-1].advice is not None


def test_a_driver_that_refuses_is_a_failure(tmp_path: Path) -> None:
    a_card(tmp_path)
    found = doctor.cards({}, lambda: {"error": "Driver/library version mismatch"}, tmp_path)
    assert found[-1].state == "failed"
    assert "mismatch" in found[-1].text


def test_no_gpm_is_a_fact_not_a_failure(tmp_path: Path) -> None:
    a_card(tmp_path)
    found = doctor.cards({}, lambda: {"cards": 1, "gpm": False}, tmp_path)
    assert states(found)["gpm"] == "info"


def test_a_library_that_somebody_named_counts_as_an_accelerator(tmp_path: Path) -> None:
    (tmp_path / "libnvidia-ml.so.1").touch()
    assert host.has_accelerator({"LD_LIBRARY_PATH": f":{tmp_path}"}, tmp_path / "root")
    assert not host.has_accelerator({}, tmp_path / "root")


def test_a_data_directory_that_cannot_be_written_is_a_failure(tmp_path: Path) -> None:
    assert doctor.writable(tmp_path / "made" / "later").state == "ok"
    (tmp_path / "file").touch()
    assert doctor.writable(tmp_path / "file" / "data").state == "failed"


def test_a_collector_is_only_missed_where_one_was_named() -> None:
    nobody = "http://127.0.0.1:9"
    assert states(doctor.collector(nobody, expected=True)) == {"collector": "failed"}
    assert states(doctor.collector(nobody, expected=False)) == {"collector": "info"}


def test_the_command_prints_json_and_fails_with_a_failure(tmp_path: Path) -> None:
    done = subprocess.run(
        (
            *(sys.executable, "-m", "flopwatch", "doctor", "--json"),
            *("--data", str(tmp_path), "--api", "http://127.0.0.1:9"),
        ),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=environment(),
    )
    said = json.loads(done.stdout)
    assert (done.returncode, said["healthy"]) == (1, False)
    failed = {f["name"] for f in said["findings"] if f["state"] == "failed"}
    assert failed - {"processes", "environments"} == {"collector"}  # those are this user's rights


def test_what_the_agent_may_not_see_of_jobs_is_told(tmp_path: Path) -> None:
    environ = {
        "FLOPWATCH_ALLOCATION__PROC": str(tmp_path),
        "FLOPWATCH_ALLOCATION__SLURM": "off",
        "FLOPWATCH_ALLOCATION__KUBERNETES": "off",
    }
    assert states(doctor.rights(environ))["processes"] == "failed"


def test_gres_conf_in_another_order_than_the_minors_is_told(tmp_path: Path) -> None:
    conf = tmp_path / "gres.conf"
    for text, state in (
        ("NodeName=n[1-2] Name=gpu Type=h100 File=/dev/nvidia[0-3,7]\n", "ok"),
        ("Name=gpu File=/dev/nvidia0\nName=gpu File=/dev/nvidia1\n", "ok"),
        ("Name=gpu File=/dev/nvidia[4-7,0-3]\n", "failed"),
        ("Name=gpu Type=a File=/dev/nvidia1\nName=gpu Type=b File=/dev/nvidia0\n", "failed"),
        ("NodeName=a Name=gpu File=/dev/nvidia1\nNodeName=b Name=gpu File=/dev/nvidia0\n", "ok"),
        ("# Name=gpu File=/dev/nvidia[1,0]\nAutoDetect=nvml\n", "ok"),
    ):
        conf.write_text(text)
        (found,) = doctor_slurm._order_of(conf)
        assert found[1] == state, text
    assert doctor_slurm._order_of(tmp_path / "nothing") == []


def test_a_host_without_a_slurm_conf_says_nothing_of_slurm(tmp_path: Path) -> None:
    assert doctor_slurm.slurm({"SLURM_CONF": str(tmp_path / "slurm.conf")}) == []
