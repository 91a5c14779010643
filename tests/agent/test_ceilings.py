"""Ceilings that probes found, on their way to the agent that divides by them."""

from __future__ import annotations

from pathlib import Path

import pytest

from flopwatch_agent.ceilings import FILE_NAME, Ceiling, Ceilings, save
from flopwatch_proto.errors import UsageError


def ceiling(flops: float, device: str = "cpu", dtype: str = "fp32") -> Ceiling:
    return Ceiling(device=device, dtype=dtype, flops=flops, sustained=False, taken_unix_ns=1)


def test_the_newest_ceiling_of_a_device_and_dtype_replaces_the_one_before(tmp_path: Path) -> None:
    data = tmp_path / "data"
    for each in (ceiling(1e11), ceiling(5e14, "GPU-1", "bf16"), ceiling(2e11)):
        save(data, each)
    known = Ceilings(data)
    known.refresh()
    assert known.flops == {("cpu", "fp32"): 2e11, ("GPU-1", "bf16"): 5e14}
    assert [path.name for path in data.iterdir()] == [FILE_NAME]


def test_a_running_agent_hears_of_a_ceiling_and_of_its_end(tmp_path: Path) -> None:
    known = Ceilings(tmp_path)
    known.refresh()
    assert known.flops == {}
    held = known.flops
    save(tmp_path, ceiling(1e11))
    known.refresh()
    assert held == {("cpu", "fp32"): 1e11}
    (tmp_path / FILE_NAME).unlink()
    known.refresh()
    assert held == {}


def test_a_file_that_makes_no_sense_changes_nothing_and_is_not_written_over(tmp_path: Path) -> None:
    save(tmp_path, ceiling(1e11))
    known = Ceilings(tmp_path)
    known.refresh()
    (tmp_path / FILE_NAME).write_text("{")
    known.refresh()
    assert known.flops == {("cpu", "fp32"): 1e11}
    with pytest.raises(UsageError, match="not a file of ceilings"):
        save(tmp_path, ceiling(2e11))


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="file/data/"):
        save(tmp_path / "file" / "data", ceiling(1e11))
