"""What the roster says on a real Slurm is what squeue says and what the kernel lets each job open."""

from __future__ import annotations

import re
import shutil
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import pytest

from flopwatch_agent.allocation import gres
from flopwatch_agent.allocation.slurm import by_minor
from flopwatch_agent.allocation.slurm_node import Node
from flopwatch_collector.roster.answers import NotAnsweredError
from flopwatch_collector.roster.said import Said, Word
from flopwatch_collector.roster.slurm import Reading, judge
from flopwatch_collector.roster.slurm_commands import SlurmCommands, found
from flopwatch_collector.roster.slurm_layout import jobs_of, nodes_of
from flopwatch_collector.roster.slurm_reservations import reservations_in
from flopwatch_collector.roster.slurm_rest import SlurmRest
from flopwatch_proto.rows import Bucket
from slurm.lab import CARDS, CGROUPS, Lab, LabError

NODES = 32


@dataclass(frozen=True)
class Truth:
    """What Slurm's text and the kernel say of a job: its account, user, and cards by node."""

    account: str
    cards: dict[str, set[int]]


async def said_by(lab: Lab, silent: dict[str, int] | None = None) -> Said:
    """Ask with the commands and judge."""
    answers = await SlurmCommands(lab.environ).ask()
    return judge(
        nodes_of(answers.nodes),
        jobs_of(answers.jobs),
        lab.slots(),
        reading=Reading(partition_classes={"base": "training"}),
        closed_partitions=answers.closed_partitions,
        silent_before=silent,
        reservations=reservations_in(answers.reservations),
    )


def truth_of(lab: Lab) -> dict[str, Truth]:
    """Read running jobs the other way: the words of squeue, the text of scontrol, device cgroups."""
    found_jobs = {}
    for line in lab.run("squeue", "-h", "-r", "-t", "R,S", "-o", "%A|%a").splitlines():
        job, _, account = line.partition("|")
        # Asked for an array by its number, scontrol shows all its tasks.
        shown = re.split(r"(?=^JobId=)", lab.run("scontrol", "show", "job", "-d", job), flags=re.M)
        details = next(text for text in shown if text.startswith(f"JobId={job} "))
        cards: dict[str, set[int]] = {}
        for nodes, indexes in re.findall(r"Nodes=(\S+) CPU_IDs=\S+ .*\(IDX:([\d,-]+)\)", details):
            for node in lab.run("scontrol", "show", "hostnames", nodes).split():
                cards[node] = _indexes(indexes)
        found_jobs[job] = Truth(account="" if account == "(null)" else account, cards=cards)
    return found_jobs


def held_by_the_node(lab: Lab, node: str) -> dict[int, set[str]]:
    """Return what the agent of a node would read there: card → jobs."""
    order = gres.minors((lab.home / "etc" / "gres.conf").read_text(), node)
    reader = Node(CGROUPS, Path("/proc"), _environ, lab.home / "prolog", node)
    held: dict[int, set[str]] = {}
    for job in reader.jobs(0.0) or ():
        for place in by_minor(job.places, order):
            if isinstance(place.name, int):
                held.setdefault(place.name, set()).add(job.number)
    return held


def _environ(pid: int) -> dict[str, str]:
    texts = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
    return dict(text.split("=", 1) for text in texts if "=" in text)


def _indexes(text: str) -> set[int]:
    spans = (span.partition("-") for span in text.split(","))
    return {i for first, _, last in spans for i in range(int(first), int(last or first) + 1)}


def cards_of(said: Said, lab: Lab) -> dict[str, Truth]:
    """Return what the roster says, in the same form."""
    place = {node: {slot: i for i, slot in enumerate(slots)} for node, slots in lab.slots().items()}
    found_jobs: dict[str, Truth] = {}
    for word in said.words:
        if word.job:
            truth = found_jobs.setdefault(word.job, Truth(account=word.team, cards={}))
            truth.cards.setdefault(word.node, set()).add(place[word.node][word.slot])
    return found_jobs


def buckets(said: Said, node: str | None = None) -> Counter[Bucket]:
    """Count cards by bucket, of a node or of all."""
    return Counter(word.bucket for word in said.words if node in (None, word.node))


def check_whole(said: Said, lab: Lab) -> None:
    """Every slot of the cluster stands there exactly once, and nothing is in doubt."""
    weights: dict[tuple[str, str], float] = defaultdict(float)
    for word in said.words:
        weights[word.node, word.slot] += word.weight
    assert set(weights) == {(node, slot) for node, slots in lab.slots().items() for slot in slots}
    assert all(abs(weight - 1) < 1e-9 for weight in weights.values())
    assert said.doubts == []
    assert said.hidden_cards == 0
    assert said.unknown_nodes == []


