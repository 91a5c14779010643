"""What this host's devices reach when measured: the ceilings that probes found, kept beside the spool.

How the file is written and read: `probing.kept`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec
import structlog

from flopwatch_agent.probing.kept import Kept

FILE_NAME: Final = "ceilings.json"

_log = structlog.get_logger()


class Ceiling(msgspec.Struct, frozen=True, kw_only=True):
    """One measured ceiling.

    Attributes:
        device: ``cpu``, or the card's UUID.
        flops: median FLOP/s.
        sustained: measured under ten seconds of load or more; a burst reads high.
        taken_unix_ns: start of the measurement.
    """

    device: str
    dtype: str
    flops: float
    sustained: bool
    taken_unix_ns: int


class _File(msgspec.Struct, frozen=True, kw_only=True):
    v: int = 1
    ceilings: tuple[Ceiling, ...] = ()


class Ceilings:
    """The ceilings of a data directory.

    Attributes:
        flops: (device uuid or slot, dtype) → FLOP/s, sustained where that was measured; changed in place
            by `refresh`.
    """

    def __init__(self, directory: Path) -> None:
        self.flops: dict[tuple[str, str], float] = {}
        self._kept = _kept(directory)

    def refresh(self) -> None:
        """Read the file if it is another one than last time; what it no longer says is gone."""
        news = self._kept.news()
        if news is None:
            return
        self.flops.clear()
        # A burst reads high: where a card has both, training is measured against the sustained one.
        for each in sorted(news.ceilings, key=lambda ceiling: ceiling.sustained):
            self.flops[each.device, each.dtype] = each.flops
        _log.info("ceilings_loaded", count=len(self.flops))


def save(directory: Path, ceiling: Ceiling) -> None:
    """Keep a ceiling; it replaces what was known of the same device, dtype and load.

    Raises:
        UsageError: the directory cannot be written, or its file is something else.
    """
    kept = _kept(directory)
    others = (each for each in kept.read().ceilings if _subject(each) != _subject(ceiling))
    kept.write(_File(ceilings=(*others, ceiling)))


def _subject(ceiling: Ceiling) -> tuple[str, str, bool]:
    return ceiling.device, ceiling.dtype, ceiling.sustained


def _kept(directory: Path) -> Kept[_File]:
    return Kept(directory / FILE_NAME, _File, "ceilings")
