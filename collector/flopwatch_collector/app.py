"""The collector: its stages wired, started in order and stopped in reverse.

store → live → ingest                  agents are acknowledged from here on
        live → watch → outbox → page   judged every 10 s, whatever readers do
store → rollup                         in a thread of its own
store → read server ⇄ web              a child process: it can be killed, and is started again

Where the telemetry store is a server, several collectors may share it and the control store: all take rows,
one of them watches, pages and asks the schedulers, and one rolls up, by leases.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog
from prometheus_client import CollectorRegistry, generate_latest

from flopwatch_collector import inventory
from flopwatch_collector.captures import Captures
from flopwatch_collector.child import Child
from flopwatch_collector.config import CollectorConfig
from flopwatch_collector.control.leases import Alone, Lease
from flopwatch_collector.control.operations import resting
from flopwatch_collector.control.store import ControlStore
from flopwatch_collector.excused import excuses_of
from flopwatch_collector.ledger.intervals import Intervals, seconds_to_next
from flopwatch_collector.ledger.rollup import MINUTE_MS, SETTLE_MS, Rollup
from flopwatch_collector.listen import IngestServer
from flopwatch_collector.live import Live
from flopwatch_collector.paging.changes import backgrounds
from flopwatch_collector.paging.desk import Desk
from flopwatch_collector.paging.settings import PagingConfig
from flopwatch_collector.paging.turn import TRY_SECONDS_MAX, LeaseTurn
from flopwatch_collector.roster.gather import SlurmRosters
from flopwatch_collector.roster.kubernetes_gather import KubernetesRosters
from flopwatch_collector.roster.meter import Meter
from flopwatch_collector.roster.metrics import RosterMetrics
from flopwatch_collector.rules.registry import rule_named, settings_of
from flopwatch_collector.rules.settings import RulesConfig, RuleSettings
from flopwatch_collector.shared import Shares
from flopwatch_collector.signals.every import observing
from flopwatch_collector.standby import StandbyTurn, shown_name, turn_of
from flopwatch_collector.telemetry.arrival import declared
from flopwatch_collector.telemetry.dirty import dirty_minutes
from flopwatch_collector.telemetry.remote import ReadServer
from flopwatch_collector.telemetry.retention import Retention
from flopwatch_collector.telemetry.snapshot import snapshot
from flopwatch_collector.telemetry.store import TelemetryStore
from flopwatch_collector.telemetry.times import late_ms_max
from flopwatch_collector.together import together
from flopwatch_collector.trust.service import Trust
from flopwatch_collector.tuning import tune
from flopwatch_collector.watch import Watch, WatchSettings
from flopwatch_proto.errors import FlopwatchError, UsageError

ROLLUP_EVERY_S: Final = 10.0

log = structlog.get_logger()


def unix_ms() -> int:
    """Return the wall clock."""
    return time.time_ns() // 1_000_000


@dataclass(slots=True)
class Health:
    """What `/healthz` and `/readyz` are told."""

    ingest_address: str = ""
    http_url: str = ""
    dirty_minutes: int = 0
    rollup_unix_ms: int = 0
    rollup_failures: int = 0
    rolled_minutes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Base:
    """What everything stands on. Attributes: shares: None for a collector that is alone."""

    store: TelemetryStore
    control: ControlStore
    live: Live
    shares: Shares | None
    started_unix_ms: int
    inventoried: frozenset[str]


@dataclass(slots=True)
class Collector:
    """A running collector. Use `run`; tests use the parts."""

    config: CollectorConfig
    say: Callable[[str], None]
    health: Health = field(default_factory=Health)
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop` is set.

        Raises:
            UsageError: something that was configured cannot be: a port, a directory, a file.
        """
        async with AsyncExitStack() as stack:
            failed = await self._start(stack)
            stopped = asyncio.create_task(stop.wait())
            await asyncio.wait({stopped, failed}, return_when=asyncio.FIRST_COMPLETED)
            if failed.done() and not stop.is_set():
                failed.result()

    async def _start(self, stack: AsyncExitStack) -> asyncio.Task[None]:
        base = await self._open(stack)
        live, shares = base.live, base.shares
        taking = await self._take(stack, base)
        standby = turn_of(self.config.standby, base.control, unix_ms, base.started_unix_ms)
        desk = self._desk(base, standby, lambda: watch.counters.judged_unix_ms)
        stack.push_async_callback(desk.close)
        seen = stack.enter_context(observing(self, base, lambda: watch.counters.failed, unix_ms))
        watch = Watch(
            seen,
            base.control,
            WatchSettings(rules=self.config.rules, paging=self.config.paging),
            unix_ms,
            base.started_unix_ms,
            desk.sender.wake,
            None if shares is None else shares.catch_up,
            stack.enter_context(backgrounds(base.store, base.control, live, self.config.prices)),
        )
        web = await self._show(stack, base)
        self.say(f"ingest {self.health.ingest_address}")
        self.say(f"dashboard {self.health.http_url}")
        log.info("collector_ready", ingest=self.health.ingest_address, http=self.health.http_url)
        pager, rolls = (Alone(), Alone()) if shares is None else (shares.pager, shares.rollup)
        rosters = RosterMetrics(self.registry)
        return await stack.enter_async_context(
            together(
                *taking,
                pager.while_held(watch.run),
                pager.while_held(lambda _: seen.signals.run()),
                desk.run(),
                rolls.while_held(partial(self._roll, base.store, rolls)),
                web.keep(),
                *(() if standby is None else (standby.run(),)),
                pager.while_held(lambda _: self._schedulers(base.store, live, rosters)),
                *(() if shares is None else shares.jobs()),
            )
        )

    async def _open(self, stack: AsyncExitStack) -> _Base:
        """Open both stores, and load the present from them."""
        config = self.config
        slots = _inventory(config)
        make_directory(config.directory)
        started = unix_ms()
        store = TelemetryStore.open(config.telemetry_dsn)
        stack.callback(store.close)
        if not store.sharded:  # those tables have limits of their own
            store.late_ms = late_ms_max(config.retention.raw.milliseconds)
        control = ControlStore.open(config.control_dsn)
        stack.callback(control.close)
        live = Live(
            started,
            lambda cluster: _rule_settings(config.rules, cluster, "mfu"),
            lambda cluster, tick_unix_ms: excuses_of(
                config.excused, cluster, resting(control, cluster, tick_unix_ms)
            ),
        )
        live.rule_settings = partial(_rule_settings, config.rules)
        _declare(store, slots, started)
        await asyncio.to_thread(live.load, store, started)
        shares = None if store.exclusive else Shares(store, control, live, self.registry, unix_ms)
        if shares is not None:
            stack.callback(shares.catch_up.close)
        return _Base(
            store=store,
            control=control,
            live=live,
            shares=shares,
            started_unix_ms=started,
            inventoried=frozenset(slot.cluster for slot in slots),
        )

    async def _take(
        self, stack: AsyncExitStack, base: _Base
    ) -> tuple[Coroutine[Any, Any, None], ...]:
        """Listen to agents; return what runs as long as somebody does."""
        listen = self.config.listen
        trust = Trust.of(self.config, base.control, self.registry, unix_ms)
        base.live.agents.certificate_of = trust.shown.of
        enroll_port = await trust.start(listen.enroll)
        stack.push_async_callback(trust.stop)
        captures = Captures(base.control, base.store, unix_ms)
        ingest = IngestServer(
            base.store,
            base.live if base.shares is None else base.shares.overheard,
            registry=self.registry,
            trust=trust,
            inventoried=base.inventoried,
            captures=captures,
        )
        port = await ingest.start(listen.grpc)
        stack.push_async_callback(ingest.stop)
        self.health.ingest_address = f"{listen.grpc.rpartition(':')[0]}:{port}"
        if enroll_port:
            self.say(f"enroll {listen.enroll.rpartition(':')[0]}:{enroll_port}")
        return ingest.run(), trust.run(), captures.run()

    def _desk(
        self, base: _Base, standby: StandbyTurn | None, judged_unix_ms: Callable[[], int]
    ) -> Desk:
        shares = base.shares
        return Desk(
            base.control,
            self.config.paging,
            os.environ,
            clock=unix_ms,
            judged_unix_ms=judged_unix_ms,
            turn=standby if shares is None else LeaseTurn(shares.pager),
            try_seconds_max=None if shares is None else TRY_SECONDS_MAX,
        )

    async def _show(self, stack: AsyncExitStack, base: _Base) -> Child:
        """Serve bounded reads, and start the process that shows them."""
        reads = ReadServer(
            base.store,
            self.config.directory / "read.sock",
            status=self._status,
            metrics=self._metrics,
            agents=lambda: base.live.agents.listed(unix_ms()),
            snapshots=lambda: snapshot(base.store, self.config.control_dsn, unix_ms()),
        )
        await reads.start()
        stack.push_async_callback(reads.close)
        web = Child("web", self._web_command, self._web_said)
        await web.start()
        stack.push_async_callback(web.stop)
        return web

    async def _schedulers(self, store: TelemetryStore, live: Live, metrics: RosterMetrics) -> None:
        """Ask the schedulers, and compare what they say with what nodes see."""
        config = self.config
        slurm = SlurmRosters(
            store=store, sink=live, config=config.slurm, metrics=metrics, now_unix_ms=unix_ms
        )
        kubernetes = KubernetesRosters(
            store=store, sink=live, config=config.kubernetes, metrics=metrics, now_unix_ms=unix_ms
        )
        await asyncio.gather(slurm.run(), kubernetes.run(), Meter(live, store, unix_ms).run())

    async def _roll(self, store: TelemetryStore, lease: Lease | Alone, fence: int) -> None:
        """Keep all tiers in step with raw rows; a failure is counted and tried again."""
        rollup = Rollup(store, fence, lambda: lease.fence == fence)
        await asyncio.gather(self._newest(rollup.intervals), self._rest(store, rollup))

    async def _newest(self, intervals: Intervals) -> None:
        """Judge each interval as soon as its rows have had time to come."""
        while True:
            await asyncio.sleep(seconds_to_next(unix_ms()))
            try:
                await asyncio.to_thread(intervals.run, unix_ms())
            except FlopwatchError as exc:
                self.health.rollup_failures += 1
                log.warning("intervals_failed", reason=str(exc))

    async def _rest(self, store: TelemetryStore, rollup: Rollup) -> None:
        """Write minutes, hours and days, and let go what is no longer kept."""
        retention = Retention(store, self.config.retention)
        while True:
            written = 0
            try:
                written = await asyncio.to_thread(rollup.run, unix_ms())
                now = self.health.rollup_unix_ms = unix_ms()
                dirty = await asyncio.to_thread(dirty_minutes, store)
                # A roster marks the minutes it will hold for: those ahead are not overdue.
                self.health.dirty_minutes = sum(m + MINUTE_MS + SETTLE_MS <= now for _, m in dirty)
                self.health.rolled_minutes += written
                await asyncio.to_thread(retention.run, now)
            except FlopwatchError as exc:
                self.health.rollup_failures += 1
                log.warning("rollup_failed", reason=str(exc))
            await asyncio.sleep(0.05 if written else ROLLUP_EVERY_S)

    def _status(self) -> dict[str, Any]:
        return {
            "ingest": self.health.ingest_address,
            "dirty_minutes": self.health.dirty_minutes,
            "rollup_unix_ms": self.health.rollup_unix_ms,
            "rollup_failures": self.health.rollup_failures,
            "rolled_minutes": self.health.rolled_minutes,
            "simulated_may_page": self.config.rules.page_simulated,
        }

    def _metrics(self) -> str:
        return generate_latest(self.registry).decode()

    def _web_command(self) -> list[str]:
        # A child that is started again listens where the first one did.
        http = self.health.http_url.removeprefix("http://") or self.config.listen.http
        return [
            *(sys.executable, "-m", "flopwatch_collector.web"),
            *("--data", str(self.config.directory)),
            *("--http", http),
            *("--control", self.config.control_dsn),
            *("--deployment", self._deployment()),
            *("--rules", msgspec.json.encode(self.config.rules).decode()),
            *("--pagerduty-secret-file", self.config.paging.pagerduty_secret_file or ""),
            *(
                argument
                for name, cluster in self.config.clusters.items()
                if cluster.reference_dtype
                for argument in ("--reference-dtype", name, cluster.reference_dtype)
            ),
        ]

    def _deployment(self) -> str:
        """Return the name pages carry; the one nobody chose says nothing."""
        name = self.config.paging.deployment
        shown = "" if name == PagingConfig().deployment else name
        return shown_name(shown, self.config.standby)

    def _web_said(self, line: str) -> None:
        self.health.http_url = msgspec.json.decode(line)["http"]


