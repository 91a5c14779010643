"""The teller ``slurm``: the jobs of this node (`slurm_node`) at the cards that they hold.

A job of which nobody can say whether it has (more) cards is *unplaced*: then a card without a holder is not
called free. With the prolog script installed no job is.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from flopwatch_agent.allocation import gres
from flopwatch_agent.allocation.holders import GRES, MINOR, Holder, Place, SilentError, Word, told
from flopwatch_agent.allocation.slurm_node import Job, Node
from flopwatch_agent.clock import Clock, wall_unix_ms
from flopwatch_proto.v1 import telemetry_pb2 as pb

UNPLACED_GRACE_MS: Final = 10_000
GRES_CONFS: Final = tuple(
    Path(path)
    for path in (
        "/etc/slurm/gres.conf",
        "/run/slurm/conf/gres.conf",
        "/var/spool/slurmd/conf-cache/gres.conf",
        "/etc/slurm-llnl/gres.conf",
    )
)

_GRES_BYTES_MAX: Final = 1024 * 1024


class Slurm:
    """The teller ``slurm``.

    Args:
        required: this host is a node by configuration; else by what is found on it.
        gres_confs: the first that is there tells which device file stands behind an index.
        hostname: the node's name in gres.conf where it has no other.
    """

    name = "slurm"

    def __init__(
        self,
        node: Node,
        clock: Clock,
        *,
        required: bool,
        gres_confs: tuple[Path, ...] = GRES_CONFS,
        hostname: str = "",
    ) -> None:
        self.required = required
        self._node = node
        self._clock = clock
        self._gres_confs = gres_confs
        self._gres_node = node.name or hostname or None
        self._unplaced_ms: dict[str, float] = {}
        self._told_wrong: set[str] = set()
        self._events: deque[pb.Event] = deque(maxlen=64)

    async def ask(self) -> Word | None:
        """Return who holds what by the traces of Slurm on this host; see `Teller.ask`."""
        now_ms = self._clock.monotonic_seconds() * 1000
        try:
            jobs = await asyncio.to_thread(self._node.jobs, now_ms)
        except OSError as exc:
            raise SilentError(str(exc)) from exc
        self._tell_wrong_files()
        if jobs is None:
            if self.required:
                raise SilentError("no control group, prolog file or daemon of Slurm on this host")
            return None
        order = self._order()
        held: dict[Place, tuple[Holder, ...]] = {}
        for job in jobs:
            for place in by_minor(job.places, order):
                held[place] = (*held.get(place, ()), job.holder())
        return Word(
            held=held,
            unplaced=self._unplaced(jobs, now_ms),
            by_environ=not self._node.grouped,
        )

    def events(self) -> tuple[pb.Event, ...]:
        """Return prolog files that make no sense, each once."""
        events = tuple(self._events)
        self._events.clear()
        return events

    def _unplaced(self, jobs: Iterable[Job], now_ms: float) -> tuple[Holder, ...]:
        """Return jobs of which nobody can say all that they hold, those apart that have just begun."""
        unknown = {job.number: job for job in jobs if not job.complete}
        self._unplaced_ms = {n: self._unplaced_ms.get(n, now_ms) for n in unknown}
        return tuple(
            job.holder()
            for number, job in unknown.items()
            if now_ms - self._unplaced_ms[number] >= UNPLACED_GRACE_MS
        )

    def _order(self) -> tuple[int, ...]:
        for path in self._gres_confs:
            try:
                with path.open(encoding="utf-8", errors="replace") as file:
                    return gres.minors(file.read(_GRES_BYTES_MAX), self._gres_node)
            except OSError:
                continue
        return ()

    def _tell_wrong_files(self) -> None:
        wrong = self._node.wrong_files
        for name in wrong.keys() - self._told_wrong:
            text, now = f"{name}: {wrong[name]}", wall_unix_ms(self._clock)
            self._events.append(told("prolog_file", text, now))
        self._told_wrong = set(wrong)


def by_minor(places: Iterable[Place], order: tuple[int, ...]) -> Iterator[Place]:
    """Yield places by minor number where gres.conf tells it, else as they are."""
    for place in places:
        if place.kind == GRES and isinstance(place.name, int) and place.name < len(order):
            place = Place(MINOR, order[place.name])
        yield place
