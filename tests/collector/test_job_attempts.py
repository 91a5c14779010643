"""A job that ran twice under one name, from a real store: which rows are whose."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any, cast

import pytest

from evidence_tables import row, slot
from flopwatch_collector.jobs.lives import Life, lives_of
from flopwatch_collector.ledger.evidence import Window
from flopwatch_collector.telemetry.store import TelemetryStore
from flopwatch_collector.web.answers import Answers
from flopwatch_collector.web.jobs import job_answer
from flopwatch_collector.web.problems import Problem
from flopwatch_collector.web.sources import Control, Sources
from flopwatch_proto.rows import Bucket
from stored import put, roll_up

MINUTE = 60_000
START = 1_800_000_000_000 // MINUTE * MINUTE


def rows(job: str, node: str, start: int, end: int, tensor: float) -> Iterable[dict[str, Any]]:
    bucket = Bucket.ACTIVE if job else Bucket.FREE
    for at in range(start, end, 10_000):
        yield row(at, bucket, node=node, sm=0.9, tensor=tensor, job=job)


@pytest.fixture
def now(store: TelemetryStore) -> int:
    """The end of a store with two jobs of two runs: 81 was requeued, 82 ran on while its node was silent."""
    end = START + 25 * MINUTE
    put(store, "slot", [slot("n0", start=START), slot("n1", start=START)], START)
    requeued = START + 10 * MINUTE + 20_000, START + 13 * MINUTE + 10_000
    silent = START + 12 * MINUTE, START + 17 * MINUTE
    made = [
        *rows("81", "n0", START + 5 * MINUTE + 30_000, requeued[0], 0.2),
        *rows("", "n0", *requeued, 0.0),
        *rows("81", "n0", requeued[1], end, 0.6),
        *rows("82", "n1", START, silent[0], 0.4),
        *rows("82", "n1", silent[1], end, 0.4),
    ]
    put(store, "interval", made, end)
    roll_up(store, end + 2 * MINUTE)
    return end + 2 * MINUTE


def lives(store: TelemetryStore, job: str, now: int) -> tuple[Life, ...]:
    (found,) = lives_of(store, job, None, now)
    return found


def test_an_attempt_ends_where_its_slots_say_that_nobody_holds_them(
    store: TelemetryStore, now: int
) -> None:
    assert [(life.attempt, life.attempts, life.end <= now) for life in lives(store, "81", now)] == [
        (1, 2, True),
        (2, 2, True),
    ]
    assert [life.attempts for life in lives(store, "82", now)] == [1]  # nobody said that it stopped


def test_the_newest_attempt_answers_unless_another_is_meant(
    store: TelemetryStore, now: int
) -> None:
    sources = Sources(
        collector=cast(Any, store),
        control=Control("sqlite://"),
        answers=Answers(time.monotonic),
        now_unix_ms=lambda: now,
    )

    def asked(window: Window | None = None, attempt: int | None = None) -> dict[str, Any]:
        return job_answer(sources, "81", None, window, None, attempt)

    newest, first = asked(), asked(attempt=1)
    assert (newest["attempt"], newest["attempts"], first["attempt"]) == (2, 2, 1)
    assert newest["hfu"]["value"] == pytest.approx(0.6)
    assert first["hfu"]["value"] == pytest.approx(0.2)
    assert first["window_s"] == first["held_s"] == 290
    assert newest["held_s"] == 11 * 60 + 50
    before = Window(start=START, end=START + 11 * MINUTE)
    assert asked(before)["attempt"] == 1
    with pytest.raises(Problem, match="the newest of job '81' is number 2"):
        asked(attempt=3)
