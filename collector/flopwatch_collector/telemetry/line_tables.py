"""The tables of lines: one for each tier, with slots and without."""

from __future__ import annotations

from typing import Final

from flopwatch_collector.ledger.lines import LINE_INTS, LINE_MAXIMA, LINE_SUMS, LINE_TEXTS
from flopwatch_collector.telemetry.table import (
    CODE,
    FLAG,
    INT,
    QUANTITY,
    TEXT,
    ColumnTypes,
    Table,
)

INTERVAL_KEPT_DAYS: Final = 1
MINUTE_KEPT_DAYS: Final = 400
_BY_CLUSTER: Final = ("cluster", "start_unix_ms", "generation")
_BY_TIME: Final = ("start_unix_ms", "cluster", "generation")
"""Where most questions are about all clusters, those of a moment lie together."""


def _lines(
    name: str,
    *,
    per_slot: bool,
    kept_days: int | None,
    order: tuple[str, ...] = _BY_CLUSTER,
    by_month: bool = True,
) -> Table:
    columns: ColumnTypes = {"cluster": TEXT, "start_unix_ms": INT, "generation": INT}
    if per_slot:
        columns |= {"node": TEXT, "slot": TEXT}
    columns |= {"bucket": CODE, "rogue": FLAG}
    columns |= dict.fromkeys(LINE_TEXTS, TEXT)
    key = (*order, *(name for name in columns if name not in order))
    columns |= {"simulated": FLAG}
    columns |= dict.fromkeys(LINE_INTS, INT)
    columns |= dict.fromkeys(LINE_SUMS, QUANTITY)
    columns |= dict.fromkeys(LINE_MAXIMA, QUANTITY)
    columns["stored_unix_ms"] = INT
    return Table(
        name=name,
        columns=columns,
        key=key,
        time="start_unix_ms",
        by_month=by_month,
        kept_days=kept_days,
        swept=True,
    )


LINE_TABLES: Final = (
    _lines("line_minute", per_slot=True, kept_days=MINUTE_KEPT_DAYS),
    _lines("line_hour", per_slot=True, kept_days=None),
    _lines(
        "fleet_interval",
        per_slot=False,
        kept_days=INTERVAL_KEPT_DAYS,
        order=_BY_TIME,
        by_month=False,
    ),
    _lines("fleet_minute", per_slot=False, kept_days=MINUTE_KEPT_DAYS),
    _lines("fleet_hour", per_slot=False, kept_days=None),
    _lines("fleet_day", per_slot=False, kept_days=None, order=_BY_TIME),
)