def word_of(said: Said, job: str) -> Word:
    return next(word for word in said.words if word.job == job)


async def test_every_kind_of_request_agrees_with_squeue_and_the_device_cgroups(lab: Lab) -> None:
    step = "srun sleep 1000"
    jobs = [
        lab.submit("-A", "red", "--gres=gpu:3"),
        lab.submit("-A", "blue", "--gpus=2"),
        lab.submit("-A", "red", "-N4", "--gpus-per-node=8", script=step),
        lab.submit("-A", "green", "-N2", "--gpus=5", script=step),
        lab.submit("-A", "blue", "-n3", "-N1", "--gpus-per-task=2", "-p", "spot"),
        lab.submit("--gres=gpu:1", "-c16"),  # one card, and every CPU of its node
        lab.submit("-A", "red", "-n16"),  # CPUs alone
    ]
    array = lab.submit("-A", "green", "--array=0-4", "--gpus=1")
    lab.until("all run", lambda: len(truth_of(lab)) == len(jobs) + 5)
    for job in (jobs[2], jobs[3]):
        truth = truth_of(lab)[job]
        lab.until("steps run", lambda: all(lab.cgroup(n, job).is_dir() for n in truth.cards))  # noqa: B023
    said, truths = await said_by(lab), truth_of(lab)
    check_whole(said, lab)
    with_cards = {job: truth for job, truth in truths.items() if truth.cards}
    assert cards_of(said, lab) == with_cards
    for job, truth in with_cards.items():
        for node, cards in truth.cards.items():
            assert lab.cards_open_to(node, job) == cards, f"job {job} on {node}"
            agent = held_by_the_node(lab, node)
            assert {i for i, jobs_there in agent.items() if job in jobs_there} == cards
    allocated = sum(len(cards) for truth in with_cards.values() for cards in truth.cards.values())
    assert allocated == 3 + 2 + 32 + 5 + 6 + 1 + 5
    assert buckets(said) == {Bucket.ALLOCATED: allocated, Bucket.FREE: NODES * CARDS - allocated}
    assert word_of(said, jobs[0]).user == "root"
    assert word_of(said, jobs[0]).workload_class == "training"
    assert word_of(said, jobs[4]).workload_class == ""
    tasks = {word.why for word in said.words if word.team == "green" and f"{array}_" in word.why}
    assert tasks == {f"job {array}_{i} is running" for i in range(5)}


async def test_a_heterogeneous_job_is_one_job_per_component(lab: Lab) -> None:
    printed = lab.run(
        *("sbatch", "--parsable", "-o", "/dev/null", "-A", "red", "--gres=gpu:2", ":"),
        *("--gres=gpu:1", "--wrap", "exec sleep 1000"),
    )
    first = int(printed)
    lab.until_state(str(first), "R\nR")
    said = await said_by(lab)
    check_whole(said, lab)
    assert {job: sum(map(len, t.cards.values())) for job, t in cards_of(said, lab).items()} == {
        str(first): 2, str(first + 1): 1,
    }  # fmt: skip
    assert word_of(said, str(first + 1)).why == f"job {first}+1 is running"


async def test_a_draining_node_keeps_its_jobs_cards_and_loses_the_others(lab: Lab) -> None:
    node = lab.nodes[3]
    job = lab.submit("-w", node, "--gres=gpu:5")
    lab.until_state(job, "R")
    lab.run("scontrol", "update", f"nodename={node}", "state=drain", "reason=fan 3")
    said = await said_by(lab)
    check_whole(said, lab)
    assert buckets(said, node) == {Bucket.ALLOCATED: 5, Bucket.MAINT: 3}
    assert next(w.why for w in said.words if w.bucket == Bucket.MAINT).endswith("drained (fan 3)")
    lab.run("scancel", job)
    lab.until("the job is gone", lambda: lab.job_state(job) == "CA")
    assert buckets(await said_by(lab), node) == {Bucket.MAINT: CARDS}
    lab.run("scontrol", "update", f"nodename={node}", "state=resume")
    assert buckets(await said_by(lab), node) == {Bucket.FREE: CARDS}


