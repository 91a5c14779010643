"""Configuration of the collector: `/etc/flopwatch/collector.toml`, `FLOPWATCH_*` and flags.

Checked as a whole before anything starts; an unknown key names the nearest known one.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import msgspec

from flopwatch_collector import excused_settings
from flopwatch_collector.excused_settings import ExcusedConfig
from flopwatch_collector.paging import settings as paging
from flopwatch_collector.paging.settings import PagingConfig
from flopwatch_collector.roster.kubernetes_settings import KubernetesConfig
from flopwatch_collector.roster.slurm_settings import SlurmConfig
from flopwatch_collector.rules import registry
from flopwatch_collector.rules.settings import RulesConfig
from flopwatch_collector.standby_settings import StandbyConfig
from flopwatch_collector.telemetry.retention import RetentionConfig
from flopwatch_collector.tls import LOOPBACK, TlsConfig
from flopwatch_kernels import peaks
from flopwatch_proto import settings
from flopwatch_proto.errors import UsageError

DEFAULT_PATH: Final = Path("/etc/flopwatch/collector.toml")


class ListenConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The section ``[listen]``: HOST:PORT each; port 0 takes any free one and prints it.

    Attributes:
        grpc: where agents connect.
        http: dashboard, API and metrics.
        enroll: where nodes get their first certificate by a token; empty: nowhere.
    """

    grpc: str = "127.0.0.1:9751"
    http: str = "127.0.0.1:9750"
    enroll: str = ""


class StoreConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The sections ``[telemetry]`` and ``[control]``. Attributes: dsn: None: in the data directory."""

    dsn: str | None = None


class ClusterConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The sections ``[clusters.NAME]``.

    Attributes:
        reference_dtype: dtype whose peak the cluster's waterfall is of; its step ``dtype`` lies between it
            and what ran; None: each row's own.
        usd_per_card_hour: what an hour of one of its cards costs; pages then tell losses in money, too.
    """

    reference_dtype: str | None = None
    usd_per_card_hour: float | None = None


class CollectorConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything the collector is told.

    Attributes:
        data: directory of everything it keeps; None: systemd's ``STATE_DIRECTORY``, as root
            ``/var/lib/flopwatch``, else ``~/.local/share/flopwatch``.
        inventory: file of the slots of record; None: slots are in service from their first row.
    """

    data: str | None = None
    inventory: str | None = None
    listen: ListenConfig = ListenConfig()
    tls: TlsConfig = TlsConfig()
    telemetry: StoreConfig = StoreConfig()
    control: StoreConfig = StoreConfig()
    rules: RulesConfig = RulesConfig()
    paging: PagingConfig = PagingConfig()
    excused: ExcusedConfig = ExcusedConfig()
    standby: StandbyConfig = StandbyConfig()
    slurm: SlurmConfig = SlurmConfig()
    kubernetes: KubernetesConfig = KubernetesConfig()
    retention: RetentionConfig = RetentionConfig()
    clusters: dict[str, ClusterConfig] = {}

    @property
    def directory(self) -> Path:
        """The data directory."""
        if self.data is not None:
            return Path(self.data).absolute()
        if state := os.environ.get("STATE_DIRECTORY"):
            return Path(state.partition(":")[0])
        home = Path("/var/lib/flopwatch")
        return home if os.geteuid() == 0 else Path.home() / ".local/share/flopwatch"

    @property
    def prices(self) -> dict[str, float]:
        """What an hour of a card costs, in USD, of the clusters that have a price."""
        prices = {name: of.usd_per_card_hour for name, of in self.clusters.items()}
        return {name: price for name, price in prices.items() if price is not None}

    @property
    def telemetry_dsn(self) -> str:
        """The DSN of the telemetry store."""
        return self.telemetry.dsn or f"chdb://{self.directory}/telemetry"

    @property
    def control_dsn(self) -> str:
        """The DSN of the control store."""
        return self.control.dsn or f"sqlite:///{self.directory}/control.db"


def load(
    path: Path | None, environ: Mapping[str, str], flags: Mapping[str, tuple[str, str | None]]
) -> CollectorConfig:
    """Return the checked configuration.

    Raises:
        UsageError: naming the file, variable or flag, the key and the fix.
    """
    config = settings.load(
        CollectorConfig,
        path=path,
        environ=environ,
        env_prefix="FLOPWATCH_COLLECTOR",
        default_path=DEFAULT_PATH,
        flags=flags,
        foreign_sections=AGENT_SECTIONS,
    )
    _check_listeners(config)
    _check_standby(config)
    if config.kubernetes.cluster and config.kubernetes.cluster == config.slurm.cluster:
        raise UsageError(
            f"kubernetes.cluster is {config.kubernetes.cluster!r}, and so is slurm.cluster; "
            "one scheduler speaks for a cluster"
        )
    for name, cluster in config.clusters.items():
        if cluster.reference_dtype not in (None, *peaks.DTYPES):
            raise UsageError(
                f"clusters.{name}.reference_dtype is {cluster.reference_dtype!r}; "
                f"use one of {', '.join(peaks.DTYPES)}"
            )
        if cluster.usd_per_card_hour is not None and not 0 <= cluster.usd_per_card_hour < 1e6:
            raise UsageError(f"clusters.{name}.usd_per_card_hour must be 0 or more US dollars")
    if config.control.dsn is not None and urlsplit(config.control.dsn).password is not None:
        raise UsageError(
            "control.dsn carries a password, which other processes could read; keep it in a file:"
            " postgresql+psycopg://user@host/database?passfile=/etc/flopwatch/pgpass"
        )
    excused_settings.validate(config.excused)
    paging.validate(config.paging)
    registry.validate(config.rules)
    return config


AGENT_SECTIONS: Final = (
    "agent",
    "allocation",
    "nvml",
    "processor",
    "host",
    "dcgm",
    "identity",
    "kernel_log",
    "jobs",
    "spool",
    "metrics",
    "probing",
    "api",
)
"""Sections of the agent and the client, which may stand in the same environment."""


def _check_standby(config: CollectorConfig) -> None:
    """A standby has stores of its own; collectors that share a store settle by leases."""
    if not config.standby.primary:
        return
    for key, dsn, own in (
        ("telemetry", config.telemetry_dsn, "chdb:"),
        ("control", config.control_dsn, "sqlite:"),
    ):
        if not dsn.startswith(own):
            raise UsageError(
                f"standby.primary is set, and {key}.dsn is a server: collectors on servers settle by "
                "leases who pages; leave standby.primary out, or the dsn"
            )


def _check_listeners(config: CollectorConfig) -> None:
    """What `IngestServer` and `Trust` know of certificates they check when they start."""
    listen = config.listen
    for key, address in (("grpc", listen.grpc), ("http", listen.http), ("enroll", listen.enroll)):
        host, _, port = address.rpartition(":")
        if key == "enroll" and not address:
            continue
        if not host or not port.isdigit() or int(port) > 65535:
            raise UsageError(
                f"listen.{key} is {address!r}; write HOST:PORT, for example 127.0.0.1:9751"
            )
        if key == "http" and host not in LOOPBACK:
            raise UsageError(
                f"listen.http is {address!r}; without authentication configured it must be on "
                f"loopback: use 127.0.0.1:{port}"
            )
