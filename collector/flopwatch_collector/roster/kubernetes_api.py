"""The Kubernetes API server, asked: lists in pages, with deadlines and bounds.

In a pod the service account's token and certificate are used; elsewhere a URL, a token file and a
certificate file are named. Tokens are read again for every roster: they are renewed on disk. What the
account needs: ``list`` on nodes and pods, and on resourceclaims and resourceslices of ``resource.k8s.io``
where cards are given out by claims.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import Any, Final, TypeVar

import httpx
import msgspec

from flopwatch_collector.roster.kubernetes import Listed
from flopwatch_collector.roster.kubernetes_layout import Claim, Node, Pod, Slice
from flopwatch_collector.roster.kubernetes_settings import KubernetesConfig
from flopwatch_proto.errors import RetryableError, UsageError

PAGE_OBJECTS: Final = 500
PAGES_MAX: Final = 1_000
PAGE_BYTES_MAX: Final = 64 * 1024**2
CLAIM_VERSIONS: Final = ("v1", "v1beta2", "v1beta1")

T = TypeVar("T")


class _ListMeta(msgspec.Struct, frozen=True, rename={"token": "continue"}):
    token: str = ""


class _Items(msgspec.Struct, frozen=True):
    metadata: _ListMeta = _ListMeta()
    items: list[msgspec.Raw] = []


class _Absent(Exception):
    """There is no such list, or we may not read it."""


class KubernetesApi:
    """An API server. Use `listed`; close it at the end."""

    def __init__(self, config: KubernetesConfig) -> None:
        """Raises: UsageError: the certificate file cannot be used."""
        self._config = config
        self._client = httpx.AsyncClient(
            base_url=config.url,
            timeout=config.deadline,
            trust_env=False,
            verify=_trust(config),
        )

    async def close(self) -> None:
        """Close the connection."""
        await self._client.aclose()

    async def listed(self) -> Listed:
        """Return nodes, pods and claims as they are now.

        Raises:
            RetryableError: it does not answer in time, or with something else.
        """
        try:
            async with asyncio.timeout(self._config.deadline):
                nodes = await self._list("/api/v1/nodes", Node)
                pods = await self._list("/api/v1/pods", Pod)
                claims, slices = await self._claims()
        except TimeoutError as exc:
            raise RetryableError(
                f"kubernetes: {self._config.url} did not list everything in "
                f"{self._config.deadline:g} s"
            ) from exc
        except _Absent as exc:
            raise RetryableError(f"kubernetes: {exc}") from exc
        return Listed(nodes=nodes, pods=pods, claims=claims, slices=slices)

    async def _claims(self) -> tuple[list[Claim], list[Slice]]:
        for version in CLAIM_VERSIONS:
            group = f"/apis/resource.k8s.io/{version}"
            try:
                return (
                    await self._list(f"{group}/resourceclaims", Claim),
                    await self._list(f"{group}/resourceslices", Slice),
                )
            except _Absent:
                continue
        return [], []

    async def _list(self, path: str, kind: type[T]) -> list[T]:
        """Return every object of a list; begun once more where its snapshot expired on the way."""
        for _ in range(2):
            objects = await self._snapshot(path, kind)
            if objects is not None:
                return objects
        raise RetryableError(f"kubernetes: the list {path} expires faster than it can be read")

    async def _snapshot(self, path: str, kind: type[T]) -> list[T] | None:
        objects: list[T] = []
        token = ""
        for _ in range(PAGES_MAX):
            status, body = await self._get(path, token)
            if status == httpx.codes.GONE and token:
                return None
            if status in (httpx.codes.NOT_FOUND, httpx.codes.FORBIDDEN):
                raise _Absent(f"{path} answered {status}: {_message(body)}")
            if status != httpx.codes.OK:
                raise RetryableError(f"kubernetes: {path} answered {status}: {_message(body)}")
            try:
                page = msgspec.json.decode(body, type=_Items)
                objects.extend(msgspec.json.decode(item, type=kind) for item in page.items)
            except msgspec.DecodeError as exc:
                raise RetryableError(f"kubernetes: {path} is not as expected: {exc}") from exc
            token = page.metadata.token
            if not token:
                return objects
        raise RetryableError(f"kubernetes: {path} has more than {PAGES_MAX} pages")

    async def _get(self, path: str, token: str) -> tuple[int, bytes]:
        asked = {"limit": str(PAGE_OBJECTS)} | ({"continue": token} if token else {})
        try:
            async with self._client.stream(
                "GET", path, params=asked, headers=self._headers()
            ) as response:
                body = bytearray()
                async for part in response.aiter_bytes():
                    body += part
                    if len(body) > PAGE_BYTES_MAX:
                        raise RetryableError(f"kubernetes: a page of {path} is larger than 64 MiB")
                return response.status_code, bytes(body)
        except httpx.HTTPError as exc:
            reason = str(exc) or type(exc).__name__
            raise RetryableError(f"kubernetes: {self._config.url} fails: {reason}") from exc

    def _headers(self) -> dict[str, str]:
        headers = {"Accept": "application/json"}
        if self._config.token_file is not None:
            try:
                token = self._config.token_file.read_text(encoding="ascii").strip()
            except (OSError, UnicodeDecodeError) as exc:
                raise RetryableError(
                    f"kubernetes: token_file {self._config.token_file} cannot be read: {exc}"
                ) from exc
            headers["Authorization"] = f"Bearer {token}"
        return headers


def _trust(config: KubernetesConfig) -> ssl.SSLContext | bool:
    if not config.url.startswith("https://"):
        return False
    if config.ca_file is None:
        return True
    try:
        return ssl.create_default_context(cafile=config.ca_file)
    except (OSError, ssl.SSLError) as exc:
        raise UsageError(
            f"kubernetes.ca_file: {config.ca_file} cannot be used: {exc}; "
            "name the cluster's certificate, or nothing"
        ) from exc


def _message(body: bytes) -> str:
    """Return the text of a Status, in one line."""
    try:
        said: dict[str, Any] = msgspec.json.decode(body, type=dict[str, Any])
    except msgspec.DecodeError:
        return "no words"
    return " ".join(str(said.get("message", "no words")).split())[:300]
