"""The time of a step from the rhythm of a job's tensor activity."""

from __future__ import annotations

import numpy as np
import pytest

from flopwatch_collector.jobs.period import step_period


def activity(
    period_s: float, seconds: int, *, busy: float = 0.7, noise: float = 0.0, seed: int = 0
) -> list[float | None]:
    """Return 1 Hz readings, each the mean of a second, of steps that compute for their first part."""
    fine = np.arange(0, seconds, 0.01)
    on = np.where(fine % period_s < busy * period_s, 0.6, 0.05)
    means = on.reshape(seconds, 100).mean(axis=1)
    noisy = means + np.random.default_rng(seed).normal(0, noise, seconds)
    return [float(v) for v in noisy]


@pytest.mark.parametrize("period_s", [2.6, 3.3, 5.0, 7.4, 10.64, 17.0, 31.5])
def test_steps_of_a_regular_job_are_found_to_two_percent(period_s: float) -> None:
    found = step_period(activity(period_s, 300, noise=0.02), 1.0)
    assert found is not None
    assert found[0] == pytest.approx(period_s, rel=0.02)
    assert found[1] > 0.5


def test_the_step_is_found_and_not_the_rhythm_of_several() -> None:
    fast = activity(5.0, 300)
    log_line = [0.9 if t % 25 == 0 else 1.0 for t in range(300)]
    found = step_period([v * w for v, w in zip(fast, log_line, strict=True) if v], 1.0)
    assert found is not None
    assert found[0] == pytest.approx(5.0, rel=0.02)


def test_missing_readings_and_a_drift_do_not_hide_it() -> None:
    readings = activity(6.0, 240, noise=0.02)
    drifting = [None if t % 11 == 3 else (v or 0.0) + t / 400 for t, v in enumerate(readings)]
    found = step_period(drifting, 1.0)
    assert found is not None
    assert found[0] == pytest.approx(6.0, rel=0.02)


def test_readings_ten_times_a_second_show_shorter_steps() -> None:
    found = step_period(activity(8.0, 200, noise=0.02), 0.1)
    assert found is not None
    assert found[0] == pytest.approx(0.8, rel=0.02)


@pytest.mark.parametrize("seed", range(60))
def test_no_rhythm_is_invented(seed: int) -> None:
    random = np.random.default_rng(seed)
    white = random.normal(0.5, 0.1, 180)
    wander = 0.5 + np.cumsum(random.normal(0, 0.01, 180))
    assert step_period([float(v) for v in white], 1.0) is None
    found = step_period([float(v) for v in wander], 1.0)
    assert found is None or found[1] < 0.9


def test_what_cannot_be_seen_has_no_answer() -> None:
    assert step_period([0.5] * 100, 1.0) is None
    assert step_period([0.0] * 100, 1.0) is None
    assert step_period([0.5, 0.1] * 5, 1.0) is None
    assert step_period([None] * 100, 1.0) is None
    assert step_period(activity(90.0, 120), 1.0) is None
