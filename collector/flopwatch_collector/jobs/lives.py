"""When a job held cards: its attempts, each from its first card to its last. Reads only.

Schedulers give a job that is requeued its old number, and people give theirs yesterday's name. Rows know
the name alone, so attempts are told apart by time: between two of them lies at least one whole minute in
which the job held no card, while its slots said so. Slots that were silent meanwhile said nothing: the job
went on there, for as long as a slot is not yet missing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from flopwatch_collector.jobs.peers import DAYS
from flopwatch_collector.ledger.absence import MISSING_AFTER_MS
from flopwatch_collector.telemetry import Reader
from flopwatch_collector.telemetry.schema import newest_lines
from flopwatch_proto.rows import Bucket

DAY_MS: Final = 86_400_000
MINUTE_MS: Final = 60_000
RECENT_MS: Final = 15 * 60_000
GAPS_LOOKED_AT_MAX: Final = 32
"""So many of the newest gaps are looked into; of older ones nobody asks whether a slot was silent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Life:
    """One attempt of a job in a cluster. Times Unix ms; one that runs ends with its newest row.

    Attributes:
        attempt: 1 for the first of the last 30 days, up to ``attempts``.
    """

    cluster: str
    simulated: bool
    start: int
    end: int
    attempt: int
    attempts: int


def lives_of(
    reader: Reader, job: str, cluster: str | None, now_unix_ms: int
) -> list[tuple[Life, ...]]:
    """Return the attempts of a job in every cluster that had it in the last 30 days, oldest first.

    To the minute: `to_the_second` says more of one of them.
    """
    where = "job = {job:String}" + (" AND cluster = {cluster:String}" if cluster else "")
    parameters = {
        "job": job,
        "cluster": cluster or "",
        "since": now_unix_ms - DAYS * DAY_MS,
        "recent": now_unix_ms - RECENT_MS,
    }
    lines = reader.query(
        "SELECT cluster, max(simulated) AS simulated, groupUniqArray(start_unix_ms) AS minutes "
        f"FROM fleet_minute WHERE {where} AND start_unix_ms >= {{since:Int64}} GROUP BY cluster",
        parameters,
    )
    rows = reader.query(
        "SELECT cluster, max(simulated) AS simulated, "
        f"groupUniqArray(intDiv(start_unix_ms, {MINUTE_MS}) * {MINUTE_MS}) AS minutes "
        f"FROM interval WHERE {where} AND start_unix_ms >= {{recent:Int64}} GROUP BY cluster",
        parameters,
    )
    minutes: dict[tuple[bool, str], set[int]] = {}
    for record in (*lines.to_pylist(), *rows.to_pylist()):
        place = bool(record["simulated"]), record["cluster"]
        minutes.setdefault(place, set()).update(record["minutes"])
    return [
        _attempts(reader, job, name, simulated, sorted(held))
        for (simulated, name), held in sorted(minutes.items())
    ]


def _attempts(
    reader: Reader, job: str, cluster: str, simulated: bool, minutes: Sequence[int]
) -> tuple[Life, ...]:
    gaps = list(_gaps(minutes))
    silent = {
        gap
        for gap in gaps[-GAPS_LOOKED_AT_MAX:]
        if gap[1] - gap[0] <= MISSING_AFTER_MS and _is_silent(reader, job, cluster, *gap)
    }
    ends = [gap for gap in gaps if gap not in silent]
    starts = [minutes[0], *(after for _, after in ends)]
    lasts = [*(before for before, _ in ends), minutes[-1]]
    return tuple(
        Life(
            cluster=cluster,
            simulated=simulated,
            start=start,
            end=last + MINUTE_MS,
            attempt=number,
            attempts=len(starts),
        )
        for number, (start, last) in enumerate(zip(starts, lasts, strict=True), 1)
    )


def _gaps(minutes: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Yield the minutes before and behind each hole of a minute or more."""
    before: int | None = None
    for minute in minutes:
        if before is not None and minute - before > MINUTE_MS:
            yield before, minute
        before = minute


def _is_silent(reader: Reader, job: str, cluster: str, before: int, after: int) -> bool:
    """Return whether none of the slots that a job had before a gap was heard in it."""
    lines = newest_lines(
        "line_minute",
        "cluster = {cluster:String} AND start_unix_ms >= {before:Int64} "
        "AND start_unix_ms < {after:Int64}",
    )
    heard = reader.query(
        f"SELECT count() AS n {lines} AND start_unix_ms > {{before:Int64}} "
        f"AND bucket NOT IN ({int(Bucket.UNSEEN)}, {int(Bucket.MISSING)}) "
        f"AND (node, slot) IN (SELECT node, slot {lines} "
        "AND start_unix_ms = {before:Int64} AND job = {job:String})",
        {"cluster": cluster, "before": before, "after": after, "job": job},
    )
    return not heard["n"][0].as_py()


def to_the_second(reader: Reader, job: str, life: Life) -> Life:
    """Return a life whose ends are those of rows in its first and last minute, where there are any."""
    record = reader.query(
        "SELECT count() AS n, min(start_unix_ms) AS start, max(start_unix_ms + duration_ms) AS end "
        "FROM interval WHERE cluster = {cluster:String} AND job = {job:String} AND "
        f"(start_unix_ms >= {{start:Int64}} AND start_unix_ms < {{start:Int64}} + {MINUTE_MS} "
        f"OR start_unix_ms >= {{end:Int64}} - {MINUTE_MS} AND start_unix_ms < {{end:Int64}})",
        {"cluster": life.cluster, "job": job, "start": life.start, "end": life.end},
    ).to_pylist()[0]
    if not record["n"]:
        return life
    start = record["start"] if record["start"] < life.start + MINUTE_MS else life.start
    end = record["end"] if record["end"] > life.end - MINUTE_MS else life.end
    return replace(life, start=start, end=end)
