"""Whatever the sources say: a card's weights sum to 1, and a stranger never allocates a card; whatever
processes come and go, they hold it from the first of two readings that show them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from flopwatch_agent.access import Direct
from flopwatch_agent.allocation.holders import MINOR, UUID, Held, Holder, Place, SilentError, Word
from flopwatch_agent.allocation.parts import parts
from flopwatch_agent.allocation.processes import Processes
from flopwatch_agent.allocation.resolve import Resolve
from flopwatch_agent.allocation.strangers import Owners
from flopwatch_agent.allocation.voices import Voices
from flopwatch_agent.clock import SystemClock
from flopwatch_agent.interval import Fold
from flopwatch_agent.jobs import JobTable
from flopwatch_agent.labels import Environments, Labels
from flopwatch_agent.reading import Device, Process, Reading
from flopwatch_agent.shares import whole
from flopwatch_proto.rows import ALLOCATED_BUCKETS, Bucket
from flopwatch_proto.v1 import telemetry_pb2 as pb

JOBS = ("a", "b", "c")
INSTANCES = ("MIG-0", "MIG-1", "MIG-2", "MIG-3")
NOWHERE = Path("/proc/nowhere")
OF_PID = {5: "a", 6: "b", 7: "c", 8: "a"}
PERIOD_MS = 6000  # three jobs divide it exactly

weights = st.floats(min_value=0.01, max_value=100.0)
holders = st.builds(
    lambda job, weight, known, suspended, yields: Holder(
        job=job,
        weight=weight,
        owners=frozenset({f"slurm:{job}"} if known else ()),
        suspended=suspended,
        yields=yields,
    ),
    *(st.sampled_from(JOBS), weights, st.booleans(), st.booleans(), st.booleans()),
)
places = st.one_of(
    st.builds(lambda n: Place(MINOR, n), st.integers(0, 1)),
    st.builds(lambda n: Place(UUID, n.lower()), st.sampled_from((*INSTANCES, "GPU-0"))),
)
words = st.builds(
    lambda held, unplaced: Word(held=held, unplaced=unplaced),
    st.dictionaries(places, st.lists(holders, min_size=1, max_size=3).map(tuple), max_size=4),
    st.lists(holders, max_size=1).map(tuple),
)
said = st.one_of(st.none(), st.just("silent"), words)


@st.composite
def devices(draw: st.DrawFn) -> Device:
    count = draw(st.integers(0, len(INSTANCES)))
    sizes = draw(st.lists(weights, min_size=count, max_size=count))
    rest = draw(st.sampled_from((0.0, 1.0)))
    return Device(
        slot="0000:18:00.0",
        kind="gpu",
        sku="H100",
        uuid="GPU-0",
        minor=0,
        instances=INSTANCES[:count],
        instance_weights=tuple(size / (sum(sizes) + rest) for size in sizes),
    )


class Scripted:
    """A teller that says one thing."""

    def __init__(self, name: str, word: Word | str | None, required: bool) -> None:
        self.name, self.word, self.required = name, word, required

    async def ask(self) -> Word | None:
        if isinstance(self.word, str):
            raise SilentError(self.word)
        return self.word

    def events(self) -> tuple[pb.Event, ...]:
        return ()


class Marked(Owners):
    """Processes whose marks a test says."""

    def __init__(self, marked: Mapping[int, frozenset[str] | None]) -> None:
        super().__init__(NOWHERE, Direct(NOWHERE))
        self.marked = marked

    def marks(
        self, slot: str, pids: object, *, by_environ: bool
    ) -> Mapping[int, frozenset[str] | None]:
        return self.marked


marks = st.one_of(
    st.none(),
    st.just(frozenset[str]()),
    st.builds(lambda job: frozenset({f"slurm:{job}"}), st.sampled_from((*JOBS, "stranger"))),
)


@settings(max_examples=400, deadline=None)
@given(
    device=devices(),
    slurm=said,
    kubelet=said,
    required=st.booleans(),
    marked=st.dictionaries(st.integers(1, 9), marks, max_size=4),
)
def test_a_card_is_whole_and_no_stranger_allocates_it(
    device: Device,
    slurm: Word | str | None,
    kubelet: Word | str | None,
    required: bool,
    marked: dict[int, frozenset[str] | None],
) -> None:
    tellers = (Scripted("slurm", slurm, required), Scripted("kubernetes", kubelet, required))
    environments = Environments(NOWHERE, Direct(NOWHERE))
    resolve = Resolve(
        Voices(tellers, SystemClock()),
        Processes(environments.labels),
        Marked(marked),
        environments.labels,
        lambda holder: None,
        10_000,
    )
    asyncio.run(resolve.refresh())
    reading = Reading(
        device=device,
        taken_unix_ms=1_793_534_400_000,
        boottime_ns=0,
        values={"sm_active_ratio": 0.5},
        processes=tuple(Process(pid=pid) for pid in marked),
    )
    shares = resolve.shares(reading, JobTable())
    assert abs(sum(share.weight for share in shares) - 1.0) < 1e-9
    assert all(share.weight > 0.0 for share in shares)
    keys = [(share.job, share.instance) for share in shares]
    assert len(set(keys)) == len(keys)
    assert abs(sum(share.weight for share in whole(shares, device)) - 1.0) < 1e-9
    spoken = [word for word in (slurm, kubelet) if isinstance(word, Word)]
    if not spoken and not (required and "silent" in (slurm, kubelet)):
        return  # nobody speaks: processes hold the card
    told = [h for word in spoken for held in word.held.values() for h in held]
    told += [h for word in spoken for h in word.unplaced]
    strangers_only = all(m is not None and "slurm:stranger" in m for m in marked.values())
    for share in shares:
        assert share.job is None or share.job in {holder.job for holder in told}
        assert (share.job is not None) == (share.bucket in ALLOCATED_BUCKETS)
        if strangers_only and all(holder.owners for holder in told):
            assert share.bucket is not Bucket.ACTIVE


@given(st.lists(st.tuples(holders, st.just(None)), max_size=5), devices())
def test_holders_of_a_whole_card_share_it_by_weight(held: list[Held], device: Device) -> None:
    found = [part for part in parts(held, device) if part.holder is not None]
    total = sum(holder.weight for holder, _ in held)
    for part in found:
        assert part.holder is not None
        own = sum(holder.weight for holder, _ in held if holder.job == part.holder.job)
        assert abs(part.weight - own / total) < 1e-6


def holding(listings: list[set[int] | None], i: int) -> set[int]:
    """Return the processes that hold the card from reading i to the next: those with two readings."""
    heard = [listing for listing in listings[: i + 1] if listing is not None]
    newest, before = ([set(), set(), *heard])[:-3:-1]
    after = listings[i + 1] or set() if listings[i] is not None else set()
    return newest & (before | after)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.none() | st.sets(st.sampled_from(sorted(OF_PID))), min_size=2, max_size=12))
def test_to_the_millisecond_a_process_holds_from_the_first_of_two_readings(
    listings: list[set[int] | None],
) -> None:
    source = Processes(lambda pid: Labels(job=OF_PID[pid]))
    fold, rows, expected = Fold(interval_ms=30_000), [], Counter[str | None]()
    device = Device(slot="0000:18:00.0", kind="gpu", sku="H100", uuid="GPU-0")
    for i, listing in enumerate(listings):
        reading = Reading(
            device=device,
            taken_unix_ms=1_793_534_400_000 + PERIOD_MS * i,
            boottime_ns=PERIOD_MS * i * 1_000_000,
            values={"sm_active_ratio": 0.5},
            processes=None if listing is None else tuple(Process(pid=pid) for pid in listing),
        )
        rows += fold.add(reading, source.shares(reading, JobTable()))
        if i + 1 < len(listings):
            jobs = {OF_PID[pid] for pid in holding(listings, i)}
            for job in jobs or (None,):
                expected[job] += PERIOD_MS // max(1, len(jobs))
    rows += fold.close(2_000_000_000_000)
    found = Counter[str | None]()
    for row in rows:
        found[row.texts["job"]] += row.card_times["card_ms"]
        assert (row.texts["job"] is None) == (row.bucket is Bucket.FREE)
    assert found == expected
