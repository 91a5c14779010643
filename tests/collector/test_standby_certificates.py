"""The heartbeat between primary and standby over mutual TLS, on real sockets."""

from __future__ import annotations

import asyncio
import ipaddress
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
from cryptography import x509

from flopwatch_collector.standby import HttpPrimary, Word
from flopwatch_collector.standby_settings import StandbyConfig
from flopwatch_proto.errors import RetryableError
from pki import CLIENT, SERVER, Pair, Pki

WORD = Word(now_unix_ms=1, settled=["a"])


@asynccontextmanager
async def primary_behind_tls(pki: Pki, directory: Path) -> AsyncIterator[str]:
    """Serve one word to whoever shows a certificate of the authority."""
    names = [x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cadata=pki.authority.decode())
    context.load_cert_chain(*pki.leaf(names, SERVER).write(directory))
    context.verify_mode = ssl.CERT_REQUIRED

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        body = msgspec.json.encode(WORD)
        head = f"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)
    try:
        yield f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


def standbys(pki: Pki) -> Pair:
    return pki.leaf([x509.DNSName("standby")], CLIENT)


def section(url: str, pki: Pki, directory: Path) -> StandbyConfig:
    directory.mkdir(exist_ok=True)
    (directory / "authority.pem").write_bytes(pki.authority)
    return StandbyConfig(
        primary=url,
        certificate=str(directory / "certificate.pem"),
        key=str(directory / "key.pem"),
        authority=str(directory / "authority.pem"),
    )


async def test_a_primary_behind_mutual_tls_is_heard_with_the_certificates_of_the_section(
    tmp_path: Path,
) -> None:
    pki, mine = Pki(), tmp_path / "standby"
    async with primary_behind_tls(pki, tmp_path / "primary") as url:
        primary = HttpPrimary(section(url, pki, mine))
        with pytest.raises(RetryableError, match="write PEM files"):
            await primary.word()  # not written yet
        standbys(Pki("strange")).write(mine)
        with pytest.raises(RetryableError):
            await primary.word()  # a certificate that the primary does not believe
        standbys(pki).write(mine)
        assert await primary.word() == WORD  # renewed: no restart
        await primary.close()


async def test_a_primary_of_another_authority_is_not_believed(tmp_path: Path) -> None:
    pki, mine = Pki(), tmp_path / "standby"
    standbys(pki).write(mine)
    async with primary_behind_tls(pki, tmp_path / "primary") as url:
        primary = HttpPrimary(section(url, Pki("strange"), mine))
        with pytest.raises(RetryableError, match="ConnectError"):
            await primary.word()
