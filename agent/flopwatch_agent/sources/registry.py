"""Every source there is, in the order they are tried. A new source is a line here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import structlog

from flopwatch_agent.config import AgentConfig
from flopwatch_agent.release import Window
from flopwatch_agent.sources import NoDevice, Source
from flopwatch_agent.sources.abandoned import Abandoned
from flopwatch_agent.sources.child import ChildLimits
from flopwatch_agent.sources.kernel_log import KernelLog
from flopwatch_agent.sources.nvml import NvmlSource
from flopwatch_agent.sources.processor import ProcessorSource

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceEntry:
    """One known source.

    Attributes:
        build: makes it, as the configuration says; nothing runs before its `start`.
        default: used unless the configuration says otherwise.
        fallback: used only where no source before it found a device.
    """

    name: str
    build: Callable[[AgentConfig], Source]
    default: bool = True
    fallback: bool = False


def _nvml(config: AgentConfig) -> Source:
    return NvmlSource(
        limits=ChildLimits(deadline_seconds=float(config.nvml.deadline)),
        window=Window(config.release_file, kept=config.data / "release"),
        abandoned=Abandoned(config.data / "abandoned.json"),
    )


def _processor(config: AgentConfig) -> Source:
    return ProcessorSource()


def _kernel_log(config: AgentConfig) -> Source:
    return KernelLog()


SOURCES: Final[tuple[SourceEntry, ...]] = (
    SourceEntry(name="nvml", build=_nvml),
    SourceEntry(name="processor", build=_processor, fallback=True),
    SourceEntry(name="kernel_log", build=_kernel_log),
)


async def start_sources(
    config: AgentConfig, entries: tuple[SourceEntry, ...] = SOURCES
) -> tuple[Source, ...]:
    """Start the sources that are switched on and find something on this host.

    A source that `AgentConfig.sources` leaves out has its default; a fallback that is switched on there
    starts beside the others.
    """
    enabled = config.sources
    started: list[Source] = []
    for entry in entries:
        wanted = enabled.get(entry.name, entry.default)
        if not wanted or (entry.fallback and started and entry.name not in enabled):
            continue
        source = entry.build(config)
        try:
            await source.start()
        except NoDevice as exc:
            _log.info("source_without_device", source=entry.name, reason=str(exc))
            continue
        started.append(source)
    return tuple(started)
