"""The collector's HTTP API, asked from the command line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, Any, Final, Self
from urllib.parse import quote, urlsplit

import httpx

from flopwatch_proto.errors import FlopwatchError, UsageError

DEFAULT_URL: Final = "http://127.0.0.1:9750"
_LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")


class ApiError(FlopwatchError):
    """The collector answered, but not with what was asked for."""


class ApiUnreachableError(UsageError):
    """No collector answers at this address; the text says what to do about it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the API said. Attributes: text: exactly as it came; data: the same, decoded."""

    text: str
    data: Any


class Api:
    """A collector's API.

    Args:
        url: address of the collector, e.g. ``http://127.0.0.1:9750``.
        timeout_seconds: longest wait for one answer.

    Raises:
        UsageError: the address is no http or https URL.
    """

    def __init__(self, url: str = DEFAULT_URL, *, timeout_seconds: float = 15.0) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"--api: {url!r} is no address; write {DEFAULT_URL}")
        self.url = url.rstrip("/")
        # A proxy of the environment is for the world outside, never for this host.
        self._client = httpx.Client(
            base_url=self.url,
            timeout=timeout_seconds,
            trust_env=parts.hostname not in _LOOPBACK,
        )

    def get(self, path: str, **parameters: str | None) -> Answer:
        """The answer to a GET; parameters that are None are left out.

        Raises:
            ApiUnreachableError: nobody answers.
            UsageError: the request was refused (an unknown name, a wrong window).
            ApiError: the collector failed, or what answers is no collector.
        """
        asked = {key: value for key, value in parameters.items() if value is not None}
        return self._answer("GET", path, params=asked)

    def post(self, path: str, content: Mapping[str, Any]) -> Answer:
        """The answer to a POST of JSON. Raises: as `get`."""
        return self._answer("POST", path, json=content)

    def delete(self, path: str, **parameters: str | None) -> Answer:
        """The answer to a DELETE. Raises: as `get`."""
        asked = {key: value for key, value in parameters.items() if value is not None}
        return self._answer("DELETE", path, params=asked)

    def download(self, path: str, file: IO[bytes]) -> None:
        """Write the answer to a GET into a file, however large it is. Raises: as `get`."""
        try:
            with self._client.stream("GET", path) as response:
                if not response.is_success:
                    raise ApiError(f"{self.url}{path} answered {response.status_code}")
                for part in response.iter_bytes():
                    file.write(part)
        except httpx.HTTPError as exc:
            raise self._unreachable(exc) from exc

    def _unreachable(self, exc: httpx.HTTPError) -> ApiUnreachableError:
        return ApiUnreachableError(
            f"cannot reach {self.url}: is the collector running? "
            f'start it with "flopwatch up" ({_reason(exc)})'
        )

    def _answer(self, method: str, path: str, **more: Any) -> Answer:
        try:
            response = self._client.request(method, path, **more)
        except httpx.HTTPError as exc:
            raise self._unreachable(exc) from exc
        try:
            data = response.json()
        except (json.JSONDecodeError, UnicodeDecodeError) as exc:
            raise ApiError(
                f"{self.url}{path} answered {response.status_code} without JSON: "
                "is this a flopwatch collector?"
            ) from exc
        if response.is_success:
            return Answer(text=response.text, data=data)
        said = _problem(data) or response.reason_phrase
        if 400 <= response.status_code < 500:
            raise UsageError(f"{path}: {said}")
        raise ApiError(f"{self.url}{path} answered {response.status_code}: {said}")

    def subject(self, kind: str, name: str, **parameters: str | None) -> Answer:
        """The answer about one named thing, e.g. ``subject("clusters", "atlas")``."""
        return self.get(f"/api/v1/{kind}/{quote(name, safe='')}", **parameters)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _reason(exc: httpx.HTTPError) -> str:
    return "no answer in time" if isinstance(exc, httpx.TimeoutException) else str(exc)


def _problem(data: Any) -> str | None:
    """The text of an RFC 9457 problem document."""
    if not isinstance(data, dict):
        return None
    said = data.get("detail") or data.get("title")
    return said if isinstance(said, str) else None