async def test_reservations_hold_and_maintenance_takes_out(lab: Lab) -> None:
    create = ("scontrol", "create", "reservation", "starttime=now", "duration=60", "users=root")
    held, broken, part = lab.nodes[5:8]
    try:
        lab.run(*create, "reservationname=held", f"nodes={held}")
        lab.run(*create, "reservationname=fans", f"nodes={broken}", "flags=maint")
        lab.run(*create, "reservationname=part", f"nodes={part}", "corecnt=4")
        with pytest.raises(LabError, match="TRES 'gres/gpu'"):  # 22.05 reserves no cards
            lab.run(*create, "reservationname=no", f"nodes={part}", "tres=gres/gpu=2")
        lab.until(
            "all show",
            lambda: (
                lab.run(
                    *("sinfo", "-h", "-p", "base", "-N", "-o", "%t"),
                    *("-n", f"{held},{broken},{part}"),
                )
                == "resv\nmaint\nresv\n"
            ),
        )
        job = lab.submit("--reservation=held", "--gres=gpu:3")
        lab.until_state(job, "R")
        said = await said_by(lab)
        check_whole(said, lab)
        assert buckets(said, held) == {Bucket.ALLOCATED: 3, Bucket.HELD: 5}
        assert buckets(said, broken) == {Bucket.MAINT: CARDS}
        # The cores that are left are everybody's, and with them every card.
        assert buckets(said, part) == {Bucket.FREE: CARDS}
        other = lab.submit("-w", part, "--gres=gpu:8", "-c12")
        lab.until_state(other, "R")
        assert buckets(await said_by(lab), part) == {Bucket.ALLOCATED: CARDS}
        lab.run("scancel", job, other)
        lab.until("it ended", lambda: lab.job_state(job) == "CA")
    finally:
        for name in ("held", "fans", "part"):
            lab.run("scontrol", "delete", f"reservationname={name}")


async def test_a_suspended_job_keeps_its_cards(lab: Lab) -> None:
    job = lab.submit("-A", "red", "--gres=gpu:4")
    lab.until_state(job, "R")
    lab.run("scontrol", "suspend", job)
    lab.until_state(job, "S")
    said = await said_by(lab)
    check_whole(said, lab)
    assert cards_of(said, lab) == truth_of(lab)
    assert buckets(said)[Bucket.SUSPENDED] == 4
    lab.run("scontrol", "resume", job)
    lab.until_state(job, "R")
    assert buckets(await said_by(lab))[Bucket.ALLOCATED] == 4


async def test_a_requeued_job_leaves_its_cards_and_comes_again_with_another_attempt(
    lab: Lab,
) -> None:
    job = lab.submit("-A", "red", "--gres=gpu:4")
    lab.until_state(job, "R")
    lab.run("scontrol", "requeue", job)
    lab.until_state(job, "PD")
    said = await said_by(lab)
    check_whole(said, lab)
    assert buckets(said) == {Bucket.FREE: NODES * CARDS}
    assert said.pending_cards == 0  # it waits for its time, not for cards
    # A node takes the next attempt only in another second than the one in which it killed the last.
    lab.run("scontrol", "update", f"JobId={job}", "StartTime=now+2")
    lab.until_state(job, "R")
    answers = await SlurmCommands(lab.environ).ask()
    attempts = {found_job.id: found_job.attempt for found_job in jobs_of(answers.jobs)}
    assert attempts[job] == 1
    assert cards_of(await said_by(lab), lab) == truth_of(lab)


async def test_preemption_hands_the_cards_over(lab: Lab) -> None:
    node = lab.nodes[9]
    spot = lab.submit("-A", "spot", "-p", "spot", "-w", node, "--gres=gpu:8", "--requeue")
    lab.until_state(spot, "R")
    base = lab.submit("-A", "base", "-w", node, "--gres=gpu:6")
    lab.until_state(base, "R")
    lab.until_state(spot, "PD")
    said = await said_by(lab)
    check_whole(said, lab)
    assert cards_of(said, lab) == truth_of(lab)
    assert cards_of(said, lab)[base].account == "base"
    assert lab.cards_open_to(node, base) == cards_of(said, lab)[base].cards[node]
    assert buckets(said, node) == {Bucket.ALLOCATED: 6, Bucket.FREE: 2}


