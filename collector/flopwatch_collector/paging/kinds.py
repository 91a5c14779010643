"""KINDS: what an outage may be caused by, as pages say it: words, who can act, and the first thing to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of cause.

    Attributes:
        words: of several, without names; ``{}`` is their number; one: of one, ``{}`` is its name.
        bare: where there is no room, and no name.
        owner: who can act: as in the waterfall, or ``demand``.
        step: the first step of whoever was woken.
    """

    words: str
    one: str
    bare: str
    owner: str
    step: str


KINDS: Final = {
    "dead_rack": Kind(
        words="{} racks dark",
        one="rack {} dark",
        bare="rack dark",
        owner="hardware",
        step="Look at the rack's power and its top-of-rack switch; if several of its nodes answer on their "
        "management port, it is the network.",
    ),
    "dead_nodes": Kind(
        words="{} nodes down",
        one="{} down",
        bare="nodes down",
        owner="hardware",
        step="Ask the scheduler for the reason it gives for these nodes, then their management controllers.",
    ),
    "failed_cards": Kind(
        words="cards failed on {} nodes",
        one="cards failed on {}",
        bare="cards failed",
        owner="hardware",
        step="Read the Xids of these nodes; drain them, reset the cards, and hand back what fails again.",
    ),
    "drained": Kind(
        words="{} nodes drained",
        one="{} drained",
        bare="nodes drained",
        owner="facility",
        step="Ask the scheduler who drained them and why; resume them, or tell `flopwatch maintenance add`.",
    ),
    "held": Kind(
        words="cards held on {} nodes",
        one="cards held on {}",
        bare="cards held",
        owner="facility",
        step="Look for the reservation that holds them; end it, or excuse it in [excused] by its name.",
    ),
    "blind": Kind(
        words="{} agents silent",
        one="agent of {} silent",
        bare="agents silent",
        owner="hardware",
        step="Look at the network between nodes and collector and at what was rolled out last: the cards "
        "may well be at work, nobody sees them.",
    ),
    "stranded": Kind(
        words="cards stranded on {} nodes",
        one="cards stranded on {}",
        bare="cards stranded",
        owner="scheduling",
        step="Compare what waits with what is free: shapes that fit, packing, jobs that took processors "
        "or memory and left cards.",
    ),
    "scheduling": Kind(
        words="cards free on {} nodes, jobs wait",
        one="cards free on {}, jobs wait",
        bare="cards free, jobs wait",
        owner="scheduling",
        step="Ask the scheduler why what waits does not start: limits, reservations, a partition that is "
        "down, a scheduler that stands still.",
    ),
    "free": Kind(
        words="cards free on {} nodes",
        one="cards free on {}",
        bare="cards free",
        owner="scheduling",
        step="Ask the scheduler whether anything waits for these cards; flopwatch does not know its queue.",
    ),
    "demand": Kind(
        words="cards free on {} nodes, no queue",
        one="cards free on {}, no queue",
        bare="no demand",
        owner="demand",
        step="Nothing is broken and nothing waits: bring work, or lower what is paid for.",
    ),
    "bad_job": Kind(
        words="{} jobs",
        one="job {}",
        bare="one job",
        owner="workload",
        step="Ask the job's owner; the command below says which of its ranks lag and what it waits for.",
    ),
    "data_stall": Kind(
        words="data stall, {} jobs wait",
        one="data stall, job {} waits",
        bare="data stall",
        owner="workload",
        step="Many jobs stopped feeding their cards at once: look at storage and the network before jobs.",
    ),
    "power_cap": Kind(
        words="power cap, {} jobs slowed",
        one="power cap, job {} slowed",
        bare="power cap",
        owner="facility",
        step="Look for a power limit that was lowered, and at the feed of the rows that are throttled.",
    ),
    "hot": Kind(
        words="too hot, {} jobs slowed",
        one="too hot, job {} slowed",
        bare="cards too hot",
        owner="facility",
        step="Look at the cooling of the nodes that are throttled: inlet temperature, pumps, fans.",
    ),
    "low_clock": Kind(
        words="low clocks, {} jobs slowed",
        one="low clocks, job {} slowed",
        bare="low clocks",
        owner="facility",
        step="Compare the clocks that were asked for with those of yesterday, and the driver's reasons.",
    ),
    "no_process": Kind(
        words="{} jobs hold idle cards",
        one="job {} holds idle cards",
        bare="jobs without a process",
        owner="workload",
        step="Ask these jobs' owners: they hold cards on which nothing of theirs runs.",
    ),
    "slow_math": Kind(
        words="tensor cores idle in {} jobs",
        one="tensor cores idle, job {}",
        bare="tensor cores idle",
        owner="workload",
        step="Ask what was changed in these jobs: batch, precision, kernels, communication.",
    ),
    "uncounted": Kind(
        words="no counters in {} jobs",
        one="no counters in job {}",
        bare="no counters",
        owner="workload",
        step="See on these nodes why nothing counts: `flopwatch doctor` names the permission or the driver.",
    ),
    "wasted": Kind(
        words="FLOPs wasted in {} jobs",
        one="FLOPs wasted in job {}",
        bare="FLOPs wasted",
        owner="workload",
        step="Ask what was changed in these jobs: recomputation, evaluations, checkpoints, restarts.",
    ),
    "counted": Kind(
        words="{} of them",
        one="{}",
        bare="see the list",
        owner="",
        step="Begin with the first of the list below.",
    ),
    "unknown": Kind(
        words="cause not known",
        one="cause not known",
        bare="cause not known",
        owner="unattributed",
        step="Open the cluster at that moment and compare its waterfall with the hour before.",
    ),
}


RULE_STEPS: Final = {
    "card_failed": "Read the Xids of these cards; drain their nodes, reset them, return what fails again.",
    "throttled": "Look at power and cooling of the racks that these cards are in, the largest first.",
    "rogue": "Ask whose processes these are: they use cards that no job holds.",
    "job_stalled": "Ask the job's owner; the command says which of its ranks lag and what it waits for.",
    "job_regression": "Compare the job with itself before it fell: data, code, checkpoint, cards.",
    "slow_card": "Drain the node, measure the card beside its neighbours, return it if it stays slow.",
    "probe_failed": "Take the card out of use: its results are not to be trusted.",
    "agent_unhealthy": "Run `flopwatch doctor` on the first of these nodes.",
    "certificate_ending": "Run `flopwatch doctor` on the first of these nodes: it was not renewed in time.",
    "collector_unhealthy": "Look at the collector's log and disk: what it cannot store or send, nobody sees.",
}
"""The first step where a rule knows it better than a cause does."""
