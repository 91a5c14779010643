"""Sources on the fake driver."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from fakenvml import Script, build, device, env
from flopwatch_agent.release import Window
from flopwatch_agent.sources.abandoned import Abandoned
from flopwatch_agent.sources.child import ChildLimits
from flopwatch_agent.sources.nvml import NvmlSource
from nvml_source import LIMITS, Make


@pytest.fixture
def lib(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.getbasetemp() / "fakenvml")


@pytest.fixture
def script(tmp_path: Path) -> Script:
    return Script(tmp_path / "script.txt").write(device(0, gpm={2: 90}), device(1))


@pytest.fixture
async def make(lib: Path, script: Script, tmp_path: Path) -> AsyncIterator[Make]:
    sources: list[NvmlSource] = []

    def make_source(
        environment: dict[str, str] | None = None, *, leap: Any = lambda: 0.0, **limits: Any
    ) -> NvmlSource:
        source = NvmlSource(
            limits=ChildLimits(**{**LIMITS, **limits}),
            environment=environment or env(lib, script),
            pci_root=tmp_path / "pci",
            clock=lambda: time.monotonic() + leap(),
            window=Window(tmp_path / "release"),
            abandoned=Abandoned(tmp_path / "abandoned.json"),
        )
        sources.append(source)
        return source

    yield make_source
    for source in sources:
        await source.close()