async def test_only_jobs_that_wait_for_cards_are_demand(lab: Lab) -> None:
    whole = lab.submit(f"-N{NODES}", "--gpus-per-node=7", script="exec sleep 1000")
    lab.until_state(whole, "R")
    lab.submit("-N2", "--gpus-per-node=4")
    lab.submit("--gpus=16", "-N2")
    lab.submit("--array=0-9%3", "--gres=gpu:2")
    lab.submit("--gres=gpu:8", "--begin=now+1hour")
    lab.submit("--gres=gpu:8", "--hold")
    lab.submit("--gres=gpu:8", f"--dependency=afterany:{whole}")
    lab.submit(f"-N{NODES}", "--exclusive")  # waits for nodes, and asks for no card
    lab.until(
        "reasons are told",
        lambda: "None" not in lab.run("squeue", "-h", "-t", "PD", "-o", "%r").split(),
    )
    said = await said_by(lab)
    check_partitioned(said)
    assert (said.pending_jobs, said.pending_cards) == (3, 8 + 16 + 3 * 2)
    assert said.message(1).pending_cards == 30
    # A card per node is free; 2 of 2 + 2 + 3 pieces that wait (the one of --gpus) could be put there.
    stranded = sum(w.weight for w in said.words if w.bucket == Bucket.STRANDED)
    free = sum(w.weight for w in said.words if w.bucket == Bucket.FREE)
    assert stranded + free == pytest.approx(NODES)
    assert stranded / NODES == pytest.approx(5 / 7, abs=1e-5)
    assert said.message(1).free_cards == pytest.approx(free)


def check_partitioned(said: Said) -> None:
    weights: dict[tuple[str, str], float] = defaultdict(float)
    for word in said.words:
        weights[word.node, word.slot] += word.weight
    assert len(weights) == NODES * CARDS
    assert all(abs(weight - 1) < 1e-9 for weight in weights.values())


async def test_closed_and_spare_partitions_hold_their_nodes(lab: Lab) -> None:
    lab.run("scontrol", "update", "partitionname=spot", "state=down")
    lab.run("scontrol", "update", "partitionname=base", "state=drain")
    try:
        answers = await SlurmCommands(lab.environ).ask()
        assert answers.closed_partitions == {"base", "spot"}
        assert buckets(await said_by(lab)) == {Bucket.HELD: NODES * CARDS}
    finally:
        for name in ("base", "spot"):
            lab.run("scontrol", "update", f"partitionname={name}", "state=up")


async def test_jobs_that_the_user_may_not_see_still_hold_their_cards(
    lab: Lab, tmp_path: Path
) -> None:
    job = lab.submit("-A", "red", "--gres=gpu:4")
    lab.until_state(job, "R")
    tmp_path.chmod(0o755)
    for command in ("sinfo", "squeue", "scontrol"):
        script = tmp_path / command
        real = shutil.which(command)
        user = "--reuid=nobody --regid=nogroup --clear-groups"
        script.write_text(f'#!/bin/sh\nexec setpriv {user} {real} "$@"\n')
        script.chmod(0o755)
    environ = {**lab.environ, "PATH": f"{tmp_path}:{lab.environ['PATH']}"}
    answers = await SlurmCommands(environ).ask()
    assert answers.private_data == {"jobs"}
    said = judge(nodes_of(answers.nodes), jobs_of(answers.jobs), lab.slots(), reading=Reading())
    check_partitioned(said)
    assert buckets(said) == {Bucket.ALLOCATED: 4, Bucket.FREE: NODES * CARDS - 4}
    assert (said.hidden_cards, said.hidden_nodes) == (4, 1)
    assert {word.job for word in said.words} == {""}


async def test_over_rest_it_says_the_same(lab: Lab) -> None:
    lab.submit("-A", "red", "-N2", "--gpus=5")
    lab.until("it runs", lambda: len(truth_of(lab)) == 1)
    lab.run("scontrol", "update", f"nodename={lab.nodes[7]}", "state=drain", "reason=x")
    with lab.rest() as url:
        answers = await SlurmRest(url, cluster="lab").ask()
    lab.run("scontrol", "update", f"nodename={lab.nodes[7]}", "state=resume")
    assert answers.version == "v0.0.38"
    said = judge(nodes_of(answers.nodes), jobs_of(answers.jobs), lab.slots(), reading=Reading())
    check_partitioned(said)
    assert buckets(said) == {Bucket.ALLOCATED: 5, Bucket.MAINT: 8, Bucket.FREE: NODES * CARDS - 13}


async def test_a_controller_that_is_away_is_no_answer(lab: Lab) -> None:
    assert found(lab.environ)
    assert not found({**lab.environ, "SLURM_CONF": "/nowhere/slurm.conf"})
    lab.stop_controller()
    try:
        with pytest.raises(NotAnsweredError, match=r"no answer within|contact|connect"):
            await SlurmCommands(lab.environ, deadline_seconds=2.0).ask()
    finally:
        lab.start_controller()
