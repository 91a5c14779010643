"""The group commit: how much one holds."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from flopwatch_collector.telemetry import group
from flopwatch_collector.telemetry.arrival import Arrival, Origin
from flopwatch_collector.telemetry.group import GroupCommit
from flopwatch_collector.telemetry.stored_rows import StoredRows

ORIGIN = Origin(cluster="atlas", node="n0", simulated=True, spool_id="0" * 32)


class Ended:
    """Takes note of the seqs of each commit."""

    def __init__(self) -> None:
        self.commits: list[list[int]] = []

    def rows(self, rows: StoredRows, stored_unix_ms: int) -> None: ...

    def stored(self, group: Sequence[tuple[str, Arrival]], stored_unix_ms: int) -> None:
        self.commits.append([arrival.last_seq for _, arrival in group])

    def failed(self, retry_after_seconds: float) -> None: ...

    def committed(self, seconds: float) -> None: ...


class Broken(Ended):
    """Fails in what must not."""

    def stored(self, group: Sequence[tuple[str, Arrival]], stored_unix_ms: int) -> None:
        raise ZeroDivisionError


async def test_what_came_at_once_is_more_than_one_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group, "COMMIT_ROWS_MAX", 10)
    monkeypatch.setattr(group, "commit", lambda store, arrivals, now: [])
    ended = Ended()
    commits: GroupCommit[str] = GroupCommit(None, ended, now_unix_ms=lambda: 1)  # type: ignore[arg-type]
    for seq, rows in enumerate((4, 4, 4, 25, 1), start=1):
        arrival = Arrival(origin=ORIGIN, first_seq=seq, last_seq=seq, tables={}, interval_rows=rows)
        await commits.put("n0", arrival)
    assert await commits.stop(10.0)
    assert ended.commits == [[1, 2], [3], [4], [5]], (
        "none has more rows, but for one that comes alone"
    )


async def test_commits_that_end_by_an_error_are_told_of() -> None:
    """The collector ends then: one that took rows and stored none would look alive."""
    commits: GroupCommit[str] = GroupCommit(None, Broken(), now_unix_ms=lambda: 1)  # type: ignore[arg-type]
    arrival = Arrival(origin=ORIGIN, first_seq=1, last_seq=1, tables={}, interval_rows=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(group, "commit", lambda store, arrivals, now: [])
        await commits.put("n0", arrival)
        with pytest.raises(ZeroDivisionError):
            await commits.ended()
    assert await commits.stop(10.0)


async def test_commits_that_are_stopped_end_without_one() -> None:
    commits: GroupCommit[str] = GroupCommit(None, Ended(), now_unix_ms=lambda: 1)  # type: ignore[arg-type]
    ended = asyncio.create_task(commits.ended())
    assert await commits.stop(10.0)
    await ended
