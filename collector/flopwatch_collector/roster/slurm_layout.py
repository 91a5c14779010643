"""Slurm's JSON, of every layout from 22.05 on, as nodes and jobs. Pure.

What changed between versions, and is read here in all its forms:

- a node's ``state`` was a word beside ``state_flags``, and is a list of words (data_parser v0.0.40+);
- a job's ``job_state`` likewise;
- numbers were plain (null: none), and are objects ``{"set": bool, "infinite": bool, "number": n}``;
- TRES were written ``gres:gpu:h100:2``, and are ``gres/gpu:h100:2`` or ``gres/gpu=2``;
- newer ``sinfo --json`` lists no nodes: ``scontrol show nodes --json`` and slurmrestd do.

Cards of nodes and jobs are written ``gpu:h100:3(IDX:0-1,4)``; the type, ``(S:0-1)`` and the indexes may be
missing, the type may be ``(null)``, an idle node has ``(IDX:N/A)``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, TypeVar

import msgspec

from flopwatch_collector.inventory import expand
from flopwatch_proto.errors import RetryableError, UsageError

CARDS_PER_NODE_MAX: Final = 1024
TASKS_MAX: Final = 100_000
_GRES: Final = re.compile(r"\s*([\w.-]+)((?::[^:(),]+|:\(null\))*):(\d+)([KMG]?)((?:\([^()]*\))*)")
_GRES_START: Final = re.compile(r",(?![^()]*\))")
_INDEXES: Final = re.compile(r"IDX:([\d,-]+)")
_TRES: Final = re.compile(
    r"(?:gres[:/])?gpu(?:[:/](?P<type>[^:=]*[^\d:=][^:=]*))?(?:[:=](?P<n>\d+))?"
)

T = TypeVar("T")


class _Number(msgspec.Struct, frozen=True):
    set: bool = False
    infinite: bool = False
    number: float = 0


Number = int | float | str | _Number | None
Words = str | list[str] | None


class _NodeJson(msgspec.Struct, frozen=True):
    name: str
    state: Words = None
    state_flags: list[str] | None = None
    gres: str | None = None
    gres_used: str | None = None
    partitions: Words = None
    reason: str | None = None
    hostname: str | None = None
    reservation: str | None = None
    cpus: Number = None
    cores: Number = None
    sockets: Number = None
    alloc_cpus: Number = None
    real_memory: Number = None
    alloc_memory: Number = None


class _JobJson(msgspec.Struct, frozen=True):
    job_id: Number
    job_state: Words = None
    state_reason: str | None = None
    account: str | None = None
    user_name: str | None = None
    user_id: Number = None
    partition: str | None = None
    qos: str | None = None
    nodes: str | None = None
    resv_name: str | None = None
    gres_detail: list[str] | None = None
    array_job_id: Number = None
    array_task_id: Number = None
    array_task_string: str | None = None
    het_job_id: Number = None
    het_job_offset: Number = None
    restart_cnt: Number = None
    node_count: Number = None
    tasks: Number = None
    cpus: Number = None
    memory_per_node: Number = None
    tres_req_str: str | None = None
    tres_per_job: str | None = None
    tres_per_node: str | None = None
    tres_per_task: str | None = None
    tres_per_socket: str | None = None
    sockets_per_node: Number = None


class _Nodes(msgspec.Struct, frozen=True):
    nodes: list[_NodeJson] | None = None


class _Jobs(msgspec.Struct, frozen=True):
    jobs: list[_JobJson] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cards:
    """A number of cards of one node. Attributes: count; indexes: those that are named, of a node's own."""

    count: int = 0
    indexes: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A node.

    Attributes:
        states: every word of its state, upper case: MIXED, DRAIN, NOT_RESPONDING …
        cards, used: installed cards, and those that are allocated.
        card_type: empty where it has several types, or none is named.
        shards_used: cards are given out in shards, which name no card.
        free_cpus, free_memory_bytes: None where it does not say.
        cores: of all sockets; infinite where it does not say.
    """

    name: str
    states: frozenset[str]
    cards: int
    used: Cards
    partitions: frozenset[str] = frozenset()
    reason: str = ""
    hostname: str = ""
    reservation: str = ""
    card_type: str = ""
    shards_used: bool = False
    free_cpus: float | None = None
    free_memory_bytes: int | None = None
    cores: float = math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job, or one task of an array, or one component of a heterogeneous job.

    Attributes:
        id: its own number, the one in cgroups and environments; also of a task or component.
        shown: as squeue writes it: ``12``, ``12_3``, ``12+1``.
        attempt: 0, and one more each time it was requeued.
        states: RUNNING, SUSPENDED, COMPLETING …
        nodes: names, as Slurm lists them.
        cards: per node, in the order of the node table; empty where it has none.
        reservation: the one that it runs in.
        pending_cards, pieces, cards_per_piece: what it waits for: in all, on how many nodes, on each.
    """

    id: str
    shown: str
    attempt: int
    states: frozenset[str]
    reason: str = ""
    account: str = ""
    user: str = ""
    partition: str = ""
    qos: str = ""
    nodes: tuple[str, ...] = ()
    cards: tuple[Cards, ...] = ()
    pending_cards: int = 0
    pieces: int = 0
    cards_per_piece: int = 0
    card_type: str = ""
    cpus_per_piece: float = 0.0
    memory_bytes_per_piece: int = 0
    reservation: str = ""


