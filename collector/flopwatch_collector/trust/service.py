"""Trust as the collector runs it: the listeners' certificates, the service of enrolment, the denylist."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Protocol

import grpc
import structlog
from prometheus_client import CollectorRegistry

from flopwatch_collector.config import CollectorConfig
from flopwatch_collector.control.store import ControlStore
from flopwatch_collector.tls import authorities_directory, check_enroll, check_ingest
from flopwatch_collector.trust import denylist
from flopwatch_collector.trust.authority import Authorities
from flopwatch_collector.trust.credentials import Brought, Credentials, Own
from flopwatch_collector.trust.denylist import Denylist
from flopwatch_collector.trust.enrollment import Enrollment, Renewal, Signer
from flopwatch_collector.trust.identity import Call, Identity, IdentityError, peer_identity
from flopwatch_collector.trust.records import Refusals, Shown, TrustMetrics
from flopwatch_proto.errors import RetryableError, UsageError
from flopwatch_proto.v1 import telemetry_pb2_grpc

REFRESH_SECONDS: Final = 10.0
CLOSE_SECONDS: Final = 2.0
CALLS_MAX: Final = 64
ENROLL_OPTIONS: Final = (
    ("grpc.so_reuseport", 0),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.max_connection_idle_ms", 10_000),
    ("grpc.max_connection_age_ms", 30_000),
    ("grpc.max_connection_age_grace_ms", 10_000),
    ("grpc.server_handshake_timeout_ms", 5_000),
    ("grpc.max_receive_message_length", 16 * 1024),
    ("grpc.max_metadata_size", 8_192),
    ("grpc.absolute_max_metadata_size", 8_192),
    ("grpc.max_concurrent_streams", 4),
)

log = structlog.get_logger()


class Caller(Call, Protocol):
    """A call's context, as far as it is looked at."""

    def peer(self) -> str:
        """Return the address that it comes from."""


