"""Whose a process on a card is. A process is a stranger only where that can be known.

Not known is not guilty: a process whose control group cannot be read, a card one of whose holders has no
known group, and what runs for all of them (the MPS server) make nobody a stranger.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from flopwatch_agent.access import Access
from flopwatch_agent.allocation import cgroup
from flopwatch_agent.allocation.holders import Held, Holder

_MPS: Final = "nvidia-cuda-mps"  # 15 characters: all that the kernel keeps of a name


@dataclass(frozen=True, slots=True, kw_only=True)
class Present:
    """The processes on a card, by whose they are.

    Attributes:
        own: job → its processes.
        somebody: there is one that may be any holder's.
        strangers: processes that are nobody's who holds the card.
    """

    own: Mapping[str, tuple[int, ...]]
    somebody: bool
    strangers: tuple[int, ...]


class Owners:
    """The marks (`cgroup.marks`) of the processes on cards, each read once while it stays there."""

    def __init__(self, proc: Path, access: Access) -> None:
        self._proc = proc
        self._access = access
        self._known: dict[str, dict[int, frozenset[str] | None]] = {}

    def marks(
        self, slot: str, pids: Sequence[int], *, by_environ: bool
    ) -> Mapping[int, frozenset[str] | None]:
        """Return the marks of a card's processes; None where they cannot be read.

        Args:
            by_environ: Slurm keeps no control groups here; a process's own word on its job counts.
        """
        known = self._known.get(slot, {})
        if known.keys() != set(pids):
            known = self._known[slot] = {
                pid: known[pid] if pid in known else self._read(pid, by_environ) for pid in pids
            }
        return known

    def describe(self, pid: int) -> str:
        """Return a process in words."""
        try:
            uid = (self._proc / str(pid)).stat().st_uid
        except OSError:
            return f"pid {pid}"
        return f"pid {pid} ({self._name(pid)}, uid {uid})"

    def _read(self, pid: int, by_environ: bool) -> frozenset[str] | None:
        try:
            found = cgroup.marks((self._proc / str(pid) / "cgroup").read_text())
        except OSError:
            return None
        if self._name(pid) == _MPS and not found:
            return None
        if by_environ and not found:
            try:
                job = self._access.environ(pid).get("SLURM_JOB_ID")
            except OSError:
                return None
            found = frozenset((f"slurm:{job}",) if job else ())
        return found

    def _name(self, pid: int) -> str:
        try:
            return (self._proc / str(pid) / "comm").read_text(errors="replace").strip()
        except OSError:
            return ""


def sort_out(
    held: Iterable[Held],
    marks: Mapping[int, frozenset[str] | None],
    unplaced: Iterable[Holder] = (),
) -> Present:
    """Return the processes on a card, by whose they are.

    Args:
        unplaced: hold cards that nobody can name: this may be one.
    """
    held = tuple(held)
    guests = frozenset({cgroup.OURS, cgroup.SCHEDULER}).union(*(h.owners for h in unplaced))
    unknown_holder = any(not holder.owners for holder, _ in held)
    own: dict[str, tuple[int, ...]] = {}
    strangers: list[int] = []
    somebody = False
    for pid, marked in marks.items():
        jobs = {h.job for h, _ in held if marked is not None and h.owners & marked}
        for job in jobs:
            own[job] = (*own.get(job, ()), pid)
        if jobs or (marked is not None and marked & guests):
            continue
        if marked is None or unknown_holder:
            somebody = True
        else:
            strangers.append(pid)
    return Present(own=own, somebody=somebody, strangers=tuple(strangers))
