"""What the listeners show and whom they believe, read again while they run.

A connection that is opened gets what is newest; those that stand keep what they began with, for an hour at
the most (``max_connection_age``). What cannot be read, or does not fit together, changes nothing: what was
good before is shown on, and the failure is counted and logged.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import grpc
import structlog
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from flopwatch_collector.trust.authority import Authorities
from flopwatch_proto.errors import UsageError

RENEWED_AFTER: Final = 2 / 3
"""Of a certificate's life."""
_LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Material:
    """A listener's certificate chain, its key, and the authorities that it believes, as PEM."""

    certificate: bytes
    key: bytes
    authorities: bytes

    @property
    def leaf(self) -> x509.Certificate:
        """The listener's own certificate."""
        return x509.load_pem_x509_certificate(self.certificate)


class Source(Protocol):
    """Where material comes from."""

    def read(self, now_unix_ms: int) -> Material:
        """Return what is newest. Raises: UsageError: it cannot be used; the text names the file."""


class Own:
    """Certificates by our own authority, kept in memory alone; a new one after two thirds of its life."""

    def __init__(self, authorities: Authorities, names: Sequence[str], life_seconds: float) -> None:
        self._authorities = authorities
        self._names = (*names, socket.gethostname(), *_LOOPBACK)
        self._life_seconds = life_seconds
        self._made: Material | None = None
        self._made_unix_ms = 0
        self._signing = 0

    def read(self, now_unix_ms: int) -> Material:
        """Return the certificate; a new one where it is time, or another authority signs."""
        signing, believed = self._authorities.signing(), self._authorities.bundle()
        age = (now_unix_ms - self._made_unix_ms) / 1000 / self._life_seconds
        made = self._made
        if made is None or signing != self._signing or not 0 <= age < RENEWED_AFTER:
            signed = self._authorities.authority().server(
                self._names, now_unix_ms, self._life_seconds
            )
            made, self._made_unix_ms, self._signing = (
                Material(*signed, believed),
                now_unix_ms,
                signing,
            )
        self._made = Material(made.certificate, made.key, believed)
        return self._made


class Brought:
    """Certificates that somebody else writes, such as Vault's agent or SPIRE's."""

    def __init__(self, certificate: Path, key: Path, authority: Path) -> None:
        self._certificate, self._key, self._authority = certificate, key, authority

    def read(self, now_unix_ms: int) -> Material:
        """Return what the files hold now, once they fit together."""
        material = Material(
            _content("tls.certificate", self._certificate),
            _content("tls.key", self._key),
            _content("tls.authority", self._authority),
        )
        self._check(material)
        return material

    def _check(self, material: Material) -> None:
        for name, path, content in (
            ("tls.certificate", self._certificate, material.certificate),
            ("tls.authority", self._authority, material.authorities),
        ):
            try:
                x509.load_pem_x509_certificates(content)
            except ValueError as exc:
                raise UsageError(f"{name}: {path} holds no PEM certificate: {exc}") from exc
        try:
            key = serialization.load_pem_private_key(material.key, None)
        except (ValueError, TypeError) as exc:
            raise UsageError(f"tls.key: {self._key} holds no PEM key without password") from exc
        if key.public_key() != material.leaf.public_key():
            raise UsageError(
                f"tls.key: {self._key} is not the key of the first certificate in {self._certificate}"
            )


class Credentials:
    """What is shown now. Attributes: failures: reads without use; material: the newest that was good."""

    def __init__(self, source: Source, now_unix_ms: Callable[[], int]) -> None:
        """Read it once.

        Raises:
            UsageError: it cannot be used.
        """
        self._source = source
        self._now_unix_ms = now_unix_ms
        self.failures = 0
        self._failing = ""
        self.material = source.read(now_unix_ms())

    def refresh(self) -> bool:
        """Read again; return whether it is another. Called by one thread at a time."""
        try:
            material = self._source.read(self._now_unix_ms())
        except UsageError as exc:
            self.failures += 1
            if str(exc) != self._failing:
                self._failing = str(exc)
                log.warning("certificates_not_read", error=str(exc))
            return False
        self._failing = ""
        if material == self.material:
            return False
        self.material = material
        leaf = material.leaf
        log.info("certificates_changed", expires=leaf.not_valid_after_utc.isoformat())
        return True

    def expires_seconds(self) -> float:
        """How long the listener's certificate still holds; negative: it does not."""
        return self.material.leaf.not_valid_after_utc.timestamp() - self._now_unix_ms() / 1000

    def life_ratio(self) -> float:
        """Which share of its life the listener's certificate has left; 0 when it is over."""
        leaf = self.material.leaf
        life = (leaf.not_valid_after_utc - leaf.not_valid_before_utc).total_seconds()
        return max(0.0, self.expires_seconds()) / life

    def server(self, *, asks_clients: bool) -> grpc.ServerCredentials:
        """Return credentials for a port that follow every change.

        Args:
            asks_clients: whether callers must show a certificate by an authority that is believed.
        """
        shown = self.material

        def changed() -> grpc.ServerCertificateConfiguration | None:
            """Called by the library for every new connection, on a thread of its own."""
            nonlocal shown
            newest = self.material
            if newest is shown:
                return None
            shown = newest
            return _configuration(newest, asks_clients)

        first = _configuration(shown, asks_clients)
        return grpc.dynamic_ssl_server_credentials(
            first,
            changed,  # type: ignore[arg-type]  # None: what was shown before is shown on
            require_client_authentication=asks_clients,
        )


def _configuration(material: Material, asks_clients: bool) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(material.key, material.certificate)],
        root_certificates=material.authorities if asks_clients else None,
    )


def _content(key: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as exc:
        raise UsageError(f"{key}: {path} cannot be read: {exc.strerror}") from exc
