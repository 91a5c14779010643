"""What Slurm's answers mean for each card: its bucket, job, account. Pure.

A card is allocated if its node's ``gres_used`` has it or a job that holds resources names it: never by a
node's state, which counts CPUs. First match wins:

- MAINT: the node reboots (REBOOT_ISSUED), is powered down or up, and the card has no job;
- MISSING: DOWN and NOT_RESPONDING, a witness against a node of which nothing else speaks (with a row the
  card is FAILED);
- FAILED: DOWN otherwise, ERROR, INVAL (INVALID_REG); NOT_RESPONDING in more than 2 rosters running; FAIL
  and no job;
- SUSPENDED: all jobs of the card are; GANG_WAIT: they are configuring, so part of their nodes is not there;
- ALLOCATED: it has a job, also on a draining node, in a reservation, or one that this user may not see;
- MAINT: DRAIN, MAINTENANCE, PERFCTRS, a reboot that was asked for, and no job;
- HELD: RESERVED and no job, or the cards' worth of a reservation of a part of the node
  (`slurm_reservations`); its node is in no partition that takes jobs: none, spare or closed ones;
- STRANDED: the share of the jobs that wait, else of those that ran lately, which its node cannot host
  (`stranded`, `slurm_demand`);
- FREE: the rest.

``gres`` indexes are Slurm's: the order of the node's gres.conf. The index k is the k-th slot of the node in
the order of PCI addresses, which is the order of NVIDIA's device minors, unless the operator names the
order (``slurm.cards``). Where the numbers of cards differ, which card is which cannot be known: the roster
then speaks only if its word is the same for all cards of the node, and a warning says so.

A job is named by its own number, the one in cgroups, for tasks of arrays and components too.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from flopwatch_collector.roster.said import Said, Word
from flopwatch_collector.roster.slurm_demand import count_pending, mix, with_stranded
from flopwatch_collector.roster.slurm_layout import Job, Node
from flopwatch_collector.roster.slurm_reservations import Reservation, held_part, with_held
from flopwatch_collector.roster.stranded import JobShape, NodeFree, stranded_ratios
from flopwatch_proto.rows import Bucket

SILENT_ROSTERS_MAX: Final = 2
"""A node that does not respond in so many rosters running may have had a moment's weakness."""

