"""`/api/v1/ceilings` and `/api/v1/bringups`: what cards reach, ranked, and which were accepted."""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Query, Request, Response

from flopwatch_collector import ceilings
from flopwatch_collector.web import shapes
from flopwatch_collector.web.answers import PAST_KEPT_S
from flopwatch_collector.web.api import PROBLEMS, ClusterText, answered, sources_of, strict
from flopwatch_collector.web.asked import length_ms
from flopwatch_collector.web.records import shown_record

DEFAULT_WINDOW: Final = "30d"

Length = Annotated[
    str | None, Query(description=f"How far back results count; {DEFAULT_WINDOW} by default.")
]
router: Final = APIRouter(prefix="/api/v1", dependencies=[Depends(strict)], responses=PROBLEMS)


@router.get("/ceilings", response_model=shapes.CeilingsAnswer)
async def ceiling_list(
    request: Request,
    cluster: ClusterText = None,
    sku: Annotated[str | None, Query(description="Only cards of this full name.")] = None,
    dtype: Annotated[str | None, Query(description="Only this dtype.")] = None,
    window: Length = None,
) -> Response:
    """Measured ceilings by SKU, kind, dtype and load: cards ranked in their own fleet, suspects named."""
    sources = sources_of(request)
    since = sources.now_unix_ms() - length_ms("window", window or DEFAULT_WINDOW)

    def compute() -> dict[str, Any]:
        probes = ceilings.read(sources.collector, since, cluster=cluster, sku=sku, dtype=dtype)
        found = ceilings.ceilings(probes)
        for fleet in found["fleets"]:
            fleet["cards_list"] = [shown_record(card) for card in fleet["cards_list"]]
        found["suspects"] = [shown_record(card) for card in found["suspects"]]
        return found | {"truncated": len(probes) == ceilings.ROWS_MAX}

    asked = ("ceilings", cluster, sku, dtype, window)
    return answered(await sources.answers.get(asked, compute, PAST_KEPT_S))


@router.get("/bringups", response_model=shapes.RecordsAnswer)
async def bringup_list(
    request: Request,
    cluster: Annotated[str, Query(description="The cluster whose cards to list.")],
    window: Length = None,
) -> Response:
    """The newest acceptance (`flopwatch bringup`) of each card of a cluster."""
    sources = sources_of(request)
    since = sources.now_unix_ms() - length_ms("window", window or DEFAULT_WINDOW)
    listed = await sources.answers.get(
        ("bringups", cluster, window),
        lambda: [shown_record(r) for r in ceilings.bringups(sources.collector, since, cluster)],
        PAST_KEPT_S,
    )
    return answered({"bringups": listed, "truncated": len(listed) == ceilings.ROWS_MAX})
