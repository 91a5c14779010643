"""`/api/v1/audit`: per spool, whether all that was handed over is accounted for."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Query, Request, Response

from flopwatch_collector.audit import balance, losses
from flopwatch_collector.ledger.fleet import rfc3339
from flopwatch_collector.web import shapes
from flopwatch_collector.web.answers import LIVE_KEPT_S
from flopwatch_collector.web.api import PROBLEMS, ClusterText, answered, sources_of, strict
from flopwatch_collector.web.asked import length_ms
from flopwatch_collector.web.records import shown_record
from flopwatch_collector.web.sources import Sources

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
    """Per spool: produced = before + stored + superseded + gap + quarantined + waiting, in interval rows.

    ``losses`` has what was told in the window, by cause.
    """
    length = length_ms("window", window or DEFAULT_WINDOW)
    sources = sources_of(request)
    found = await sources.answers.get(
        ("audit", cluster, node, window),
        lambda: audited(sources, length, length, cluster, node),
        LIVE_KEPT_S,
    )
    return answered(found)


def audited(
    sources: Sources, audit_ms: int, losses_ms: int, cluster: str | None, node: str | None
) -> dict[str, Any]:
    """Return the balance of spools over the last while, and what was lost in it, as the API gives them."""
    now, where = sources.now_unix_ms(), {"cluster": cluster, "node": node}
    found = balance.answer(balance.read(sources.collector, now - audit_ms, **where))
    found["spools"] = [shown_record(spool) for spool in found["spools"]]
    lost = losses.read(sources.collector, now - losses_ms, **where)
    return found | {"audited": rfc3339(now), "losses": [shown_record(asdict(x)) for x in lost]}
