"""A node's certificate, looked at before it is shown: whose it is, until when, and who would believe it.

The collector's refusals reach a client as a closed connection, the same as a fault of the network. So the
agent asks itself first: a handshake with itself, in memory, in which its own authorities judge its own
certificate, without regard to dates, which are compared here. The library that could read certificates is
not loaded for that: it would cost every node 14 MiB.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec

from flopwatch_proto.spiffe import NodeName

STATES: Final = (
    "plain",
    "ok",
    "absent",
    "unreadable",
    "other_authority",
    "wrong_purpose",
    "wrong_name",
    "not_yet",
    "expired",
)
_NO_CHECK_TIME: Final = 0x200000  # X509_V_FLAG_NO_CHECK_TIME; the ssl module has no name for it
_WRONG_PURPOSE: Final = 26  # X509_V_ERR_INVALID_PURPOSE


class CertificateError(OSError):
    """The node's certificate cannot be shown. Attributes: state: one of `STATES`."""

    def __init__(self, state: str, text: str) -> None:
        super().__init__(text)
        self.state = state


class IdentityConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """This node's certificate. Without one the agent speaks in clear text, and on loopback alone.

    Attributes:
        certificate, key, authority: brought PEM files, read again when they change: the node's chain, its
            key, and whom to believe about the collector; left out: what `flopwatch enroll` wrote.
    """

    certificate: str = ""
    key: str = ""
    authority: str = ""

    def __post_init__(self) -> None:
        given = [bool(path) for path in (self.certificate, self.key, self.authority)]
        if any(given) and not all(given):
            raise ValueError("certificate, key and authority: name all three files, or none")


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """Where certificate, key and authorities are. Attributes: ours: `flopwatch enroll` wrote them."""

    certificate: Path
    key: Path
    authority: Path
    ours: bool

    @classmethod
    def enrolled(cls, data: Path) -> Files:
        """Return the files of `flopwatch enroll`: key and certificate are one, so that they never part."""
        node = data / "identity" / "node.pem"
        return cls(
            certificate=node, key=node, authority=node.with_name("authorities.pem"), ours=True
        )

    @classmethod
    def of(cls, identity: IdentityConfig, data: Path) -> Files:
        """Return the files that the configuration says."""
        if not identity.certificate:
            return cls.enrolled(data)
        return cls(
            certificate=Path(identity.certificate),
            key=Path(identity.key),
            authority=Path(identity.authority),
            ours=False,
        )

    def signature(self) -> tuple[tuple[int, int, int] | None, ...]:
        """Return what is another when a file is another."""
        return tuple(_signature(path) for path in (self.certificate, self.key, self.authority))


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """A certificate that may be shown. Attributes: context: shows it, and believes the authorities."""

    name: NodeName
    starts_unix_ms: int
    expires_unix_ms: int
    context: ssl.SSLContext


def load(files: Files) -> Certificate:
    """Return the certificate; its dates are the caller's to judge.

    Raises:
        CertificateError: absent, unreadable, other_authority, wrong_purpose or wrong_name.
    """
    for path in (files.certificate, files.key, files.authority):
        try:
            path.stat()
        except FileNotFoundError as exc:
            advice = _ADVICE if files.ours else ""
            raise CertificateError("absent", f"{path} is not there{advice}") from exc
        except OSError as exc:
            raise CertificateError("unreadable", f"{path}: {exc.strerror}") from exc
    try:
        context = client_context(files)
        said = _judged(files)
    except ssl.SSLCertVerificationError as exc:
        raise _refusal(files, exc) from exc
    except (ssl.SSLError, OSError, ValueError) as exc:
        reason = getattr(exc, "reason", None) or getattr(exc, "strerror", None) or str(exc)
        raise CertificateError(
            "unreadable", f"{files.certificate} cannot be used: {reason}"
        ) from exc
    uris = [name for kind, name in said.get("subjectAltName", ()) if kind == "URI"]
    if len(uris) != 1:
        raise CertificateError(
            "wrong_name", f"{files.certificate} has {len(uris)} URI names: it must have exactly one"
        )
    try:
        name = NodeName.parse(uris[0])
    except ValueError as exc:
        raise CertificateError("wrong_name", f"{files.certificate}: {exc}") from exc
    return Certificate(
        name=name,
        starts_unix_ms=_unix_ms(said["notBefore"]),
        expires_unix_ms=_unix_ms(said["notAfter"]),
        context=context,
    )


def check(
    certificate: Certificate, files: Files, cluster: str, node: str, now_unix_ms: int
) -> None:
    """Refuse a certificate that the collector would refuse.

    Raises:
        CertificateError: wrong_name, not_yet or expired; the text says what to do.
    """
    name, path = certificate.name, files.certificate
    if (name.cluster, name.node) != (cluster, node):
        raise CertificateError(
            "wrong_name",
            f"{path} is of {name.node!r} of {name.cluster!r}, and this agent is {node!r} of "
            f"{cluster!r}: set cluster and node in agent.toml, or enrol anew",
        )
    if now_unix_ms < certificate.starts_unix_ms:
        raise CertificateError(
            "not_yet",
            f"{path} holds from {_said(certificate.starts_unix_ms)} on: is this host's clock right?",
        )
    if now_unix_ms >= certificate.expires_unix_ms:
        advice = "; `flopwatch enroll` with a token made with --replace" if files.ours else ""
        raise CertificateError(
            "expired", f"{path} expired at {_said(certificate.expires_unix_ms)}{advice}"
        )


def client_context(files: Files) -> ssl.SSLContext:
    """Return what opens connections with a certificate.

    Raises:
        OSError, ssl.SSLError: a file cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(files.authority)
    context.load_cert_chain(files.certificate, files.key, password="")
    context.set_alpn_protocols(["h2"])
    return context


_ADVICE: Final = (
    ": enrol this node (`flopwatch enroll`), or name identity.certificate, key and authority"
)


def _judged(files: Files) -> dict[str, Any]:
    """Return what our certificate says, once our authorities have verified it."""
    ours = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    ours.check_hostname = False
    ours.verify_mode = ssl.CERT_NONE
    judge = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    judge.verify_mode = ssl.CERT_REQUIRED
    judge.verify_flags |= _NO_CHECK_TIME
    judge.load_verify_locations(files.authority)
    for context in (ours, judge):
        context.load_cert_chain(files.certificate, files.key, password="")
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    shows = ours.wrap_bio(back, there)
    looks = judge.wrap_bio(there, back, server_side=True)
    for _ in range(3):
        for side in (shows, looks):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    said: dict[str, Any] | None = looks.getpeercert()
    if not said:
        raise ValueError("it was not shown")
    return said


def _refusal(files: Files, exc: ssl.SSLCertVerificationError) -> CertificateError:
    if exc.verify_code == _WRONG_PURPOSE:
        return CertificateError(
            "wrong_purpose",
            f"{files.certificate} is not for clients (extended key usage clientAuth)",
        )
    return CertificateError(
        "other_authority",
        f"{files.certificate} is not by an authority in {files.authority}: {exc.verify_message}",
    )


def _signature(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _unix_ms(text: str) -> int:
    return round(ssl.cert_time_to_seconds(text) * 1000)


def _said(unix_ms: int) -> str:
    return datetime.fromtimestamp(unix_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")
