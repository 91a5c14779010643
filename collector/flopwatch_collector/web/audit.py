"""`/api/v1/audit`: per spool, whether all that was handed over is accounted for."""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Query, Request, Response

from flopwatch_collector.audit import balance
from flopwatch_collector.web import shapes
from flopwatch_collector.web.answers import LIVE_KEPT_S
from flopwatch_collector.web.api import PROBLEMS, ClusterText, answered, sources_of, strict
from flopwatch_collector.web.asked import length_ms
from flopwatch_collector.web.records import shown_record

DEFAULT_WINDOW: Final = "1h"

Length = Annotated[
    str | None, Query(description=f"How far back receipts count; {DEFAULT_WINDOW} by default.")
]
router: Final = APIRouter(prefix="/api/v1", dependencies=[Depends(strict)], responses=PROBLEMS)


@router.get("/audit", response_model=shapes.RecordsAnswer)
async def audit(
    request: Request,
    cluster: ClusterText = None,
    node: Annotated[str | None, Query(description="Only this node.")] = None,
    window: Length = None,
) -> Response:
    """Per spool: produced = before + stored + superseded + gap + quarantined + waiting, in interval rows."""
    sources = sources_of(request)
    since = sources.now_unix_ms() - length_ms("window", window or DEFAULT_WINDOW)

    def compute() -> dict[str, Any]:
        found = balance.answer(balance.read(sources.collector, since, cluster=cluster, node=node))
        found["spools"] = [shown_record(spool) for spool in found["spools"]]
        return found

    asked = ("audit", cluster, node, window)
    return answered(await sources.answers.get(asked, compute, LIVE_KEPT_S))
