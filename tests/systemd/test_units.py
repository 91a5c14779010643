"""The units, verified offline: systemd need not run for that."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

UNITS = Path(__file__).parents[2] / "systemd"
GATES = {
    "flopwatch-agent.service": 20,
    "flopwatch-collector.service": 12,
    "flopwatch-privileged.service": 16,
    "flopwatch-probe@.service": 20,
}
"""Highest exposure allowed, in tenths."""


@pytest.fixture(params=sorted(GATES))
def unit(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy whose command exists on every machine, beside the others; a template as one instance."""
    for path in UNITS.iterdir():
        text = re.sub(r"(?m)^ExecStart=\S+", f"ExecStart={shutil.which('true')}", path.read_text())
        (tmp_path / path.name.replace("@.", "@0.")).write_text(text)
    name: str = request.param
    return tmp_path / name.replace("@.", "@0.")


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
    threshold = f"--threshold={GATES[unit.name.replace('@0', '@')]}"
    done = run(
        "systemd-analyze", "security", "--offline=true", "--json=short", threshold, str(unit)
    )
    open_doors = [
        (check["json_field"], check["exposure"])
        for check in json.loads(done.stdout)
        if not check["set"] and check["exposure"] is not None
    ]
    assert done.returncode == 0, open_doors


def test_every_service_has_a_gate() -> None:
    assert {path.name for path in UNITS.glob("*.service")} == GATES.keys()


def test_the_directory_of_the_jobs_socket_is_not_moved_where_jobs_may_not_go() -> None:
    # systemd puts a dynamic user's runtime directory below /run/private when it is to be preserved.
    assert "RuntimeDirectoryPreserve" not in (UNITS / "flopwatch-agent.service").read_text()


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("flopwatch-agent.service", "Type=notify"),
        ("flopwatch-agent.service", "RuntimeDirectoryMode=0755"),
        ("flopwatch-agent.service", "Wants=network-online.target flopwatch-privileged.service"),
        ("flopwatch-agent.service", "CapabilityBoundingSet="),
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
        ("flopwatch-collector.service", "WatchdogSec=30"),
        ("flopwatch-collector.service", "ProcSubset=pid"),
        ("flopwatch-collector.service", "MemoryDenyWriteExecute=yes"),
        ("flopwatch-collector.service", "LimitNOFILE=65536"),
        ("flopwatch-collector.service", "OOMScoreAdjust=-500"),
        (
            "flopwatch-privileged.service",
            "CapabilityBoundingSet=CAP_DAC_READ_SEARCH CAP_SYS_PTRACE",
        ),
        ("flopwatch-privileged.service", "PrivateNetwork=yes"),
        ("flopwatch-probe@.service", "ConditionPathExists=/etc/flopwatch/probing.enabled"),
    ],
)
def test_what_production_relies_on_stands_in_the_unit(name: str, line: str) -> None:
    assert line in (UNITS / name).read_text().splitlines()
