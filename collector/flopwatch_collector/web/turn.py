"""What a primary tells its standby: that it is alive, and which pages it has settled."""

from __future__ import annotations

import asyncio
from typing import Final

from fastapi import APIRouter, Request, Response

from flopwatch_collector.standby import Word, settled_ids
from flopwatch_collector.web.api import answered, sources_of
from flopwatch_collector.web.sources import Sources

router: Final = APIRouter(include_in_schema=False)


@router.get("/api/v1/turn")
async def turn(request: Request) -> Response:
    """Alive, as far as the collector's main process answers; 503 where it does not."""
    return answered(await asyncio.to_thread(_word, sources_of(request)))


def _word(sources: Sources) -> Word:
    tick = sources.collector.status().get("tick_unix_ms")
    now_unix_ms = sources.now_unix_ms()
    return Word(
        now_unix_ms=now_unix_ms,
        tick_unix_ms=tick or None,
        settled=settled_ids(sources.control.store(), now_unix_ms),
    )
