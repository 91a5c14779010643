"""``python -m campaign.corruption [STRIDE RANDOM [SEED]]``: a spool whose bytes are not what they were.

A small spool of 64 KiB is damaged at every STRIDEth byte (1: at all of them), in three ways: a bit flipped,
the byte zero, the file cut there. One of 4 MiB is damaged RANDOM times: by up to eight bits, a run of zeros,
a cut, or a page in place of another. It must open each time, and what it then holds must be what was there:
a record as it was, or a gap over its number; rows held and rows said to be lost are all that were produced.

A page of the small one holds one record, so a byte costs at most one, and a cut no more than it has pages
behind it. A byte of the page where the tree begins, or of the tables' names, may cost all that it leads to:
said to be lost, but also where SQLite finds it in one way and not in another. Where the state is hit, the
spool begins anew under another identity, its survivors numbered anew.
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

from campaign.prefixes import payload
from flopwatch_agent.spool import Spool, SpoolLimits
from flopwatch_proto.v1 import telemetry_pb2 as pb

PAGE: Final = 4096
LEADING: Final = (0, 2)
"""Pages, from 0, of the tables' names and of the root of the records' tree."""
WAYS: Final = ("bit", "zero", "cut")
LIMITS: Final = SpoolLimits(bytes_max=64 << 20)


@dataclass
class Sound:
    """A spool before the damage. Attributes: frames: seq → the batch as it is sent; rows: produced."""

    data: bytes
    spool_id: str
    frames: dict[int, bytes]
    contents: set[bytes]
    rows: int


@dataclass
class Verdict:
    """Attributes: problems: one line each; damages: tried; lost: records, at most of one damage."""

    problems: list[str] = field(default_factory=list)
    damages: int = 0
    harmless: int = 0
    anew: int = 0
    lost: int = 0
    lost_by_leading: int = 0


def made(home: Path, batches: int, rows: int) -> Sound:
    """Return a spool of so many batches, written out and closed."""
    spool = Spool.open(home, LIMITS)
    for _ in range(batches):
        spool.append(payload(spool.rows_produced + 1, rows))
    frames, _ = _held(spool)
    produced, spool_id = spool.rows_produced, spool.spool_id
    spool.close()
    return Sound(
        data=(home / "spool.db").read_bytes(),
        spool_id=spool_id,
        frames=frames,
        contents={_content(frame) for frame in frames.values()},
        rows=produced,
    )


def _held(spool: Spool) -> tuple[dict[int, bytes], list[pb.Gap]]:
    """Return every batch by its number and every gap, as the stream would send them."""
    frames, gaps, after = {}, [], spool.state.acked_seq
    while after + 1 < spool.next_seq:
        for frame in spool.pending(after, 256, 8 << 20, at_least_one=True):
            if frame.HasField("batch"):
                frames[frame.batch.seq] = frame.batch.SerializeToString()
                after = frame.batch.seq
            else:
                gaps.append(frame.gap)
                after = frame.gap.last_seq
    return frames, gaps


def _content(frame: bytes) -> bytes:
    """Return the frame without what numbering it anew changes."""
    batch = pb.Batch.FromString(frame)
    batch.seq = batch.rows_before = 0
    return batch.SerializeToString()


def at_every_byte(sound: Sound, stride: int, first: int = 0) -> Iterator[tuple[str, bytes, int]]:
    """Yield (what was done, the damaged file, records it may cost), three for each place."""
    data = sound.data
    for at in range(first, len(data), stride):
        for way in WAYS:
            damaged = bytearray(data)
            match way:
                case "bit":
                    damaged[at] ^= 1 << at % 8
                case "zero":
                    damaged[at] = 0
                case _:
                    del damaged[at:]
            cost = -(-(len(data) - at) // PAGE) if way == "cut" else 1
            if way != "cut" and at // PAGE in LEADING:
                cost = len(sound.frames)
            yield f"{way} at {at}", bytes(damaged), cost


def at_random(sound: Sound, count: int, chance: random.Random) -> Iterator[tuple[str, bytes, int]]:
    """Yield (what was done, the damaged file, records it may cost)."""
    for _ in range(count):
        damaged = bytearray(sound.data)
        at = chance.randrange(len(damaged))
        match chance.randrange(4):
            case 0:
                way = "bits"
                for _ in range(chance.randrange(1, 9)):
                    damaged[chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
            case 1:
                way = "zeros"
                size = min(chance.randrange(1, 3 * PAGE), len(damaged) - at)
                damaged[at : at + size] = bytes(size)
            case 2:
                way = "cut"
                del damaged[at:]
            case _:
                way = "page"
                page = at - at % PAGE
                other = chance.randrange(len(damaged) // PAGE) * PAGE
                damaged[page : page + PAGE] = damaged[other : other + PAGE]
        yield f"large, {way} at {at}", bytes(damaged), len(sound.frames)


def judge(
    sound: Sound, what: str, damaged: bytes, lost_max: int, home: Path, verdict: Verdict
) -> None:
    """Open what is left, as the next run of an agent would, and judge."""
    verdict.damages += 1
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir()
    (home / "spool.db").write_bytes(damaged)
    try:
        spool = Spool.open(home, LIMITS)
        frames, gaps = _held(spool)
    except Exception as exc:
        verdict.problems.append(f"{what}: {type(exc).__name__}: {exc}")
        return
    same = spool.spool_id == sound.spool_id
    if same:
        leading = lost_max == len(sound.frames)
        _judge_same(sound, what, frames, gaps, spool, verdict, leading=leading)
    else:
        verdict.anew += 1
        if invented := [seq for seq in frames if _content(frames[seq]) not in sound.contents]:
            verdict.problems.append(f"{what}: batches {invented[:5]} were never there")
        if len(frames) + sum(g.last_seq - g.first_seq + 1 for g in gaps) != spool.next_seq - 1:
            verdict.problems.append(f"{what}: numbers without a record")
    lost = len(sound.frames) - len(frames)
    verdict.harmless += lost == 0
    verdict.lost += lost
    if lost > 1 and lost_max == len(sound.frames) and not what.startswith(("large", "cut")):
        verdict.lost_by_leading += 1
    if lost > lost_max:
        verdict.problems.append(f"{what}: {lost} records lost, and {lost_max} were hit")
    before = spool.next_seq
    if spool.append(payload(1, 1)) != before:
        verdict.problems.append(f"{what}: takes no new batch")
    spool.close()


def _judge_same(
    sound: Sound,
    what: str,
    frames: dict[int, bytes],
    gaps: list[pb.Gap],
    spool: Spool,
    verdict: Verdict,
    *,
    leading: bool,
) -> None:
    if altered := [seq for seq, frame in frames.items() if sound.frames.get(seq) != frame]:
        verdict.problems.append(f"{what}: batches {altered[:5]} are others")
    said = {seq for gap in gaps for seq in range(gap.first_seq, gap.last_seq + 1)}
    if unsaid := sound.frames.keys() - frames.keys() - said:
        verdict.problems.append(f"{what}: {len(unsaid)} batches lost unsaid, {min(unsaid)} first")
    held = sum(pb.Batch.FromString(frame).row_count for frame in frames.values())
    lost = sum(gap.row_count for gap in gaps)
    twice = held + lost > sound.rows and leading
    if not twice and (held + lost != sound.rows or spool.state.dropped_rows != lost):
        verdict.problems.append(
            f"{what}: {held} rows held and {lost} said to be lost of {sound.rows}, "
            f"{spool.state.dropped_rows} counted"
        )


def run(home: Path, stride: int, count: int, seed: int, verdict: Verdict) -> None:
    """Do all damages."""
    small = made(home / "small", 12, 20)
    for what, damaged, cost in at_every_byte(small, stride, seed % stride):
        if verdict.damages % 10_000 == 0:
            sys.stdout.write(f"{what}, {len(verdict.problems)} problems\n")
            sys.stdout.flush()
        judge(small, what, damaged, cost, home / "damaged", verdict)
    large = made(home / "large", 160, 120)
    for what, damaged, cost in at_random(large, count, random.Random(seed)):
        judge(large, what, damaged, cost, home / "damaged", verdict)


def main(stride: int, count: int, seed: int) -> int:
    """Run one and say how it went; 0 where nothing is wrong."""
    verdict = Verdict()
    with tempfile.TemporaryDirectory(dir="/dev/shm") as scratch:
        try:
            run(Path(scratch), stride, count, seed, verdict)
        finally:
            sys.stdout.write(
                f"seed {seed}: {verdict.damages} damages (every {stride}. byte of a small spool in "
                f"{len(WAYS)} ways, {count} of a large one): {verdict.harmless} cost nothing, "
                f"{verdict.lost} records lost and said, "
                f"{verdict.lost_by_leading} bytes cost more than one record, "
                f"{verdict.anew} spools began anew, {len(verdict.problems)} problems\n"
            )
    sys.stdout.write("".join(f"WRONG {problem}\n" for problem in verdict.problems[:50]))
    return 1 if verdict.problems else 0


if __name__ == "__main__":
    chosen = [int(word) for word in sys.argv[1:]]
    sys.exit(main(*(chosen + [1, 5_000, 1][len(chosen) :])))
