"""Our own certificate authorities: one signs, all are believed.

    DATA/trust/1.pem, 1.key      an authority; 2.pem, 2.key the next one
    DATA/trust/signing           the number of the one that signs

An authority is changed in three steps, with time for every node's renewal between them:

    add ─► all nodes learn of it ─► switch ─► all nodes have certificates by it ─► drop

Each step refuses to come sooner than the life of a leaf after the one before, by the dates of the files.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from flopwatch_proto.errors import PermanentError, UsageError
from flopwatch_proto.spiffe import NodeName

AUTHORITY_LIFE: Final = timedelta(days=10 * 365)
BACKDATED: Final = timedelta(minutes=5)
"""Nodes whose clocks are a little behind take a new certificate for one that holds."""
REQUEST_BYTES_MAX: Final = 8_192
RSA_BITS_MIN: Final = 2_048
PIN_CHARACTERS: Final = 32
_SIGNING: Final = "signing"
_PEM: Final = serialization.Encoding.PEM


@dataclass(frozen=True, slots=True)
class Authority:
    """One that signs."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def made(cls, name: str, now_unix_ms: int) -> Self:
        """Return a new one that signs leaves, and no other authorities."""
        key = ec.generate_private_key(ec.SECP256R1())
        called = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        now = _moment(now_unix_ms)
        usage = x509.KeyUsage(
            digital_signature=False,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            key_cert_sign=True,
            crl_sign=True,
            encipher_only=False,
            decipher_only=False,
        )
        certificate = (
            x509.CertificateBuilder()
            .subject_name(called)
            .issuer_name(called)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - BACKDATED)
            .not_valid_after(now + AUTHORITY_LIFE)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
            .sign(key, hashes.SHA256())
        )
        return cls(certificate, key)

    def node(
        self,
        request: x509.CertificateSigningRequest,
        name: NodeName,
        now_unix_ms: int,
        life_seconds: float,
    ) -> x509.Certificate:
        """Return a node's certificate for the key of a request; the name is ours, not the request's."""
        names = [x509.UniformResourceIdentifier(name.uri)]
        public_key = request.public_key()
        assert isinstance(public_key, (ec.EllipticCurvePublicKey, rsa.RSAPublicKey))
        client = ExtendedKeyUsageOID.CLIENT_AUTH
        return self._leaf(public_key, names, client, now_unix_ms, life_seconds)

    def server(
        self, names: Iterable[str], now_unix_ms: int, life_seconds: float
    ) -> tuple[bytes, bytes]:
        """Return a listener's certificate and its new key, as PEM."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._leaf(
            key.public_key(),
            [_general_name(name) for name in dict.fromkeys(names)],
            ExtendedKeyUsageOID.SERVER_AUTH,
            now_unix_ms,
            life_seconds,
        )
        return certificate.public_bytes(_PEM), _key_pem(key)

    def _leaf(
        self,
        public_key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey,
        names: Sequence[x509.GeneralName],
        usage: x509.ObjectIdentifier,
        now_unix_ms: int,
        life_seconds: float,
    ) -> x509.Certificate:
        own = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(self.certificate.subject)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(_moment(issued_unix_ms(now_unix_ms)))
            .not_valid_after(_moment(now_unix_ms) + timedelta(seconds=life_seconds))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            # Critical, as the subject is empty (RFC 5280, 4.2.1.6).
            .add_extension(x509.SubjectAlternativeName(names), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(own, critical=False)
            .sign(self.key, hashes.SHA256())
        )


def issued_unix_ms(now_unix_ms: int) -> int:
    """Return from when a certificate that is signed now holds: whole seconds, backdated."""
    return now_unix_ms // 1000 * 1000 - BACKDATED // timedelta(milliseconds=1)


def checked_request(der: bytes) -> x509.CertificateSigningRequest:
    """Return a signing request whose sender holds the key.

    Raises:
        PermanentError: it is none, or its key is of a kind that is not signed here.
    """
    if len(der) > REQUEST_BYTES_MAX:
        raise PermanentError(
            f"the signing request has {len(der)} bytes: {REQUEST_BYTES_MAX} at most"
        )
    try:
        request = x509.load_der_x509_csr(der)
        proven = request.is_signature_valid
        key = request.public_key()
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm) as exc:
        raise PermanentError(f"not a signing request: {exc}") from exc
    if not proven:
        raise PermanentError("the signing request is not signed by its own key")
    strong = (isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, _CURVES)) or (
        isinstance(key, rsa.RSAPublicKey) and RSA_BITS_MIN <= key.key_size <= 4 * RSA_BITS_MIN
    )
    if not strong:
        raise PermanentError("the key must be EC P-256 or P-384, or RSA of 2048 bits and more")
    return request


_CURVES: Final = (ec.SECP256R1, ec.SECP384R1)


class Authorities:
    """Those of one directory. Attributes: directory: for the collector's user alone."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def init(self, now_unix_ms: int) -> Authority:
        """Make the first one.

        Raises:
            UsageError: there is one, or the directory cannot be made.
        """
        if self.directory.exists():
            raise UsageError(f"{self.directory} is there already; `flopwatch trust` shows it")
        try:
            self.directory.mkdir(mode=0o700)
        except OSError as exc:
            raise UsageError(f"{self.directory} cannot be made: {exc.strerror}") from exc
        made = self._made(1, now_unix_ms)
        self._write(_SIGNING, b"1\n", now_unix_ms)
        self._hand_over(self.directory)
        return made

    def numbers(self) -> list[int]:
        """The authorities that are believed, oldest first."""
        return sorted(
            int(path.stem) for path in self.directory.glob("*.pem") if path.stem.isdigit()
        )

    def facts(self) -> list[dict[str, object]]:
        """What each is, oldest first, for people."""
        signing = self.signing()
        return [_facts(n, self._certificate(n), n == signing) for n in self.numbers()]

    def signing(self) -> int:
        """The number of the one that signs. Raises: UsageError: there is none, or it is damaged."""
        if not self.directory.is_dir():
            raise UsageError(
                f"{self.directory}: no authority; make one with `flopwatch trust init`"
            )
        try:
            number = int(self._read(_SIGNING))
        except ValueError as exc:
            raise UsageError(f"{self.directory / _SIGNING} holds no number") from exc
        if number not in self.numbers():
            raise UsageError(
                f"{self.directory / _SIGNING} is {number}, and {number}.pem is not there"
            )
        return number

    def authority(self) -> Authority:
        """The one that signs. Raises: UsageError: it cannot be read."""
        number = self.signing()
        certificate = self._certificate(number)
        try:
            key = serialization.load_pem_private_key(self._read(f"{number}.key"), None)
        except (ValueError, TypeError) as exc:
            raise UsageError(f"{self.directory / f'{number}.key'} cannot be used: {exc}") from exc
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise UsageError(f"{self.directory / f'{number}.key'} is no EC key")
        if key.public_key() != certificate.public_key():
            raise UsageError(f"{self.directory}: {number}.key is not the key of {number}.pem")
        return Authority(certificate, key)

    def bundle(self) -> bytes:
        """Every certificate that is believed, as PEM, the one that signs first."""
        first = self.signing()
        numbers = sorted(self.numbers(), key=lambda n: n != first)
        return b"".join(self._read(f"{n}.pem").strip() + b"\n" for n in numbers)

    def changed_unix_ms(self) -> int:
        """When the newest of the steps was done."""
        return max(path.stat().st_mtime_ns for path in self._public()) // 1_000_000

    def add(self, now_unix_ms: int) -> int:
        """Believe a second authority that does not sign yet; return its number.

        Raises:
            UsageError: there are two already.
        """
        self.signing()
        numbers = self.numbers()
        if len(numbers) > 1:
            raise UsageError(
                "there are two authorities: `flopwatch trust switch` and `drop` come next"
            )
        self._made(numbers[-1] + 1, now_unix_ms)
        return numbers[-1] + 1

    def switch(self, now_unix_ms: int, wait_seconds: float) -> int:
        """Let the newest one sign; return its number. Raises: UsageError: it is too early."""
        signing, newest = self.signing(), self.numbers()[-1]
        if newest == signing:
            raise UsageError(
                "the newest authority signs already; `flopwatch trust add` makes a newer"
            )
        self._await("switch", "learn of the new authority", now_unix_ms, wait_seconds)
        self._write(_SIGNING, b"%d\n" % newest, now_unix_ms)
        return newest

    def drop(self, now_unix_ms: int, wait_seconds: float) -> int:
        """Believe the oldest one no more; return its number. Raises: UsageError: it signs, or too early."""
        signing, oldest = self.signing(), self.numbers()[0]
        if oldest == signing:
            raise UsageError("there is no older authority than the one that signs")
        self._await("drop", "have certificates by the new authority", now_unix_ms, wait_seconds)
        for ending in ("pem", "key"):
            (self.directory / f"{oldest}.{ending}").unlink(missing_ok=True)
        return oldest

    def _await(self, step: str, what: str, now_unix_ms: int, wait_seconds: float) -> None:
        left = self.changed_unix_ms() / 1000 + wait_seconds - now_unix_ms / 1000
        if left > 0:
            hours = -(-left // 3600)
            raise UsageError(
                f"{step}: too early, not every node can {what} before {hours:.0f} h from now; "
                "--now does it all the same"
            )

    def _made(self, number: int, now_unix_ms: int) -> Authority:
        made = Authority.made(f"flopwatch authority {number}", now_unix_ms)
        self._write(f"{number}.key", _key_pem(made.key), now_unix_ms)
        self._write(f"{number}.pem", made.certificate.public_bytes(_PEM), now_unix_ms)
        return made

    def _certificate(self, number: int) -> x509.Certificate:
        try:
            return x509.load_pem_x509_certificate(self._read(f"{number}.pem"))
        except ValueError as exc:
            raise UsageError(f"{self.directory / f'{number}.pem'} cannot be used: {exc}") from exc

    def _public(self) -> list[Path]:
        return [*self.directory.glob("*.pem"), self.directory / _SIGNING]

    def _read(self, name: str) -> bytes:
        try:
            return (self.directory / name).read_bytes()
        except OSError as exc:
            raise UsageError(f"{self.directory / name} cannot be read: {exc.strerror}") from exc

    def _write(self, name: str, content: bytes, now_unix_ms: int) -> None:
        path = self.directory / name
        new = path.with_suffix(".new")
        try:
            with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.utime(new, ns=(now_unix_ms * 1_000_000,) * 2)
            self._hand_over(new)
            new.rename(path)
        except OSError as exc:
            raise UsageError(f"{path} cannot be written: {exc.strerror}") from exc

    def _hand_over(self, path: Path) -> None:
        """Give what root makes to the user of the data directory."""
        owner = self.directory.parent.stat()
        if os.geteuid() == 0:
            os.chown(path, owner.st_uid, owner.st_gid)


def pin(authority: x509.Certificate) -> str:
    """Return by what a token knows an authority: 128 bits of its SHA-256."""
    return authority.fingerprint(hashes.SHA256()).hex()[:PIN_CHARACTERS]


def _facts(number: int, certificate: x509.Certificate, signs: bool) -> dict[str, object]:
    return {
        "authority": number,
        "signs": signs,
        "made_unix_ms": round(certificate.not_valid_before_utc.timestamp() * 1000),
        "expires_unix_ms": round(certificate.not_valid_after_utc.timestamp() * 1000),
        "pin": pin(certificate),
    }


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name.strip("[]")))
    except ValueError:
        return x509.DNSName(name)


def _moment(unix_ms: int) -> datetime:
    return datetime.fromtimestamp(unix_ms / 1000, UTC)
