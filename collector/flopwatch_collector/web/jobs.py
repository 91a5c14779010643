"""Jobs over HTTP: which there were, and the answer about one of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Query, Request, Response

from flopwatch_collector.jobs import answer, read
from flopwatch_collector.jobs.lives import DAY_MS, Life, lives_of, to_the_second
from flopwatch_collector.ledger.evidence import Window
from flopwatch_collector.ledger.fleet import clusters, rfc3339
from flopwatch_collector.ledger.window import asked_window
from flopwatch_collector.web import shapes
from flopwatch_collector.web.answers import LIVE_KEPT_S, PAST_KEPT_S
from flopwatch_collector.web.api import (
    PROBLEMS,
    ClusterText,
    EndText,
    StartText,
    WindowText,
    answered,
    asked,
    sources_of,
    strict,
)
from flopwatch_collector.web.problems import Problem
from flopwatch_collector.web.sources import Sources
from flopwatch_proto.rows import INTERVAL_MS

JOB_DAYS_MAX_MS: Final = 30 * DAY_MS
CLUSTERS_MAX: Final = 64

router: Final = APIRouter(prefix="/api/v1/jobs", dependencies=[Depends(strict)], responses=PROBLEMS)


@router.get("", response_model=shapes.JobsAnswer)
async def job_list(
    request: Request,
    cluster: ClusterText = None,
    window: WindowText = None,
    start: StartText = None,
    end: EndText = None,
) -> Response:
    """The jobs that held cards, those with most card-time first; the last 15 min by default."""
    used, kept_s = asked(request, window, start, end)
    sources = sources_of(request)

    def compute() -> list[dict[str, Any]]:
        now = sources.now_unix_ms()
        found = clusters(sources.collector, used)
        listed = [
            made | {"simulated": of.simulated}
            for of in found[:CLUSTERS_MAX]
            if cluster in (None, of.name)
            for made in answer.jobs(sources.collector, of.name, used, now)
        ]
        return sorted(listed, key=lambda made: -made["card_seconds"])[: answer.LISTED_MAX]

    listed = await sources.answers.get(("jobs", cluster, used.start, used.end), compute, kept_s)
    return answered(
        {
            "start": rfc3339(used.start),
            "end": rfc3339(used.end),
            "window_s": (used.end - used.start) / 1000,
            "jobs": listed,
            "truncated": len(listed) == answer.LISTED_MAX,
        }
    )


@router.get("/{job:path}", response_model=shapes.JobAnswer)
async def job(
    request: Request,
    job: str,
    cluster: ClusterText = None,
    window: WindowText = None,
    start: StartText = None,
    end: EndText = None,
    capture: Annotated[
        str | None, Query(description="Look for stragglers in this capture.", max_length=64)
    ] = None,
    attempt: Annotated[
        int | None, Query(description="Of a job that was requeued; the newest by default.", ge=1)
    ] = None,
) -> Response:
    """One job: its figures, and the answer: verdict, bridge, peers, causes, stragglers, receipt.

    Without a window it is of the whole attempt, 30 days at most.
    """
    sources = sources_of(request)
    whole = window is None and start is None and end is None
    used, kept_s = asked(request, window, start, end)
    key = ("job", job, cluster, None if whole else (used.start, used.end), capture, attempt)
    found = await sources.answers.get(
        key,
        lambda: job_answer(sources, job, cluster, None if whole else used, capture, attempt),
        LIVE_KEPT_S if whole and capture is None else PAST_KEPT_S if capture else kept_s,
    )
    return answered(found)


def job_answer(
    sources: Sources,
    name: str,
    cluster: str | None,
    window: Window | None,
    capture: str | None,
    attempt: int | None,
) -> dict[str, Any]:
    """Return the answer about a job. Raises: Problem: 404, or 422 where several clusters have it."""
    now = sources.now_unix_ms()
    lives = lives_of(sources.collector, name, cluster, now)
    if not lives:
        where = f" of cluster {cluster!r}" if cluster is not None else ""
        raise Problem(404, f"job {name[:64]!r}{where} held no card in the last 30 days")
    if len(lives) > 1:
        names = ", ".join(attempts[0].cluster for attempts in lives)
        text = f"cluster: several clusters have this job; add ?cluster= with one of {names}"
        raise Problem(422, text, parameter="cluster")
    life = to_the_second(sources.collector, name, _meant(name, lives[0], window, attempt))
    used = _of_life(life, window, now)
    if used is None:
        text = f"job {name[:64]!r} held no card in this window; it ran {_span(life)}"
        raise Problem(404, text)
    return answer.job(
        sources.collector,
        name,
        life,
        used,
        now,
        capture=capture,
        reference_dtype=sources.reference_dtypes.get(life.cluster),
    )


def _meant(name: str, attempts: Sequence[Life], window: Window | None, number: int | None) -> Life:
    """Return the attempt that is asked for; else the newest one that held cards in the window."""
    if number is not None and number > len(attempts):
        text = f"attempt: the newest of job {name[:64]!r} is number {len(attempts)}"
        raise Problem(404, text, parameter="attempt")
    if number is not None:
        return attempts[number - 1]
    within = [
        life
        for life in attempts
        if window is None or (life.start < window.end and window.start < life.end)
    ]
    return (within or attempts)[-1]


def _of_life(life: Life, window: Window | None, now: int) -> Window | None:
    """Return the part of a window in which the job held cards, moved to intervals; None: none."""
    newest = asked_window(now, INTERVAL_MS).end
    start = max(life.start, life.end - JOB_DAYS_MAX_MS)
    end = min(life.end, newest)
    if window is not None:
        start, end = max(start, window.start), min(end, window.end)
    if end - start > read.HOUR_MS:
        # Whole minutes stand as lines; the ragged edges of a long life are not worth their rows.
        start, end = start // 60_000 * 60_000, end // 60_000 * 60_000
    start, end = start // INTERVAL_MS * INTERVAL_MS, -(-end // INTERVAL_MS) * INTERVAL_MS
    end = min(end, newest)
    return Window(start=start, end=end) if end > start else None


def _span(life: Life) -> str:
    return f"from {rfc3339(life.start)} to {rfc3339(life.end)}"
