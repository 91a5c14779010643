"""One calibration: a load of known work in a child, the card's readings beside it, and their quotient."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

import msgspec

from flopwatch_agent.calibrations import counted
from flopwatch_agent.reading import Reading
from flopwatch_agent.sources.nvml import NvmlSource
from flopwatch_kernels.calibration import Calibration, calibration
from flopwatch_kernels.errors import ProbeError
from flopwatch_kernels.messages import Mark, ProbeResult, Progress
from flopwatch_kernels.probe import ProbeLimits, run_probe

PERIOD_SECONDS: Final = 0.25
"""Between readings: well above the driver's 100 ms, some eight for each of the four shapes."""

Read = Callable[[], Awaitable[Sequence[Reading]]]
"""Reads all cards of the host, as a source does."""


async def calibrate(
    read: Read,
    *,
    device: str,
    dtype: str,
    on_progress: Callable[[Progress], None] | None = None,
    stop_reason: Callable[[], str | None] | None = None,
    limits: ProbeLimits | None = None,
    measured: str = "",
    measure: Callable[..., ProbeResult] = run_probe,
) -> tuple[Calibration, ProbeResult]:
    """Load a card for ten seconds; return what its counters make of it, and what the load says.

    Args:
        read: of a source that nothing else reads meanwhile.
        device: the card's UUID.
        measured: what is loaded; the card itself unless a rehearsal says otherwise.
        dtype: one of `flopwatch_kernels.probe.PROBE_DTYPES`.
        stop_reason: as in `run_probe`.
        measure: `run_probe`, or what stands for it.

    Raises:
        ProbeError: the load could not run, or the card has too few readings of its counters.
    """
    marks: list[Mark] = []
    load = asyncio.create_task(
        asyncio.to_thread(
            partial(
                measure,
                kind="calibrate",
                device=measured or device,
                dtype=dtype,
                on_progress=on_progress,
                on_mark=marks.append,
                stop_reason=stop_reason,
                limits=limits,
            )
        )
    )
    readings: list[Reading] = []
    while not load.done():
        readings += [each for each in await read() if each.device.uuid == device]
        await asyncio.wait({load}, timeout=PERIOD_SECONDS)
    result = await load
    card = readings[-1].device if readings else None
    found = None
    if card is not None:
        found = calibration(
            marks,
            counted(readings, dtype),
            device=device,
            driver=card.driver_version or "",
            sku=card.sku,
            dtype=dtype,
            sm_count=card.sm_count,
            cut=bool(card.instances),
            taken_unix_ns=result.started_at_unix_ns,
        )
    if found is None:
        raise ProbeError(
            f"no calibration of {device}: {len(readings)} readings, and less than a second of its"
            " tensor counters beside the load; `flopwatch doctor` says which counters it has"
        )
    detail = result.detail | ({} if found.refused is None else {"refused": found.refused})
    return found, msgspec.structs.replace(result, kappa=found.kappa, detail=detail)


def calibrate_card(card: str, **load: Any) -> tuple[Calibration, ProbeResult]:
    """Calibrate beside a source of its own; blocking.

    Args:
        card: its UUID.
        load: as of `calibrate`.

    Raises:
        ProbeError: as of `calibrate`.
    """
    return asyncio.run(_beside_source(card, load))


async def _beside_source(card: str, load: Mapping[str, Any]) -> tuple[Calibration, ProbeResult]:
    source = NvmlSource()
    await source.start()

    async def read() -> Sequence[Reading]:
        return (await source.read()).readings

    try:
        return await calibrate(read, device=card, **load)
    finally:
        await source.close()
