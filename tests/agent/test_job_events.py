"""Goodput events: what is told of a job, once, in time, and how much at most."""

from __future__ import annotations

from typing import Any

import pytest

from flopwatch_agent.job_events import BURST, REFILL_MS
from flopwatch_agent.jobs import JobTable, Message
from flopwatch_proto.v1 import telemetry_pb2 as pb

NOW_UNIX_MS = 1_793_534_400_000


def hear(table: JobTable, at_ms: float, pid: int = 7, **keys: Any) -> None:
    """A message of a training job reaches the table."""
    said = {"v": 1, "pid": pid, "job": "llama", "device": "cpu", "workload_class": "training"}
    table.apply(Message(**{**said, **keys}), at_ms)


def told(table: JobTable, at_ms: float = 0.0) -> list[pb.Event]:
    return table.events(at_ms, NOW_UNIX_MS)


def kinds(events: list[pb.Event]) -> list[tuple[str, int]]:
    return [(event.kind, event.code) for event in events]


def test_a_job_starts_once_however_many_ranks_it_has_and_exits_with_the_last() -> None:
    table = JobTable()
    for pid in (1, 2, 3):
        hear(table, 0, pid, event="start", steps_total=0, step=0)
    for pid in (1, 2, 3):
        hear(table, 5000, pid, event="exit", steps_total=4, step=4)
    events = told(table, 5000)
    assert kinds(events) == [("job_start", 0), ("job_exit", 4)]
    assert {event.job for event in events} == {"llama"}
    assert [NOW_UNIX_MS - event.time_unix_ms for event in events] == [5000, 0]
    assert told(table) == []


def test_a_process_first_heard_in_the_middle_of_its_life_starts_no_job() -> None:
    table = JobTable()
    hear(table, 0, steps_total=100)
    assert told(table) == []


def test_a_checkpoint_is_told_once_where_every_rank_writes_it_at_the_time_it_began() -> None:
    table = JobTable()
    for pid in (1, 2):
        hear(table, 0, pid, event="start", steps_total=0)
    told(table)
    for pid, end_ms in ((1, 20_000), (2, 20_400)):
        hear(table, end_ms, pid, event="checkpoint", event_ms=8_000.0, steps_total=9, step=9)
    hear(table, 60_000, 1, event="eval", event_ms=2_000.0, steps_total=9, step=9)
    hear(table, 90_000, 2, event="checkpoint", event_ms=8_000.0, steps_total=12, step=12)
    events = told(table, 90_000)
    assert kinds(events) == [("job_checkpoint", 9), ("job_eval", 9), ("job_checkpoint", 12)]
    assert [NOW_UNIX_MS - event.time_unix_ms for event in events] == [78_000, 32_000, 8_000]
    assert events[0].text == "took 8.0 s"


def test_a_job_that_starts_again_was_restarted_and_its_lost_steps_are_counted() -> None:
    table = JobTable()
    for pid in (1, 2):
        hear(table, 0, pid, event="start", steps_total=0, step=0)
        hear(table, 9_000, pid, steps_total=117, step=117)
    for pid in (3, 4):
        hear(table, 60_000, pid, event="start", steps_total=0, step=100)
    (start, restart) = told(table, 60_000)
    assert (start.kind, restart.kind, restart.code) == ("job_start", "job_restart", 100)
    assert restart.text == "started again at step 100: 17 steps lost"
    assert restart.severity == "warning"


def test_the_number_of_the_first_step_after_a_restart_may_come_late() -> None:
    table = JobTable()
    hear(table, 0, 1, event="start", steps_total=0)
    hear(table, 9_000, 1, steps_total=50, step=1_050)
    hear(table, 10_000, 1, event="exit", steps_total=50, step=1_050)
    hear(table, 60_000, 2, event="start", steps_total=0)
    assert kinds(told(table)) == [("job_start", -1), ("job_exit", 1_050)]
    hear(table, 75_000, 2, steps_total=2, step=1_022)
    (restart,) = told(table, 75_000)
    assert (restart.text, restart.code) == ("started again at step 1020: 30 steps lost", 1_020)
    assert NOW_UNIX_MS - restart.time_unix_ms == 15_000