_HOLDING: Final = frozenset(
    {
        "RUNNING",
        "SUSPENDED",
        "COMPLETING",
        "CONFIGURING",
        "STOPPED",
        "STAGE_OUT",
        "SIGNALING",
        "RESIZING",
    }
)
_POWER: Final = frozenset(
    {"POWERED_DOWN", "POWERING_DOWN", "POWERING_UP", "POWER_DOWN", "POWER_UP", "REBOOT_ISSUED"}
)
_MAINT: Final = frozenset(
    {
        "DRAIN",
        "DRAINED",
        "DRAINING",
        "MAINTENANCE",
        "MAINT",
        "PERFCTRS",
        "REBOOT_REQUESTED",
        "REBOOT",
    }
)
_BROKEN: Final = frozenset({"DOWN", "ERROR", "INVAL", "INVALID_REG", "INVALID"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How answers are read.

    Attributes:
        qos_classes, partition_classes: QOS or partition → workload class; a QOS stands before a partition.
        spare_partitions: nodes in these alone are hot spares.
        cards: node → its slots in the order of gres.conf, where that is not the order of addresses.
    """

    qos_classes: Mapping[str, str] = field(default_factory=dict)
    partition_classes: Mapping[str, str] = field(default_factory=dict)
    spare_partitions: frozenset[str] = frozenset()
    cards: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(slots=True)
class _Holders:
    """Who holds the cards of one node.

    Attributes:
        by_index: Slurm's index → jobs.
        unplaced: (job, number of cards) where nobody says which.
        unclear: a job is on the node, and what it holds there is not said.
    """

    by_index: dict[int, list[Job]] = field(default_factory=dict)
    unplaced: list[tuple[Job, int]] = field(default_factory=list)
    unclear: bool = False


def judge(
    nodes: Sequence[Node],
    jobs: Sequence[Job],
    slots: Mapping[str, Sequence[str]],
    *,
    reading: Reading,
    closed_partitions: frozenset[str] = frozenset(),
    silent_before: Mapping[str, int] | None = None,
    reservations: Sequence[Reservation] = (),
    recent: Sequence[JobShape] = (),
) -> Said:
    """Return what Slurm says of every known slot, once.

    Args:
        slots: node → its slots that flopwatch knows, in any order.
        closed_partitions: those that start no jobs (down, drained, inactive).
        silent_before: node → rosters running in which it did not respond, before this one.
        reservations: those in force; without any a RESERVED node is held as a whole.
        recent: what the jobs of the last days wanted.
    """
    silent_before = silent_before or {}
    holders = _holders(nodes, jobs)
    names = _names(nodes, slots)
    said = Said(source="slurm")
    silent: Counter[str] = Counter()
    frees: list[NodeFree] = []
    for node in nodes:
        if "NOT_RESPONDING" in node.states:
            silent[node.name] = silent_before.get(node.name, 0) + 1
        if not node.cards or "FUTURE" in node.states:
            continue
        known = names.get(node.name)
        if known is None:
            said.unknown_nodes.append(node.name)
            continue
        places = tuple(reading.cards.get(known) or sorted(slots[known], key=natural))
        held = held_part(node, reservations, holders[node.name].by_index)
        rule = _rule(node, silent[node.name], closed_partitions, reading, whole=held is None)
        by_card = _words(node, known, holders[node.name], rule, reading, said)
        if held is not None:
            by_card = with_held(by_card, held)
        holder = (node.reservation or "") if held is None else held.names
        words = [word.reserved(holder) for word in _placed(by_card, places, node, said)]
        free = sum(word.bucket == Bucket.FREE for word in words)
        frees.append(
            NodeFree(
                node=known,
                cards=free,
                cpus=_less(node.free_cpus, held.cpus if held else 0.0),
                memory_bytes=node.free_memory_bytes,
                card_type=node.card_type,
            )
        )
        said.words.extend(words)
    said.silent = dict(silent)
    count_pending(jobs, said)
    ratios = stranded_ratios(frees, mix(jobs, recent))
    said.words = list(with_stranded(said.words, ratios, waiting=said.pending_jobs > 0))
    return said


def _less(cpus: float | None, held: float) -> float | None:
    return None if cpus is None else max(0.0, cpus - held)


def natural(text: str) -> tuple[tuple[int, int, str], ...]:
    """Return a key by which names sort as people count: ``gpu2`` before ``gpu10``, addresses as they are."""
    if re.fullmatch(r"[0-9a-fA-F]{4,8}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2}\.[0-7]", text):
        domain, rest = text.split(":", 1)
        return ((0, int(domain, 16), rest.lower()),)
    parts = re.findall(r"(\d+)|(\D+)", text)
    return tuple((1, int(digits), "") if digits else (2, 0, other) for digits, other in parts)


def _names(nodes: Sequence[Node], slots: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Return Slurm's name of a node → ours: the same, its host name, or the same up to the first dot."""
    hosts = Counter(node.hostname for node in nodes)
    short: dict[str, list[str]] = {}
    for name in slots:
        short.setdefault(name.partition(".")[0], []).append(name)
    found = {}
    for node in nodes:
        alone = [node.hostname] if hosts[node.hostname] == 1 else []
        for name in (node.name, *alone):
            near = short.get(name.partition(".")[0], [])
            if name in slots or len(near) == 1:
                found[node.name] = name if name in slots else near[0]
                break
    return found


def _holders(nodes: Sequence[Node], jobs: Iterable[Job]) -> dict[str, _Holders]:
    order = {node.name: i for i, node in enumerate(nodes)}
    used = {node.name: node.used.indexes for node in nodes}
    holders = {node.name: _Holders() for node in nodes}
    for job in jobs:
        if not job.states & _HOLDING:
            continue
        # `gres_detail` follows the node table; the host list is sorted by name.
        on = sorted((name for name in job.nodes if name in order), key=order.__getitem__)
        if len(on) != len(job.cards):
            for name in on if job.cards else ():
                holders[name].unclear = True
            continue
        for name, cards in zip(on, job.cards, strict=True):
            indexes = cards.indexes
            if "COMPLETING" in job.states:
                indexes &= used[name]  # what it held here may be free again
            for index in indexes:
                holders[name].by_index.setdefault(index, []).append(job)
            if cards.count > len(cards.indexes) and not cards.indexes:
                holders[name].unplaced.append((job, cards.count))
    return holders


def _rule(
    node: Node, silent: int, closed_partitions: frozenset[str], reading: Reading, *, whole: bool
) -> tuple[Bucket, bool, str]:
    """Return (bucket of a card without a job, whether it stands before jobs too, why).

    Args:
        whole: a node that is reserved is so as a whole.
    """
    states = node.states
    told = f" ({node.reason})" if node.reason else ""
    if "REBOOT_ISSUED" in states or (states & _POWER and "DOWN" not in states):
        return Bucket.MAINT, False, "is powered down or reboots" + told
    if "DOWN" in states and "NOT_RESPONDING" in states:
        return Bucket.MISSING, True, "is down and does not respond" + told
    if states & _BROKEN or states <= {"UNKNOWN"}:
        words = ", ".join(sorted(states & _BROKEN)).lower() or "in no known state"
        return Bucket.FAILED, True, f"is {words}{told}"
    if silent > SILENT_ROSTERS_MAX:
        return Bucket.FAILED, True, f"has not responded {silent} times running{told}"
    if states & {"FAIL", "FAILING"}:
        return Bucket.FAILED, False, "is about to fail" + told
    if states & _MAINT:
        what = "drained" if states & {"DRAIN", "DRAINED", "DRAINING"} else "in maintenance"
        return Bucket.MAINT, False, f"is {what}{told}"
    if whole and states & {"RESERVED", "RESERVATION", "RESV"}:
        named = f" {node.reservation}" if node.reservation else ""
        return Bucket.HELD, False, f"is reserved{named}"
    if not node.partitions - reading.spare_partitions:
        return Bucket.HELD, False, "is a spare: in no partition that takes jobs"
    if not node.partitions - reading.spare_partitions - closed_partitions:
        return Bucket.HELD, False, "is in no partition that is up"
    return Bucket.FREE, False, "could take a job"


def _words(
    node: Node,
    name: str,
    holders: _Holders,
    rule: tuple[Bucket, bool, str],
    reading: Reading,
    said: Said,
) -> list[list[Word]]:
    """Return the words of each card by Slurm's index, which are yet to be given to slots."""
    by_index = {i: list(held) for i, held in holders.by_index.items() if i < node.cards}
    used = {i for i in node.used.indexes if i < node.cards} | set(by_index)
    missing = node.used.count - len(used)
    guessed = sum(count for _, count in holders.unplaced)
    if missing > 0 or guessed:
        said.doubt(
            "indexes_unknown",
            name,
            f"Slurm does not name the cards that are allocated on {name}, only how many",
            "give each card of gres.conf its File=",
        )
        free = [i for i in range(node.cards) if i not in used]
        used |= set(free[: max(0, missing)])
        nobody = [i for i in sorted(used) if i not in by_index]
        for job, count in holders.unplaced:
            for i in nobody[:count]:
                by_index[i] = [job]
            nobody = nobody[count:]
    hidden = len(used - set(by_index))
    if holders.unclear and hidden:
        said.doubt(
            "cards_unclear",
            name,
            f"Slurm lists the cards of a job on {name} for fewer nodes than the job has",
            "compare with: scontrol show job -d",
        )
    else:
        said.hidden_cards += hidden
        said.hidden_nodes += hidden > 0
    if node.shards_used:
        said.doubt(
            "shards",
            name,
            f"{name} gives cards out in shards, which Slurm does not tell apart",
            "cards in shards are accounted by what their node says",
        )
    words: list[list[Word]] = []
    for index in range(node.cards):
        if index in used:
            words.append(_held(name, by_index.get(index, []), rule, reading))
        elif node.shards_used and rule[0] == Bucket.FREE:
            words.append([])
        else:
            words.append([Word(node=name, bucket=rule[0], why=f"{name} {rule[2]}")])
    return words


def _held(
    name: str, jobs: list[Job], rule: tuple[Bucket, bool, str], reading: Reading
) -> list[Word]:
    """Return the words of a card that somebody holds; those who run stand before the suspended."""
    running = [job for job in jobs if not job.states & {"SUSPENDED", "STOPPED"}]
    bucket = Bucket.ALLOCATED
    if jobs and not running:
        bucket = Bucket.SUSPENDED
    elif running and all("CONFIGURING" in job.states for job in running):
        bucket = Bucket.GANG_WAIT
    why = ""
    if rule[1]:
        bucket, why = rule[0], f"{name} {rule[2]}; "
    if not jobs:
        return [Word(node=name, bucket=bucket, why=why + "allocated to a job that cannot be seen")]
    holders = running or jobs
    return [
        Word(
            node=name,
            bucket=bucket,
            job=job.id,
            team=job.account,
            user=job.user,
            workload_class=_class(job, reading),
            weight=1.0 / len(holders),
            why=f"{why}job {job.shown} is {'+'.join(sorted(job.states)).lower()}",
        )
        for job in holders
    ]


def _class(job: Job, reading: Reading) -> str:
    by_qos = reading.qos_classes.get(job.qos, "")
    return by_qos or reading.partition_classes.get(job.partition, "")


def _placed(words: list[list[Word]], places: tuple[str, ...], node: Node, said: Said) -> list[Word]:
    """Return the words with their slots; where the numbers differ, only what holds for every card."""
    if len(words) != len(places):
        kinds = {tuple((w.bucket, w.job, w.weight) for w in card) for card in words}
        alike = len(kinds) == 1
        said.doubt(
            "cards_differ",
            node.name,
            f"Slurm has {len(words)} cards on {node.name}, flopwatch has {len(places)} slots; "
            + (
                "all have the same word"
                if alike
                else "which is which is not known: left to the node"
            ),
            "make gres.conf, the inventory and the host agree; or name the order in slurm.cards",
        )
        if not alike:
            said.unlisted_free_cards += sum(w.bucket == Bucket.FREE for card in words for w in card)
        words = [words[0]] * len(places) if alike else []
    return [word.at(place) for place, card in zip(places, words, strict=False) for word in card]
