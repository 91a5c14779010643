"""Some hundred random histories against the model, and a model that is wrong is found out."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import structlog

from campaign import paging_histories
from campaign.paging_model import Model

ONCE_WRONG = (143,)
"""A hold that waits for a line that is open went on over a tick that could not be evaluated."""


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    before = structlog.get_config()["wrapper_class"]
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.configure(wrapper_class=before)


def test_every_page_comes_at_the_tick_at_which_the_model_says_it() -> None:
    lived = [paging_histories.lived(seed) for seed in (*range(1, 46), *ONCE_WRONG)]
    assert [problem for history in lived for problem in history.wrong] == []
    said = {(rule, action) for history in lived for _, rule, action, _ in history.said}
    assert {(rule, "trigger") for rule in paging_histories.MODELLED} <= said
    assert {("allocation", "escalate"), ("allocation", "notice"), ("mfu", "resolve")} <= said


def test_a_hold_that_is_a_tick_too_long_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(*, for_s: int, **more: object) -> Model:
        return Model(for_s=for_s + 10, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(paging_histories, "Model", slow)
    assert any(paging_histories.lived(seed).wrong for seed in range(1, 5))
