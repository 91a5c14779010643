"""Every teller there is, in order of precedence, made as the configuration says."""

from __future__ import annotations

import functools
from pathlib import Path

from flopwatch_agent.access import Access, Direct, Either, Helper
from flopwatch_agent.allocation import Allocation
from flopwatch_agent.allocation.classes import classify
from flopwatch_agent.allocation.file import HoldFile
from flopwatch_agent.allocation.holders import Teller
from flopwatch_agent.allocation.kubernetes import Kubernetes
from flopwatch_agent.allocation.processes import Processes
from flopwatch_agent.allocation.resolve import Resolve
from flopwatch_agent.allocation.slurm import GRES_CONFS, Slurm
from flopwatch_agent.allocation.slurm_node import Node
from flopwatch_agent.allocation.strangers import Owners
from flopwatch_agent.allocation.voices import Voices
from flopwatch_agent.clock import Clock, SystemClock
from flopwatch_agent.config import AgentConfig
from flopwatch_agent.labels import Environments


def build_access(config: AgentConfig) -> Access:
    """Return what reads environments and asks the kubelet: this process, or the root helper."""
    of = config.allocation
    return Either(Direct(of.proc, of.kubelet_socket), Helper(of.helper))


def build_allocation(
    config: AgentConfig, environments: Environments, clock: Clock | None = None
) -> Allocation:
    """Return the allocation of this host.

    Raises:
        UsageError: the file of holds is wrong.
    """
    clock = clock or SystemClock()
    of = config.allocation
    return Resolve(
        Voices(_tellers(config, environments.access, clock), clock),
        Processes(environments.labels),
        Owners(of.proc, environments.access),
        environments.labels,
        functools.partial(classify, config.classes),
        config.interval.milliseconds,
    )


def _tellers(config: AgentConfig, access: Access, clock: Clock) -> tuple[Teller, ...]:
    of = config.allocation
    tellers: list[Teller] = []
    if of.slurm != "off":
        node = Node(of.cgroup, of.proc, access.environ, of.prolog, of.slurm_node or None)
        confs = (Path(of.gres_conf),) if of.gres_conf else GRES_CONFS
        tellers.append(
            Slurm(
                node,
                clock,
                required=of.slurm == "on",
                gres_confs=confs,
                hostname=config.node.partition(".")[0],
            )
        )
    if of.kubernetes != "off":
        tellers.append(
            Kubernetes(
                access,
                clock,
                required=of.kubernetes == "on",
                cgroup_root=of.cgroup,
                proc=of.proc,
                pod_logs=of.pod_logs,
                dra_devices=Path(of.dra_devices) if of.dra_devices else None,
            )
        )
    if of.file:
        tellers.append(HoldFile(Path(of.file), clock))
    return tuple(tellers)
