"""The standby's turn, with a primary of a few lines and the real control store."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from flopwatch_collector import config as configuration
from flopwatch_collector.control.outbox import OutboxRow
from flopwatch_collector.control.store import ControlStore
from flopwatch_collector.standby import StandbyTurn, Word, settled_ids, shown_name
from flopwatch_collector.standby_settings import StandbyConfig
from flopwatch_proto.errors import RetryableError, UsageError

NOON = 1_790_000_000_000


@dataclass
class Primary:
    settled: list[str] = field(default_factory=list)
    gone: bool = False

    async def word(self) -> Word:
        if self.gone:
            raise RetryableError("ConnectError")
        return Word(now_unix_ms=NOON, settled=self.settled)

    async def close(self) -> None: ...


def page(number: int, action: str = "trigger", cluster: str = "atlas") -> OutboxRow:
    return OutboxRow(
        id=f"{number:032}", rule="allocation", cluster=cluster, episode="e", route="r",
        action=action, repeat_no=0, dedup_key="k", body="{}", created_unix_ms=NOON,
    )  # fmt: skip


@pytest.fixture
def control(tmp_path: Path) -> Iterator[ControlStore]:
    store = ControlStore.open(f"sqlite:///{tmp_path}/control.db")
    yield store
    store.close()


def turn(control: ControlStore, primary: Primary, now: list[int]) -> StandbyTurn:
    return StandbyTurn(
        name="p", primary=primary, control=control, clock=lambda: now[0], started_unix_ms=NOON
    )


async def test_it_is_the_standbys_turn_after_fifteen_seconds_without_an_answer(
    control: ControlStore,
) -> None:
    now, primary = [NOON], Primary()
    mine = turn(control, primary, now)
    assert await mine.refusal(NOON + 14_999) is not None  # never heard: from the start on
    assert await mine.refusal(NOON + 15_000) is None
    now[0] = NOON + 60_000
    await mine.look()
    assert await mine.refusal(NOON + 74_999) is not None
    primary.gone = True
    now[0] = NOON + 70_000
    await mine.look()
    assert await mine.refusal(NOON + 75_000) is None
    assert await mine.refusal(NOON) is None  # a clock that was set back: in doubt, send
    assert mine.looks_failed == 1
    primary.gone = False
    await mine.look()
    assert await mine.refusal(NOON + 75_000) is not None


async def test_what_the_primary_settled_is_settled_here_and_the_rest_waits(
    control: ControlStore,
) -> None:
    control.enqueue([page(1), page(2, cluster="other")])
    mine = turn(control, Primary(settled=[page(1).id]), [NOON])
    await mine.look()
    (waiting,) = control.outbox_open()
    assert (waiting.id, waiting.held_reason) == (page(2).id, "the primary p is there")
    assert settled_ids(control, NOON) == [page(1).id]
    assert mine.settled_rows == 1


async def test_an_outage_that_came_and_went_and_was_never_paged_is_never_sent(
    control: ControlStore,
) -> None:
    control.enqueue([page(1), page(2, "resolve")])
    await turn(control, Primary(), [NOON]).look()
    assert control.outbox_open() == []


def test_the_section_says_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="http://HOST:PORT"):
        StandbyConfig(primary="host:9750")
    with pytest.raises(ValueError, match="all three files, or none"):
        StandbyConfig(primary="https://host", certificate="c.pem")
    with pytest.raises(ValueError, match="certificates need https"):
        StandbyConfig(primary="http://host", certificate="c", key="k", authority="a")
    with pytest.raises(ValueError, match="1 to 9"):
        StandbyConfig(primary="http://host:9750", rank=0)
    local = {"FLOPWATCH_STANDBY__PRIMARY": "http://host:9750"}
    assert configuration.load(None, local, {}).standby.primary
    for key, dsn in (
        ("telemetry", "http://ch:8123/flopwatch"),
        ("control", "postgresql+psycopg://u@h/d"),
    ):
        with pytest.raises(UsageError, match=rf"standby.primary is set, and {key}.dsn is a server"):
            configuration.load(None, {**local, f"FLOPWATCH_{key.upper()}__DSN": dsn}, {})
    assert shown_name("atlas", StandbyConfig()) == "atlas"
    assert not Word(now_unix_ms=NOON, tick_unix_ms=NOON - 60_001, settled=[]).is_alive()
