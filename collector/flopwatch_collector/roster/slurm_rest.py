"""Slurm asked over REST: slurmrestd on a unix socket, or over http with a token. I/O.

slurmrestd serves a few versions of its API at a time (22.05: v0.0.36 to 38; 24.05: v0.0.39 to 41). The newest
one that it has of those known here is found by asking, and kept until it is refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import httpx
import msgspec

from flopwatch_collector.roster.answers import Answers, NotAnsweredError
from flopwatch_collector.roster.slurm_commands import ANSWER_BYTES_MAX

VERSIONS: Final = tuple(range(50, 35, -1))
"""The last part of v0.0.N; the JSON of those not yet made is read as far as it resembles today's."""


class _Partition(msgspec.Struct, frozen=True):
    name: str
    state: object = None  # 22.05: a word; v0.0.39: a list; since then {"state": list}
    partition: object = None


class _Partitions(msgspec.Struct, frozen=True):
    partitions: list[_Partition] | None = None


class SlurmRest:
    """Asks slurmrestd.

    Args:
        url: ``unix:///path/of/socket``, ``http://host:port`` or ``https://…``.
        token_file: a JWT, read at every question, as tokens are renewed.
        user: whose token it is; empty: the token says.
        cluster: Slurm's name of the cluster, which not every version tells.
    """

    def __init__(
        self,
        url: str,
        *,
        token_file: Path | None = None,
        user: str = "",
        cluster: str = "",
        deadline_seconds: float = 30.0,
    ) -> None:
        parts = urlsplit(url)
        local = parts.scheme == "unix"
        self._base = "http://slurm" if local else url.rstrip("/")
        self._socket = parts.path if local else None
        self._token_file = token_file
        self._user = user
        self._cluster = cluster
        self._deadline_seconds = deadline_seconds
        self._version = 0

    async def ask(self) -> Answers:
        """Return what Slurm says now.

        Raises:
            NotAnsweredError: it does not, not in time, or not what was asked for.
        """
        try:
            async with httpx.AsyncClient(
                base_url=self._base,
                transport=httpx.AsyncHTTPTransport(uds=self._socket),
                headers=self._headers(),
                timeout=self._deadline_seconds,
                trust_env=False,
            ) as client:
                return await self._ask(client)
        except httpx.HTTPError as exc:
            self._version = 0
            raise NotAnsweredError(f"slurmrestd: {exc or type(exc).__name__}") from exc

    async def _ask(self, client: httpx.AsyncClient) -> Answers:
        if not self._version:
            self._version = await self._newest(client)
        jobs = await self._get(client, "jobs")
        nodes = await self._get(client, "nodes")
        partitions = await self._get(client, "partitions")
        return Answers(
            cluster=self._cluster,
            version=f"v0.0.{self._version}",
            nodes=nodes,
            jobs=jobs,
            closed_partitions=_closed(partitions),
        )

    async def _newest(self, client: httpx.AsyncClient) -> int:
        for version in VERSIONS:
            response = await client.get(f"/slurm/v0.0.{version}/ping")
            if response.status_code in (401, 403, 511):
                raise NotAnsweredError(
                    f"slurmrestd refuses this user ({response.status_code}): see slurm.token_file"
                )
            if response.is_success:
                return version
        raise NotAnsweredError("slurmrestd has none of the API versions v0.0.36 to v0.0.50")

    async def _get(self, client: httpx.AsyncClient, what: str) -> bytes:
        path = f"/slurm/v0.0.{self._version}/{what}"
        text = bytearray()
        async with client.stream("GET", path) as response:
            async for part in response.aiter_bytes():
                text += part
                if len(text) > ANSWER_BYTES_MAX:
                    raise NotAnsweredError(f"{path} is over {ANSWER_BYTES_MAX // 1024**2} MiB")
        if not response.is_success:
            self._version = 0
            raise NotAnsweredError(f"{path} answered {response.status_code}")
        return bytes(text)

    def _headers(self) -> dict[str, str]:
        headers = {"X-SLURM-USER-NAME": self._user} if self._user else {}
        if self._token_file is not None:
            try:
                headers["X-SLURM-USER-TOKEN"] = self._token_file.read_text().strip()
            except (OSError, UnicodeDecodeError) as exc:
                raise NotAnsweredError(f"slurm.token_file cannot be read: {exc}") from exc
        return headers


def _closed(text: bytes) -> frozenset[str]:
    """Return the partitions that start no jobs; those that do not say are taken to be up."""
    try:
        listed = msgspec.json.decode(text, type=_Partitions).partitions or []
    except msgspec.DecodeError as exc:
        raise NotAnsweredError(f"Slurm's answer about partitions cannot be read: {exc}") from exc
    return frozenset(p.name for p in listed if _state(p) - {"UP"})


def _state(partition: _Partition) -> set[str]:
    state = partition.state
    if state is None and isinstance(partition.partition, dict):
        state = partition.partition.get("state")
    words = state if isinstance(state, list) else [state] if isinstance(state, str) else []
    return {str(word).upper() for word in words if word}