class Trust:
    """Certificates and refusals of one collector.

    Attributes:
        denylist: asked at Hello and while streams last.
        shown: how long certificates of nodes hold that were let in.
        port: of the enrolment; 0: there is none.
    """

    def __init__(
        self,
        control: ControlStore,
        *,
        domain: str,
        registry: CollectorRegistry,
        now_unix_ms: Callable[[], int],
        credentials: Credentials | None = None,
        authorities: Authorities | None = None,
        life_seconds: float = 0.0,
    ) -> None:
        self._control = control
        self._credentials = credentials
        self._metrics = TrustMetrics(registry)
        self._refusals = Refusals(self._metrics, now_unix_ms)
        self._now_unix_ms = now_unix_ms
        self.shown = Shown()
        self._signer = (
            None
            if authorities is None
            else Signer(
                control=control,
                authorities=authorities,
                domain=domain,
                life_seconds=life_seconds,
                now_unix_ms=now_unix_ms,
            )
        )
        self._server: grpc.aio.Server | None = None
        self.denylist = Denylist(domain, now_unix_ms)
        self.port = 0

    @classmethod
    def of(
        cls,
        config: CollectorConfig,
        control: ControlStore,
        registry: CollectorRegistry,
        now_unix_ms: Callable[[], int],
    ) -> Trust:
        """Return what the configuration says; without any certificates, listeners are in clear text.

        Raises:
            UsageError: a file cannot be used; the text names it.
        """
        tls, directory = config.tls, authorities_directory(config.directory)
        authorities = Authorities(directory) if directory.is_dir() and not tls.brought else None
        check_ingest(config.listen.grpc, bool(tls.brought or authorities))
        check_enroll(config.listen.enroll, tls, authorities is not None)
        source: Own | Brought | None = None
        if tls.brought is not None:
            source = Brought(*tls.brought)
        elif authorities is not None:
            host = config.listen.grpc.rpartition(":")[0].strip("[]")
            names = tls.names if host in ("0.0.0.0", "::") else (*tls.names, host)
            source = Own(authorities, names, tls.leaf_life)
        return cls(
            control,
            domain=tls.domain,
            registry=registry,
            now_unix_ms=now_unix_ms,
            credentials=None if source is None else Credentials(source, now_unix_ms),
            authorities=authorities,
            life_seconds=tls.leaf_life,
        )

    def server_credentials(self) -> grpc.ServerCredentials | None:
        """Return credentials that ask every caller for a certificate; None: in clear text."""
        return None if self._credentials is None else self._credentials.server(asks_clients=True)

    def serve_on(self, server: grpc.aio.Server) -> None:
        """Add the renewal of certificates to the server of ingest."""
        renewal = Renewal(self._signer, self.denylist, self._metrics, self._refusals)
        telemetry_pb2_grpc.add_RenewalServicer_to_server(renewal, server)

    async def start(self, address: str) -> int:
        """Read the denylist; open the port of enrolment where an address is given, and return it.

        Raises:
            UsageError: the address cannot be bound; RetryableError: the control store does not answer.
        """
        await asyncio.to_thread(self._refresh)
        if not address:
            return 0
        assert self._signer is not None
        assert self._credentials is not None
        self._server = grpc.aio.server(
            options=ENROLL_OPTIONS,
            maximum_concurrent_rpcs=CALLS_MAX,
            compression=grpc.Compression.NoCompression,
        )
        enrollment = Enrollment(self._signer, self._metrics, self._refusals)
        telemetry_pb2_grpc.add_EnrollmentServicer_to_server(enrollment, self._server)
        try:
            credentials = self._credentials.server(asks_clients=False)
            self.port = self._server.add_secure_port(address, credentials)
        except RuntimeError as exc:
            raise UsageError(
                f"listen.enroll: cannot listen on {address}: it is in use, or no address of this host"
            ) from exc
        await self._server.start()
        return self.port

    async def stop(self) -> None:
        """Close the port of enrolment, and write what the audit log lacks."""
        if self._server is not None:
            await self._server.stop(CLOSE_SECONDS)
        try:
            await asyncio.to_thread(self._refusals.write, self._control)
        except RetryableError as exc:
            log.warning("refusals_not_written", error=str(exc))

    async def run(self) -> None:
        """Follow files and the store for ever."""
        while True:
            await asyncio.sleep(REFRESH_SECONDS)
            try:
                await asyncio.to_thread(self._refresh)
            except RetryableError as exc:
                log.warning("denylist_not_read", error=str(exc))

    def admitted(self, call: Caller, cluster: str, node: str) -> Identity | None:
        """Return who opens a stream as a node; None: in clear text, on loopback.

        Raises:
            IdentityError: it may not; the text says why, and so does the audit log.
        """
        subject = f"{cluster}/{node}"
        try:
            identity = peer_identity(call)
            if identity is None:
                return None
            subject = f"{identity.cluster}/{identity.node}"
            if (identity.cluster, identity.node) != (cluster, node):
                raise IdentityError(
                    f"the certificate is of {identity.node!r} of {identity.cluster!r}, and the agent "
                    f"says {node!r} of {cluster!r}: set cluster and node in its agent.toml, or enrol it"
                )
            if (why := self.denylist.refusal(identity)) is not None:
                raise IdentityError(why)
        except IdentityError as exc:
            self._refusals.note("stream_refused", subject, call.peer(), str(exc))
            raise
        self.shown.note(identity, self._now_unix_ms())
        return identity

    def refusal(self, call: Caller, identity: Identity) -> str | None:
        """Return why a stream that lasts must end now, if it must; ask every `CHECK_SECONDS`."""
        why = self.denylist.refusal(identity)
        if why is not None:
            subject = f"{identity.cluster}/{identity.node}"
            self._refusals.note("stream_ended", subject, call.peer(), why)
        return why

    def _refresh(self) -> None:
        if self._credentials is not None:
            self._credentials.refresh()
            self._metrics.expires.set(self._credentials.expires_seconds())
            self._metrics.life.set(self._credentials.life_ratio())
            self._metrics.unread.set(self._credentials.failures)
        self._metrics.ending.set(self.shown.ending(self._now_unix_ms()))
        denied = denylist.listed(self._control)
        self.denylist.replace(denied)
        self._metrics.denied.set(sum(d.issued_before_unix_ms is None for d in denied))
        self._refusals.write(self._control)
