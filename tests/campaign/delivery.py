"""``python -m campaign.delivery [SENDER COLLECTOR BOTH [SEED]]``: kill -9 of either side, and of both.

Senders are an agent's spool and stream (`sender`), the collector its ingest, its embedded store, its
control store and its sender of pages (`storing`), each a process of its own; what a sender's disk has
taken stands in a ledger that nobody harms. Half of the processes die by themselves at a crash point
(`points`), the others at a random moment, some while they start. Ctrl-C: no more kills. At the end,
faults off:

- of every node, what was ever in its spool is in the store, declared a gap, or quarantined: each row
  once, with its value; gaps only where a spool was too small, quarantine only where a batch was of next
  week;
- the audit balances every spool;
- every page that was decided came, none came under two keys, and each outage was told in order;
- something new is acknowledged within `FRESH_SECONDS_MAX`.
"""

from __future__ import annotations

import contextlib
import json
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from campaign import pager, points
from campaign.nursery import Child, Nursery
from campaign.sender import AHEAD, LOSSY, ROWS, is_ahead, value
from processes import awaited

FRESH_SECONDS_MAX: Final = 30.0
NODES: Final = ("n1", "n2", "n3", AHEAD, LOSSY)
AT_RANDOM: Final = "at random"
ARMED_SECONDS_MAX: Final = {"sender": 1.0, "collector": 4.0}
"""How long a process may take to come to its crash point; then it is killed."""


@dataclass
class Verdict:
    """What the oracle found.

    Attributes:
        problems: one line each.
        produced, lost, quarantined: rows; lost: those in gaps.
        pages: decided; page_repeats: times that one came again under its key.
        fresh_seconds: after the last fault.
        kills: by target; deaths: by side and point.
    """

    problems: list[str] = field(default_factory=list)
    produced: int = 0
    lost: int = 0
    quarantined: int = 0
    pages: int = 0
    page_repeats: int = 0
    fresh_seconds: float = 0.0
    kills: Counter[str] = field(default_factory=Counter)
    deaths: Counter[str] = field(default_factory=Counter)


def judge(
    starts: Sequence[int],
    values: Sequence[float],
    gaps: int,
    produced: int,
    promised: int,
    base: int,
    *,
    node: str = "",
    declared: Collection[int] = (),
) -> list[str]:
    """Return what is wrong with what a store holds of a node.

    Args:
        gaps: those that nothing allows.
        produced: rows that the spool counts; promised: of the ledger's last line; base: start of row 0.
        declared: rows that are said to be lost or quarantined, where that is allowed.
    """
    problems = []
    if promised > produced:
        problems.append(f"the spool forgot rows {produced + 1} to {promised} that it had on disk")
    numbers = [start - base for start in starts]
    if len(set(numbers)) < len(numbers):
        problems.append(f"{len(numbers) - len(set(numbers))} rows are doubled")
    if lost := set(range(1, produced + 1)) - set(numbers) - set(declared):
        problems.append(f"{len(lost)} rows are lost, from {min(lost)}")
    if invented := (set(numbers) | set(declared)) - set(range(1, produced + 1)):
        problems.append(f"{len(invented)} rows were never produced, from {min(invented)}")
    if wrong := [n for n, v in zip(numbers, values, strict=True) if v != value(n, node)]:
        problems.append(f"{len(wrong)} rows hold another value, from {wrong[0]}")
    if gaps:
        problems.append(f"{gaps} gaps, and nothing had to be given up")
    return problems


def _rows_of(first_seq: int, last_seq: int) -> range:
    """Return the rows of batches: each has `ROWS`, in order."""
    return range(ROWS * (first_seq - 1) + 1, ROWS * last_seq + 1)


