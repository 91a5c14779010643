"""Who holds a card when several sources speak, differ, fall silent, or strangers sit on it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from flopwatch_agent.access import Direct
from flopwatch_agent.allocation.activity import IDLE_MS_MIN
from flopwatch_agent.allocation.classes import classify
from flopwatch_agent.allocation.holders import MINOR, SLOT, Holder, Place, SilentError, Word
from flopwatch_agent.allocation.processes import Processes
from flopwatch_agent.allocation.resolve import Resolve
from flopwatch_agent.allocation.strangers import Owners
from flopwatch_agent.allocation.voices import HOLD_MS, Voices
from flopwatch_agent.clock import SystemClock
from flopwatch_agent.config import ClassRule
from flopwatch_agent.interval import Fold
from flopwatch_agent.jobs import JobTable, Message
from flopwatch_agent.labels import Environments
from flopwatch_agent.reading import Device, Process, Reading, Share
from flopwatch_agent.shares import whole
from flopwatch_proto.codec import decode_rows, encode_rows
from flopwatch_proto.rows import Bucket
from flopwatch_proto.v1 import telemetry_pb2 as pb
from host_folders import UID_1, UID_2, FakeHost

INTERVAL_MS = 10_000
CARDS = tuple(
    Device(slot=f"0000:{n}8:00.0", kind="gpu", sku="H100", uuid=f"GPU-{n}", minor=7 - n)
    for n in range(8)
)
MIG = Device(
    slot="0000:18:00.0",
    kind="gpu",
    sku="H100",
    uuid="GPU-1",
    minor=6,
    instances=("MIG-a", "MIG-b"),
    instance_weights=(3 / 7, 2 / 7),
)
CPU = Device(slot="cpu", kind="cpu", sku="EPYC")


class Stopped(SystemClock):
    """A clock that a test moves."""

    seconds = 1000.0

    def monotonic_seconds(self) -> float:
        return self.seconds


class Scripted:
    """A teller that says what a test says; None: none of its nodes, a text: silent for that reason."""

    def __init__(self, name: str, said: Word | str | None = None, required: bool = False) -> None:
        self.name = name
        self.said = said
        self.required = required

    async def ask(self) -> Word | None:
        if isinstance(self.said, str):
            raise SilentError(self.said)
        return self.said

    def events(self) -> tuple[pb.Event, ...]:
        return ()


class Stage:
    """A host with scripted tellers."""

    def __init__(self, root: Path, *tellers: Scripted, rules: tuple[ClassRule, ...] = ()) -> None:
        self.host = FakeHost(root, v2=True)
        self.clock = Stopped()
        self.jobs = JobTable()
        access = Direct(self.host.proc)
        environments = Environments(self.host.proc, access)
        self.resolve = Resolve(
            Voices(tellers, self.clock),
            Processes(environments.labels),
            Owners(self.host.proc, access),
            environments.labels,
            lambda holder: classify(rules, holder),
            INTERVAL_MS,
        )
        self.second = 0.0

    async def shares(
        self,
        device: Device = CARDS[0],
        pids: tuple[int, ...] | None = (),
        *,
        sm: float = 0.5,
        later: float = 0.0,
        refresh: bool = True,
        instances: Mapping[str, Mapping[str, float]] | None = None,
    ) -> tuple[Share, ...]:
        """Return the shares of a reading so many seconds after the one before."""
        self.clock.seconds += later
        self.second += later
        if refresh:
            await self.resolve.refresh()
        reading = Reading(
            device=device,
            taken_unix_ms=1_793_534_400_000 + int(self.second * 1000),
            boottime_ns=int(self.second * 1e9),
            values={"sm_active_ratio": sm},
            processes=None if pids is None else tuple(Process(pid=pid) for pid in pids),
            instances=instances or {},
        )
        found = self.resolve.shares(reading, self.jobs)
        assert abs(sum(share.weight for share in found) - 1.0) < 1e-9
        return found

    async def share(self, *args: Any, **more: Any) -> Share:
        (share,) = await self.shares(*args, **more)
        return share

    async def settled(self, *args: Any, **more: Any) -> Share:
        """Return the share once the tellers were asked twice more."""
        for _ in range(2):
            await self.share(*args, **more)
        return await self.share(*args, **more)

    def kinds(self) -> list[str]:
        return [event.kind for event in self.resolve.events()]


def job(name: str, *owners: str, **more: Any) -> Holder:
    return Holder(job=name, owners=frozenset(owners or (f"slurm:{name}",)), **more)


def word(*held: tuple[int, Holder], **more: Any) -> Word:
    """Return a word about cards by minor number."""
    places: dict[Place, tuple[Holder, ...]] = {}
    for minor, holder in held:
        place = Place(MINOR, minor)
        places[place] = (*places.get(place, ()), holder)
    return Word(held=places, **more)


async def test_without_a_teller_processes_hold_their_cards(tmp_path: Path) -> None:
    stage = Stage(tmp_path, Scripted("slurm"), Scripted("kubernetes"))
    stage.host.process(5, FLOPWATCH_JOB="train")
    share = await stage.share(pids=(5,))
    assert (share.bucket, share.job, share.source) == (Bucket.ACTIVE, "train", "processes")


async def test_a_scheduler_holds_by_minor_number_and_names_the_job(tmp_path: Path) -> None:
    stage = Stage(tmp_path, Scripted("slurm", word((7, job("81", team="pre", user="ada")))))
    stage.host.process(
        5, group=stage.host.slurm("81"), FLOPWATCH_JOB="own name", SLURM_JOB_USER="x"
    )
    share = await stage.share(CARDS[0], (5,))
    assert (share.bucket, share.job, share.team, share.user) == (Bucket.ACTIVE, "81", "pre", "ada")
    assert (share.source, share.rogue, share.resident) == ("slurm", False, True)
    free = await stage.share(CARDS[7])
    assert (free.bucket, free.job, free.source) == (Bucket.FREE, None, "slurm")


async def test_a_held_card_is_idle_without_a_process_and_after_half_an_hour_at_zero(
    tmp_path: Path,
) -> None:
    stage = Stage(tmp_path, Scripted("slurm", word((7, job("81")))))
    stage.host.process(5, group=stage.host.slurm("81"))
    assert (await stage.share()).bucket is Bucket.IDLE_ALLOC
    assert (await stage.share(pids=(5,), sm=0.0)).bucket is Bucket.ACTIVE
    later = IDLE_MS_MIN / 1000
    assert (await stage.share(pids=(5,), sm=0.0, later=later)).bucket is Bucket.IDLE_ALLOC
    assert (await stage.share(pids=(5,), sm=0.2)).bucket is Bucket.ACTIVE
    unlisted = await stage.share(pids=None)
    assert (unlisted.bucket, unlisted.resident) == (Bucket.ACTIVE, True)


async def test_a_driver_that_never_listed_processes_says_nothing_of_them(tmp_path: Path) -> None:
    stage = Stage(tmp_path, Scripted("slurm", word((7, job("81")))))
    share = await stage.share(pids=None)
    assert (share.bucket, share.resident) == (Bucket.ACTIVE, None)


async def test_a_suspended_job_keeps_its_card(tmp_path: Path) -> None:
    stage = Stage(tmp_path, Scripted("slurm", word((7, job("81", suspended=True)))))
    assert (await stage.share()).bucket is Bucket.SUSPENDED


# ---- strangers ----------------------------------------------------------------------------------


async def test_a_process_on_a_free_card_is_rogue_and_holds_nothing(tmp_path: Path) -> None:
    stage = Stage(tmp_path, Scripted("slurm", word()))
    stage.host.process(5, group="/user.slice/user-1000.slice/session-3.scope")
    for _ in range(2):  # perhaps the first process of a job that is told next
        share = await stage.share(pids=(5,), later=5)
        assert (share.bucket, share.rogue, share.resident) == (Bucket.FREE, False, True)
    assert stage.kinds() == []
    for _ in range(3):
        share = await stage.share(pids=(5,), later=5)
        assert (share.bucket, share.job, share.rogue) == (Bucket.FREE, None, True)
    (event,) = stage.resolve.events()
    assert (event.kind, event.slot) == ("rogue", CARDS[0].slot)
    assert "pid 5 (python" in event.text
    assert "slurm gave to nobody" in event.text
    assert not (await stage.share()).rogue


async def test_the_first_process_of_a_job_that_is_told_later_is_no_stranger(tmp_path: Path) -> None:
    slurm = Scripted("slurm", word())
    stage = Stage(tmp_path, slurm)
    stage.host.process(5, group=stage.host.slurm("81"))
    shares = [await stage.share(pids=(5,))]
    slurm.said = word((7, job("81")))
    shares += [await stage.share(pids=(5,), later=5) for _ in range(3)]
    assert [(share.job, share.rogue) for share in shares] == [(None, False)] + [("81", False)] * 3


async def test_another_jobs_process_is_rogue_on_the_card_of_a_job(tmp_path: Path) -> None:
    stage = Stage(tmp_path, Scripted("slurm", word((7, job("81")))))
    stage.host.process(5, group=stage.host.slurm("82"))
    share = await stage.settled(pids=(5,))
    assert (share.job, share.bucket, share.rogue) == ("81", Bucket.IDLE_ALLOC, True)
    stage.host.process(6, group=stage.host.slurm("81"))
    share = await stage.share(pids=(5, 6))
    assert (share.job, share.bucket, share.rogue) == ("81", Bucket.ACTIVE, True)


async def test_who_cannot_be_known_is_no_stranger(tmp_path: Path) -> None:
    stage = Stage(tmp_path, Scripted("kubernetes", word((7, Holder(job="ml/a")))))
    stage.host.process(5, group="/user.slice")
    share = await stage.settled(pids=(5,))
    assert (share.bucket, share.rogue) == (Bucket.ACTIVE, False)  # its pod's uid is not known
    gone = await stage.settled(CARDS[1], (99,))
    assert (gone.bucket, gone.rogue) == (Bucket.FREE, False)


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("python", "/system.slice/flopwatch-probe@0.service"),
        ("dcgmi", "/system.slice/slurmd.service"),
        ("nvidia-cuda-mps-server", "/system.slice/mps.service"),
    ],
)
async def test_probes_checks_of_the_scheduler_and_the_mps_server_are_no_strangers(
    tmp_path: Path, name: str, group: str
) -> None:
    stage = Stage(tmp_path, Scripted("slurm", word()))
    stage.host.process(5, name, group=group)
    share = await stage.settled(pids=(5,))
    assert (share.bucket, share.rogue) == (Bucket.FREE, False)


async def test_without_control_groups_a_process_is_whose_it_says(tmp_path: Path) -> None:
    said = word((7, job("81")), by_environ=True)
    stage = Stage(tmp_path, Scripted("slurm", said))
    stage.host.process(5, SLURM_JOB_ID="81")
    stage.host.process(6, SLURM_JOB_ID="82")
    assert not (await stage.settled(pids=(5,))).rogue
    assert (await stage.settled(pids=(5, 6))).rogue


# ---- silence ------------------------------------------------------------------------------------


async def test_a_silent_scheduler_is_not_replaced_its_word_holds_and_then_nobody_knows(
    tmp_path: Path,
) -> None:
    slurm = Scripted("slurm", word((7, job("81"))))
    stage = Stage(tmp_path, slurm)
    stage.host.process(5, group=stage.host.slurm("81"))
    assert (await stage.share(pids=(5,))).job == "81"
    slurm.said = "cannot be read"
    share = await stage.share(pids=(5,), later=HOLD_MS / 1000)
    assert (share.bucket, share.job) == (Bucket.ACTIVE, "81")
    assert stage.kinds() == ["scheduler_silent"]
    for pids in ((5,), ()):
        share = await stage.share(pids=pids, later=1)
        assert (share.bucket, share.job, share.source) == (Bucket.UNSEEN, None, "slurm")
        assert not share.rogue
    assert stage.kinds() == []
    slurm.said = word((7, job("82")))
    assert (await stage.share()).job == "82"
    assert stage.kinds() == ["scheduler_heard"]


async def test_a_configured_scheduler_that_never_spoke_is_not_replaced_either(
    tmp_path: Path,
) -> None:
    stage = Stage(tmp_path, Scripted("kubernetes", "permission denied", required=True))
    stage.host.process(5)
    for _ in range(2):
        assert (await stage.share(pids=(5,))).bucket is Bucket.UNSEEN
    assert (await stage.share(CPU)).bucket is Bucket.FREE  # no scheduler speaks for processors


async def test_even_where_nobody_is_asked_any_more_a_word_ends(tmp_path: Path) -> None:
    stage = Stage(tmp_path, Scripted("slurm", word((7, job("81")))))
    await stage.share()
    share = await stage.share(later=HOLD_MS / 1000 + 1, refresh=False)
    assert share.bucket is Bucket.UNSEEN


async def test_what_a_second_source_names_holds_while_the_first_is_silent(tmp_path: Path) -> None:
    stage = Stage(
        tmp_path,
        Scripted("slurm", "gone", required=True),
        Scripted("kubernetes", word((7, job("ml/a", f"pod:{UID_1}")))),
    )
    assert (await stage.share(CARDS[0])).job == "ml/a"
    assert (await stage.share(CARDS[1])).bucket is Bucket.UNSEEN


async def test_where_somebody_holds_a_card_nobody_can_name_no_card_is_called_free(
    tmp_path: Path,
) -> None:
    hidden = job("82")
    stage = Stage(tmp_path, Scripted("slurm", word((7, job("81")), unplaced=(hidden,))))
    stage.host.process(5, group=stage.host.slurm("82"))
    assert (await stage.share(CARDS[0])).job == "81"
    assert (await stage.share(CARDS[1])).bucket is Bucket.UNSEEN
    share = await stage.share(CARDS[1], (5,))  # its process shows which card it is
    assert (share.bucket, share.job, share.rogue) == (Bucket.ACTIVE, "82", False)
    share = await stage.settled(CARDS[0], (5,))  # perhaps it may: nobody knows
    assert (share.bucket, share.job, share.rogue) == (Bucket.IDLE_ALLOC, "81", False)


async def test_a_teller_that_breaks_is_silent_and_leaves_the_others_alone(tmp_path: Path) -> None:
    class Broken(Scripted):
        async def ask(self) -> Word | None:
            raise RuntimeError("a bug")

    kubelet = Scripted("kubernetes", word((7, job("ml/a"))))
    stage = Stage(tmp_path, Broken("slurm", required=True), kubelet)
    with pytest.raises(RuntimeError, match="a bug"):
        await stage.resolve.refresh()
    assert (await stage.share(refresh=False)).job == "ml/a"
    assert (await stage.share(CARDS[1], refresh=False)).bucket is Bucket.UNSEEN


# ---- several sources ----------------------------------------------------------------------------


async def test_two_sources_that_differ_for_two_intervals_are_one_meter_dispute(
    tmp_path: Path,
) -> None:
    pods = Scripted("kubernetes", word((7, job("ml/a", f"pod:{UID_1}"))))
    stage = Stage(tmp_path, Scripted("slurm", word((7, job("81")))), pods)
    assert (await stage.share()).job == "81"
    await stage.share(later=2 * INTERVAL_MS / 1000 - 1)
    assert stage.kinds() == []
    await stage.share(later=1)
    (event,) = stage.resolve.events()
    assert (event.kind, event.slot) == ("meter_dispute", CARDS[0].slot)
    assert event.text.startswith("slurm: 81; kubernetes: ml/a")
    await stage.share(later=100)
    assert stage.kinds() == []
    pods.said = word()
    await stage.share(later=1)
    pods.said = word((7, job("ml/b", f"pod:{UID_2}")))
    await stage.share(later=1)
    await stage.share(later=2 * INTERVAL_MS / 1000)
    assert stage.kinds() == ["meter_dispute"]


async def test_a_pod_that_runs_slurmd_yields_to_slurm_but_to_nobody_else(tmp_path: Path) -> None:
    slurmd = job("slinky/slurmd-0", f"pod:{UID_1}", yields=True)
    slurm = Scripted("slurm")
    stage = Stage(tmp_path, slurm, Scripted("kubernetes", word((7, slurmd), (6, slurmd))))
    assert (await stage.share(CARDS[0])).job == "slinky/slurmd-0"
    slurm.said = word((7, job("81")))
    assert (await stage.share(CARDS[0])).job == "81"
    assert (await stage.share(CARDS[1])).bucket is Bucket.FREE
    await stage.share(CARDS[0], later=3 * INTERVAL_MS / 1000)
    assert stage.kinds() == []


async def test_the_file_speaks_for_its_cards_and_processes_for_the_others(tmp_path: Path) -> None:
    place = Place(SLOT, CARDS[0].slot)
    said = Word(held={place: (Holder(job="lease"),)}, only=frozenset({place}))
    stage = Stage(tmp_path, Scripted("file", said, required=True))
    stage.host.process(5, FLOPWATCH_JOB="train")
    share = await stage.share(CARDS[0], (5,))
    assert (share.job, share.source, share.rogue) == ("lease", "file", False)
    share = await stage.share(CARDS[1], (5,))
    assert (share.job, share.source) == ("train", "processes")


# ---- parts of a card ----------------------------------------------------------------------------


async def test_time_sliced_pods_share_a_card_that_counts_once(tmp_path: Path) -> None:
    a = job("ml/a", f"pod:{UID_1}", weight=2.0)
    stage = Stage(tmp_path, Scripted("kubernetes", word((7, a), (7, job("ml/b", weight=1.0)))))
    group = stage.host.pod("ml", "a", UID_1)
    stage.host.process(5, group=group)
    shares = await stage.shares(pids=(5,))
    assert [(s.job, round(s.weight, 9), s.bucket) for s in shares] == [
        ("ml/a", round(2 / 3, 9), Bucket.ACTIVE),
        ("ml/b", round(1 / 3, 9), Bucket.IDLE_ALLOC),
    ]


async def test_a_mig_device_is_held_by_its_slices_and_the_rest_is_free(tmp_path: Path) -> None:
    held = Word(held={Place("uuid", "mig-a"): (job("ml/a", f"pod:{UID_1}"),)})
    stage = Stage(tmp_path, Scripted("kubernetes", held))
    shares = await stage.shares(MIG)
    assert [(s.job, s.instance, round(s.weight * 7)) for s in shares] == [
        ("ml/a", "MIG-a", 3),
        (None, "MIG-b", 2),
        (None, None, 2),
    ]
    stage.host.process(5, group="/user.slice")
    for _ in range(3):
        shares = await stage.shares(MIG, (5,))
    assert [s.rogue for s in shares] == [False, True, False]
    assert [s.rogue for s in whole(shares, MIG)] == [False, True, False]


async def test_a_stranger_on_a_free_card_that_is_cut_up_is_still_told(tmp_path: Path) -> None:
    stage = Stage(tmp_path, Scripted("kubernetes", word()))
    stage.host.process(5, group="/user.slice")
    for _ in range(3):
        shares = await stage.shares(MIG, (5,))
    assert [(s.instance, s.rogue) for s in whole(shares, MIG)] == [
        ("MIG-a", True),
        ("MIG-b", False),
        (None, False),
    ]


async def test_a_mig_device_is_idle_by_its_own_sms(tmp_path: Path) -> None:
    pods = (job("ml/a", f"pod:{UID_1}"), job("ml/b", f"pod:{UID_2}"))
    held = {Place("uuid", "mig-a"): pods[:1], Place("uuid", "mig-b"): pods[1:]}
    stage = Stage(tmp_path, Scripted("kubernetes", Word(held=held)))
    stage.host.process(5, group=stage.host.pod("ml", "a", UID_1))
    stage.host.process(6, group=stage.host.pod("ml", "b", UID_2))
    own = {"MIG-a": {"sm_active_ratio": 0.0}}
    await stage.shares(MIG, (5, 6), instances=own)
    shares = await stage.shares(MIG, (5, 6), instances=own, later=IDLE_MS_MIN / 1000)
    assert [s.bucket for s in shares[:2]] == [Bucket.IDLE_ALLOC, Bucket.ACTIVE]


# ---- names --------------------------------------------------------------------------------------


async def test_a_workload_class_comes_from_the_first_rule_that_fits(tmp_path: Path) -> None:
    rules = (
        ClassRule(workload_class="interactive", partition="debug*"),
        ClassRule(workload_class="training", team="pre", qos="high"),
        ClassRule(workload_class="inference", namespace="serve-*"),
    )
    holders = (
        job("1", partition="debug-1", team="pre"),
        job("2", partition="h100", team="pre", qos="high"),
        job("3", partition="h100", team="pre"),
        job("4", namespace="serve-a"),
    )
    classes = [classify(rules, holder) for holder in holders]
    assert classes == ["interactive", "training", None, "inference"]
    stage = Stage(tmp_path, Scripted("slurm", word((7, holders[2]))), rules=rules)
    stage.host.process(5, group=stage.host.slurm("3"), FLOPWATCH_WORKLOAD_CLASS="eval")
    assert (await stage.share(pids=(5,))).workload_class == "eval"
    stage.host.process(6, group=stage.host.slurm("3"), FLOPWATCH_WORKLOAD_CLASS="made up")
    assert (await stage.share(pids=(6,))).workload_class is None


async def test_flops_declared_under_another_name_are_the_schedulers_jobs(tmp_path: Path) -> None:
    stage = Stage(tmp_path, Scripted("slurm", word((7, job("81")))))
    for pid in (5, 6):
        stage.host.process(pid, group=stage.host.slurm("81"))

    def say(pid: int, name: str, flops: float, event: str | None = None) -> None:
        message = Message(
            v=1, pid=pid, job=name, device="cuda:GPU-0", event=event, model_flops_total=flops
        )
        stage.jobs.apply(message, 0)

    say(5, "llama", 0.0, "start")
    first = (await stage.share(pids=(5,))).model_flops_total
    say(5, "llama", 4e12)
    say(6, "other", 9e15, "start")  # counted before: not this card's news
    second = (await stage.share(pids=(5, 6))).model_flops_total
    say(6, "other", 9e15 + 1e12)
    third = (await stage.share(pids=(5, 6))).model_flops_total
    assert first is not None
    assert second is not None
    assert third is not None
    assert (second - first, third - second) == (4e12, 1e12)


async def test_a_log_tail_around_a_job_speaks_for_its_cards_under_its_own_name(
    tmp_path: Path,
) -> None:
    stage = Stage(tmp_path, Scripted("slurm", word((7, job("81")))))
    stage.host.process(5, group=stage.host.slurm("81"), FLOPWATCH_JOB="llama")
    said: dict[str, Any] = {"v": 1, "pid": 99, "job": "llama", "device": "*", "phase": "checkpoint"}

    def say(flops: float, **more: Any) -> None:
        stage.jobs.apply(Message(**said, model_flops_total=flops, **more), 0)

    say(0.0, event="start")
    assert (await stage.share(pids=(5,))).model_flops_total == 0.0
    say(4e12)
    share = await stage.share(pids=(5,))
    assert (share.job, share.model_flops_total, share.phase) == ("81", 4e12, "checkpoint")


# ---- what becomes of it -------------------------------------------------------------------------


async def test_rows_say_who_held_the_card_and_travel_where_nobody_knows(tmp_path: Path) -> None:
    slurm = Scripted("slurm", word((6, job("81", team="pre"))))
    stage, fold = Stage(tmp_path, slurm), Fold(interval_ms=INTERVAL_MS)
    rows = []
    for second in range(0, 601, 30):
        if second == 120:
            slurm.said = "silent"
        shares = await stage.shares(MIG, later=30 if second else 0)
        rows += fold.add(
            Reading(
                device=MIG,
                taken_unix_ms=1_793_534_400_000 + second * 1000,
                boottime_ns=second * 10**9,
                processes=(),
            ),
            shares,
        )
    rows += fold.close(2_000_000_000_000)
    said = {(row.bucket, row.texts["job"], row.texts["allocation_source"]) for row in rows}
    assert said == {(Bucket.IDLE_ALLOC, "81", "slurm"), (Bucket.UNSEEN, None, "slurm")}
    spent = sum(row.card_times["card_ms"] for row in rows if row.bucket is Bucket.UNSEEN)
    assert spent == 600_000 - (90_000 + HOLD_MS + 30_000)
    assert list(decode_rows(encode_rows(rows))["bucket"]) == [row.bucket for row in rows]
