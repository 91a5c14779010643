"""The books of clusters: losses by cause, and nodes by what the audit says of their spools."""

from __future__ import annotations

from typing import Any

from flopwatch_collector.audit import balance, books, losses
from flopwatch_collector.audit.losses import Loss
from flopwatch_collector.telemetry.store import TelemetryStore
from flopwatch_collector.web.exposition import exposition
from flopwatch_proto.errors import RetryableError

NOW = 1_800_000_000_000
MINUTE = 60_000


def put(store: TelemetryStore, table: str, stored_unix_ms: int, **columns: Any) -> None:
    place = {"cluster": "atlas", "simulated": False, "stored_unix_ms": stored_unix_ms}
    store.append(table, {name: [value] for name, value in (place | columns).items()})


def batch(
    store: TelemetryStore, node: str, stored_unix_ms: int, *, kept: bool, start: int = NOW
) -> None:
    """One batch of one row that a spool handed over; the row may not be there."""
    place = {"node": node, "spool_id": f"of {node}", "seq": 1}
    put(store, "receipt", stored_unix_ms, **place, rows=1, rows_before=0, sha="a")
    told = {"node": node, "spool_id": f"of {node}", "told_unix_ms": stored_unix_ms}
    totals = {"next_seq": 2, "acked_seq": 1, "acked_rows": 1, "produced_rows": 1}
    put(store, "spool", stored_unix_ms, **told, **totals)
    if kept:
        minutes = {("atlas", start // MINUTE * MINUTE)}
        store.marks.mark(minutes, stored_unix_ms)
        put(store, "interval", stored_unix_ms, **place, slot="0", start_unix_ms=start)
        store.marks.settle(minutes, stored_unix_ms)


def lose(store: TelemetryStore, cause: str, rows: int, seq: int, stored_unix_ms: int) -> None:
    place = {"node": "n0", "spool_id": "lost", "first_seq": seq, "last_seq": seq}
    put(store, "gap", stored_unix_ms, **place, rows=rows, reason=cause)


def test_losses_are_counted_by_cause_and_no_agent_invents_one(store: TelemetryStore) -> None:
    day = losses.LOOKED_BACK_MS
    lose(store, "spool_full", 7, 1, NOW - day)
    lose(store, "spool_full", 5, 2, NOW)
    lose(store, "the dog ate it", 3, 3, NOW)
    lose(store, "corrupt", 99, 4, NOW - day - 1)
    refused = {"node": "n1", "spool_id": "s", "seq": 1, "code": "bad_rows", "rows": 2}
    put(store, "quarantine", NOW, **refused)
    found = losses.read(store, NOW - day)
    told = {(x.kind, x.cause): (x.times, x.rows) for x in found}
    assert told == {
        ("gap", "spool_full"): (2, 12),
        ("gap", "other"): (1, 3),
        ("quarantine", "bad_rows"): (1, 2),
    }
    assert [x.cause for x in losses.read(store, NOW - day, node="n1")] == ["bad_rows"]
    assert losses.read(store, NOW - day, cluster="elsewhere") == []


def test_a_node_is_what_the_worst_of_its_spools_is(store: TelemetryStore) -> None:
    batch(store, "n0", NOW - MINUTE, kept=True)
    batch(store, "n1", NOW - MINUTE, kept=False)
    (found,) = books.read(store, NOW)
    assert found.nodes == {"missing": 1, "cloned": 0, "unspoken": 0, "balanced": 1}
    assert (found.unbalanced, found.missing_rows, found.wrong) == (1, 1, ["n1"])
    text = exposition(None, None, [found])
    place = 'cluster="atlas",simulated="false"'
    assert f'flopwatch_cluster_audited_nodes{{{place},verdict="missing"}} 1.0' in text
    assert f"flopwatch_cluster_audit_missing_rows{{{place}}} 1.0" in text
    assert f"flopwatch_cluster_audit_timestamp_seconds{{{place}}} 1.8e+09" in text


def test_a_row_that_came_days_late_is_found_where_it_lies(store: TelemetryStore) -> None:
    batch(store, "n0", NOW - MINUTE, kept=True, start=NOW - 3 * 86_400_000)
    (one,) = balance.read(store, NOW - books.AUDITED_MS)
    assert (one.verdict, one.stored_rows) == ("balanced", 1)
    store.marks.clear("atlas", [(NOW - 3 * 86_400_000) // MINUTE * MINUTE], NOW)
    (one,) = balance.read(store, NOW - books.AUDITED_MS)
    assert (one.verdict, one.stored_rows) == ("balanced", 1)


def test_the_more_rows_come_the_shorter_is_what_is_audited() -> None:
    spans = [books.audited_ms(rows) // MINUTE for rows in (0, 10**5, 10**6, 10**7)]
    assert spans == [60, 60, 25, 5]


def test_an_audit_without_an_answer_is_not_known_and_hides_no_loss(store: TelemetryStore) -> None:
    batch(store, "n0", NOW - MINUTE, kept=True)
    lose(store, "disk_error", 4, 9, NOW)

    class Busy:
        """Answers what is cheap."""

        def query(self, sql: str, parameters: Any = None) -> Any:
            if sql == balance.ROWS_SQL:
                raise RetryableError("took longer than 10 s")
            return store.query(sql, parameters)

    (found,) = books.read(Busy(), NOW)
    assert (found.nodes, found.unbalanced, found.reason) == (None, None, "took longer than 10 s")
    assert found.losses == [
        Loss(
            cluster="atlas", simulated=False, kind="gap", cause="disk_error", times=1, rows=4,
            told_unix_ms=NOW,
        )
    ]  # fmt: skip
    text = exposition(None, None, [found])
    assert 'cause="disk_error",cluster="atlas",simulated="false"} 4.0' in text
    assert "flopwatch_cluster_audited_nodes{" not in text
