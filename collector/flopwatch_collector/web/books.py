"""`/api/v1/data`: what is lost, by cause, and whether the audit of each cluster balances."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Final

from fastapi import APIRouter, Depends, Request, Response

from flopwatch_collector.audit.books import Books
from flopwatch_collector.web import shapes
from flopwatch_collector.web.api import PROBLEMS, ClusterText, answered, sources_of, strict
from flopwatch_collector.web.records import shown_record

router: Final = APIRouter(prefix="/api/v1", dependencies=[Depends(strict)], responses=PROBLEMS)


@router.get("/data", response_model=shapes.DataAnswer)
async def data(request: Request, cluster: ClusterText = None) -> Response:
    """What is lost, by cause, in the last 24 h, and whether the audit balances; read every 5 minutes."""
    found = await sources_of(request).books.looked()
    return answered({"clusters": [record(b) for b in found if cluster in (None, b.cluster)]})


def record(books: Books) -> dict[str, Any]:
    """Return the books of a cluster as the API gives them."""
    made = shown_record(asdict(books) | {"unbalanced": books.unbalanced})
    made["losses"] = [shown_record(loss) for loss in made["losses"]]
    return made