def judge_node(
    node: str, held: Mapping[str, Any], said: tuple[int, int], promised: int, base: int
) -> tuple[list[str], int, int]:
    """Return what is wrong with a node, its rows in gaps, and those in quarantine.

    Args:
        held: as `storing.held_by` has it; said: rows produced and dropped, by its spool.
    """
    starts, values = held["rows"].get(node, ((), ()))
    gaps = [gap for gap in held["gaps"] if gap["node"] == node]
    seqs = [each["seq"] for each in held["quarantined"] if each["node"] == node]
    lost = {n for gap in gaps for n in _rows_of(gap["first_seq"], gap["last_seq"])}
    aside = {n for seq in seqs for n in _rows_of(seq, seq)}
    unwanted = 0 if node == LOSSY else len(gaps)
    problems = judge(
        starts, values, unwanted, said[0], promised, base, node=node, declared=lost | aside
    )
    if wrong := [seq for seq in seqs if not is_ahead(node, seq)]:
        problems.append(f"batch {wrong[0]} is quarantined for no cause")
    if len(lost) != said[1]:
        problems.append(f"{len(lost)} rows in gaps, and its spool dropped {said[1]}")
    audit = [each for each in held["audit"] if each["node"] == node]
    if [each["verdict"] for each in audit] != ["balanced"]:
        problems.append(f"the audit says {audit}")
    return problems, len(lost), len(aside)


class Campaign:
    """Senders and a collector, each one after the other on its own data.

    Attributes:
        enough: set, it ends after the kill that is under way.
    """

    def __init__(
        self,
        home: Path,
        seed: int,
        receiver: pager.Receiver,
        nursery: Nursery,
        *,
        nodes: Sequence[str],
        point: str,
        bug: str,
    ) -> None:
        self._home = home
        self._random = random.Random(seed)
        self._receiver = receiver
        self._nursery = nursery
        self._bug = bug
        self._base = time.time_ns() // 1_000_000 - 6 * 3_600_000
        self._address = "127.0.0.1:0"
        self._points: dict[str, str] = {}
        self._verdict = Verdict()
        self.enough = False
        self._collector = self._collect(point)
        self._address = self._collector.line("listening ")
        self._senders = {node: self._send(node, "") for node in nodes}

    def run(self, kills: Iterable[str]) -> Verdict:
        """Kill in that order (sender, collector, both), end all in good order, and judge."""
        for target in kills:
            if self.enough:
                break
            self._verdict.kills[target] += 1
            if target == "sender":
                node = self._random.choice(list(self._senders))
                self._kill(node, self._senders[node])
                self._senders[node] = self._send(node, self._drawn(points.SENDER))
                continue
            self._kill("collector", self._collector, alone=target == "collector")
            if target == "both":
                for node in self._senders:
                    self._senders[node] = self._send(node, self._drawn(points.SENDER))
            self._collector = self._collect(self._drawn(points.COLLECTOR))
        return self._end()

    def _drawn(self, among: Mapping[str, points.Point]) -> str:
        if self._random.random() < 0.5:
            return ""
        return f"{self._random.choice(list(among))}:{self._random.randrange(1, 4)}"

    def _kill(self, name: str, child: Child, *, alone: bool = True) -> None:
        """Wait for a crash point, or for a random moment, and kill."""
        side = "collector" if name == "collector" else "sender"
        chance, armed = self._random, self._points.get(name, "")
        if chance.random() < 0.8 and not armed:
            with contextlib.suppress(AssertionError):
                child.line("sending " if side == "sender" else "listening ")
        seconds = chance.choice((0.02, 0.3, 1.0)) * chance.random()
        self._await_end(child, ARMED_SECONDS_MAX[side] if armed else seconds)
        by_itself = not child.running
        if not alone:
            for node, sender in self._senders.items():
                self._note(node, sender, by_itself=not sender.running)
                sender.send(signal.SIGKILL)
        child.send(signal.SIGKILL)
        if not alone:
            for sender in self._senders.values():
                sender.popen.wait()
        child.popen.wait()
        self._note(name, child, by_itself=by_itself)

    def _await_end(self, child: Child, seconds: float) -> None:
        until = time.monotonic() + seconds
        while child.running and time.monotonic() < until:
            time.sleep(0.01)

    def _note(self, name: str, child: Child, *, by_itself: bool) -> None:
        """Count a death; one that nobody wanted is a problem."""
        side = "collector" if name == "collector" else "sender"
        said = child.said()
        _, _, where = said.rpartition(points.CRASHED)
        if points.CRASHED in said:
            self._verdict.deaths[f"{side}: {where.strip()}"] += 1
        elif by_itself:
            self._verdict.problems.append(f"{name} ended by itself: {said[-500:]}")
        else:
            self._verdict.deaths[f"{side}: {AT_RANDOM}"] += 1

    def _collect(self, point: str) -> Child:
        self._points["collector"] = point
        places = (self._address, str(self._home), self._receiver.url)
        return self._nursery.start("storing", "collector", *places, point, self._bug)

    def _send(self, node: str, point: str) -> Child:
        self._points[node] = point
        places = (str(self._home / node), str(self._home / f"{node}.ledger"), str(self._base))
        return self._nursery.start("sender", node, node, self._address, *places, point)

    def _end(self) -> Verdict:
        """Faults off: nobody is armed any more, and everybody does what is left to do."""
        verdict = self._verdict
        for child in (self._collector, *self._senders.values()):
            child.end(signal.SIGKILL)
        self._collector = self._collect("")
        self._senders = {node: self._send(node, "") for node in self._senders}
        self._collector.line("listening ")
        for sender in self._senders.values():
            sender.line("sending ")
        began = time.monotonic()
        for sender in self._senders.values():
            sender.send(signal.SIGUSR1)
        for sender in self._senders.values():
            sender.line("fresh ")
        verdict.fresh_seconds = time.monotonic() - began
        for sender in self._senders.values():
            sender.send(signal.SIGTERM)
        said = {node: sender.line("produced ") for node, sender in self._senders.items()}
        for sender in self._senders.values():
            awaited(lambda sender=sender: not sender.running, "the sender leaves")  # type: ignore[misc]
        self._collector.send(signal.SIGTERM)
        self._collector.line("held ")
        self._judge(json.loads((self._home / "held.json").read_text()), said)
        return verdict

    def _judge(self, held: dict[str, Any], said: Mapping[str, str]) -> None:
        verdict = self._verdict
        for node, words in said.items():
            produced, dropped = (int(word) for word in words.split())
            lines = (self._home / f"{node}.ledger").read_text().splitlines()
            problems, lost, aside = judge_node(
                node, held, (produced, dropped), int(lines[-1]), self._base
            )
            verdict.problems += (f"{node}: {problem}" for problem in problems)
            verdict.produced += produced
            verdict.lost += lost
            verdict.quarantined += aside
        taken = list(self._receiver.taken)
        promised = (self._home / "pages").read_text().split()
        verdict.problems += pager.judge(held["pages"], promised, taken)
        verdict.pages = len(held["pages"])
        verdict.page_repeats = len(taken) - len({key for key, _ in taken})


