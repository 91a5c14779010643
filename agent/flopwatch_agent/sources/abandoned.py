"""Driver children that were given up inside a driver call: counted over restarts of the agent, per boot.

A child that hangs in the driver is killed after a minute. Some cannot be (uninterruptible sleep: each may
hold a card until the next boot), and a kill in the middle of a call has frozen cards by itself. So there
are few of them a boot, and then none are started any more. What takes one off the count:

- the process was still there after the kill and is gone now: the call returned;
- the kill ended it, and a later child has read the cards: the driver works;
- an operator closed a release window: the cards were repaired (``clear``).

The file also has the children that run. One of them that is still there when the next agent starts did not
end with its parent, so it hangs, and counts until it is gone. The file is one JSON object; one that cannot be
read or written counts in memory only.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import msgspec
import structlog

from flopwatch_agent.identity import boot_id
from flopwatch_agent.pids import START, running, started_ticks, stat_of

_log = structlog.get_logger()


class _Child(msgspec.Struct, kw_only=True):
    """One child. `outlived`: it was seen alive after the kill."""

    pid: int
    started_ticks: int
    outlived: bool = False


class _File(msgspec.Struct, kw_only=True):
    boot_id: str
    children: list[_Child] = []
    running: list[_Child] = []


class Abandoned:
    """The count. `path` None: in memory only."""

    def __init__(self, path: Path | None = None, proc: Path = Path("/proc")) -> None:
        self._path = path
        self._proc = proc
        self._boot_id = boot_id(proc / "sys/kernel/random/boot_id")
        self._running: list[_Child] = []
        self._children: list[_Child] = self._load()

    @property
    def pids(self) -> tuple[int, ...]:
        """Return the children that count now."""
        self._look()
        return tuple(child.pid for child in self._children)

    def started(self, pid: int) -> None:
        """Note a child that runs from now on; it does not count."""
        self._running = [child for child in self._running if self._is_alive(child)]
        self._running.append(self._child(pid))
        self._save()

    def add(self, pid: int) -> None:
        """Count a child that was just killed inside the driver."""
        self._children.append(self._child(pid))
        self._save()

    def praise(self) -> None:
        """Forget the children that the kill ended: a later one has read the cards."""
        if self._children:
            self._keep([child for child in self._children if child.outlived])

    def clear(self) -> None:
        """Forget all of them."""
        self._keep([])

    def _look(self) -> None:
        kept = []
        for child in self._children:
            alive = self._is_alive(child)
            if alive or not child.outlived:
                kept.append(child)
            child.outlived |= alive
        self._keep(kept)

    def _keep(self, children: list[_Child]) -> None:
        changed = len(children) != len(self._children)
        self._children = children
        if changed:
            self._save()

    def _is_alive(self, child: _Child) -> bool:
        fields = stat_of(child.pid, self._proc)
        if fields is None or not running(fields):
            return False
        return int(fields[START]) == child.started_ticks

    def _child(self, pid: int) -> _Child:
        return _Child(pid=pid, started_ticks=started_ticks(pid, self._proc) or 0)

    def _load(self) -> list[_Child]:
        if self._path is None:
            return []
        try:
            found = msgspec.json.decode(self._path.read_bytes(), type=_File)
        except (OSError, msgspec.DecodeError):
            return []
        if found.boot_id != self._boot_id:
            return []
        counted = {child.pid for child in found.children}
        orphans = [c for c in found.running if c.pid not in counted and self._is_alive(c)]
        for orphan in orphans:
            orphan.outlived = True  # its agent; most are about to end
        return found.children + orphans

    def _save(self) -> None:
        if self._path is None:
            return
        body = msgspec.json.encode(
            _File(boot_id=self._boot_id, children=self._children, running=self._running)
        )
        scratch = self._path.with_name(self._path.name + ".new")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            scratch.write_bytes(body)
            scratch.replace(self._path)
        except OSError as exc:
            _log.warning("abandoned_children_not_saved", path=str(self._path), error=str(exc))
            with contextlib.suppress(OSError):
                scratch.unlink()
