"""What the simulated scheduler of a cluster says: slots in service, and rosters. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, cast

from flopwatch.simulate.card import STATE_BUCKETS, state_at
from flopwatch.simulate.player import device, slot_name
from flopwatch.simulate.scenario import Cluster, Scenario
from flopwatch_proto.codec import Strings
from flopwatch_proto.rows import Bucket
from flopwatch_proto.v1 import telemetry_pb2 as pb

ROSTER_EVERY_MS: Final = 240_000
ROSTER_HOLDS_MS: Final = 300_000
DECLARATIONS_PER_PAYLOAD: Final = 1_000


def node_name(cluster: Cluster) -> str:
    """The pseudo node whose stream carries what the scheduler says."""
    return f"{cluster.name}-scheduler"


def roster_times_ms(scenario: Scenario, cluster: Cluster) -> Iterator[int]:
    """When rosters are taken: at the start, wherever a card changes, and every four minutes."""
    at_ms = 0
    for edge_ms in (*cluster.edges_ms, scenario.duration_ms):
        while at_ms < edge_ms:
            yield at_ms
            at_ms = min(at_ms + ROSTER_EVERY_MS, edge_ms)


def roster(scenario: Scenario, cluster: Cluster, *, at_ms: int, start_unix_ms: int) -> pb.Roster:
    """What the scheduler says at `at_ms`; it never speaks beyond the scenario's end."""
    message = pb.Roster(
        source="scenario",
        taken_unix_ms=start_unix_ms + at_ms,
        valid_until_unix_ms=start_unix_ms + min(at_ms + ROSTER_HOLDS_MS, scenario.duration_ms),
    )
    free_cards = 0.0
    strings = Strings()
    slots = [strings.add(slot_name(card)) for card in range(cluster.cards_per_node)]
    for node, cards in enumerate(cluster.timelines):
        node_index: int | None = None
        for card, segments in enumerate(cards):
            state = state_at(segments, at_ms)
            if STATE_BUCKETS[state.state] is None:
                continue
            if node_index is None:
                node_index = strings.add(cluster.node_name(node))
            for tenant in state.tenants:
                message.node.append(node_index)
                message.slot.append(slots[card])
                message.bucket.append(cast("pb.Bucket", int(tenant.bucket)))
                message.job.append(strings.add(tenant.job))
                message.team.append(strings.add(tenant.team))
                message.workload_class.append(strings.add(tenant.workload_class))
                message.weight.append(tenant.weight)
                free_cards += tenant.weight if tenant.bucket == Bucket.FREE else 0.0
    if cluster.pending_cards is not None:
        message.pending_cards, message.free_cards = cluster.pending_cards, free_cards
    message.strings.extend(strings.list())
    return message


def declarations(
    cluster: Cluster, *, from_unix_ms: int, to_unix_ms: int
) -> Iterator[list[pb.SlotDeclaration]]:
    """Every slot of the cluster in service from … to, in portions that fit a payload."""
    portion: list[pb.SlotDeclaration] = []
    for node in range(cluster.nodes):
        for card in range(cluster.cards_per_node):
            of = device(cluster, node, card)
            portion.append(
                pb.SlotDeclaration(
                    node=cluster.node_name(node),
                    slot=of.slot,
                    sku=of.sku,
                    device_uuid=of.uuid,
                    serial=of.serial,
                    device_kind=of.kind,
                    dtype=cluster.dtype,
                    state=pb.SLOT_STATE_IN_SERVICE,
                    from_unix_ms=from_unix_ms,
                    to_unix_ms=to_unix_ms,
                )
            )
            if len(portion) == DECLARATIONS_PER_PAYLOAD:
                yield portion
                portion = []
    if portion:
        yield portion
