"""The section ``[slurm]``: whether, where and how Slurm is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

import msgspec

from flopwatch_collector.roster.answers import Asker
from flopwatch_collector.roster.slurm import Reading
from flopwatch_collector.roster.slurm_commands import SlurmCommands
from flopwatch_collector.roster.slurm_rest import SlurmRest
from flopwatch_proto.settings import Duration

INTERVAL_SECONDS_MAX: Final = 240.0
"""A roster holds for 5 minutes; one more must come before."""

WorkloadClass = Literal[
    "training", "inference", "rl_rollout", "eval", "interactive", "probe", "unknown"
]


class SlurmConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Slurm, asked once per cluster by the collector.

    Attributes:
        enabled: auto: once this host has a slurm.conf, its commands, and a cluster that answers them.
        cluster: flopwatch's name of the cluster; None: Slurm's ClusterName.
        how: commands: sinfo, squeue and scontrol of this host; rest: slurmrestd at ``url``.
        url: of slurmrestd: ``unix:///path``, ``http://host:port`` or ``https://…``.
        token_file: a JWT for slurmrestd over http; read again at every question.
        user: whose token it is, where the token does not say.
        interval: between two questions; at most 4 minutes.
        deadline: of one question.
        partition_classes: partition → workload class of its jobs.
        qos_classes: QOS → workload class; stands before the partition's.
        spare_partitions: nodes in these alone are hot spares: HELD.
        cards: node → its slots in the order of gres.conf, where that is not the order of PCI addresses.
    """

    enabled: Literal["auto", "on", "off"] = "auto"
    cluster: str | None = None
    how: Literal["commands", "rest"] = "commands"
    url: str = "unix:///run/slurmrestd/slurmrestd.socket"
    token_file: Path | None = None
    user: str = ""
    interval: Duration = Duration(60)
    deadline: Duration = Duration(30)
    partition_classes: dict[str, WorkloadClass] = {}
    qos_classes: dict[str, WorkloadClass] = {}
    spare_partitions: tuple[str, ...] = ()
    cards: dict[str, tuple[str, ...]] = {}

    def __post_init__(self) -> None:
        if not 1 <= self.interval <= INTERVAL_SECONDS_MAX:
            raise ValueError("interval must be between 1s and 240s: a roster holds for 5 minutes")
        if not 1 <= self.deadline <= INTERVAL_SECONDS_MAX:
            raise ValueError("deadline must be between 1s and 240s")
        if self.how == "rest" and self.enabled != "off" and self.cluster is None:
            raise ValueError("cluster must be set where how is rest: slurmrestd may not tell it")
        if not self.url.startswith(("unix:///", "http://", "https://")):
            raise ValueError("url must begin with unix:///, http:// or https://")

    @property
    def is_named(self) -> bool:
        """Whether the operator named a Slurm, so that its silence is a failure from the beginning."""
        return self.enabled == "on" or (self.enabled == "auto" and self.how == "rest")

    def reading(self) -> Reading:
        """Return how answers are read."""
        return Reading(
            qos_classes=self.qos_classes,
            partition_classes=self.partition_classes,
            spare_partitions=frozenset(self.spare_partitions),
            cards=self.cards,
        )

    def asker(self) -> Asker:
        """Return the way to ask."""
        if self.how == "rest":
            return SlurmRest(
                self.url,
                token_file=self.token_file,
                user=self.user,
                cluster=self.cluster or "",
                deadline_seconds=self.deadline,
            )
        return SlurmCommands(deadline_seconds=self.deadline)
