"""The agent's configuration: every key, its default and what is allowed. See `flopwatch_proto.settings`."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec

from flopwatch_agent.certificates import IdentityConfig
from flopwatch_agent.collectors import addresses
from flopwatch_agent.probing.settings import ProbingConfig
from flopwatch_agent.spool import SpoolLimits
from flopwatch_proto.settings import Duration, load

DEFAULT_PATH: Final = Path("/etc/flopwatch/agent.toml")
ENV_PREFIX: Final = "FLOPWATCH_AGENT"

COLLECTOR_SECTIONS: Final = (
    "audit",
    "auth",
    "cluster",
    "clusters",
    "collector",
    "control",
    "excused",
    "grpc",
    "http",
    "ingest",
    "inventory",
    "kubernetes",
    "listen",
    "paging",
    "read",
    "retention",
    "routes",
    "rules",
    "slurm",
    "standby",
    "store",
    "telemetry",
    "tls",
    "web",
)
"""Sections of the environment that are the collector's: `flopwatch up` starts both with one environment."""

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}")
_HTTP_URL: Final = re.compile(r"http://(\[[0-9A-Fa-f:.]+\]|[^/\s:@\[\]]+)(:\d{1,5})?(/\S*)?")
_ADDRESS: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\s:\[\]]+):(\d{1,5})")

WorkloadClass = Literal[
    "training", "inference", "rl_rollout", "eval", "interactive", "probe", "unknown"
]
Dtype = Literal["fp64", "fp32", "tf32", "bf16", "fp16", "fp8", "int8", "int4", "fp6", "fp4"]


class NvmlConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """NVIDIA cards.

    Attributes:
        deadline: of one read of all cards; beyond it the driver is unresponsive.
        release: file in which `flopwatch agent release` asks for the cards; empty: ``release`` beside the
            socket of the jobs.
    """

    enabled: bool = True
    deadline: Duration = Duration(5)
    release: str = ""

    def __post_init__(self) -> None:
        if not 0.1 <= self.deadline <= 60:
            raise ValueError("deadline: between 100ms and 60s")


class ProcessorConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The host's processor as a device. ``auto``: only where there is no accelerator."""

    enabled: Literal["auto", "on", "off"] = "auto"


class HostConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Rows of the host itself: processors, memory, network."""

    enabled: bool = True


class DcgmConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A local dcgm-exporter, for what NVML does not support (profiling fields of Ampere and Ada).

    Attributes:
        enabled: ``auto``: only where NVML has no GPM and the exporter answers.
        url: its metrics, over plain HTTP.
        collect_interval: how long its means are (its ``--collect-interval``).
    """

    enabled: Literal["auto", "on", "off"] = "auto"
    url: str = "http://127.0.0.1:9400/metrics"
    collect_interval: Duration = Duration(30)

    def __post_init__(self) -> None:
        if not _HTTP_URL.fullmatch(self.url):
            raise ValueError(f"url = {self.url!r}: http://HOST:PORT/PATH")
        if not 1 <= self.collect_interval <= 60:
            raise ValueError("collect_interval: between 1s and 60s")


class KernelLogConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Xids, SXids and lost cards from the kernel log, on hosts with NVIDIA cards."""

    enabled: bool = True


class JobsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where jobs declare themselves.

    Attributes:
        socket: for datagrams; empty for the default path.
        otlp: address for OpenTelemetry metrics over gRPC; empty switches it off, port 0 picks a free one.
        otlp_socket: a unix socket for the same; empty: ``otlp.sock`` beside `socket`.
    """

    enabled: bool = True
    socket: str = ""
    otlp: str = "127.0.0.1:9753"
    otlp_socket: str = ""

    def __post_init__(self) -> None:
        if self.otlp:
            _check_address("otlp", self.otlp, port_min=0)


class AllocationConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Who holds the cards.

    Attributes:
        slurm: whether this host is a node of Slurm; ``auto``: by its traces, never by a binary.
        slurm_node: its name in Slurm, where that is not ``node`` or several run here; empty takes all.
        prolog: folder of the files that ``deploy/slurm/prolog.sh`` writes.
        gres_conf: Slurm's gres.conf; empty for where it usually is.
        kubernetes: whether this host is a node of Kubernetes; ``auto``: once its kubelet answers.
        kubelet_socket: of the kubelet's PodResources API.
        pod_logs: folder of pod logs; its names tell pods' uids.
        dra_devices: JSON file, device name of a claim to UUID; empty for none.
        file: who holds which card, where no scheduler does; empty for none.
        helper: socket of the root helper, used where this process may not look itself.
        cgroup: where control groups are mounted.
        proc: the process file system of the host.
    """

    slurm: Literal["auto", "on", "off"] = "auto"
    slurm_node: str = ""
    prolog: Path = Path("/run/flopwatch-slurm")
    gres_conf: str = ""
    kubernetes: Literal["auto", "on", "off"] = "auto"
    kubelet_socket: Path = Path("/var/lib/kubelet/pod-resources/kubelet.sock")
    pod_logs: Path = Path("/var/log/pods")
    dra_devices: str = ""
    file: str = ""
    helper: Path = Path("/run/flopwatch-privileged.sock")
    cgroup: Path = Path("/sys/fs/cgroup")
    proc: Path = Path("/proc")


class ClassRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A rule that gives jobs their workload class; the first whose every pattern fits counts.

    Attributes:
        workload_class: the class.
        partition: glob of the Slurm partition.
        qos: glob of the Slurm QOS.
        namespace: glob of the Kubernetes namespace.
        team: glob of the Slurm account or Kubernetes namespace.
    """

    workload_class: WorkloadClass
    partition: str = ""
    qos: str = ""
    namespace: str = ""
    team: str = ""

    def __post_init__(self) -> None:
        if not (self.partition or self.qos or self.namespace or self.team):
            raise ValueError("needs a pattern: partition, qos, namespace or team")


class SpoolConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What waits for the collector. ``bytes_max``: 0 for 2 % of the file system, at most 1 GiB."""

    bytes_max: Annotated[int, msgspec.Meta(ge=0)] = 0

    def __post_init__(self) -> None:
        if 0 < self.bytes_max < 1 << 20:
            raise ValueError("bytes_max: at least 1048576 (1 MiB), or 0 for the default")

    def limits(self) -> SpoolLimits:
        """Return the bounds as the spool takes them."""
        return SpoolLimits(bytes_max=self.bytes_max or None)


class MetricsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The agent's own ``/metrics`` and ``/now``.

    Attributes:
        listen: empty switches it off; port 0 picks a free one.
        dcgm_names: show the cards under dcgm-exporter's names too, for dashboards that use them.
    """

    listen: str = "127.0.0.1:9752"
    dcgm_names: bool = False

    def __post_init__(self) -> None:
        if self.listen:
            _check_address("listen", self.listen, port_min=0)


class AgentConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All of it.

    Attributes:
        cluster: the cluster this node belongs to.
        node: its name; must be stable and unique within the cluster.
        collector: HOST:PORT of the collector's ingest; with a comma and another, of its standby too.
        data: directory of the spool.
        interval: length of a row.
        dtype: reference dtype of the cluster.
        simulated: everything this agent says is marked as simulated.
        back_in: how long an upgrade may take before silence means something.
    """

    cluster: str = "default"
    node: str = msgspec.field(default_factory=socket.gethostname)
    collector: str = "127.0.0.1:9751"
    data: Path = msgspec.field(default_factory=lambda: default_data_directory())
    interval: Duration = Duration(10)
    dtype: Dtype = "bf16"
    simulated: bool = False
    back_in: Duration = Duration(120)
    identity: IdentityConfig = msgspec.field(default_factory=IdentityConfig)
    nvml: NvmlConfig = msgspec.field(default_factory=NvmlConfig)
    processor: ProcessorConfig = msgspec.field(default_factory=ProcessorConfig)
    host: HostConfig = msgspec.field(default_factory=HostConfig)
    dcgm: DcgmConfig = msgspec.field(default_factory=DcgmConfig)
    kernel_log: KernelLogConfig = msgspec.field(default_factory=KernelLogConfig)
    jobs: JobsConfig = msgspec.field(default_factory=JobsConfig)
    allocation: AllocationConfig = msgspec.field(default_factory=AllocationConfig)
    classes: tuple[ClassRule, ...] = ()
    probing: ProbingConfig = msgspec.field(default_factory=ProbingConfig)
    spool: SpoolConfig = msgspec.field(default_factory=SpoolConfig)
    metrics: MetricsConfig = msgspec.field(default_factory=MetricsConfig)

    def __post_init__(self) -> None:
        for key, text in (("cluster", self.cluster), ("node", self.node)):
            if not _NAME.fullmatch(text):
                raise ValueError(
                    f"{key} = {text!r}: 1 to 253 letters, digits, '.', '_' or '-', not first a sign"
                )
        for address in addresses(self.collector):
            _check_address("collector", address, port_min=1)
        if self.interval.milliseconds not in (1_000, 2_000, 5_000, 10_000, 20_000, 30_000, 60_000):
            raise ValueError("interval: 1s, 2s, 5s, 10s, 20s, 30s or 60s")
        if self.back_in < 0:
            raise ValueError("back_in: not negative")

    @property
    def sources(self) -> dict[str, bool]:
        """Which sources are switched on or off; one left out decides for itself."""
        enabled = {"nvml": self.nvml.enabled, "kernel_log": self.kernel_log.enabled}
        if self.processor.enabled != "auto":
            enabled["processor"] = self.processor.enabled == "on"
        return enabled

    @property
    def release_file(self) -> Path:
        """Where an operator asks that the cards be let go."""
        if self.nvml.release:
            return Path(self.nvml.release)
        return self.jobs_socket.with_name("release")

    @property
    def probe_locks(self) -> Path:
        """Where who probes a card says so."""
        if self.probing.locks:
            return Path(self.probing.locks)
        return self.jobs_socket.with_name("probing")

    @property
    def jobs_socket(self) -> Path:
        """Where jobs send what they declare."""
        return Path(self.jobs.socket) if self.jobs.socket else default_jobs_socket()

    @property
    def otlp_socket(self) -> Path:
        """Where jobs send OpenTelemetry metrics."""
        if self.jobs.otlp_socket:
            return Path(self.jobs.otlp_socket)
        return self.jobs_socket.with_name("otlp.sock")


def load_config(
    path: Path | None,
    environ: Mapping[str, str],
    flags: Mapping[str, tuple[str, str | None]] | None = None,
) -> AgentConfig:
    """Return the configuration.

    Args:
        path: a file that somebody named; None: the default file, which need not exist.
        flags: flag → (dotted key, text or None).

    Raises:
        UsageError: it is wrong; the text names the key and the nearest known one.
    """
    return load(
        AgentConfig,
        path=path,
        default_path=DEFAULT_PATH,
        environ=environ,
        env_prefix=ENV_PREFIX,
        flags=flags,
        foreign_sections=COLLECTOR_SECTIONS,
    )


def default_data_directory() -> Path:
    """Return where data goes: by systemd's word, as root the system's place, else the user's."""
    state = os.environ.get("STATE_DIRECTORY", "")
    if state:
        return Path(state.split(":")[0])
    if os.geteuid() == 0:
        return Path("/var/lib/flopwatch")
    return Path("~/.local/share/flopwatch").expanduser()


def default_jobs_socket() -> Path:
    """Return the socket of the jobs: named, the system's place where it can be written, or the user's."""
    named = os.environ.get("FLOPWATCH_SOCKET", "")
    if named:
        return Path(named)
    system = Path("/run/flopwatch")
    if os.access(system if system.exists() else system.parent, os.W_OK):
        return system / "jobs.sock"
    return Path("~/.local/share/flopwatch/jobs.sock").expanduser()


def split_address(text: str) -> tuple[str, int]:
    """Return host and port of HOST:PORT; brackets around an IPv6 address go."""
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)


def _check_address(key: str, text: str, *, port_min: int) -> None:
    match = _ADDRESS.fullmatch(text)
    if match is None or not port_min <= int(match[2]) <= 65_535:
        raise ValueError(f"{key} = {text!r}: HOST:PORT with a port from {port_min} to 65535")
