"""The control store on a real SQLite file and on a real PostgreSQL server."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from flopwatch_collector.control import operations
from flopwatch_collector.control.observations import Judged, columns_of, observation_of
from flopwatch_collector.control.operations import Maintenance, Silence
from flopwatch_collector.control.outbox import OutboxRow
from flopwatch_collector.control.response import Kind, Response, respond
from flopwatch_collector.control.schema import INCIDENT, METADATA
from flopwatch_collector.control.store import DAY_MS, ControlStore
from flopwatch_collector.incident_state import IncidentState, State
from flopwatch_collector.inventory import Slot
from flopwatch_collector.rules import Cause, Observation
from flopwatch_proto.errors import RetryableError, UsageError
from flopwatch_proto.rows import SlotState
from postgres import Postgres

NOW_MS = 1_800_000_000_000


@pytest.fixture(params=["sqlite", "postgresql"])
def dsn(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where each test that asks finds an empty store, once of either kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/control.db"
    server: Postgres = request.getfixturevalue("postgresql")
    return server.database()


@pytest.fixture
def file_dsn(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/control.db"


@pytest.fixture
def control(dsn: str) -> Iterator[ControlStore]:
    opened = ControlStore.open(dsn)
    yield opened
    opened.close()


FIRING = IncidentState(
    rule="allocation",
    cluster="atlas",
    state=State.FIRING,
    simulated=True,
    episode="2027-01-15T08:00Z",
    began_unix_ms=NOW_MS,
    pending_since_unix_ms=NOW_MS,
    fired_unix_ms=NOW_MS + 300_000,
    last_eval_unix_ms=NOW_MS + 300_000,
    lo=0.95,
    hi=0.955,
    line=0.96,
    lost_points={"FREE": 4.5},
    causes=(Cause(kind="node", name="n1", cards=8, points=0.8),),
    paged_value=0.955,
    paged_causes=("FREE",),
    flap_times=(NOW_MS, NOW_MS + 1),
    noticed=("flapping",),
)


def a_page(**changes: object) -> OutboxRow:
    row = OutboxRow(
        id="a" * 32,
        rule="allocation",
        cluster="atlas",
        episode="2027-01-15T08:00Z",
        route="ops",
        action="trigger",
        repeat_no=0,
        dedup_key="fw:x",
        body="{}",
        created_unix_ms=NOW_MS,
    )
    return replace(row, **changes)  # type: ignore[arg-type]


def judged(tick_unix_ms: int = NOW_MS, hi: float | None = 0.97, condition: str = "ok") -> Judged:
    observation = Observation(
        cluster="atlas",
        rule="allocation",
        simulated=False,
        device_kind="gpu",
        tick_unix_ms=tick_unix_ms,
        lo=hi,
        hi=hi,
        value=hi,
        coverage=1.0,
        in_service_cards=8,
        unseen_cards=0,
        lost_points={"FREE": 3.0},
    )
    return Judged(observation=observation, condition=condition)


def test_a_state_comes_back_as_it_was_saved(control: ControlStore, dsn: str) -> None:
    control.save(states=[FIRING])
    control.close()
    again = ControlStore.open(dsn)
    assert again.incidents() == [replace(FIRING, version=1)]
    assert again.incidents([State.PENDING]) == []
    again.close()


def test_an_observation_comes_back_as_it_was_judged(control: ControlStore) -> None:
    observation = replace(
        judged().observation,
        free_without_demand_points=2.5,
        causes=(Cause(kind="node", name="n1", cards=8, points=0.8),),
        silent_nodes={"n7": NOW_MS - 60_000},
        goodbye_cards=8.0,
        witnessed_missing_points=0.25,
        in_service_nodes=313,
        newest_row_unix_ms=NOW_MS,
        onboarded_ratio=0.97,
        simulated=True,
    )
    control.save(observations=[Judged(observation=observation, condition="ok")])
    (row,) = control.observations("allocation", "atlas", 0, NOW_MS * 2)
    assert observation_of(row) == observation
    assert len(columns_of(judged(NOW_MS))["inputs"]) == 3  # what has its default is not written


def test_every_field_of_a_state_is_a_column() -> None:
    assert {c.name for c in INCIDENT.columns} == {f.name for f in fields(IncidentState)}


def test_the_migrations_make_exactly_the_tables_of_the_schema(control: ControlStore) -> None:
    with control.reading() as connection:
        context = MigrationContext.configure(connection)
        assert compare_metadata(context, METADATA) == []


def test_a_state_its_observation_and_its_pages_are_one_commit(control: ControlStore) -> None:
    control.save(states=[FIRING], pages=[a_page()], observations=[judged()])
    stale = replace(FIRING, state=State.CLEARING, version=0)
    with pytest.raises(RetryableError):
        control.save(
            states=[stale],
            pages=[a_page(id="b" * 32, action="resolve")],
            observations=[judged(NOW_MS + 10_000)],
        )
    assert [state.state for state in control.incidents()] == [State.FIRING]
    assert [row.action for row in control.outbox_all()] == ["trigger"]
    assert len(control.observations("allocation", "atlas", 0, NOW_MS * 2)) == 1


ACKNOWLEDGES = Response(rule="allocation", cluster="atlas", kind=Kind.ACKNOWLEDGE, by="kim")


def test_a_state_that_somebody_else_changed_is_not_overwritten(control: ControlStore) -> None:
    control.save(states=[FIRING])
    read = control.incidents()[0]
    respond(control, ACKNOWLEDGES, NOW_MS)
    with pytest.raises(RetryableError, match="changed meanwhile"):
        control.save(states=[replace(read, state=State.CLEARING)])
    assert control.incidents()[0].ack_by == "kim"


def test_a_page_that_is_there_is_not_added_twice(control: ControlStore) -> None:
    control.enqueue([a_page()])
    control.enqueue([a_page(id="c" * 32), a_page()])
    assert [row.id for row in control.outbox_all()] == ["a" * 32]


def test_only_the_oldest_open_page_of_a_line_is_due(control: ControlStore) -> None:
    rows = [
        a_page(id="1"),
        a_page(id="2", action="resolve"),
        a_page(id="3", route="desk"),
        a_page(id="4", cluster="boreas", next_try_unix_ms=NOW_MS + 1),
    ]
    control.enqueue(rows)
    assert [row.id for row in control.due(NOW_MS)] == ["1", "3"]
    control.failed("1", "HTTP 503", NOW_MS + 5_000)
    assert [row.id for row in control.due(NOW_MS)] == ["3"]
    control.sent("1", NOW_MS)
    assert [row.id for row in control.due(NOW_MS + 1)] == ["2", "3", "4"]
    control.refused("2", "HTTP 400", NOW_MS)
    assert [row.id for row in control.due(NOW_MS)] == ["3"]
    by_id = {row.id: row for row in control.outbox_all()}
    assert (by_id["1"].attempts, by_id["1"].sent_unix_ms) == (2, NOW_MS)
    assert (by_id["2"].last_error, by_id["2"].dropped_unix_ms) == ("HTTP 400", NOW_MS)


def test_a_page_is_held_until_its_reason_ends_and_dropped_if_its_outage_ended_before(
    control: ControlStore,
) -> None:
    trigger, resolve = a_page(id="1"), a_page(id="2", action="resolve")
    control.enqueue([trigger])
    control.held(control.due(NOW_MS)[0], "silence 1", NOW_MS, NOW_MS + 10_000)
    assert control.due(NOW_MS) == []
    assert control.due(NOW_MS + 10_000)[0].held_reason == "silence 1"
    control.enqueue([resolve])
    control.held(control.due(NOW_MS + 10_000)[0], "silence 1", NOW_MS, NOW_MS + 20_000)
    assert control.outbox_open() == []


def test_an_escalation_that_was_silenced_does_not_take_the_resolve_with_it(
    control: ControlStore,
) -> None:
    control.enqueue(
        [a_page(id="1"), a_page(id="2", action="escalate"), a_page(id="3", action="resolve")]
    )
    control.sent("1", NOW_MS)
    control.held(control.due(NOW_MS)[0], "silence 1", NOW_MS, NOW_MS + 10_000)
    assert [row.id for row in control.due(NOW_MS)] == ["3"]


def test_the_baseline_is_the_median_of_known_minutes_of_a_week(control: ControlStore) -> None:
    minute = NOW_MS // 60_000 * 60_000
    control.save(
        observations=[
            judged(minute, 0.90),
            judged(minute - 60_000, 0.91),
            judged(minute - 120_000, 0.95),
            judged(minute - 180_000, 0.10, "unknown"),
            judged(minute - 190_000, 0.10),
            judged(minute - 8 * DAY_MS, 0.10),
        ]
    )
    assert control.baseline("allocation", "atlas", NOW_MS) == 0.91
    assert control.baseline("mfu", "atlas", NOW_MS) is None


def test_pruning_keeps_what_is_young_open_or_running(control: ControlStore) -> None:
    control.save(
        states=[FIRING],
        pages=[a_page(id="1"), a_page(id="2", action="resolve")],
        observations=[
            judged(),
            judged(NOW_MS - 9 * DAY_MS),  # a full minute
            judged(NOW_MS - 9 * DAY_MS + 10_000),
            judged(NOW_MS - 36 * DAY_MS),
        ],
    )
    control.sent("1", NOW_MS)
    control.prune(NOW_MS + 30 * 60_000)
    kept = control.observations("allocation", "atlas", 0, NOW_MS * 2)
    assert [row["tick_unix_ms"] for row in kept] == [NOW_MS - 9 * DAY_MS, NOW_MS]
    control.prune(NOW_MS + 100 * DAY_MS)
    assert [row.id for row in control.outbox_all()] == ["2"]
    assert len(control.incidents()) == 1
    assert len(control.episodes()) == 1


def test_an_episode_keeps_its_worst_figure_and_its_end(control: ControlStore) -> None:
    control.save(states=[FIRING])
    control.save(states=[replace(FIRING, hi=0.90, lost_points={"FAILED": 10.0}, version=1)])
    control.save(states=[replace(FIRING, hi=0.94, version=2)])
    (episode,) = control.episodes(cluster="atlas")
    assert (episode["worst"], episode["lost_points"]) == (0.90, {"FAILED": 10.0})
    ended = replace(
        FIRING, state=State.RESOLVED, hi=0.98, resolved_unix_ms=NOW_MS + 900_000, version=3
    )
    control.save(states=[ended])
    (episode,) = control.episodes()
    assert (episode["worst"], episode["resolved_unix_ms"]) == (0.90, NOW_MS + 900_000)
    assert control.episodes(since_unix_ms=NOW_MS + 900_001) == []


def test_silences_and_windows_hold_from_their_start_to_before_their_end(
    control: ControlStore,
) -> None:
    silence = Silence(
        matchers={"cluster": "at*"}, starts_unix_ms=100, ends_unix_ms=200, by="kim", why="move"
    )
    window = Maintenance(
        cluster="atlas", nodes="*", starts_unix_ms=100, ends_unix_ms=200, by="kim", why="power"
    )
    silence_id = operations.add_silence(control, silence)
    operations.add_maintenance(control, window)
    assert [s.id for s in operations.silences(control, 100)] == [silence_id]
    assert operations.silences(control, 200) == []
    assert [w.why for w in operations.maintenances(control, 199)] == ["power"]
    operations.end_window(control, "silence", silence_id, 150)
    assert operations.silences(control, 150) == []
    assert len(operations.silences(control)) == 1


def test_a_silence_that_says_nothing_is_refused(control: ControlStore) -> None:
    wrong = Silence(matchers={}, starts_unix_ms=1, ends_unix_ms=2, by="kim", why="")
    with pytest.raises(UsageError, match="matchers"):
        operations.add_silence(control, wrong)
    with pytest.raises(UsageError, match="team"):
        operations.add_silence(control, replace(wrong, matchers={"team": "x"}))
    with pytest.raises(UsageError, match="end"):
        operations.add_silence(control, replace(wrong, matchers={"rule": "mfu"}, ends_unix_ms=1))
    with pytest.raises(UsageError, match="unknown"):
        operations.end_window(control, "silence", 99, 1)


def test_acknowledging_nothing_is_refused(control: ControlStore) -> None:
    with pytest.raises(UsageError, match="nothing to acknowledge"):
        respond(control, ACKNOWLEDGES, NOW_MS)


def test_the_audit_log_shows_when_an_entry_was_changed(control: ControlStore) -> None:
    for number in range(3):
        operations.record(control, NOW_MS + number, "kim", "silence", "atlas", after={"n": number})
    assert operations.audit_is_whole(control)
    assert [entry["after"] for entry in operations.audit(control, 2)] == [{"n": 2}, {"n": 1}]
    with control.writing() as connection:
        connection.exec_driver_sql("UPDATE audit SET who = 'eve' WHERE id = 2")
    assert not operations.audit_is_whole(control)


def test_the_inventory_of_record_is_replaced_as_a_whole(control: ControlStore) -> None:
    old = [Slot(cluster="atlas", node="n1", slot="0"), Slot(cluster="boreas", node="n1", slot="0")]
    new = [Slot(cluster="atlas", node="n2", slot="1", state=SlotState.EXPECTED, to_unix_ms=5)]
    operations.replace_inventory(control, old)
    assert operations.inventory(control) == old
    assert operations.inventory(control, "boreas") == old[1:]
    operations.replace_inventory(control, new)
    assert operations.inventory(control) == new


def test_the_store_is_read_while_it_is_written(control: ControlStore, dsn: str) -> None:
    reader = ControlStore.open(dsn, migrate=False)
    with control.writing() as connection:
        connection.exec_driver_sql("DELETE FROM silence")
        assert reader.incidents() == []
    reader.close()


def test_a_file_is_durable(file_dsn: str) -> None:
    control = ControlStore.open(file_dsn)
    with control.reading() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
    control.close()


def test_collectors_that_start_together_migrate_once(dsn: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        for opened in pool.map(lambda _: ControlStore.open(dsn), range(4)):
            assert opened.incidents() == []
            opened.close()


def test_a_store_that_cannot_be_used_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        ControlStore.open(f"sqlite:///{tmp_path}/nowhere/control.db")
    with pytest.raises(UsageError, match="DSN"):
        ControlStore.open("no dsn at all")
    with pytest.raises(UsageError, match="DSN"):
        ControlStore.open("oracle+nothing://x")
    garbage = tmp_path / "garbage.db"
    garbage.write_bytes(b"this is no database " * 100)
    with pytest.raises(UsageError, match="not a database"):
        ControlStore.open(f"sqlite:///{garbage}")
    with pytest.raises(UsageError, match="read"):
        ControlStore.open(f"sqlite:///{tmp_path}/empty.db", migrate=False)


def test_a_store_of_a_newer_version_is_refused(control: ControlStore, dsn: str) -> None:
    with control.writing() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(UsageError, match="9999"):
        ControlStore.open(dsn)


def test_a_password_stays_out_of_the_error() -> None:
    with pytest.raises(UsageError) as caught:
        ControlStore.open("postgresql+psycopg://kim:canary@127.0.0.1:1/none")
    assert "canary" not in str(caught.value)


def test_a_commit_survives_the_kill_of_its_process(tmp_path: Path, file_dsn: str) -> None:
    script = (
        "import os, sys\n"
        "from flopwatch_collector.control.store import ControlStore\n"
        "from flopwatch_collector.incident_state import IncidentState\n"
        f"control = ControlStore.open({file_dsn!r})\n"
        "control.save(states=[IncidentState(rule='mfu', cluster='atlas')])\n"
        "os.kill(os.getpid(), 9)\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], env=dict(os.environ), check=False)
    assert ended.returncode == -9
    again = ControlStore.open(file_dsn)
    assert [state.rule for state in again.incidents()] == ["mfu"]
    again.close()
    with sqlite3.connect(tmp_path / "control.db") as raw:
        assert raw.execute("PRAGMA integrity_check").fetchone() == ("ok",)
