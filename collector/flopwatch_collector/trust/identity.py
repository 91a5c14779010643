"""Whose stream it is: the node that the peer's certificate names, and nobody else.

The library has verified the chain, the dates and the purpose of the certificate before a call comes here.
What remains is the name: exactly one URI among the subject alternative names, and that a node's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from flopwatch_proto.errors import PermanentError
from flopwatch_proto.spiffe import NodeName

TLS_VERSION: Final = b"TLSv1.3"


class IdentityError(PermanentError):
    """The peer's certificate names no node; the text says what is wrong with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """A node, by its certificate.

    Attributes:
        serial: of the certificate, in hex.
        issued_unix_ms, expires_unix_ms: from when and until when the certificate holds.
    """

    domain: str
    cluster: str
    node: str
    serial: str = ""
    issued_unix_ms: int = 0
    expires_unix_ms: int = 0


class Call(Protocol):
    """What is asked of a call's context."""

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """Return what the transport knows of the peer."""


def peer_identity(context: Call) -> Identity | None:
    """Return who calls; None where the listener is in clear text, which it is on loopback alone.

    Raises:
        IdentityError: the certificate names no node, or is not for clients.
    """
    known: dict[str, list[Any]] = {k: list(v) for k, v in context.auth_context().items()}
    if known.get("transport_security_type") != [b"ssl"]:
        return None
    version = known.get("ssl_tls_version", [TLS_VERSION])[0]
    if version != TLS_VERSION:
        raise IdentityError(f"the connection speaks {version.decode()}: TLS 1.3 is needed")
    certificates = known.get("x509_pem_cert", [])
    if len(certificates) != 1:
        raise IdentityError("no certificate came")
    return identity_of(x509.load_pem_x509_certificate(certificates[0]))


def identity_of(certificate: x509.Certificate) -> Identity:
    """Return the node that a certificate names.

    Raises:
        IdentityError: it names none, or more than one, or is not for clients.
    """
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
        usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound as exc:
        raise IdentityError(f"the certificate has no {exc.oid._name}") from exc
    except (x509.DuplicateExtension, ValueError) as exc:
        raise IdentityError(f"the certificate cannot be read: {exc}") from exc
    if ExtendedKeyUsageOID.CLIENT_AUTH not in usage:
        raise IdentityError("the certificate is not for clients (extended key usage clientAuth)")
    if len(uris) != 1:
        raise IdentityError(f"the certificate has {len(uris)} URI names: it must have exactly one")
    try:
        name = NodeName.parse(uris[0])
    except ValueError as exc:
        raise IdentityError(f"the certificate's name: {exc}") from exc
    return Identity(
        domain=name.domain,
        cluster=name.cluster,
        node=name.node,
        serial=f"{certificate.serial_number:x}",
        issued_unix_ms=round(certificate.not_valid_before_utc.timestamp() * 1000),
        expires_unix_ms=round(certificate.not_valid_after_utc.timestamp() * 1000),
    )
