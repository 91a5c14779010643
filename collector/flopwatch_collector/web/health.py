"""Whether each part serves: the ingest port, the two stores, and this process."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, Final

from flopwatch_collector.web.sources import Sources
from flopwatch_proto.errors import FlopwatchError

CONNECT_S_MAX: Final = 2.0
TEXT_MAX: Final = 300

Verdict = dict[str, Any]


async def ready(sources: Sources) -> Verdict:
    """Return `/readyz`: every part with ``ok`` and, where it is not, what is wrong."""
    status, store, control = await asyncio.gather(
        _checked(sources.collector.status),
        _checked(lambda: sources.collector.query("SELECT 1 AS one").num_rows),
        _checked(lambda: sources.control.store().incidents(())),
    )
    parts: Verdict = {
        "ingest": await _ingest(status),
        "store": _part(store),
        "control": _part(control),
        "web": {"ok": True},
    }
    return {"ready": all(part["ok"] for part in parts.values()), **parts}


async def _checked(ask: Any) -> Any:
    try:
        return await asyncio.to_thread(ask)
    except FlopwatchError as exc:
        return exc


def _part(answer: Any) -> Verdict:
    if isinstance(answer, FlopwatchError):
        return {"ok": False, "reason": str(answer)[:TEXT_MAX]}
    return {"ok": True}


async def _ingest(status: Any) -> Verdict:
    """Ask the ingest port itself: a collector that answers reads may still have lost it."""
    if isinstance(status, FlopwatchError):
        return _part(status)
    address = str(status.get("ingest") or "")
    if not address:
        return {"ok": False, "reason": "the collector names no ingest address yet"}
    host, _, port = address.rpartition(":")
    try:
        async with asyncio.timeout(CONNECT_S_MAX):
            _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    except (OSError, TimeoutError, ValueError) as exc:
        return {"ok": False, "address": address, "reason": str(exc) or "no answer in time"}
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return {"ok": True, "address": address}
