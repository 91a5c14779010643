"""``python -m campaign.prefixes [PREFIXES [SEED]]``: the spool after a power loss at any moment.

What an operation changes on disk is known from its files before and after it. A power loss in the middle
leaves the database as before with any part of what was written to the log since, or, the log being complete,
the database with any of the pages that a checkpoint writes:

    log cut at a frame's end, within a frame's head, within its page       nothing behind it was written
    log with any of the new sectors                                        written in any order
    log whole, database with any of its new pages                          lost in a checkpoint

Each is opened as the next run of an agent would open it. It must open, keep its identity, and hold every
record that was on disk before the operation and that the operation does not take away.
"""

from __future__ import annotations

import random
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from flopwatch_agent.spool import Spool, SpoolLimits
from flopwatch_agent.spool_reader import Reader
from flopwatch_proto.v1 import telemetry_pb2 as pb

WAL_HEAD: Final = 32
FRAME_HEAD: Final = 24
PAGE: Final = 4096
SECTOR: Final = 512
NAMES: Final = ("one:9751", "two:9751")
LIMITS: Final = SpoolLimits(bytes_max=60_000)
FILES: Final = ("spool.db", "spool.db-wal", "spool.journal")


def payload(first: int, count: int) -> pb.Payload:
    """Return rows whose start is their number, with a text that fills pages."""
    return pb.Payload(
        intervals=pb.IntervalRows(
            strings=["", random.Random(first).randbytes(count * 100).hex()],
            slot=[1] * count,
            start_unix_ms=range(first, first + count),
            duration_ms=[1] * count,
        )
    )


@dataclass(frozen=True, kw_only=True)
class Known:
    """What is on disk for certain.

    Attributes:
        records: seq → frame, of batches not yet acknowledged.
        gaps: reasons of those not yet acknowledged.
    """

    spool_id: str
    next_seq: int
    records: dict[int, bytes]
    dropped: int
    gaps: frozenset[str]

    @classmethod
    def of(cls, spool: Spool) -> Known:
        """Read it from the running spool, and hold nothing as sent: what was sent is not dropped."""
        records = spool._read(0, 10**6, 1 << 40)
        frames = [record.to_frame().batch for record in records if not record.is_gap]
        return cls(
            spool_id=spool.spool_id,
            next_seq=spool.next_seq,
            records={batch.seq: batch.SerializeToString() for batch in frames},
            dropped=spool.state.dropped_batches,
            gaps=frozenset(record.reason for record in records if record.is_gap),
        )


@dataclass
class Verdict:
    """Attributes: problems: one line each; prefixes: by kind of loss."""

    problems: list[str] = field(default_factory=list)
    operations: int = 0
    prefixes: dict[str, int] = field(default_factory=dict)


def run(home: Path, prefixes: int, seed: int) -> Verdict:
    """Operate a spool, and try so many power losses."""
    chance, verdict = random.Random(seed), Verdict()
    live, lost = home / "live", home / "lost"
    spool = Spool.open(live, LIMITS, readers=NAMES)
    readers = [Reader(spool, name) for name in NAMES]
    before, was = _files(live), Known.of(spool)
    while sum(verdict.prefixes.values()) < prefixes:
        verdict.operations += 1
        if chance.random() < 0.7:
            spool.append(payload(spool.rows_produced + 1, chance.randrange(1, 60)))
        else:
            reader = chance.choice(readers)
            reader.acknowledge(reader.state.acked_seq + chance.randrange(1, 8))
        after, now = _files(live), Known.of(spool)
        for kind, files in _losses(before, after, chance):
            verdict.prefixes[kind] = verdict.prefixes.get(kind, 0) + 1
            where = f"operation {verdict.operations}, {kind}"
            verdict.problems += (f"{where}: {p}" for p in _opened(lost, files, was, now))
        if chance.random() < 0.1:
            spool.close()
            spool = Spool.open(live, LIMITS, readers=NAMES)
            readers = [Reader(spool, name) for name in NAMES]
            after, now = _files(live), Known.of(spool)
        before, was = after, now
    spool.close()
    return verdict


