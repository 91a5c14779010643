"""How nodes get certificates: the first by a token, the next ones by the one they have.

    Enrollment   on a TLS port of its own, where callers show no certificate
    Renewal      beside Ingest, where they do

Both sign a key that the node made and keeps. The name is never the request's: it is the token's cluster and a
node that its pattern allows, or the name in the certificate that the caller shows.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import grpc
import structlog
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from flopwatch_collector.control import operations
from flopwatch_collector.control.store import ControlStore
from flopwatch_collector.trust import tokens
from flopwatch_collector.trust.authority import Authorities, checked_request
from flopwatch_collector.trust.denylist import Denylist
from flopwatch_collector.trust.identity import Identity, IdentityError, identity_of, peer_identity
from flopwatch_collector.trust.records import Refusals, TrustMetrics
from flopwatch_proto.errors import FlopwatchError, PermanentError
from flopwatch_proto.spiffe import NodeName
from flopwatch_proto.v1 import telemetry_pb2 as pb
from flopwatch_proto.v1 import telemetry_pb2_grpc

Context = grpc.aio.ServicerContext[Any, pb.Issued]

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Signer:
    """Signs for the nodes of one trust domain. Synchronous: reads the key's file, writes the store."""

    control: ControlStore
    authorities: Authorities
    domain: str
    life_seconds: float
    now_unix_ms: Callable[[], int]

    def enroll(self, asked: pb.EnrollRequest, origin: str) -> pb.Issued:
        """Return a node's first certificate, or its first after it was installed again.

        Raises:
            PermanentError: the token or the request does not allow it; RetryableError: not now.
        """
        request = checked_request(asked.signing_request_der)
        name = _name(self.domain, asked.cluster, asked.node)
        signed: list[x509.Certificate] = []
        now_unix_ms = self.now_unix_ms()

        def sign() -> Identity:
            signed.append(self._signed(request, name, now_unix_ms))
            return identity_of(signed[-1])

        who = tokens.Request(
            token=asked.token, cluster=name.cluster, node=name.node, key_hash=_key_hash(request)
        )
        tokens.enroll(self.control, who, sign, now_unix_ms)
        issued = identity_of(signed[-1])
        operations.record(
            self.control,
            now_unix_ms,
            f"token {asked.token.split('.')[1]}",
            "node_enrolled",
            f"{name.cluster}/{name.node}",
            origin=origin,
            after={"serial": issued.serial, "expires_unix_ms": issued.expires_unix_ms},
        )
        return self._answer(signed[-1])

    def renew(self, identity: Identity, der: bytes) -> pb.Issued:
        """Return a newer certificate for the node that shows a valid one. Raises: as `enroll`."""
        request = checked_request(der)
        name = NodeName(identity.domain, identity.cluster, identity.node)
        signed = self._signed(request, name, self.now_unix_ms())
        tokens.renewed(self.control, identity_of(signed), _key_hash(request))
        return self._answer(signed)

    def _signed(
        self, request: x509.CertificateSigningRequest, name: NodeName, now_unix_ms: int
    ) -> x509.Certificate:
        authority = self.authorities.authority()
        return authority.node(request, name, now_unix_ms, self.life_seconds)

    def _answer(self, signed: x509.Certificate) -> pb.Issued:
        return pb.Issued(
            certificate_pem=signed.public_bytes(serialization.Encoding.PEM),
            authorities_pem=self.authorities.bundle(),
            expires_unix_ms=round(signed.not_valid_after_utc.timestamp() * 1000),
        )


class Enrollment(telemetry_pb2_grpc.EnrollmentServicer):
    """The service for nodes without a certificate."""

    def __init__(self, signer: Signer, metrics: TrustMetrics, refusals: Refusals) -> None:
        self._signer = signer
        self._metrics = metrics
        self._refusals = refusals

    async def Authorities(
        self, request: pb.AuthoritiesRequest, context: Context
    ) -> pb.AuthoritiesAnswer:
        """Say whom to believe; nothing here is secret."""
        return pb.AuthoritiesAnswer(authorities_pem=self._signer.authorities.bundle())

    async def Enroll(self, request: pb.EnrollRequest, context: Context) -> pb.Issued:
        """Sign a node's first certificate."""
        origin = context.peer()
        subject = f"{request.cluster[:253]}/{request.node[:253]}"
        outcomes = self._metrics.enrollments
        try:
            issued = await asyncio.to_thread(self._signer.enroll, request, origin)
        except PermanentError as exc:
            outcomes.labels("refused").inc()
            self._refusals.note("enrollment_refused", subject, origin, str(exc))
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, str(exc))
        except FlopwatchError as exc:
            outcomes.labels("failed").inc()
            log.warning("enrollment_failed", subject=subject, error=str(exc))
            await context.abort(
                grpc.StatusCode.UNAVAILABLE, "not now: the collector's log says why"
            )
        outcomes.labels("issued").inc()
        log.info("node_enrolled", subject=subject, origin=origin)
        return issued


class Renewal(telemetry_pb2_grpc.RenewalServicer):
    """The service for nodes that have one."""

    def __init__(
        self, signer: Signer | None, denylist: Denylist, metrics: TrustMetrics, refusals: Refusals
    ) -> None:
        self._signer = signer
        self._denylist = denylist
        self._metrics = metrics
        self._refusals = refusals

    async def Renew(self, request: pb.RenewRequest, context: Context) -> pb.Issued:
        """Sign a newer certificate of the same name."""
        outcomes = self._metrics.renewals
        try:
            identity = peer_identity(context)
            if identity is None or self._signer is None:
                raise PermanentError("certificates are not issued here")
            if (why := self._denylist.refusal(identity)) is not None:
                raise PermanentError(why)
            issued = await asyncio.to_thread(
                self._signer.renew, identity, request.signing_request_der
            )
        except (IdentityError, PermanentError) as exc:
            outcomes.labels("refused").inc()
            self._refusals.note("renewal_refused", _subject(context), context.peer(), str(exc))
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, str(exc))
        except FlopwatchError as exc:
            outcomes.labels("failed").inc()
            log.warning("renewal_failed", node=identity.node if identity else "", error=str(exc))
            await context.abort(
                grpc.StatusCode.UNAVAILABLE, "not now: the collector's log says why"
            )
        outcomes.labels("issued").inc()
        return issued


def _subject(context: Context) -> str:
    """Return the names in the caller's certificate, whatever they are worth."""
    names: Final = context.auth_context().get("peer_uri", ())
    return " ".join(name.decode(errors="replace")[:253] for name in list(names)[:4])


def _name(domain: str, cluster: str, node: str) -> NodeName:
    try:
        return NodeName.parse(NodeName(domain, cluster, node).uri)
    except ValueError as exc:
        raise PermanentError(
            "cluster and node: 1 to 253 letters, digits, '.', '_' or '-', not first a sign"
        ) from exc


def _key_hash(request: x509.CertificateSigningRequest) -> str:
    encoded = request.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return hashlib.sha256(encoded).hexdigest()
