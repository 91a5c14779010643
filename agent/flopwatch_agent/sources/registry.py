"""Every source there is, in the order they are tried. A new source is a line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import structlog

from flopwatch_agent.sources import NoDevice, Source
from flopwatch_agent.sources.nvml import NvmlSource
from flopwatch_agent.sources.processor import ProcessorSource

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceEntry:
    """One known source.

    Attributes:
        default: used unless the configuration says otherwise.
        fallback: used only where no source before it found a device.
    """

    name: str
    build: Callable[[], Source]
    default: bool = True
    fallback: bool = False


SOURCES: Final[tuple[SourceEntry, ...]] = (
    SourceEntry(name="nvml", build=NvmlSource),
    SourceEntry(name="processor", build=ProcessorSource, fallback=True),
)


async def start_sources(
    enabled: Mapping[str, bool], entries: tuple[SourceEntry, ...] = SOURCES
) -> tuple[Source, ...]:
    """Start the sources that are switched on and find something on this host.

    Args:
        enabled: name → switched on; a name left out has its default. A fallback that is switched on here
            starts beside the others.
    """
    started: list[Source] = []
    for entry in entries:
        wanted = enabled.get(entry.name, entry.default)
        if not wanted or (entry.fallback and started and entry.name not in enabled):
            continue
        source = entry.build()
        try:
            await source.start()
        except NoDevice as exc:
            _log.info("source_without_device", source=entry.name, reason=str(exc))
            continue
        started.append(source)
    return tuple(started)