def _files(directory: Path) -> dict[str, bytes]:
    return {name: (directory / name).read_bytes() for name in FILES if (directory / name).exists()}


def _losses(
    before: dict[str, bytes], after: dict[str, bytes], chance: random.Random
) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yield what a power loss may leave, by kind."""
    old, new = before.get("spool.db-wal", b""), after.get("spool.db-wal", b"")
    if old[16:24] != new[16:24] and before["spool.db"] != after["spool.db"]:
        return  # a checkpoint and a new log in one operation: what lay between is not in these files
    cuts: dict[str, list[int]] = {"frame end": [], "frame head": [], "page": []}
    frame = FRAME_HEAD + PAGE
    for end in range(WAL_HEAD + frame, len(new) + 1, frame):
        if new[end - frame : end] != old[end - frame : end]:
            cuts["frame end"].append(end)
            cuts["frame head"].append(end - frame + chance.randrange(1, FRAME_HEAD))
            cuts["page"].append(end - chance.randrange(1, PAGE))
    for kind, ends in cuts.items():
        for end in ends:
            # In place of what was there, where the log began anew; cut off, where it grew.
            yield kind, {**before, "spool.db-wal": new[:end] + old[end:]}
    if new != old:
        # SQLite brings the head of a log that begins anew to disk before anything behind it.
        mixed = _mixed(new[:WAL_HEAD] + old[WAL_HEAD:], new, SECTOR, chance)
        yield "sectors", {**before, "spool.db-wal": mixed}
    if before["spool.db"] != after["spool.db"]:
        for _ in range(4):
            mixed = _mixed(before["spool.db"], after["spool.db"], PAGE, chance)
            yield "checkpoint", {**after, "spool.db": mixed}


def _mixed(old: bytes, new: bytes, size: int, chance: random.Random) -> bytes:
    """Return the old bytes with any of the new blocks; one that never was is zeros."""
    length = max(len(old), len(new))
    old, new = old.ljust(length, b"\0"), new.ljust(length, b"\0")
    blocks = range(0, length, size)
    return b"".join(chance.choice((old, new))[i : i + size] for i in blocks)


def _opened(directory: Path, files: dict[str, bytes], was: Known, now: Known) -> Iterator[str]:
    """Open what a power loss left; yield what is wrong."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    for name, data in files.items():
        (directory / name).write_bytes(data)
    try:
        spool = Spool.open(directory, LIMITS, readers=NAMES)
    except Exception as exc:
        yield f"refuses to start: {type(exc).__name__}: {exc}"
        return
    found = Known.of(spool)
    if found.spool_id != was.spool_id:
        yield "another identity"
    if not was.next_seq <= found.next_seq <= now.next_seq:
        yield f"next number {found.next_seq}, not {was.next_seq} to {now.next_seq}"
    for seq in was.records.keys() & now.records.keys():
        if found.records.get(seq) != was.records[seq]:
            yield f"batch {seq} was on disk and is gone or another"
    if found.dropped > now.dropped:
        yield f"{found.dropped - now.dropped} batches said to be lost that were not"
    if unknown := found.gaps - was.gaps - now.gaps:
        yield f"a gap that nothing had made: {unknown}"
    spool.close()


def main(prefixes: int, seed: int) -> int:
    """Run one and say how it went; 0 where nothing is wrong."""
    with tempfile.TemporaryDirectory() as scratch:
        verdict = run(Path(scratch), prefixes, seed)
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(verdict.prefixes.items()))
    sys.stdout.write(
        f"seed {seed}: {sum(verdict.prefixes.values())} power losses in {verdict.operations} "
        f"operations ({kinds}), {len(verdict.problems)} problems\n"
    )
    sys.stdout.write("".join(f"WRONG {problem}\n" for problem in verdict.problems[:50]))
    return 1 if verdict.problems else 0


if __name__ == "__main__":
    chosen = [int(word) for word in sys.argv[1:]]
    sys.exit(main(*(chosen + [10_000, 1][len(chosen) :])))
