"""The shapes of answers, for the OpenAPI document. Null means: not known.

Answers are written as they are computed and never pass through these models; a test holds both together.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Shape(BaseModel):
    """Fields may be added; what stands here stays."""

    model_config = ConfigDict(extra="allow")


class Cards(Shape):
    """Card-seconds divided by the window's seconds. Of the free ones: waited for, and not, where known."""

    in_service: float
    allocated: float
    active: float
    unseen: float
    rogue: float
    excused: float
    free: float
    free_demand: float | None
    free_no_demand: float | None


class Value(Shape):
    """A ratio, 0..1."""

    value: float | None


class Bounds(Value):
    """A ratio with its bounds and the share of card-time behind it that was measured."""

    lo: float | None
    hi: float | None
    coverage: float | None


class MethodShare(Shape):
    """Share of allocated card-time measured by a method."""

    method: str
    share: float


class DtypeShare(Shape):
    """Share of allocated card-time by the dtype whose peak is the denominator."""

    dtype: str
    share: float


class Hfu(Bounds):
    """What the tensor pipes did, of capacity; never model FLOPs."""

    basis: str
    methods: list[MethodShare]


class MfuBounds(Value):
    """Model FLOPs of capacity: exact only where everything is declared."""

    lo: float | None
    hi: float | None
    declared_share: float | None


class Mfu(MfuBounds):
    """MFU of the datasheet's dense peak."""

    basis: str
    dtypes: list[DtypeShare]


class Part(Shape):
    """A part of a step: exact, then the parts add up to it, or bounded, then card_seconds is the middle."""

    name: str
    card_seconds: float | None
    lo: float | None
    hi: float | None
    bounded: bool


class Step(Shape):
    """One step of the waterfall; a step nobody can know is null throughout."""

    step: str
    owner: Literal["hardware", "facility", "scheduling", "workload", "output"]
    card_seconds: float | None
    share: float | None
    flops: float | None
    kwh: float | None
    usd: float | None
    parts: list[Part]


class Outage(Shape):
    """An outage: value and threshold are ratios, lost_points are points of 100."""

    rule: str
    state: Literal["pending", "firing", "standing", "clearing", "resolved"]
    since: str
    value: float | None
    threshold: float | None
    lost_points: dict[str, float]
    acked_by: str | None


class Subject(Shape):
    """The figures of a cluster, a node or the fleet."""

    status: Literal["final", "provisional", "stale"]
    as_of: str | None
    cards: Cards
    allocation: Bounds
    active_allocation: Value
    availability: Value
    schedulable_allocation: Value
    hfu: Hfu
    mfu: Mfu
    hfu_achievable: Value
    mfu_achievable: MfuBounds
    yield_: Value = Field(alias="yield")
    waterfall: list[Step]


class Cluster(Subject):
    """A cluster and its open outages. device_kind cpu: hosts without an accelerator."""

    name: str
    simulated: bool
    device_kind: Literal["gpu", "cpu"]
    outages: list[Outage]


class FleetSum(Subject):
    """The sum over clusters that are not simulated, or over all when only simulated ones exist."""

    outages: list[Outage]


class WindowUsed(Shape):
    """The half-open window that was used."""

    start: str
    end: str
    window_s: float


class Fleet(WindowUsed):
    """Every cluster, and their sum."""

    simulated: bool
    clusters: list[Cluster]
    fleet: FleetSum


class ClusterAnswer(WindowUsed, Cluster):
    """One cluster over a window."""


class Card(Shape):
    """A card: its state now, and its newest row; ``row.absent`` says why a quantity is null."""

    slot: str
    bucket: str | None
    job: str | None
    row: dict[str, Any] | None


class NodeAnswer(WindowUsed, Subject):
    """One node over a window, with its cards."""

    name: str
    cluster: str
    simulated: bool
    device_kind: Literal["gpu", "cpu"]
    cards_list: list[Card]


