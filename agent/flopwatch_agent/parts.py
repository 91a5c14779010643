"""What an agent is made of, as its configuration says."""

from __future__ import annotations

from dataclasses import dataclass, field

from flopwatch_agent.allocation import Allocation
from flopwatch_agent.allocation.registry import build_access, build_allocation
from flopwatch_agent.calibrations import Calibrations
from flopwatch_agent.ceilings import Ceilings
from flopwatch_agent.clock import Clock, SystemClock
from flopwatch_agent.collectors import addresses
from flopwatch_agent.config import AgentConfig
from flopwatch_agent.events.onset import Onset
from flopwatch_agent.health import Health
from flopwatch_agent.identity import agent_version, boot_id
from flopwatch_agent.jobs import JobTable
from flopwatch_agent.labels import Environments
from flopwatch_agent.newest import Newest
from flopwatch_agent.probing.schedule import Probing
from flopwatch_agent.recorder import Recorder
from flopwatch_agent.sources.dcgm import Dcgm
from flopwatch_agent.sources.registry import SOURCES, SourceEntry
from flopwatch_agent.spool import Spool
from flopwatch_agent.spool_reader import Reader
from flopwatch_agent.stream import Stream, StreamIdentity
from flopwatch_agent.streams import Streams
from flopwatch_agent.suspect import Suspicion
from flopwatch_agent.trust import Trust
from flopwatch_agent.watchers import Watcher


@dataclass(slots=True, kw_only=True)
class Parts:
    """What an agent is made of; tests put their own in.

    Attributes:
        stream: the stream, or all as one; streams: one per collector.
        probing: probes of ours: tags readings, starts, hands on results.
        watchers: who looks at every reading beside the fold; recorder and newest do too.
        suspicion: fails values that cannot be, before anybody counts them.
        dcgm: completes readings of cards that have no GPM; None: switched off.
        entries: sources to try.
    """

    config: AgentConfig
    clock: Clock
    health: Health
    spool: Spool
    stream: Stream | Streams
    streams: tuple[Stream, ...]
    trust: Trust
    jobs: JobTable
    allocation: Allocation
    ceilings: Ceilings
    calibrations: Calibrations
    probing: Probing
    watchers: tuple[Watcher, ...] = ()
    suspicion: Suspicion = field(default_factory=Suspicion)
    recorder: Recorder = field(default_factory=Recorder)
    newest: Newest = field(default_factory=Newest)
    dcgm: Dcgm | None = None
    entries: tuple[SourceEntry, ...] = SOURCES


def build(config: AgentConfig, clock: Clock | None = None) -> Parts:
    """Return the parts as the configuration says.

    Raises:
        UsageError: the data directory cannot be used.
    """
    clock = clock or SystemClock()
    targets = addresses(config.collector)
    spool = Spool.open(config.data / "spool", config.spool.limits(), clock=clock, readers=targets)
    identity = StreamIdentity(
        cluster=config.cluster,
        node_id=config.node,
        agent_version=agent_version(),
        boot_id=boot_id(),
        simulated=config.simulated,
    )
    interval_ms = config.interval.milliseconds
    trust = Trust(config, clock)
    streams = tuple(
        Stream(
            target,
            identity,
            Reader(spool, target),
            clock=clock,
            channel=trust.channel,
            interval_ms=interval_ms,
        )
        for target in targets
    )
    environments = Environments(config.allocation.proc, build_access(config))
    return Parts(
        config=config,
        clock=clock,
        health=Health(clock),
        spool=spool,
        stream=streams[0] if len(streams) == 1 else Streams(streams),
        streams=streams,
        trust=trust,
        jobs=JobTable(environments.labels),
        allocation=build_allocation(config, environments, clock),
        ceilings=Ceilings(config.data),
        calibrations=Calibrations(config.data),
        probing=Probing(config, clock),
        watchers=(Onset(),),
        dcgm=None
        if config.dcgm.enabled == "off"
        else Dcgm(config.dcgm, boottime_ns=clock.boottime_ns),
    )
