"""How a node gets a certificate: by a token, and from then on by the one that it has.

Never part of the daemon: the library that makes keys and requests costs 14 MiB. `flopwatch enroll` is a
process of its own, and the agent starts ``python -m flopwatch_agent.enrollment DATA TARGET`` to renew.

The key is made here and never leaves the node. Certificate and key are one file, which is replaced whole.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from flopwatch_agent.certificates import Certificate, CertificateError, Files, client_context, load
from flopwatch_agent.channel import BROKEN, Refusal, Status, ask_once
from flopwatch_proto.errors import FlopwatchError, PermanentError, RetryableError
from flopwatch_proto.v1 import telemetry_pb2 as pb

SECONDS_MAX: Final = 30.0
_AUTHORITIES: Final = "/flopwatch.v1.Enrollment/Authorities"
_ENROLL: Final = "/flopwatch.v1.Enrollment/Enroll"
_RENEW: Final = "/flopwatch.v1.Renewal/Renew"
_PARTS: Final = 4
_PEM: Final = serialization.Encoding.PEM


async def enroll(target: str, token: str, data: Path, cluster: str, node: str) -> Certificate:
    """Let a token give this node its first certificate, and keep it below the agent's data directory.

    Args:
        target: HOST:PORT of the collector's enrolment.

    Raises:
        PermanentError: it is refused; RetryableError: nobody answers, or not now.
    """
    parts = token.strip().split(".")
    if len(parts) != _PARTS:
        raise PermanentError("that is no token: it begins with fw1. and has four parts")
    files = Files.enrolled(data)
    directory = files.certificate.parent
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    directory.mkdir(mode=0o700, exist_ok=True)
    _hand_over(directory, data)
    # Kept until the answer is: asked again with the same key, the token is not used twice.
    pending = directory / "pending.key"
    key = _kept_key(pending) or _new_key()
    _write(pending, _key_pem(key), data)
    authorities = await _authorities(target, parts[3])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["h2"])
    context.load_verify_locations(cadata=authorities.decode("ascii"))
    request = pb.EnrollRequest(
        token=token.strip(), cluster=cluster, node=node, signing_request_der=_request(key)
    )
    issued: pb.Issued = await _asked(target, _ENROLL, request, pb.Issued, context)
    certificate = _keep(files, issued, key, data)
    pending.unlink()
    return certificate


async def renew(target: str, files: Files) -> Certificate:
    """Get a newer certificate of the same name by the one that holds, with a new key.

    Args:
        target: HOST:PORT of the collector's ingest.

    Raises:
        PermanentError: it is refused; RetryableError: nobody answers, or not now.
    """
    key = _new_key()
    request = pb.RenewRequest(signing_request_der=_request(key))
    issued: pb.Issued = await _asked(target, _RENEW, request, pb.Issued, client_context(files))
    return _keep(files, issued, key, files.certificate.parent)


async def _authorities(target: str, pin: str) -> bytes:
    """Return whom to believe: whatever somebody there answers, once its hash is the token's."""
    nobody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    nobody.check_hostname = False
    nobody.verify_mode = ssl.CERT_NONE
    nobody.set_alpn_protocols(["h2"])
    request = pb.AuthoritiesRequest()
    answer = await _asked(target, _AUTHORITIES, request, pb.AuthoritiesAnswer, nobody)
    pem: bytes = answer.authorities_pem
    try:
        found = x509.load_pem_x509_certificates(pem)
    except ValueError as exc:
        raise PermanentError(f"{target} does not answer with certificates: {exc}") from exc
    # Only the one that the token names: others come with the certificate, from whom it vouches for.
    for one in found:
        if one.fingerprint(hashes.SHA256()).hex()[: len(pin)] == pin:
            return one.public_bytes(_PEM)
    raise PermanentError(
        f"{target} is not the collector that the token is of: its authority is another"
    )


async def _asked(
    target: str, method: str, request: Any, answer: Any, context: ssl.SSLContext
) -> Any:
    try:
        return await ask_once(target, method, request, answer, context, seconds_max=SECONDS_MAX)
    except Refusal as exc:
        if exc.status in (Status.PERMISSION_DENIED, Status.UNIMPLEMENTED, Status.INVALID_ARGUMENT):
            raise PermanentError(exc.message or exc.status.name) from exc
        raise RetryableError(f"{target}: {exc.message or exc.status.name}") from exc
    except ssl.SSLCertVerificationError as exc:
        raise PermanentError(
            f"{target} shows a certificate that does not fit: {exc.verify_message}"
        ) from exc
    except (*BROKEN, TimeoutError) as exc:
        raise RetryableError(f"{target} does not answer: {exc or 'no word in time'}") from exc


def _keep(
    files: Files, issued: pb.Issued, key: ec.EllipticCurvePrivateKey, data: Path
) -> Certificate:
    """Write what was issued, authorities first: what is new must be believed before it is shown."""
    try:
        certificate = x509.load_pem_x509_certificate(issued.certificate_pem)
    except ValueError as exc:
        raise PermanentError(f"the answer holds no certificate: {exc}") from exc
    if certificate.public_key() != key.public_key():
        raise PermanentError("the answer is a certificate for another key")
    _write(files.authority, issued.authorities_pem, data)
    _write(files.certificate, issued.certificate_pem + _key_pem(key), data)
    return load(files)


def _new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def _kept_key(path: Path) -> ec.EllipticCurvePrivateKey | None:
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError):
        return None
    return key if isinstance(key, ec.EllipticCurvePrivateKey) else None


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def _request(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a request for a certificate; it has no name, as none of its would count."""
    unsigned = x509.CertificateSigningRequestBuilder(x509.Name([]))
    return unsigned.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def _write(path: Path, content: bytes, data: Path) -> None:
    """Replace a file as a whole, for its owner's eyes alone."""
    new = path.with_name(path.name + ".new")
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    _hand_over(new, data)
    new.rename(path)


def _hand_over(path: Path, data: Path) -> None:
    """Give what root makes to the user whose data directory it is."""
    if os.geteuid() == 0:
        owner = data.stat()
        os.chown(path, owner.st_uid, owner.st_gid)


def main(arguments: Sequence[str]) -> int:
    """Renew: ``DATA TARGET``. Return 0, or 1 with one line on standard error."""
    data, target = arguments
    try:
        asyncio.run(renew(target, Files.enrolled(Path(data))))
    except (FlopwatchError, CertificateError, OSError) as exc:
        sys.stderr.write(f"{exc}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
