"""The loop that asks Kubernetes, and stores what it says as if it had come over ingest.

Like Slurm's (`gather`): an API server that does not answer leaves its last roster to expire; an event, a
metric and the log say so once, and nothing takes its place.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog

from flopwatch_collector.roster.gather import RosterSink, known_slots
from flopwatch_collector.roster.kubernetes import SOURCE, judge
from flopwatch_collector.roster.kubernetes_api import KubernetesApi
from flopwatch_collector.roster.kubernetes_settings import KubernetesConfig
from flopwatch_collector.roster.metrics import RosterMetrics
from flopwatch_collector.roster.said import Said
from flopwatch_collector.telemetry.arrival import Origin, commit, of_batch
from flopwatch_collector.telemetry.store import TelemetryStore
from flopwatch_proto import codec
from flopwatch_proto.errors import FlopwatchError
from flopwatch_proto.v1 import telemetry_pb2 as pb

UUIDS_FROM_MS = 10 * 60_000
"""How old a row may be that tells which card sits in a slot."""

log = structlog.get_logger()


@dataclass(slots=True, kw_only=True)
class KubernetesRosters:
    """Asks a Kubernetes cluster every interval, for ever.

    Attributes:
        silent_since_unix_ms: since when it does not answer; None: it does.
    """

    store: TelemetryStore
    sink: RosterSink
    config: KubernetesConfig
    metrics: RosterMetrics
    now_unix_ms: Callable[[], int]
    silent_since_unix_ms: int | None = None
    cluster: str = field(init=False)
    _unknown: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        self.cluster = self.config.cluster or ""

    async def run(self) -> None:
        """Ask, store, wait.

        Raises:
            UsageError: what is configured cannot be.
        """
        if not self.cluster:
            await asyncio.Event().wait()
        api = KubernetesApi(self.config)
        try:
            while True:
                began = asyncio.get_running_loop().time()
                try:
                    await self.once(api)
                except Exception:  # whatever the API server says, the pager goes on
                    self.metrics.failures.labels(SOURCE).inc()
                    log.exception("roster_failed", source=SOURCE)
                took = asyncio.get_running_loop().time() - began
                await asyncio.sleep(max(1.0, self.config.interval - took))
        finally:
            await api.close()

    async def once(self, api: KubernetesApi) -> Said | None:
        """Ask once and store what was said; None where nothing was."""
        taken_unix_ms = self.now_unix_ms()
        try:
            listed = await api.listed()
            slots = await asyncio.to_thread(self._slots, taken_unix_ms)
            said = judge(listed, slots)
            await asyncio.to_thread(self._store, said, taken_unix_ms)
        except FlopwatchError as exc:
            self.metrics.failures.labels(SOURCE).inc()
            await self._silent(str(exc), taken_unix_ms)
            return None
        return said

    def _slots(self, now_unix_ms: int) -> dict[str, dict[str, str]]:
        """Return node → slot → UUID of the card that a row of the last minutes named there, else ''."""
        table = self.store.query(
            "SELECT node, slot, argMax(device_uuid, start_unix_ms) AS uuid FROM interval "
            "WHERE cluster = {cluster:String} AND start_unix_ms > {since:Int64} GROUP BY node, slot",
            {"cluster": self.cluster, "since": now_unix_ms - UUIDS_FROM_MS},
        )
        uuids = {(r["node"], r["slot"]): r["uuid"] for r in table.to_pylist()}
        known = known_slots(self.store, self.cluster, now_unix_ms)
        return {
            node: {slot: uuids.get((node, slot), "") for slot in slots}
            for node, slots in known.items()
        }

    def _store(self, said: Said, taken_unix_ms: int) -> None:
        events = []
        if self.silent_since_unix_ms is not None:
            seconds = (taken_unix_ms - self.silent_since_unix_ms) // 1000
            text = f"Kubernetes answers again, after {seconds} s"
            events.append(_event("scheduler_answers", text, taken_unix_ms, "info"))
        self._commit(pb.Payload(rosters=[said.message(taken_unix_ms)], events=events))
        self.silent_since_unix_ms = None
        unknown = frozenset(said.unknown_nodes)
        if unknown - self._unknown:
            log.warning(
                "nodes_unknown", source=SOURCE, nodes=sorted(unknown)[:5], count=len(unknown)
            )
        self._unknown = unknown
        labels = self.cluster, SOURCE
        self.metrics.taken.labels(*labels).set(taken_unix_ms / 1000)
        self.metrics.doubts.labels(*labels).set(len(unknown))

    def _commit(self, payload: pb.Payload) -> None:
        now_unix_ms = self.now_unix_ms()
        origin = Origin(cluster=self.cluster, node="", simulated=False, spool_id="")
        arrival = of_batch(origin, codec.pack(payload), now_unix_ms)
        del arrival.tables["receipt"]  # nobody waits for an acknowledgement
        commit(self.store, [arrival], now_unix_ms)
        for columns in arrival.rosters:
            self.sink.roster(self.cluster, False, columns)

    async def _silent(self, why: str, at_unix_ms: int) -> None:
        if self.silent_since_unix_ms is not None:
            return
        self.silent_since_unix_ms = at_unix_ms
        log.warning("scheduler_silent", source=SOURCE, cluster=self.cluster, reason=why)
        text = f"Kubernetes does not answer: {why}; its last roster holds for 5 minutes"
        event = _event("scheduler_silent", text, at_unix_ms, "error")
        try:
            await asyncio.to_thread(self._commit, pb.Payload(events=[event]))
        except FlopwatchError as exc:
            log.warning("event_not_stored", kind="scheduler_silent", reason=str(exc))


def _event(kind: str, text: str, at_unix_ms: int, severity: str) -> pb.Event:
    action = "kubectl get --raw /readyz; see [kubernetes] of the collector's configuration"
    return pb.Event(
        time_unix_ms=at_unix_ms,
        kind=kind,
        severity=severity,
        text=text[:500],
        action="" if severity == "info" else action,
    )
