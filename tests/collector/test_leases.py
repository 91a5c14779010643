"""What only one of several collectors does: who may, and what becomes of one that no longer may."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from flopwatch_collector.control import leases
from flopwatch_collector.control.leases import LEASE_MS, PAGER, RENEW_S, Lease
from flopwatch_collector.control.outbox import OutboxRow
from flopwatch_collector.control.store import ControlStore
from flopwatch_collector.incident_state import IncidentState, State
from flopwatch_collector.paging.outbox import Sender
from flopwatch_collector.paging.turn import TRY_SECONDS_MAX, AlwaysTurn, LeaseTurn, Turn
from flopwatch_collector.rules import Observation
from flopwatch_collector.shared_metrics import SharedMetrics
from flopwatch_collector.watch import Watch, WatchSettings
from flopwatch_proto.errors import RetryableError
from postgres import Postgres


@pytest.fixture(params=["sqlite", "postgresql"])
def control(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ControlStore]:
    dsn = f"sqlite:///{tmp_path}/control.db"
    if request.param == "postgresql":
        server: Postgres = request.getfixturevalue("postgresql")
        dsn = server.database()
    opened = ControlStore.open(dsn)
    yield opened
    opened.close()


@pytest.fixture
def file(tmp_path: Path) -> Iterator[ControlStore]:
    opened = ControlStore.open(f"sqlite:///{tmp_path}/control.db")
    yield opened
    opened.close()


def a_lease(control: ControlStore, holder: str, clock_ms: Callable[[], int]) -> Lease:
    return Lease(control, PAGER, holder, SharedMetrics(CollectorRegistry()), clock_ms)


def test_a_lease_changes_hands_only_when_it_ran_out_and_its_fence_grows(
    control: ControlStore,
) -> None:
    assert leases.take(control, "rules", "a", 15_000, 0) == 1
    assert leases.take(control, "rules", "b", 15_000, 14_999) is None
    assert leases.take(control, "rules", "a", 15_000, 5_000) == 1
    assert leases.take(control, "rules", "b", 15_000, 20_000) == 2
    assert leases.take(control, "rules", "a", 15_000, 21_000) is None
    assert leases.holder_of(control, "rules") == ("b", 2)


def test_the_stores_clock_decides_and_one_that_is_given_up_is_free_at_once(
    control: ControlStore,
) -> None:
    assert leases.take(control, PAGER, "a", LEASE_MS) == 1
    assert leases.take(control, PAGER, "b", LEASE_MS) is None
    leases.give_up(control, PAGER, "b")
    assert leases.take(control, PAGER, "b", LEASE_MS) is None
    leases.give_up(control, PAGER, "a")
    assert leases.take(control, PAGER, "b", LEASE_MS) == 2
    assert leases.take(control, PAGER, "b", LEASE_MS) == 2


def test_a_tick_that_was_judged_under_an_old_fence_writes_nothing(control: ControlStore) -> None:
    state = IncidentState(rule="mfu", cluster="atlas")
    leases.take(control, PAGER, "a", 15_000, 0)
    leases.take(control, PAGER, "b", 15_000, 15_000)
    with pytest.raises(RetryableError, match=r"went to another collector \(1, now 2\)"):
        control.save(states=[state], pages=[A_PAGE], fence=1)
    assert control.incidents() == []
    assert control.outbox_all() == []
    control.save(states=[state], pages=[A_PAGE], fence=2)
    assert len(control.outbox_all()) == 1


def test_of_many_that_ask_at_once_one_gets_it(control: ControlStore) -> None:
    with ThreadPoolExecutor(8) as asking:
        for turn in range(1, 6):
            holders = [f"{turn}/{number}" for number in range(8)]
            fences = list(asking.map(lambda h: leases.take(control, PAGER, h, LEASE_MS), holders))
            assert [fence for fence in fences if fence is not None] == [turn]
            leases.give_up(control, PAGER, holders[fences.index(turn)])


async def test_a_holder_that_cannot_renew_stops_before_another_may_begin(
    file: ControlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_ms = [1_000]
    held = a_lease(file, "a", lambda: now_ms[0])
    await held.renew()
    assert (held.fence, held.left_ms()) == (1, LEASE_MS)

    def silent(*_: object) -> int:
        raise RetryableError("no answer")

    monkeypatch.setattr(leases, "take", silent)
    now_ms[0] += round(RENEW_S * 1000)
    await held.renew()
    assert (held.fence, held.left_ms()) == (1, LEASE_MS - round(RENEW_S * 1000))
    now_ms[0] = 1_000 + LEASE_MS
    assert held.fence is None


async def test_a_job_runs_while_the_lease_is_held_and_again_when_it_is_back(
    file: ControlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "LOOK_S", 0.001)
    now_ms = [0]
    held = a_lease(file, "a", lambda: now_ms[0])
    began: list[int] = []
    ended: list[int] = []

    async def job(fence: int) -> None:
        began.append(fence)
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(fence)

    running = asyncio.create_task(held.while_held(job))
    await held.renew()
    await until(lambda: began == [1])
    now_ms[0] += LEASE_MS
    await until(lambda: ended == [1])
    leases.take(file, PAGER, "b", LEASE_MS, 2**50)  # somebody else had it meanwhile
    leases.give_up(file, PAGER, "b")
    await held.renew()
    await until(lambda: began == [1, 3])
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert ended == [1, 3]


async def test_a_collector_that_ends_leaves_its_lease_to_the_next(file: ControlStore) -> None:
    held = a_lease(file, "a", lambda: 0)
    running = asyncio.create_task(held.run())
    await until(lambda: held.fence == 1)
    assert leases.take(file, PAGER, "b", LEASE_MS) is None
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert leases.take(file, PAGER, "b", LEASE_MS) == 2


# ---- sending in turn


A_PAGE = OutboxRow(
    id="a" * 32,
    rule="allocation",
    cluster="atlas",
    episode="2027-01-15T08:00Z",
    route="ops",
    action="trigger",
    repeat_no=0,
    dedup_key="fw:x",
    body="{}",
    created_unix_ms=0,
)


@dataclass
class Channel:
    """A receiver that takes what it is sent after a while. Attributes: seconds: how long a while."""

    seconds: float = 0.0
    sent: list[str] = field(default_factory=list)

    async def send(self, row: OutboxRow, now_unix_ms: int) -> str | None:
        self.sent.append(row.id)
        await asyncio.sleep(self.seconds)
        return None

    async def close(self) -> None:
        pass


def a_sender(control: ControlStore, channel: Channel, turn: Turn, seconds: float = 8.0) -> Sender:
    return Sender(
        control,
        {"ops": channel},
        clock=lambda: 0,
        jitter=random.Random(1),
        turn=turn,
        try_seconds_max=seconds,
    )


async def test_only_the_holder_sends_and_only_while_a_try_fits_into_its_lease(
    file: ControlStore,
) -> None:
    now_ms = [0]
    held = a_lease(file, "a", lambda: now_ms[0])
    channel = Channel()
    sender = a_sender(file, channel, LeaseTurn(held))
    file.enqueue([A_PAGE])
    await sender.once()
    await held.renew()
    now_ms[0] = LEASE_MS - round(TRY_SECONDS_MAX * 1000) - 999
    await sender.once()
    assert (channel.sent, sender.counters.waits) == ([], 2)
    await held.renew()
    await sender.once()
    await sender.close()
    assert channel.sent == [A_PAGE.id]
    assert file.outbox_open() == []


async def test_a_try_that_takes_longer_than_its_turn_has_failed(file: ControlStore) -> None:
    held = a_lease(file, "a", lambda: 0)
    await held.renew()
    sender = a_sender(file, Channel(seconds=3_600), LeaseTurn(held), seconds=0.01)
    file.enqueue([A_PAGE])
    await sender.once()
    await sender.close()
    (row,) = file.outbox_open()
    assert (row.attempts, row.last_error) == (1, "no answer in time")


# ---- beside the event loop


class Waiting(ControlStore):
    """A store that answers when it is told to. Attributes: asked: somebody waits."""

    asked = threading.Event()
    answer = threading.Event()

    def incidents(self, states: Sequence[State] | None = None) -> list[IncidentState]:
        self.asked.set()
        assert self.answer.wait(60)
        return super().incidents(states)

    def due(self, now_unix_ms: int) -> list[OutboxRow]:
        self.incidents()
        return super().due(now_unix_ms)


class Nobody:
    """Live state of no cluster."""

    def clusters(self) -> list[str]:
        return []

    def observe(self, cluster: str, tick_unix_ms: int) -> list[Observation]:
        return []


@pytest.mark.parametrize("who", ["watch", "sender"])
async def test_the_event_loop_goes_on_while_the_store_does_not_answer(
    tmp_path: Path, who: str
) -> None:
    store = Waiting.open(f"sqlite:///{tmp_path}/control.db")
    store.asked.clear()
    store.answer.clear()
    sender = a_sender(store, Channel(), AlwaysTurn())
    watch = Watch(Nobody(), store, WatchSettings(), lambda: 2**40, 0)
    running = asyncio.create_task(watch.run() if who == "watch" else sender.run())
    await until(store.asked.is_set)  # which a loop that waits with it would never see
    assert not running.done()
    assert watch.counters.failed == 0
    store.answer.set()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await sender.close()
    store.close()


async def until(happened: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not happened():
            await asyncio.sleep(0.001)
