"""Phases of the scenario file, resolved and laid over each other. Pure."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Final

from flopwatch.simulate import scenario_file
from flopwatch.simulate.card import STATE_BUCKETS, WITHOUT_JOB, CardState, Segment, Tenant
from flopwatch.simulate.scenario_file import ClusterTable, PhaseTable
from flopwatch_kernels import peaks
from flopwatch_proto.errors import UsageError
from flopwatch_proto.rows import Bucket

_IDLE_WATTS_RATIO: Final = 0.1
_WEIGHT_ERROR: Final = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """A phase with its ranges resolved."""

    nodes: frozenset[int]
    cards: frozenset[int]
    from_ms: int
    to_ms: int
    state: CardState


def resolve(
    path: str, table: PhaseTable, cluster: ClusterTable, sku: peaks.Sku, duration_ms: int
) -> Phase:
    """The phase with its ranges resolved and its defaults filled in.

    Raises:
        UsageError: a value is wrong; the text starts with `path` and the key.
    """
    if table.state not in STATE_BUCKETS:
        near = scenario_file.nearest(table.state, scenario_file.STATES)
        raise UsageError(f"{path}.state: unknown state {table.state!r}{near}")
    from_ms = scenario_file.duration_ms(f"{path}.from", table.from_)
    to_ms = duration_ms if table.to is None else scenario_file.duration_ms(f"{path}.to", table.to)
    if to_ms > duration_ms:
        raise UsageError(f"{path}.to: {table.to} is after the scenario's end")
    if from_ms >= to_ms:
        raise UsageError(f"{path}.from: {table.from_} is not before the phase's end")
    return Phase(
        nodes=scenario_file.indexes(f"{path}.nodes", table.nodes, cluster.nodes),
        cards=scenario_file.indexes(f"{path}.cards", table.cards, cluster.cards_per_node),
        from_ms=from_ms,
        to_ms=to_ms,
        state=_card_state(path, table, sku, cluster.dtype),
    )


def _card_state(path: str, table: PhaseTable, sku: peaks.Sku, dtype: str) -> CardState:
    for key in ("sm_active", "tensor_active", "dram_active", "noise"):
        scenario_file.share(f"{path}.{key}", getattr(table, key))
    if table.declared_mfu is not None:
        scenario_file.share(f"{path}.declared_mfu", table.declared_mfu)
    for reason, ratio in table.throttle.items():
        if reason not in scenario_file.THROTTLES:
            near = scenario_file.nearest(reason, scenario_file.THROTTLES)
            raise UsageError(f"{path}.throttle.{reason}: unknown reason{near}")
        scenario_file.share(f"{path}.throttle.{reason}", ratio)
    for key in ("sm_clock_mhz", "power_watts"):
        value = getattr(table, key)
        if value is not None and not 0.0 <= value <= 100_000.0:
            raise UsageError(f"{path}.{key}: {value:g} is out of range")
    peak = sku.peaks[dtype]
    clock, power = table.sm_clock_mhz, table.power_watts
    if power is None and peak.tdp_watts is not None:
        power = peak.tdp_watts * max(_IDLE_WATTS_RATIO, table.tensor_active)
    return CardState(
        state=table.state,
        tenants=_tenants(path, table),
        sm_active=table.sm_active,
        tensor_active=table.tensor_active,
        dram_active=table.dram_active,
        sm_clock_mhz=(peak.ref_clock_mhz or sku.max_clock_mhz) if clock is None else clock,
        power_watts=power,
        throttle=dict(table.throttle),
        declared_mfu=table.declared_mfu,
        noise=table.noise,
    )


def _tenants(path: str, table: PhaseTable) -> tuple[Tenant, ...]:
    bucket = STATE_BUCKETS[table.state]
    if table.jobs and (table.job is not None or table.team is not None):
        raise UsageError(f"{path}.jobs: instead of job and team, not beside them")
    if bucket is None:
        return ()
    if table.state in WITHOUT_JOB:
        return (Tenant(bucket=bucket),)
    if not table.jobs:
        one = Tenant(
            bucket=bucket,
            job=table.job,
            team=table.team,
            workload_class=table.workload_class or "training",
        )
        return (one,)
    left = 1.0
    tenants: list[Tenant] = []
    for i, entry in enumerate(table.jobs):
        if not 0.0 < entry.weight <= 1.0:
            raise UsageError(f"{path}.jobs[{i}].weight: {entry.weight:g} is not in (0, 1]")
        if entry.job in (tenant.job for tenant in tenants):
            raise UsageError(f"{path}.jobs[{i}].job: {entry.job!r} holds a part already")
        left -= entry.weight
        tenants.append(
            Tenant(
                bucket=bucket,
                weight=entry.weight,
                job=entry.job,
                team=entry.team,
                workload_class=entry.workload_class or table.workload_class or "training",
            )
        )
    if left < -_WEIGHT_ERROR:
        raise UsageError(f"{path}.jobs: weights sum to {1.0 - left:g}, more than 1")
    if left > _WEIGHT_ERROR:
        tenants.append(Tenant(bucket=Bucket.FREE, weight=left))
    return tuple(tenants)


def free(sku: peaks.Sku, dtype: str) -> CardState:
    """What a card does that no phase covers."""
    peak = sku.peaks[dtype]
    return CardState(
        state="free",
        tenants=(Tenant(bucket=Bucket.FREE),),
        sm_clock_mhz=peak.ref_clock_mhz or sku.max_clock_mhz,
        power_watts=None if peak.tdp_watts is None else peak.tdp_watts * _IDLE_WATTS_RATIO,
    )


def tile(phases: list[Phase], uncovered: CardState, duration_ms: int) -> tuple[Segment, ...]:
    """The segments of a card under these phases: at each moment the last phase that covers it."""
    edges = {0, duration_ms}
    for phase in phases:
        edges |= {phase.from_ms, phase.to_ms}
    bounds = sorted(edges)
    segments: list[Segment] = []
    winner: Phase | None = None
    for start_ms, end_ms in itertools.pairwise(bounds):
        covering = [p for p in phases if p.from_ms <= start_ms < p.to_ms]
        wins = covering[-1] if covering else None
        if segments and wins is winner:
            segments[-1] = replace(segments[-1], end_ms=end_ms)
        else:
            state = uncovered if wins is None else wins.state
            segments.append(Segment(start_ms=start_ms, end_ms=end_ms, state=state))
        winner = wins
    return tuple(segments)


def fail(segments: tuple[Segment, ...], at_ms: int) -> tuple[Segment, ...]:
    """The timeline with the card FAILED from ``at_ms`` to its next phase.

    A card of which its node sends nothing at that moment stays as it is.
    """
    made: list[Segment] = []
    for segment in segments:
        state = segment.state
        if not segment.start_ms <= at_ms < segment.end_ms or not state.sent:
            made.append(segment)
            continue
        failed = replace(
            state,
            state="failed",
            tenants=tuple(replace(t, bucket=Bucket.FAILED) for t in state.tenants),
        )
        if at_ms > segment.start_ms:
            made.append(replace(segment, end_ms=at_ms))
        made.append(replace(segment, start_ms=at_ms, state=failed))
    return tuple(made)