def nodes_of(text: bytes) -> tuple[Node, ...]:
    """Return the nodes of an answer, in its order.

    Raises:
        RetryableError: it is not an answer about nodes.
    """
    listed = _decoded(text, _Nodes).nodes
    if listed is None:
        raise RetryableError("Slurm's answer about nodes lists none")
    return tuple(_node(node) for node in listed)


def jobs_of(text: bytes) -> tuple[Job, ...]:
    """Return the jobs of an answer, in its order.

    Raises:
        RetryableError: it is not an answer about jobs.
    """
    listed = _decoded(text, _Jobs).jobs
    if listed is None:
        raise RetryableError("Slurm's answer about jobs lists none")
    return tuple(_job(job) for job in listed)


def _decoded(text: bytes, type_: type[T]) -> T:
    try:
        return msgspec.json.decode(text, type=type_)
    except msgspec.DecodeError as exc:
        raise RetryableError(f"Slurm's answer cannot be read: {exc}") from exc


def _node(node: _NodeJson) -> Node:
    installed, types = cards_in(node.gres)
    cpus, memory = number(node.cpus), number(node.real_memory)
    partitions = node.partitions
    if isinstance(partitions, str):
        partitions = partitions.split(",")
    return Node(
        name=node.name,
        states=_words(node.state, node.state_flags),
        cards=min(installed.count, CARDS_PER_NODE_MAX),
        used=cards_in(node.gres_used)[0],
        partitions=frozenset(p for p in partitions or () if p),
        reason=node.reason or "",
        hostname=node.hostname or "",
        reservation=node.reservation or "",
        card_type=types[0] if len(types) == 1 else "",
        shards_used=cards_in(node.gres_used, "shard")[0].count > 0,
        free_cpus=None if cpus is None else max(0.0, cpus - (number(node.alloc_cpus) or 0)),
        free_memory_bytes=(
            None
            if memory is None
            else max(0, int(memory - (number(node.alloc_memory) or 0))) * 1024**2
        ),
        cores=(number(node.cores) or 0) * (number(node.sockets) or 0) or math.inf,
    )


def _job(job: _JobJson) -> Job:
    number_of = int(number(job.job_id) or 0)
    array, task = number(job.array_job_id), number(job.array_task_id)
    het, offset = number(job.het_job_id), number(job.het_job_offset)
    shown = str(number_of)
    if het:
        shown = f"{int(het)}+{int(offset or 0)}"
    elif array and task is not None:
        shown = f"{int(array)}_{int(task)}"
    states = _words(job.job_state)
    user = number(job.user_id)
    nodes = max(1, int(number(job.node_count) or 1))
    memory = number(job.memory_per_node)
    total, pieces, each, card_type = _wanted(job, nodes) if "PENDING" in states else (0, 0, 0, "")
    waiting = tasks_in(job.array_task_string)
    return Job(
        id=str(number_of),
        shown=shown,
        attempt=int(number(job.restart_cnt) or 0),
        states=states,
        reason=job.state_reason or "",
        account=job.account or "",
        user=job.user_name or ("" if user is None else str(int(user))),
        partition=job.partition or "",
        qos=job.qos or "",
        nodes=hosts_in(job.nodes),
        cards=tuple(cards_in(text)[0] for text in job.gres_detail or ()),
        pending_cards=total * waiting,
        pieces=pieces * waiting,
        cards_per_piece=each,
        card_type=card_type,
        cpus_per_piece=(number(job.cpus) or 0) / nodes,
        memory_bytes_per_piece=int(memory or 0) * 1024**2,
        reservation=job.resv_name or "",
    )


