"""Where pages may go: never to an address that only the host itself should reach.

Link-local addresses and those of cloud metadata services are refused, also in the spellings that resolvers
take for addresses, and when a name resolves to one.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from typing import Final

import httpx

from flopwatch_proto.errors import RetryableError, UsageError

REFUSED_NETWORKS: Final = tuple(
    ipaddress.ip_network(text)
    for text in ("169.254.0.0/16", "fe80::/10", "fd00:ec2::/32", "100.100.100.200/32", "0.0.0.0/32")
)
REFUSED_HOSTS: Final = ("metadata", "metadata.google.internal", "instance-data")


def check_url(url: str, where: str = "url") -> httpx.URL:
    """A URL that pages may go to. Raises: UsageError; the text names the key, not the URL."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as exc:
        raise UsageError(f"{where}: not a URL") from exc
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise UsageError(f"{where}: must begin with https:// or http:// and name a host")
    if parsed.userinfo:
        raise UsageError(f"{where}: must carry no password; the signature proves who sends")
    if parsed.host.lower().rstrip(".") in REFUSED_HOSTS or _is_refused_literal(parsed.host):
        raise UsageError(f"{where}: link-local and metadata addresses are refused")
    return parsed


def _is_refused_literal(host: str) -> bool:
    try:
        return is_refused(host)
    except ValueError:
        pass
    try:
        # The forms that resolvers take for addresses as well: 2852039166, 0xa9fea9fe, 169.254.1.
        return is_refused(socket.inet_ntoa(socket.inet_aton(host)))
    except OSError:
        return False


def is_refused(address: str) -> bool:
    """Whether an address is link-local or a metadata service. Raises: ValueError: no address."""
    parsed = ipaddress.ip_address(address.split("%")[0])
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is not None:
        parsed = parsed.ipv4_mapped
    return any(parsed in network for network in REFUSED_NETWORKS)


async def check_resolved(url: httpx.URL) -> None:
    """Look a host up as the client will. Raises: RetryableError where it is nowhere, or refused."""
    port = url.port or (443 if url.scheme == "https" else 80)
    try:
        found = await asyncio.get_running_loop().getaddrinfo(
            url.host, port, type=socket.SOCK_STREAM
        )
    except OSError as exc:
        raise RetryableError("the host's name does not resolve") from exc
    if any(is_refused(str(entry[4][0])) for entry in found):
        raise RetryableError("the host's name resolves to a refused address")
