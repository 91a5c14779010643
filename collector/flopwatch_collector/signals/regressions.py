"""Jobs that fell below their own baseline: from whole hours of lines."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from flopwatch_collector.observe import STEADY_PHASES
from flopwatch_collector.signals import Answer, Found
from flopwatch_collector.telemetry import Reader
from flopwatch_collector.telemetry.schema import newest_lines
from flopwatch_proto.rows import ALLOCATED_BUCKETS

HOUR_MS: Final = 3_600_000
DAYS: Final = 7
HOURS_MIN: Final = 6
NEWEST: Final = 2
FALL: Final = 0.20
DECLARED_MIN: Final = 0.999
"""Of the measured capacity: below it a figure is made of counters."""
TRAINING: Final = "training"
RUNNING_MS: Final = 3 * 60_000
JOBS_MAX: Final = 5_000
_SUMS: Final = {
    "u": "u_flops",
    "counted": "counted_capacity_flops",
    "model": "model_flops",
    "measured": "measured_capacity_flops",
    "declared": "declared_capacity_flops",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Hour:
    """An hour of a job. Attributes: done: FLOPs; capacity: what they are a share of; None: not known;
    declared: whether the job told them, else counters did."""

    start_unix_ms: int
    done: float
    capacity: float
    declared: bool


class RegressionSignal:
    """Reads the hours of jobs that run. Args: clusters: those known now, which are answered for."""

    name = "jobs"
    every_s = 300.0

    def __init__(self, reader: Reader, clusters: Callable[[], Sequence[str]]) -> None:
        self._reader = reader
        self._clusters = clusters

    def read(self, now_unix_ms: int) -> Answer:
        """Return the rule of each cluster.

        Raises:
            FlopwatchError: the store did not answer.
        """
        fallen: dict[str, dict[str, float]] = {name: {} for name in self._clusters()}
        compared = dict.fromkeys(fallen, 0)
        for record in _hours(self._reader, now_unix_ms):
            # How busy a job is that serves requests says nothing of the job.
            hours = [h for h in hours_of(record) if h.declared or record["class"] == TRAINING]
            cluster, fell = record["cluster"], fall(hours)
            if fell is None or cluster not in fallen:
                continue
            compared[cluster] += 1
            if fell >= FALL:
                fallen[cluster][record["job"]] = record["cards"]
        return {
            (cluster, "job_regression"): Found(
                count=len(jobs), whole=compared[cluster], kind="job", cards=jobs
            )
            for cluster, jobs in fallen.items()
        }


def fall(hours: Iterable[Hour]) -> float | None:
    """How far a job's newest hours are below its own earlier ones, of those; None: not comparable. Pure.

    Like is compared with like: declared FLOPs, or counters, as in the newest hour.
    """
    ordered = sorted(hours, key=lambda hour: -hour.start_unix_ms)
    if not ordered:
        return None
    alike = [hour for hour in ordered if hour.declared == ordered[0].declared]
    newest, earlier = alike[:NEWEST], alike[NEWEST:]
    if len(earlier) < HOURS_MIN or newest[-1].start_unix_ms < ordered[0].start_unix_ms - HOUR_MS:
        return None
    usual = statistics.median(hour.done / hour.capacity for hour in earlier)
    now = sum(hour.done for hour in newest) / sum(hour.capacity for hour in newest)
    return 1.0 - now / usual if usual > 0 else None


def hours_of(record: Mapping[str, Any]) -> list[Hour]:
    """The hours of a job that have a figure. Pure."""
    made = []
    for start, of in zip(
        record["starts"], zip(*(record[n] for n in _SUMS), strict=True), strict=True
    ):
        sums = dict(zip(_SUMS, of, strict=True))
        measured = sums["measured"] or 0.0
        declared = measured > 0 and (sums["declared"] or 0.0) >= DECLARED_MIN * measured
        done, capacity = (
            (sums["model"], measured) if declared else (sums["u"], sums["counted"] or 0.0)
        )
        if done is not None and capacity > 0:
            made.append(Hour(start_unix_ms=start, done=done, capacity=capacity, declared=declared))
    return made


def _hours(reader: Reader, now_unix_ms: int) -> list[dict[str, Any]]:
    """The whole hours of the last week of every job that runs now."""
    this_hour = now_unix_ms // HOUR_MS * HOUR_MS
    sums = ", ".join(f"sum({column}) AS {name}" for name, column in _SUMS.items())
    # A null in an array needs a tuple around it.
    arrays = ", ".join(f"groupArray(tuple({n})).1 AS {n}" for n in _SUMS)
    lines = newest_lines(
        "fleet_hour", "start_unix_ms >= {since:Int64} AND start_unix_ms < {until:Int64}"
    )
    table = reader.query(
        f"SELECT cluster, job, groupArray(start_unix_ms) AS starts, {arrays}, "
        "argMax(class, start_unix_ms) AS class, "
        f"argMax(card_ms, start_unix_ms) / {HOUR_MS} AS cards FROM ("
        "SELECT cluster, job, start_unix_ms, any(workload_class) AS class, "
        f"sum(card_ms) AS card_ms, {sums} {lines} "
        f"AND bucket IN ({', '.join(str(int(b)) for b in ALLOCATED_BUCKETS)}) "
        f"AND phase IN {STEADY_PHASES} AND (cluster, job) IN ("
        "SELECT DISTINCT cluster, job FROM interval WHERE start_unix_ms > {running:Int64} "
        "AND job != '') GROUP BY cluster, job, start_unix_ms) "
        f"GROUP BY cluster, job ORDER BY cards DESC LIMIT {JOBS_MAX}",
        {
            "since": this_hour - DAYS * 24 * HOUR_MS,
            "until": this_hour,
            "running": now_unix_ms - RUNNING_MS,
        },
    )
    found: list[dict[str, Any]] = table.to_pylist()
    return found