@contextlib.contextmanager
def campaign(
    home: Path, seed: int, *, nodes: Sequence[str] = NODES, point: str = "", bug: str = ""
) -> Iterator[Campaign]:
    """A campaign, and no process of it after the block.

    Args:
        point: where the first collector dies; bug: of `seeded`, that every collector has.
    """
    nursery = Nursery(home)
    try:
        with pager.receiving(random.Random(seed)) as receiver:
            yield Campaign(home, seed, receiver, nursery, nodes=nodes, point=point, bug=bug)
    finally:
        nursery.close()


def main(counts: Sequence[int], seed: int) -> int:
    """Run one and say how it went; 0 where nothing is wrong."""
    kills = [
        target
        for target, count in zip(("sender", "collector", "both"), counts, strict=True)
        for _ in range(count)
    ]
    random.Random(seed).shuffle(kills)
    with tempfile.TemporaryDirectory() as scratch, campaign(Path(scratch), seed) as running:
        signal.signal(signal.SIGINT, lambda *_: setattr(running, "enough", True))
        verdict = running.run(kills)
    if verdict.fresh_seconds > FRESH_SECONDS_MAX:
        verdict.problems.append("nothing fresh within 30 s after the last fault")
    done = verdict.kills
    sys.stdout.write(
        f"seed {seed}: {done['sender']} kills of a sender, {done['collector']} of the collector, "
        f"{done['both']} of it and all senders; {verdict.produced} rows ({verdict.lost} in gaps, "
        f"{verdict.quarantined} quarantined), {verdict.pages} pages ({verdict.page_repeats} came again "
        f"under their key), fresh after {verdict.fresh_seconds:.1f} s, {len(verdict.problems)} problems\n"
    )
    for place, count in sorted(verdict.deaths.items()):
        sys.stdout.write(f"  {count:5} {place}\n")
    sys.stdout.write("".join(f"WRONG {problem}\n" for problem in verdict.problems))
    return 1 if verdict.problems else 0


if __name__ == "__main__":
    chosen = [int(word) for word in sys.argv[1:]]
    chosen += [1000, 1000, 200, 1][len(chosen) :]
    sys.exit(main(chosen[:3], chosen[3]))
