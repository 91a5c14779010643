"""A certificate authority in memory, for tests and load: right certificates, and wrong in every way.

pki = Pki()
server.add_secure_port("127.0.0.1:0", pki.server_credentials())
grpc.aio.secure_channel(target, pki.channel_credentials(pki.node("atlas", "n1")))
Channel(target, pki.context(pki.node("atlas", "n1")))          # grpclib
"""

from __future__ import annotations

import ipaddress
import ssl
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CLIENT: Final = (ExtendedKeyUsageOID.CLIENT_AUTH,)
SERVER: Final = (ExtendedKeyUsageOID.SERVER_AUTH,)
DAY: Final = timedelta(days=1)
DOMAIN: Final = "flopwatch"


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its key, as PEM."""

    certificate: bytes
    key: bytes

    def write(self, directory: Path) -> tuple[Path, Path]:
        """Write both; return their paths."""
        directory.mkdir(parents=True, exist_ok=True)
        paths = directory / "certificate.pem", directory / "key.pem"
        for path, content in zip(paths, (self.certificate, self.key), strict=True):
            path.write_bytes(content)
        return paths


def node_uri(cluster: str, node: str, domain: str = DOMAIN) -> str:
    return f"spiffe://{domain}/flopwatch/cluster/{cluster}/node/{node}"


class Pki:
    """An authority and what it signs. Attributes: authority: its certificate, as PEM."""

    def __init__(self, name: str = "authority") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        now = datetime.now(UTC)
        self.certificate = (
            x509.CertificateBuilder()
            .subject_name(self._name)
            .issuer_name(self._name)
            .public_key(self._key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - 30 * DAY)
            .not_valid_after(now + 30 * DAY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.authority = self.certificate.public_bytes(serialization.Encoding.PEM)

    def leaf(
        self,
        names: Sequence[x509.GeneralName],
        usage: Sequence[x509.ObjectIdentifier],
        *,
        starts: datetime | None = None,
        ends: datetime | None = None,
    ) -> Pair:
        """Sign a certificate for a new key; it began an hour ago and ends in a day."""
        now = datetime.now(UTC)
        key = ec.generate_private_key(ec.SECP256R1())
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(starts or now - timedelta(hours=1))
            .not_valid_after(ends or now + DAY)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=True)
        if usage:
            builder = builder.add_extension(x509.ExtendedKeyUsage(usage), critical=False)
        signed = builder.sign(self._key, hashes.SHA256())
        return Pair(
            signed.public_bytes(serialization.Encoding.PEM),
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            ),
        )

    def node(
        self,
        cluster: str,
        node: str,
        *,
        domain: str = DOMAIN,
        uris: Sequence[str] | None = None,
        usage: Sequence[x509.ObjectIdentifier] = CLIENT,
        starts: datetime | None = None,
        ends: datetime | None = None,
    ) -> Pair:
        """Return a node's certificate; ``uris``: other names than its own."""
        named = (node_uri(cluster, node, domain),) if uris is None else uris
        names = [x509.UniformResourceIdentifier(uri) for uri in named]
        return self.leaf(names, usage, starts=starts, ends=ends)

    def server(self, *names: str, ends: datetime | None = None) -> Pair:
        """Return a server's certificate, for loopback where no name is given."""
        return self.leaf(
            [_name(name) for name in names or ("127.0.0.1", "localhost")], SERVER, ends=ends
        )

    def server_credentials(self, pair: Pair | None = None) -> grpc.ServerCredentials:
        """Return what a grpcio server needs to ask every client for a certificate of ours."""
        pair = pair or self.server()
        return grpc.ssl_server_credentials(
            [(pair.key, pair.certificate)], self.authority, require_client_auth=True
        )

    def channel_credentials(self, pair: Pair | None) -> grpc.ChannelCredentials:
        """Return what a grpcio channel needs; None: it shows no certificate."""
        if pair is None:
            return grpc.ssl_channel_credentials(self.authority)
        return grpc.ssl_channel_credentials(self.authority, pair.key, pair.certificate)

    def context(self, pair: Pair | None) -> ssl.SSLContext:
        """Return the same for grpclib, and for sockets."""
        context = ssl.create_default_context(cadata=self.authority.decode())
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.set_alpn_protocols(["h2"])
        if pair is not None:
            with tempfile.TemporaryDirectory() as directory:
                context.load_cert_chain(*pair.write(Path(directory)))
        return context


def _name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