def make_directory(directory: Path) -> None:
    """Make the data directory, for its owner only.

    Raises:
        UsageError: it cannot be made or written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as exc:
        raise UsageError(
            f"--data: cannot use {directory}: {exc.strerror}; name a directory that can be written"
        ) from exc
    if not os.access(directory, os.W_OK | os.X_OK):
        raise UsageError(f"--data: {directory} cannot be written; name another or change its owner")


def _rule_settings(rules: RulesConfig, cluster: str, rule: str) -> RuleSettings:
    return settings_of(rule_named(rule), cluster, rules)


def _inventory(config: CollectorConfig) -> tuple[inventory.Slot, ...]:
    return () if config.inventory is None else inventory.load(Path(config.inventory))


def _declare(store: TelemetryStore, slots: tuple[inventory.Slot, ...], now_unix_ms: int) -> None:
    """Store the inventory of record as declarations."""
    for cluster, declarations in inventory.declarations(slots, now_unix_ms).items():
        store.append("slot", declared(cluster, declarations, now_unix_ms))


async def serve(
    config: CollectorConfig,
    say: Callable[[str], None],
    stopping: Callable[[], None] = lambda: None,
) -> None:
    """Run a collector until SIGTERM or SIGINT; ``stopping`` is called when one comes."""
    tune()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def asked() -> None:
        stopping()
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked)
    await Collector(config, say).run(stop)
