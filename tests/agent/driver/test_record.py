"""A recorded driver, replayed, reads as the driver that was recorded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fakenvml import Script, build, device, env, replay


@pytest.fixture
def lib(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.getbasetemp() / "fakenvml")


def record(lib: Path, script: Script, out: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "flopwatch_agent.driver.record", str(out)]
    subprocess.run(command, env=env(lib, script), check=True, timeout=60)
    loaded: dict[str, Any] = json.loads(out.read_text())
    return loaded


def answers(recording: dict[str, Any]) -> dict[str, list[tuple[Any, ...]]]:
    """The answers without what changes with time: energy goes on counting."""
    calls = recording["devices"][0]["calls"]
    told: dict[str, list[tuple[Any, ...]]] = {
        name: [(a["args"], a["return"], a["value"]) for a in calls[name]]
        for name in calls
        if name not in ("nvmlDeviceGetTotalEnergyConsumption", "nvmlDeviceGetFieldValues")
    }
    told["fields"] = [
        (v["fieldId"], v["nvmlReturn"]) for v in calls["nvmlDeviceGetFieldValues"][0]["value"]
    ]
    return told


def test_a_replayed_recording_gives_the_same_answers(lib: Path, tmp_path: Path) -> None:
    card = device(0, gpm={2: 90, 5: 45}, power_milliwatts=620000, temperature_c=None)
    first = record(lib, Script(tmp_path / "a.txt").write(card), tmp_path / "a.json")
    second = record(lib, Script(tmp_path / "b.txt").write(replay(first)), tmp_path / "b.json")
    assert answers(first) == answers(second)
    calls = first["devices"][0]["calls"]
    assert calls["nvmlDeviceGetTemperature"][0]["return"] == 3
    assert calls["nvmlDeviceGetTemperature"][0]["value"] is None
    assert all(a["latency_us"] > 0 for name in calls for a in calls[name])