def number(value: Number) -> float | None:
    """Return a number of any layout; None where it is not set or infinite."""
    if isinstance(value, _Number):
        return value.number if value.set and not value.infinite else None
    if isinstance(value, str):
        return float(value) if value.isdecimal() else None
    return value


def _words(*lists: Words) -> frozenset[str]:
    words: list[str] = []
    for words_of in lists:
        # 22.05 appends flags to the word in some places: "MIXED+DRAIN", "idle*".
        listed = re.split(r"[+ ,]", words_of) if isinstance(words_of, str) else words_of
        words.extend(listed or ())
    found = {word.strip("*$#~!%@^-").upper() for word in words}
    if any(word.endswith("*") for word in words):
        found.add("NOT_RESPONDING")
    return frozenset(found - {""})


def cards_in(text: str | None, name: str = "gpu") -> tuple[Cards, tuple[str, ...]]:
    """Return the cards that a GRES text names, of all types together, and the types.

    Indexes count over all types of a node.
    """
    count, indexes, types = 0, set[int](), []
    for part in _GRES_START.split(text or ""):
        found = _GRES.match(part)
        if found is None or found[1] != name:
            continue
        count += int(found[3]) * {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}[found[4]]
        type_ = found[2].removeprefix(":")
        if type_ and type_ != "(null)":
            types.append(type_)
        named = _INDEXES.search(found[5])
        if named is not None:
            indexes.update(_spans(named[1]))
    return Cards(count=count, indexes=frozenset(indexes)), tuple(types)


def _spans(text: str) -> Iterable[int]:
    for span in text.split(","):
        first, _, last = span.partition("-")
        if first.isdecimal() and (not last or last.isdecimal()):
            yield from range(int(first), min(int(last or first), CARDS_PER_NODE_MAX) + 1)


def hosts_in(text: str | None) -> tuple[str, ...]:
    """Return the names of a host list, such as ``gpu[01-03,7],login``; empty where it is none."""
    if not text or text == "(null)":
        return ()
    try:
        parts = re.split(r",(?![^\[]*\])", text)
        return tuple(name for part in parts for name in expand(part.strip(), "Slurm's host list"))
    except UsageError:
        return ()


def tasks_in(text: str | None) -> int:
    """Return how many tasks of an array may wait at once: ``1-9%3`` is 3; no array is 1."""
    if not text:
        return 1
    spans, _, limit = text.partition("%")
    count = 0
    for first, last, step in re.findall(r"(\d+)(?:-(\d+))?(?::(\d+))?", spans):
        count += (int(last or first) - int(first)) // max(1, int(step or 1)) + 1
    if limit.isdecimal() and int(limit) > 0:
        count = min(count, int(limit))
    return max(1, min(count, TASKS_MAX))


def _wanted(job: _JobJson, nodes: int) -> tuple[int, int, int, str]:
    """Return what a pending job wants: cards in all, pieces, cards of a piece at least, their type.

    Cards that are asked for per job the scheduler may spread as it likes: no more than one must be free on
    any one node.
    """
    tasks = max(1, int(number(job.tasks) or 1))
    sockets = max(1, int(number(job.sockets_per_node) or 1))
    for text, times, together in (
        (job.tres_per_node, nodes, True),
        (job.tres_per_task, tasks, True),
        (job.tres_per_socket, nodes * sockets, True),
        (job.tres_per_job, 1, False),
        (job.tres_req_str, 1, False),
    ):
        each, type_ = _tres(text)
        if each:
            return each * times, nodes, each if together else 1, type_
    return 0, 0, 0, ""


def _tres(text: str | None) -> tuple[int, str]:
    """Return cards and their type of a TRES text; a total over all types stands before its parts."""
    total, by_type, type_of = 0, 0, ""
    for part in (text or "").split(","):
        found = _TRES.fullmatch(part.strip())
        if found is None:
            continue
        count = int(found["n"] or 1)
        if found["type"]:
            by_type, type_of = by_type + count, found["type"]
        else:
            total += count
    return total or by_type, type_of
