"""The loop that asks a scheduler, and stores what it says as if it had come over ingest.

A scheduler that does not answer leaves its last roster to expire, 5 minutes after it was taken; an event, a
metric and the log say so, and nothing takes its place. What makes a roster less than the truth (doubts) is
told once, when it begins.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import structlog

from flopwatch_collector.roster.answers import Answers, Asker
from flopwatch_collector.roster.metrics import RosterMetrics
from flopwatch_collector.roster.said import Doubt, Said
from flopwatch_collector.roster.slurm import judge
from flopwatch_collector.roster.slurm_commands import found
from flopwatch_collector.roster.slurm_demand import RecentJobs
from flopwatch_collector.roster.slurm_layout import jobs_of, nodes_of
from flopwatch_collector.roster.slurm_reservations import reservations_in
from flopwatch_collector.roster.slurm_settings import SlurmConfig
from flopwatch_collector.telemetry import Reader
from flopwatch_collector.telemetry.arrival import Arrival, Origin, commit, of_batch
from flopwatch_collector.telemetry.store import TelemetryStore
from flopwatch_proto import codec
from flopwatch_proto.codec import Columns
from flopwatch_proto.errors import FlopwatchError, PermanentError
from flopwatch_proto.rows import SlotState
from flopwatch_proto.v1 import telemetry_pb2 as pb

LOOK_AGAIN_SECONDS: Final = 300.0
NAMED_IN_A_TEXT_MAX: Final = 5

log = structlog.get_logger()


class RosterSink(Protocol):
    """Who wants to know a roster that was just stored."""

    def roster(self, cluster: str, simulated: bool, columns: Columns) -> None:
        """Take one roster, its header row first."""


@dataclass(slots=True, kw_only=True)
class SlurmRosters:
    """Asks Slurm every interval, for ever.

    Attributes:
        silent_since_unix_ms: since when it does not answer; None: it does.
        cluster: flopwatch's name of the cluster, once known.
    """

    store: TelemetryStore
    sink: RosterSink
    config: SlurmConfig
    metrics: RosterMetrics
    now_unix_ms: Callable[[], int]
    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    asker: Asker | None = None
    cluster: str = ""
    silent_since_unix_ms: int | None = None
    _answered: bool = False
    _silent_nodes: dict[str, int] = field(default_factory=dict)
    _standing: frozenset[tuple[str, str]] = frozenset()
    _recent: RecentJobs = field(default_factory=RecentJobs)

    async def run(self) -> None:
        """Ask, store, wait."""
        if self.config.enabled == "off":
            await asyncio.Event().wait()
        while not self.config.is_named and self.asker is None and not found(self.environ):
            await asyncio.sleep(LOOK_AGAIN_SECONDS)
        while True:
            began = asyncio.get_running_loop().time()
            try:
                await self.once()
            except Exception:  # whatever Slurm says, the pager goes on
                self.metrics.failures.labels("slurm").inc()
                log.exception("roster_failed", source="slurm")
            took = asyncio.get_running_loop().time() - began
            await asyncio.sleep(max(1.0, self.config.interval - took))

    async def once(self) -> Said | None:
        """Ask once and store what was said; None where nothing was."""
        self.asker = self.asker or self.config.asker()
        taken_unix_ms = self.now_unix_ms()
        try:
            said = await self._ask(self.asker)
            if said is None:
                return None
            said.doubts.extend(_doubts(said))
            await asyncio.to_thread(self._store, said, taken_unix_ms)
        except FlopwatchError as exc:
            self.metrics.failures.labels("slurm").inc()
            await self._silent(exc, taken_unix_ms)
            return None
        return said

    async def _ask(self, asker: Asker) -> Said | None:
        answers = await asker.ask()
        self._answered = True
        self.cluster = self.config.cluster or answers.cluster
        slots = await asyncio.to_thread(known_slots, self.store, self.cluster, self.now_unix_ms())
        if not slots:
            self._say_once("slurm_cluster_unknown", cluster=self.cluster)
            return None
        said = self._judge(answers, slots)
        if said.hidden_cards:
            # A job that started between the two answers is not hidden: ask again before saying so.
            said = self._judge(await asker.ask(), slots)
        self._silent_nodes = said.silent
        return said

    def _judge(self, answers: Answers, slots: Mapping[str, Sequence[str]]) -> Said:
        jobs = jobs_of(answers.jobs)
        self._recent.see(jobs, self.now_unix_ms())
        return judge(
            nodes_of(answers.nodes),
            jobs,
            slots,
            reading=self.config.reading(),
            closed_partitions=answers.closed_partitions,
            silent_before=self._silent_nodes,
            reservations=reservations_in(answers.reservations),
            recent=self._recent.shapes(),
        )

    def _store(self, said: Said, taken_unix_ms: int) -> None:
        new = [d for d in said.doubts if (d.kind, d.node) not in self._standing]
        events = [_event(doubt, taken_unix_ms) for doubt in new]
        nodes = [doubt.node for doubt in new]
        if self.silent_since_unix_ms is not None:
            seconds = (taken_unix_ms - self.silent_since_unix_ms) // 1000
            text = f"Slurm answers again, after {seconds} s"
            events.append(_scheduler_event("scheduler_answers", text, taken_unix_ms, "info"))
            nodes.append("")
        roster = said.message(taken_unix_ms)
        arrival = self._commit(pb.Payload(rosters=[roster], events=events), nodes)
        for columns in arrival.rosters:
            self.sink.roster(self.cluster, False, columns)
        self._standing = frozenset((d.kind, d.node) for d in said.doubts)
        self.silent_since_unix_ms = None
        for doubt in new:
            log.warning("roster_doubt", kind=doubt.kind, node=doubt.node, text=doubt.text)
        labels = self.cluster, "slurm"
        self.metrics.taken.labels(*labels).set(taken_unix_ms / 1000)
        self.metrics.doubts.labels(*labels).set(len(said.doubts))
        self.metrics.hidden_cards.labels(*labels).set(said.hidden_cards)

    def _commit(self, payload: pb.Payload, event_nodes: list[str]) -> Arrival:
        now_unix_ms = self.now_unix_ms()
        origin = Origin(cluster=self.cluster, node="", simulated=False, spool_id="")
        arrival = of_batch(origin, codec.pack(payload), now_unix_ms)
        del arrival.tables["receipt"]  # nobody waits for an acknowledgement
        if event_nodes:
            arrival.tables["event"]["node"] = event_nodes
        commit(self.store, [arrival], now_unix_ms)
        return arrival

    async def _silent(self, why: Exception, at_unix_ms: int) -> None:
        """Say once that Slurm does not answer."""
        if self.silent_since_unix_ms is not None or not (self._answered or self.config.is_named):
            return
        self.silent_since_unix_ms = at_unix_ms
        log.warning("scheduler_silent", source="slurm", cluster=self.cluster, reason=str(why))
        self.cluster = self.cluster or self.config.cluster or ""
        if not self.cluster:
            return
        text = f"Slurm does not answer: {why}; its last roster holds for 5 minutes"
        event = _scheduler_event("scheduler_silent", text, at_unix_ms, "error")
        try:
            await asyncio.to_thread(self._commit, pb.Payload(events=[event]), [""])
        except FlopwatchError as exc:
            log.warning("event_not_stored", kind="scheduler_silent", reason=str(exc))

    def _say_once(self, event: str, **facts: str) -> None:
        if (event, "") not in self._standing:
            self._standing |= {(event, "")}
            log.warning(event, **facts, hint="set slurm.cluster, or install agents")


def known_slots(reader: Reader, cluster: str, now_unix_ms: int) -> dict[str, list[str]]:
    """Return node → slots of cards that are there now and not retired.

    Raises:
        PermanentError: the cluster is a simulated one.
    """
    table = reader.query(
        "SELECT node, slot, argMax(state, from_unix_ms) AS state, "
        "argMax(to_unix_ms, from_unix_ms) AS ends, argMax(device_kind, from_unix_ms) AS kind, "
        "max(simulated) AS simulated FROM slot FINAL "
        "WHERE cluster = {cluster:String} AND from_unix_ms <= {now:Int64} GROUP BY node, slot",
        {"cluster": cluster, "now": now_unix_ms},
    )
    slots: dict[str, list[str]] = {}
    for row in table.to_pylist():
        if row["simulated"]:
            raise PermanentError(f"cluster {cluster!r} is simulated: set slurm.cluster to another")
        there = row["state"] != SlotState.RETIRED and not 0 < row["ends"] <= now_unix_ms
        if there and row["kind"] != "cpu":
            slots.setdefault(row["node"], []).append(row["slot"])
    return slots


def _doubts(said: Said) -> list[Doubt]:
    """Return the doubts about the cluster as a whole."""
    doubts = []
    if said.unknown_nodes:
        named = ", ".join(said.unknown_nodes[:NAMED_IN_A_TEXT_MAX])
        more = " …" if len(said.unknown_nodes) > NAMED_IN_A_TEXT_MAX else ""
        doubts.append(
            Doubt(
                kind="nodes_unknown",
                node="",
                text=f"{len(said.unknown_nodes)} nodes of Slurm have cards and no slot here: {named}{more}",
                action="install the agent there, or add them to the inventory",
            )
        )
    if said.hidden_cards:
        doubts.append(
            Doubt(
                kind="jobs_hidden",
                node="",
                text=f"{said.hidden_cards} allocated cards of {said.hidden_nodes} nodes belong to jobs "
                "that this user may not see; they count as allocated, to nobody",
                action="sacctmgr modify user NAME set adminlevel=Operator; or PrivateData without jobs",
            )
        )
    return doubts


def _event(doubt: Doubt, at_unix_ms: int) -> pb.Event:
    return pb.Event(
        time_unix_ms=at_unix_ms,
        kind=doubt.kind,
        severity="warning",
        text=doubt.text,
        action=doubt.action,
    )


def _scheduler_event(kind: str, text: str, at_unix_ms: int, severity: str) -> pb.Event:
    action = "scontrol ping; see the log of slurmctld" if severity != "info" else ""
    return pb.Event(
        time_unix_ms=at_unix_ms, kind=kind, severity=severity, text=text[:500], action=action
    )
