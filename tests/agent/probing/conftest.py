"""A fake driver for probes, and their times."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fakenvml import Script, build, device, env

UUID = "GPU-00000000-0000-4000-8000-000000000000"


@pytest.fixture(scope="session")
def probe_driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("driver"))


@pytest.fixture
def script(tmp_path: Path, probe_driver: Path, monkeypatch: pytest.MonkeyPatch) -> Script:
    """A card that nobody is on, for this process and all that it starts."""
    made = Script(tmp_path / "script.txt").write(device(0, uuid=UUID, serial="1654"))
    for name, text in env(probe_driver, made).items():
        if os.environ.get(name) != text:
            monkeypatch.setenv(name, text)
    return made
