"""Captures: requests for readings at full resolution, from the control store to nodes, and their answers.

    api, outage ─► control store ─► (every 2 s) open requests ─► stream of each node
                                    answered ◄─ parts that were stored

- A request goes out on a node's stream when it is found, and again on every new stream, until each slot's
  last part is stored or an hour has passed. An agent passes over an id that it knows.
- Answers are noted after the parts are on disk. What was not noted before a crash, or
  because the control store failed, is found in the telemetry store later.
- When a real outage begins to fire, its nodes are asked once for the ten minutes before and the two after.
  The id follows from the outage: any number of collectors ask the same.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import structlog

from flopwatch_collector.control import captures
from flopwatch_collector.control.captures import CaptureAsk
from flopwatch_collector.control.store import ControlStore
from flopwatch_collector.telemetry import Reader
from flopwatch_collector.telemetry.capture import answered_slots, places_of_nodes
from flopwatch_proto.codec import Columns
from flopwatch_proto.v1 import telemetry_pb2 as pb

POLL_S: Final = 2.0
OUTAGE_BEFORE_MS: Final = 10 * 60_000
OUTAGE_AFTER_MS: Final = 2 * 60_000
OUTAGE_NODES_MAX: Final = 16
OUTAGE_ASKED_MS: Final = 15 * 60_000
"""An outage that fired earlier is not asked about: recorders hold no more."""

log = structlog.get_logger()

Tell = Callable[[pb.CollectorFrame], None]
Node = tuple[str, str]
"""(cluster, node)"""


@dataclass(slots=True)
class _Line:
    """A node's open stream. Attributes: told: ids that went out on it."""

    tell: Tell
    told: set[str] = field(default_factory=set)


@dataclass(slots=True)
class _News:
    """What the control store has not been told yet."""

    sent: set[tuple[str, str, str]] = field(default_factory=set)
    answered: set[captures.Place] = field(default_factory=set)


class Captures:
    """Sends what is asked and notes what is answered. ``opened``, ``closed`` and ``answered`` are called
    by ingest on the event loop and do not wait."""

    def __init__(
        self, control: ControlStore, reader: Reader, now_unix_ms: Callable[[], int]
    ) -> None:
        self._control = control
        self._reader = reader
        self._now_unix_ms = now_unix_ms
        self._lines: dict[Node, _Line] = {}
        self._open: dict[Node, list[pb.CaptureRequest]] = {}
        self._news = _News()
        self._standing: captures.Standing | None = None
        self._failing = False

    # ---- what ingest says

    def opened(self, cluster: str, node: str, tell: Tell) -> None:
        """Take note of a stream that stands, and send on it what its node has not answered."""
        self._lines[cluster, node] = _Line(tell)
        self._send((cluster, node))

    def closed(self, cluster: str, node: str, tell: Tell) -> None:
        """Take note that a stream has ended; another one of the same node stays."""
        line = self._lines.get((cluster, node))
        if line is not None and line.tell == tell:
            del self._lines[cluster, node]

    def answered(self, columns: Columns) -> None:
        """Take note of parts that are on disk, as columns of table ``capture``."""
        names = ("id", "cluster", "node", "slot")
        places = zip(*(columns[name] for name in names), strict=True)
        self._news.answered.update(
            place for place, last in zip(places, columns["last"], strict=True) if last
        )

    # ---- the loop

    async def run(self) -> None:
        """Poll for ever; a control store that does not answer is asked again."""
        while True:
            await self.poll()
            await asyncio.sleep(POLL_S)

    async def poll(self) -> None:
        """Note what happened, ask for outages that fired, and send what is open."""
        news, self._news = self._news, _News()
        try:
            rows = await asyncio.to_thread(self._sync, news)
        except Exception as exc:  # a shell: what asks for readings must never end what pages
            self._news.sent |= news.sent
            self._standing = None  # the next one that succeeds finds the answers in the store
            if not self._failing:
                log.warning("captures_failed", reason=str(exc))
            self._failing = True
            return
        self._failing = False
        if rows is None:
            return
        self._open = _requests(rows)
        for node in self._open.keys() & self._lines.keys():
            self._send(node)

    def _sync(self, news: _News) -> Sequence[Mapping[str, Any]] | None:
        """Bring the control store up to date; return the rows that are open, None: as they were."""
        now_unix_ms = self._now_unix_ms()
        if news.sent or news.answered:
            captures.note(self._control, now_unix_ms, sent=news.sent, answered=news.answered)
        ask_for_outages(self._control, self._reader, now_unix_ms)
        standing = captures.standing(self._control)
        if standing.slots and standing.oldest_unix_ms < now_unix_ms - captures.OPEN_MS_MAX:
            captures.expire(self._control, now_unix_ms)
            standing = captures.standing(self._control)
        if standing == self._standing:
            return None
        rows = captures.open_rows(self._control)
        if rows and self._standing is None:
            self._note_unnoted(rows, now_unix_ms)
            rows = captures.open_rows(self._control)
        self._standing = standing
        return rows

    def _note_unnoted(self, rows: Sequence[Mapping[str, Any]], now_unix_ms: int) -> None:
        """Note answers that are stored and that nobody noted: before a start, or while noting failed."""
        ids = sorted({row["id"] for row in rows})
        found = answered_slots(self._reader, ids)
        captures.note(self._control, now_unix_ms, answered=found)

    def _send(self, node: Node) -> None:
        line = self._lines[node]
        for request in self._open.get(node, ()):
            if request.id not in line.told:
                line.told.add(request.id)
                line.tell(pb.CollectorFrame(capture=request))
                self._news.sent.add((request.id, *node))
        line.told &= {request.id for request in self._open.get(node, ())}