class NodeOnMap(Shape):
    """A node in the last interval: its worst card's bucket, cards by bucket, HFU of those with counters."""

    node: str
    worst: str
    cards: dict[str, int]
    hfu: float | None
    reports: bool


class NodesAnswer(Shape):
    """The nodes of a cluster."""

    cluster: str
    end: str
    nodes: list[NodeOnMap]


class OutagesAnswer(Shape):
    """Outages, those that need somebody first."""

    outages: list[Outage]


class OutageAnswer(Shape):
    """One outage."""

    outage: Outage | None


class RecordsAnswer(Shape):
    """A list of records under the name of their kind."""


class Loss(Shape):
    """Rows that a cause took in the last 24 h: gaps as agents declared them, batches set aside here."""

    kind: Literal["gap", "quarantine"]
    cause: str
    times: int
    rows: int
    told: str


class DataOfCluster(Shape):
    """What is lost, and nodes by the audit's verdict; null where it got no answer, with the reason."""

    cluster: str
    simulated: bool
    audited: str
    since: str
    nodes: dict[str, int] | None
    unbalanced: int | None
    missing_rows: int
    wrong: list[str]
    reason: str | None
    losses: list[Loss]


class DataAnswer(Shape):
    """The books of every cluster that sent or lost something lately."""

    clusters: list[DataOfCluster]


class CeilingFleet(Shape):
    """Cards of one SKU probed alike, the newest result of each, in `unit`."""

    sku: str | None
    dtype: str | None
    kind: str
    sustained: bool
    unit: str
    simulated: bool
    cards: int
    median: float
    mad: float
    p25: float
    p75: float
    histogram: list[int]
    cards_list: list[dict[str, Any]]


class CeilingsAnswer(Shape):
    """Fleets with their cards ranked, worst first; suspects are slow, falling or corrupt."""

    fleets: list[CeilingFleet]
    suspects: list[dict[str, Any]]
    truncated: bool


class Job(Shape):
    """A job in a list."""

    name: str
    cluster: str
    simulated: bool
    team: str | None
    user: str | None
    sku: str | None
    workload_class: str | None
    card_seconds: float
    cards: Cards
    hfu: Hfu
    mfu: Mfu


class JobsAnswer(WindowUsed):
    """Jobs, those with most card-time first."""

    jobs: list[Job]
    truncated: bool


class JobVerdict(Shape):
    """Whose the losses are. A side is yes, no or unknown, with its points (ratios) and evidence."""

    value: Literal["machine", "workload", "both", "neither", "cannot tell"]
    machine: dict[str, Any]
    workload: dict[str, Any]


class JobReply(Shape):
    """What `docs/job-answer.md` defines; ratios, null where not known."""

    verdict: JobVerdict
    bridge: dict[str, Any]
    peers: dict[str, Any]
    causes: list[dict[str, Any]]
    ceiling: float | None
    stragglers: dict[str, Any]
    flags: list[dict[str, Any]]
    events: list[dict[str, Any]]
    receipt: str


class JobAnswer(WindowUsed, Subject):
    """One job: its figures, and the answer to why."""

    name: str
    cluster: str
    simulated: bool
    device_kind: Literal["gpu", "cpu"]
    team: str | None
    user: str | None
    sku: str | None
    attempt: int
    attempts: int
    held_s: float
    nodes_count: int
    answer: JobReply


class Capture(Shape):
    """Readings at full resolution that were asked of some slots; `ranks` says who answered."""

    id: str
    cluster: str
    job: str | None
    start: str = Field(alias="from")
    end: str = Field(alias="to")
    readings_per_second: int
    asked: str
    asked_by: str
    state: Literal["asked", "sent", "answered", "expired"]
    slots: int
    answered: int
    ranks: list[dict[str, str]]


class NamedValues(Shape):
    """One line of a plot: a value per time, null where nothing is known."""

    name: str
    values: list[float | None]


class SeriesAnswer(Shape):
    """A figure over time."""

    metric: str
    by: str
    start: str
    end: str
    step_s: float
    times: list[str]
    series: list[NamedValues]
