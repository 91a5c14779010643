"""One real Slurm for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from slurm.lab import Lab

NODES = 32


@pytest.fixture(scope="session")
def whole_lab() -> Iterator[Lab]:
    """A Slurm of 32 nodes with 8 cards each."""
    made = Lab.up(NODES)
    yield made
    made.down()


@pytest.fixture
def lab(whole_lab: Lab) -> Iterator[Lab]:
    """The same without a job; its jobs end after the test."""
    yield whole_lab
    whole_lab.clear()