def test_a_restart_without_step_numbers_says_that_the_loss_is_not_known() -> None:
    table = JobTable()
    hear(table, 0, 1, event="start", steps_total=0)
    hear(table, 9_000, 1, steps_total=50)
    hear(table, 60_000, 2, event="start", steps_total=0)
    hear(table, 70_000, 2, steps_total=5)
    table.expire(700_001, lambda pid: True)
    (_, restart) = told(table, 700_001)
    assert (restart.kind, restart.code) == ("job_restart", -1)
    assert "not known" in restart.text


def test_a_loop_that_goes_back_by_itself_was_restarted() -> None:
    table = JobTable()
    hear(table, 0, event="start", steps_total=0, step=0)
    hear(table, 50_000, steps_total=40, step=40)
    hear(table, 90_000, event="restart", steps_total=41, step=31)
    assert kinds(told(table)) == [("job_start", 0), ("job_restart", 30)]


def test_an_evaluation_beside_a_training_of_the_same_job_is_no_restart() -> None:
    table = JobTable()
    hear(table, 0, 1, event="start", steps_total=0, step=0)
    hear(table, 9_000, 1, steps_total=50, step=50)
    hear(table, 20_000, 2, event="start", steps_total=0, step=0, workload_class="eval")
    hear(table, 21_000, 2, steps_total=3, step=3, workload_class="eval")
    assert kinds(told(table)) == [("job_start", 0)]


def test_a_worker_that_joins_while_others_speak_is_no_restart() -> None:
    table = JobTable()
    hear(table, 0, 1, event="start", steps_total=0)
    for second in range(1, 20):
        hear(table, 1_000.0 * second, 1, steps_total=second)
    hear(table, 20_000, 2, event="start", steps_total=0)
    assert kinds(told(table)) == [("job_start", -1)]


def test_a_process_gone_without_a_word_ends_its_job_when_it_was_last_heard() -> None:
    table = JobTable()
    hear(table, 0, event="start", steps_total=0)
    hear(table, 9_000, steps_total=5, step=5)
    table.expire(100_000, lambda pid: False)
    (_, gone) = told(table, 100_000)
    assert (gone.kind, gone.code, gone.text) == (
        "job_exit",
        5,
        "its last process is gone without a word",
    )
    assert NOW_UNIX_MS - gone.time_unix_ms == 91_000


def test_a_job_that_tells_too_much_is_cut_short_and_the_rest_is_counted() -> None:
    table = JobTable()
    hear(table, 0, event="start", steps_total=0)
    for i in range(100):
        hear(table, 5_000.0 * (i + 1), event="checkpoint", event_ms=1.0, steps_total=1, step=i)
    allowed = BURST + 500_000 // REFILL_MS
    assert len(told(table)) == allowed
    assert table.drops == {"events": 101 - allowed}


@pytest.mark.parametrize("wrong", [float("inf"), float("nan"), -1.0])
def test_numbers_that_make_no_sense_raise_nothing_and_are_counted(wrong: float) -> None:
    table = JobTable()
    hear(table, 0, event="start", steps_total=5, step=5)
    hear(table, 1_000, event="checkpoint", steps_total=wrong, step=-7, event_ms=wrong)
    assert kinds(told(table, 1_000)) == [("job_start", 5), ("job_checkpoint", -1)]
    assert table.drops == {"counter": 2}


def test_of_too_many_jobs_the_one_not_heard_for_longest_makes_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("flopwatch_agent.job_events.JOBS_MAX", 2)
    table = JobTable()
    for number, at_ms in enumerate((0, 30_000, 59_000, 61_000)):
        hear(table, at_ms, 10 + number, job=f"job-{number}", event="start")
    assert [event.job for event in told(table)] == ["job-0", "job-1", "job-3"]
    assert table.drops == {"jobs_full": 1}
