"""The units, verified offline: systemd need not run for that."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

UNITS = Path(__file__).parents[2] / "systemd"
GATES = {"flopwatch-agent.service": 20, "flopwatch-collector.service": 12}
"""Highest exposure allowed, in tenths."""


@pytest.fixture(params=sorted(GATES))
def unit(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy whose command exists on every machine."""
    name: str = request.param
    text = (UNITS / name).read_text()
    copy = tmp_path / name
    copy.write_text(re.sub(r"(?m)^ExecStart=\S+", f"ExecStart={shutil.which('true')}", text))
    return copy


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_systemd_understands_every_line(unit: Path) -> None:
    done = run("systemd-analyze", "verify", "--man=no", str(unit))
    assert done.stderr == ""  # an unknown key is a line here, and exit code 0
    assert done.returncode == 0


def test_a_misspelt_key_would_be_noticed(unit: Path) -> None:
    unit.write_text(unit.read_text().replace("ProtectSystem=", "ProtectSytem="))
    assert "ProtectSytem" in run("systemd-analyze", "verify", "--man=no", str(unit)).stderr


def test_the_exposure_stays_below_its_gate(unit: Path) -> None:
    threshold = f"--threshold={GATES[unit.name]}"
    done = run(
        "systemd-analyze", "security", "--offline=true", "--json=short", threshold, str(unit)
    )
    open_doors = [
        (check["json_field"], check["exposure"])
        for check in json.loads(done.stdout)
        if not check["set"] and check["exposure"] is not None
    ]
    assert done.returncode == 0, open_doors


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("flopwatch-agent.service", "WatchdogSec=30"),
        ("flopwatch-agent.service", "TimeoutStopSec=15"),
        ("flopwatch-agent.service", "Restart=always"),
        ("flopwatch-agent.service", "StartLimitIntervalSec=0"),
        ("flopwatch-agent.service", "DeviceAllow=char-nvidia rw"),
        ("flopwatch-agent.service", "DeviceAllow=char-nvidia-frontend rw"),
        ("flopwatch-agent.service", "Environment=GRPC_ENABLE_FORK_SUPPORT=0"),
        ("flopwatch-agent.service", "MemoryMax=256M"),
        ("flopwatch-agent.service", "OOMScoreAdjust=500"),
        ("flopwatch-collector.service", "Type=notify"),
        ("flopwatch-collector.service", "LimitNOFILE=65536"),
        ("flopwatch-collector.service", "OOMScoreAdjust=-500"),
    ],
)
def test_what_production_relies_on_stands_in_the_unit(name: str, line: str) -> None:
    assert line in (UNITS / name).read_text().splitlines()