def _requests(rows: Sequence[Mapping[str, Any]]) -> dict[Node, list[pb.CaptureRequest]]:
    """Return open rows as one request per id and node."""
    requests: dict[tuple[str, str, str], pb.CaptureRequest] = {}
    for row in rows:
        key = (row["id"], row["cluster"], row["node"])
        if key not in requests:
            requests[key] = pb.CaptureRequest(
                id=row["id"],
                from_unix_ms=row["from_unix_ms"],
                to_unix_ms=row["to_unix_ms"],
                readings_per_second=row["readings_per_second"],
            )
        requests[key].slots.append(row["slot"])
    found: dict[Node, list[pb.CaptureRequest]] = {}
    for (_, cluster, node), request in requests.items():
        found.setdefault((cluster, node), []).append(request)
    return found


def ask_for_outages(control: ControlStore, reader: Reader, now_unix_ms: int) -> None:
    """Ask the nodes behind every real outage that has just begun to fire, once per outage."""
    for fired in captures.fired_since(control, now_unix_ms - OUTAGE_ASKED_MS):
        name = f"{fired['rule']}/{fired['cluster']}/{fired['episode']}"
        capture_id = hashlib.blake2b(name.encode(), digest_size=16).hexdigest()
        nodes = [cause["name"] for cause in fired["causes"] if cause["kind"] == "node"]
        if not nodes or captures.places(control, capture_id):
            continue
        places = places_of_nodes(reader, fired["cluster"], nodes[:OUTAGE_NODES_MAX], now_unix_ms)
        if not places:
            continue
        captures.ask(
            control,
            CaptureAsk(
                id=capture_id,
                cluster=fired["cluster"],
                slots=[(place.node, place.slot) for place in places],
                from_unix_ms=fired["fired_unix_ms"] - OUTAGE_BEFORE_MS,
                to_unix_ms=fired["fired_unix_ms"] + OUTAGE_AFTER_MS,
                readings_per_second=0,
                asked_unix_ms=now_unix_ms,
                asked_by=f"outage {name}",
            ),
        )
        log.info("capture_asked", id=capture_id, outage=name, slots=len(places))
