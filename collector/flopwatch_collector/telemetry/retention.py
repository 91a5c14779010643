"""How long the telemetry store keeps what, and the drops that hold it to that.

Whole partitions go, which costs the engine nothing however much is in them. Raw rows count from their
arrival, by days; a day stays as long as a minute in or beside it waits for its recompute, however old it is.
Lines count from their own time, by months, those of intervals by days; superseded generations of a month in
which nothing can change any more are removed once. A run is bounded: ``DROPS_MAX`` partitions.
Everything else has a limit in its table.

Sharded tables are left to the limits of `sharded.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

import msgspec
import structlog

from flopwatch_collector.telemetry.dirty import dirty_minutes
from flopwatch_collector.telemetry.line_tables import LINE_TABLES, MINUTE_KEPT_DAYS
from flopwatch_collector.telemetry.schema import DAY_MS, TABLES
from flopwatch_collector.telemetry.times import LATE_MS_MAX
from flopwatch_proto.settings import Duration

if TYPE_CHECKING:
    from flopwatch_collector.telemetry.store import TelemetryStore

EVERY_MS: Final = 3_600_000
DROPS_MAX: Final = 8
BESIDE_MS: Final = 3_600_000
"""A minute's recompute reads no rows further away: a silence is judged by 15 minutes around it."""
_DAY_S: Final = 86_400
_HOUR_S: Final = 3_600
_DAY_CHARACTERS: Final = len("20261231")
INTERVALS_KEPT_S: Final = 6 * _HOUR_S
INTERVALS_KEPT_S_MAX: Final = 48 * _HOUR_S

log = structlog.get_logger()


class RetentionConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The section ``[retention]``.

    Attributes:
        raw: rows of cards, hosts and rosters, from their arrival. Rows are taken until they are 35 days
            late, with less than 36 days a day before raw rows go.
        intervals: lines by interval, from their own time; what begins or ends inside a minute is read from
            them, and from raw rows where they are gone.
        minutes: lines by minute, from their own time.
        hours: lines by hour, from their own time; None: for ever.
        days: lines by day, from their own time; None: for ever.
    """

    raw: Duration = Duration(LATE_MS_MAX // 1000 + _DAY_S)
    intervals: Duration = Duration(INTERVALS_KEPT_S)
    minutes: Duration = Duration(MINUTE_KEPT_DAYS * _DAY_S)
    hours: Duration | None = None
    days: Duration | None = None

    def __post_init__(self) -> None:
        if self.raw < 2 * _DAY_S:
            raise ValueError(
                f"raw is {_days(self.raw)}: a row that comes late needs those beside it, and days go whole;"
                " write 2d or more"
            )
        if not 2 * _HOUR_S <= self.intervals <= INTERVALS_KEPT_S_MAX:
            raise ValueError(
                f"intervals is {self.intervals / _HOUR_S:g}h: windows of an hour begin and end at intervals,"
                " others at minutes; write 2h to 48h"
            )
        if self.minutes < self.raw:
            raise ValueError(
                f"minutes is {_days(self.minutes)}, raw {_days(self.raw)}: minutes outlive what they are"
                " made of; write as much or more"
            )
        if self.hours is not None and self.hours < self.minutes:
            raise ValueError(
                f"hours is {_days(self.hours)}, minutes {_days(self.minutes)}: hours outlive minutes;"
                " write as much or more, or leave it out to keep them for ever"
            )
        if self.days is not None and (self.hours is None or self.days < self.hours):
            raise ValueError(
                f"days is {_days(self.days)}, and hours are kept longer: days outlive hours; write as much"
                " or more, or leave it out to keep them for ever"
            )


@dataclass(slots=True)
class Retention:
    """Drops what a policy no longer keeps. Attributes: dropped: partitions, since the start."""

    store: TelemetryStore
    config: RetentionConfig
    dropped: int = 0
    _ran_unix_ms: int = 0
    _swept: set[tuple[str, str]] = field(default_factory=set)

    def run(self, now_unix_ms: int) -> int:
        """Drop what is over, at most once an hour; return how many partitions were dropped.

        Raises:
            RetryableError: the store failed; the next run goes on.
        """
        if self.store.sharded or now_unix_ms - self._ran_unix_ms < EVERY_MS:
            return 0
        over = self._raw_over(now_unix_ms) + self._lines_over(now_unix_ms)
        for table, partition in over[:DROPS_MAX]:
            self.store.drop_partition(table, partition)
            log.info("partition_dropped", table=table, partition=partition)
            self.dropped += 1
        if len(over) <= DROPS_MAX:
            self._ran_unix_ms = now_unix_ms
            self._sweep_one(now_unix_ms)
        return len(over[:DROPS_MAX])

    def _raw_over(self, now_unix_ms: int) -> list[tuple[str, str]]:
        limit = now_unix_ms - self.config.raw.milliseconds
        found = []
        needed: set[str] | None = None
        for table in (t for t in TABLES.values() if t.swept):
            for partition in self._partitions(table.name):
                if _begins_unix_ms(partition) + DAY_MS > limit:
                    break
                if needed is None:
                    needed = self._days_of_dirty_minutes()
                if partition in needed:
                    continue
                newest = self.store.query(
                    f"SELECT max(stored_unix_ms) AS t FROM {table.name} WHERE _partition_id = {{p:String}}",
                    {"p": partition},
                )
                if newest["t"][0].as_py() <= limit:
                    found.append((table.name, partition))
        return found

    def _days_of_dirty_minutes(self) -> set[str]:
        """Days whose rows a recompute will read. A cluster without slots has nothing to recompute."""
        known = set(self.store.query("SELECT DISTINCT cluster FROM slot")["cluster"].to_pylist())
        return {
            _day_of(minute + beside)
            for cluster, minute in dirty_minutes(self.store)
            if cluster in known
            for beside in (-BESIDE_MS, 0, BESIDE_MS)
        }

    def _lines_over(self, now_unix_ms: int) -> list[tuple[str, str]]:
        found = []
        for table in LINE_TABLES:
            kept = getattr(self.config, f"{table.name.split('_')[1]}s")
            if kept is None:
                continue
            limit = now_unix_ms - kept.milliseconds
            for partition in self._partitions(table.name):
                if _ends_unix_ms(partition) > limit:
                    break
                found.append((table.name, partition))
        return found

    def _sweep_one(self, now_unix_ms: int) -> None:
        """Remove superseded lines of one closed month, where there are any."""
        for table in (t for t in LINE_TABLES if t.by_month):
            for month in self._partitions(table.name):
                closed = _ends_unix_ms(month) + self.config.raw.milliseconds + DAY_MS < now_unix_ms
                if closed and (table.name, month) not in self._swept:
                    self._swept.add((table.name, month))
                    self.store.sweep(table.name, month)
                    return

    def _partitions(self, table: str) -> list[str]:
        found = self.store.query(
            "SELECT DISTINCT partition_id AS p FROM system.parts WHERE active AND rows > 0 "
            "AND database = currentDatabase() AND table = {table:String} ORDER BY p",
            {"table": table},
        )
        return [str(p) for p in found["p"].to_pylist()]


def _begins_unix_ms(partition: str) -> int:
    return int(_begins(partition).timestamp() * 1000)


def _ends_unix_ms(partition: str) -> int:
    begins = _begins(partition)
    if len(partition) == _DAY_CHARACTERS:
        return int((begins + timedelta(days=1)).timestamp() * 1000)
    return int((begins + timedelta(days=32)).replace(day=1).timestamp() * 1000)


def _begins(partition: str) -> datetime:
    form = "%Y%m%d" if len(partition) == _DAY_CHARACTERS else "%Y%m"
    return datetime.strptime(partition, form).replace(tzinfo=UTC)


def _day_of(unix_ms: int) -> str:
    return datetime.fromtimestamp(unix_ms / 1000, UTC).strftime("%Y%m%d")


def _days(length: Duration) -> str:
    return f"{length / _DAY_S:g}d"
