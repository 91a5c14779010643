"""What Kubernetes says of its cards: from nodes, pods and claims to a roster. Pure.

The API server knows how many cards a pod holds, not which: that is the kubelet's knowledge, and reaches the
account in the rows of the node. So a slot is listed only where there is nothing to guess, and is otherwise
a slot that this roster does not speak for:

| node | its slots |
|---|---|
| not Ready | FAILED |
| its device plugin has cards, and none is allocatable, nobody holds one | FAILED |
| nobody holds a card of it, cordoned | MAINT |
| nobody holds a card of it, all are allocatable | FREE, or STRANDED by the share of the mix it cannot host |
| one pod holds all of them | ALLOCATED, to that pod and the team of its namespace |
| a claim got a device whose UUID or address is the slot's | ALLOCATED, and the others of the node FREE |
| anything else: several pods, parts of cards, some cards unhealthy, no device plugin or slice | not listed |

Demand is what the scheduler called unschedulable. Free cards are counted on every node, listed or not:
allocatable less requested, on nodes that are ready and take pods. The reference mix of STRANDED is the
pending pods, else the pods that run now.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from flopwatch_collector.roster.kubernetes_layout import (
    PRODUCT,
    Claim,
    Node,
    Pod,
    Slice,
    amount,
    cards_in,
    devices_of,
    parts_in,
    wanted_cards,
)
from flopwatch_collector.roster.said import Said, Word
from flopwatch_collector.roster.stranded import (
    JobShape,
    NodeFree,
    reference_mix,
    stranded_ratios,
)
from flopwatch_proto.rows import Bucket

SOURCE: Final = "kubernetes"
_HOSTNAME: Final = "kubernetes.io/hostname"


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """What the API server listed.

    Attributes:
        claims, slices: of dynamic resource allocation; empty where there is none, or it may not be read:
            then pods with claims hold devices that nobody can name.
    """

    nodes: Sequence[Node]
    pods: Sequence[Pod]
    claims: Sequence[Claim] = ()
    slices: Sequence[Slice] = ()


@dataclass(slots=True)
class _Holders:
    """Who holds the cards of a node.

    Attributes:
        pods: those that hold some; cards: whole ones of the device plugin's.
        named: device's texts → the pod that got it.
        unclear: parts of cards, or claims whose device is not known.
    """

    pods: list[Pod] = field(default_factory=list)
    cards: float = 0.0
    named: list[tuple[frozenset[str], Pod]] = field(default_factory=list)
    unclear: bool = False
    cpus: float = 0.0
    memory_bytes: float = 0.0


def judge(listed: Listed, slots: Mapping[str, Mapping[str, str]]) -> Said:
    """Return what Kubernetes says of the slots it can name.

    Args:
        slots: node → slot → UUID of its card, empty where it is not known; of slots in service.
    """
    said = Said(source=SOURCE)
    holders = _holders(listed)
    mix = _mix(listed, said)
    sliced = {one.spec.node_name for one in listed.slices if "gpu" in one.spec.driver}
    for node in listed.nodes:
        capacity = cards_in(node.status.capacity) or parts_in(node.status.capacity)
        if not capacity and node.metadata.name not in sliced:
            continue  # its cards, if it has some, are not Kubernetes' to give out
        name = _name(node, slots)
        if name is None:
            said.unknown_nodes.append(node.metadata.name)
            continue
        held = holders.get(node.metadata.name, _Holders())
        free = _free(node, name, held, len(slots[name]))
        ratio = stranded_ratios([free], mix).get(name, 0.0)
        words = _words(node, name, slots[name], held, ratio)
        said.words.extend(words)
        said.unlisted_free_cards += 0 if words else free.cards
    return said


def held_cards(
    listed: Listed, slots: Mapping[str, Mapping[str, str]]
) -> tuple[dict[str, dict[str, float | None]], dict[str, int]]:
    """Return what can be compared of cards that no roster can name, by flopwatch's names of nodes.

    Returns:
        Node → job → whole cards it holds there (None: parts, or a number that nobody knows), for every node
        that both know; and node → cards of the device plugin that are not allocatable.
    """
    holders = _holders(listed)
    held: dict[str, dict[str, float | None]] = {}
    unhealthy: dict[str, int] = {}
    for node in listed.nodes:
        name = _name(node, slots)
        if name is None:
            continue
        of = holders.get(node.metadata.name, _Holders())
        capacity = cards_in(node.status.capacity)
        whole = not of.unclear and capacity <= len(slots[name])
        held[name] = {
            pod.job: pod.cards + sum(p is pod for _, p in of.named) if whole else None
            for pod in of.pods
        }
        unhealthy[name] = max(0, int(capacity - cards_in(node.status.allocatable))) if whole else 0
    return held, unhealthy


def _name(node: Node, slots: Mapping[str, object]) -> str | None:
    """Return what flopwatch calls the node: its name, or its host's."""
    for name in (node.metadata.name, node.metadata.labels.get(_HOSTNAME, "")):
        if name in slots:
            return name
    return None


def _holders(listed: Listed) -> dict[str, _Holders]:
    """Return node → who holds its cards."""
    devices = devices_of(listed.slices)
    claims = {(c.metadata.namespace, c.metadata.name): c for c in listed.claims}
    holders: dict[str, _Holders] = {}
    for pod in listed.pods:
        if not pod.spec.node_name or pod.ended:
            continue
        held = holders.setdefault(pod.spec.node_name, _Holders())
        held.cpus += pod.wants("cpu")
        held.memory_bytes += pod.wants("memory")
        cards, parts = pod.cards, pod.parts
        own = [claims.get((pod.metadata.namespace, name)) for name in pod.claims]
        given = [c.status.allocation for c in own if c is not None]
        unclear = len(own) < len(pod.spec.resource_claims) or len(given) < len(own)
        unclear = unclear or None in given or bool(parts)
        results = [r for a in given if a is not None for r in a.devices.results if r.is_card]
        for got in results:
            _, device = devices.get((got.driver, got.pool, got.device), ("", None))
            texts = device.texts() if device is not None else frozenset()
            unclear |= device is None or "mig" in texts
            held.named.append((texts, pod))
        if cards or results or unclear:
            held.pods.append(pod)
        held.cards += cards
        held.unclear |= unclear
    return holders


def _free(node: Node, name: str, held: _Holders, slots: int) -> NodeFree:
    """Return what the node has left; no cards where it takes no pods."""
    capacity = cards_in(node.status.capacity)
    cards = cards_in(node.status.allocatable) - held.cards
    if not capacity:
        cards = slots - len(held.named) if not held.unclear else 0
    elif capacity > slots:
        cards = cards * slots / capacity  # replicas of shared cards
    if not node.ready or node.spec.unschedulable:
        cards = 0
    return NodeFree(
        node=name,
        cards=max(0, int(cards)),
        cpus=amount(node.status.allocatable.get("cpu")) - held.cpus,
        memory_bytes=int(amount(node.status.allocatable.get("memory")) - held.memory_bytes),
        card_type=node.metadata.labels.get(PRODUCT, ""),
    )


def _words(
    node: Node, name: str, slots: Mapping[str, str], held: _Holders, stranded: float
) -> list[Word]:
    """Return the words of a node; none where Kubernetes cannot say whose its slots are."""
    capacity, allocatable = (cards_in(r) for r in (node.status.capacity, node.status.allocatable))
    if not node.ready:
        return _all(slots, Word(node=name, bucket=Bucket.FAILED, why=f"{name} is not Ready"))
    whole = parts_in(node.status.allocatable) >= parts_in(node.status.capacity)
    healthy = whole and allocatable >= capacity
    if not held.pods:
        if capacity and not allocatable:
            why = f"the device plugin of {name} calls every card unhealthy"
            return _all(slots, Word(node=name, bucket=Bucket.FAILED, why=why))
        if node.spec.unschedulable:
            why = f"{name} is cordoned and empty"
            return _all(slots, Word(node=name, bucket=Bucket.MAINT, why=why))
        free = Word(node=name, bucket=Bucket.FREE, why=f"{name} could take a pod")
        return _parted(_all(slots, free), stranded) if healthy else []
    if held.unclear:
        return []
    if held.named and not held.cards:
        return _named(name, slots, held, stranded, schedulable=not node.spec.unschedulable)
    (pod, *others) = held.pods
    if not others and not held.named and pod.cards == capacity == len(slots):
        return _all(slots, _held(name, pod))
    return []


def _named(
    name: str, slots: Mapping[str, str], held: _Holders, stranded: float, *, schedulable: bool
) -> list[Word]:
    """Return the words of a node whose cards were all given out by name."""
    words: list[Word] = []
    taken: set[str] = set()
    for texts, pod in held.named:
        of = [s for s, uuid in slots.items() if {s.lower(), uuid.lower()} & texts]
        if len(of) != 1 or of[0] in taken:
            return []  # a card we do not know, or one that several pods share
        taken.add(of[0])
        words.append(_held(name, pod).at(of[0]))
    if schedulable:
        free = Word(node=name, bucket=Bucket.FREE, why=f"no claim holds it and {name} takes pods")
        words += _parted([free.at(slot) for slot in slots if slot not in taken], stranded)
    return words


def _held(name: str, pod: Pod) -> Word:
    return Word(
        node=name,
        bucket=Bucket.ALLOCATED,
        job=pod.job,
        team=pod.metadata.namespace,
        why=f"pod {pod.job} is bound to {name}",
    )


def _all(slots: Mapping[str, str], word: Word) -> list[Word]:
    return [word.at(slot) for slot in slots]


def _parted(words: list[Word], stranded: float) -> list[Word]:
    """Return free words with the share that is stranded as words of its own."""
    parted = []
    for word in words:
        if stranded > 0:
            why = f"{word.node} cannot host {stranded:.0%} of the pods that wait"
            parted.append(word.as_part(Bucket.STRANDED, stranded, why))
        if stranded < 1:
            parted.append(word.as_part(word.bucket, 1 - stranded, word.why))
    return parted


def _mix(listed: Listed, said: Said) -> tuple[JobShape, ...]:
    """Return the reference mix, and note what waits."""
    claims = {(c.metadata.namespace, c.metadata.name): c for c in listed.claims}
    pending, running = [], []
    for pod in listed.pods:
        if pod.ended or not (pod.spec.node_name or pod.waits):
            continue
        own = (claims.get((pod.metadata.namespace, name)) for name in pod.claims)
        shape = JobShape(
            cards=int(pod.cards) + wanted_cards(c for c in own if c is not None),
            cpus=pod.wants("cpu"),
            memory_bytes=int(pod.wants("memory")),
            card_type=pod.spec.node_selector.get(PRODUCT, ""),
        )
        if pod.spec.node_name:
            running.append(shape)
        elif shape.cards:
            pending.append(shape)
            said.pending_jobs += 1
            said.pending_cards += shape.cards
    return reference_mix(pending, running)
