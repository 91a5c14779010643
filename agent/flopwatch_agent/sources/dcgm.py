"""What DCGM measures and NVML does not: the profiling fields of cards without GPM (Ampere, Ada).

A local dcgm-exporter is read over HTTP and *completes* NVML's reading of the same card: a field that NVML
does not support gets DCGM's value, and every other field stays NVML's. Invariants:

- A value is a mean over the exporter's own collect interval, and carries no time. It begins to count when
  it is seen to change, and then speaks for as long as the exporter took to bring it (at most
  `collect_interval` and a scrape): the activity is shifted by one interval, and its sum is right. The
  first answer is only compared with; an exporter that repeats itself speaks for nothing, and the field
  is MISSING until it brings another mean.
- "It changed" means any value of the card, the energy counter above all, which moves on idle cards too.
- After some faults DCGM's profiling fields stand at 0 until it is restarted, while the card works
  (NVIDIA/DCGM issue 303): at the second such mean in a row the card's means are FAILED.
- Rows of MIG instances are theirs and not the card's: left out.
- The exporter is somebody else's process: asked in a thread, with a deadline, and no more than
  `BYTES_MAX` is read.
"""

from __future__ import annotations

import asyncio
import http.client
import math
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final
from urllib.parse import urlsplit

import structlog

from flopwatch_agent.config import DcgmConfig
from flopwatch_agent.dcgm_fields import DCGM_FIELDS
from flopwatch_agent.reading import Reading
from flopwatch_proto.codec import Value
from flopwatch_proto.errors import RetryableError
from flopwatch_proto.rows import Absence

BYTES_MAX: Final = 4 << 20
CARDS_MAX: Final = 64
DEADLINE_SECONDS: Final = 5.0
ABSENT_SECONDS: Final = 60.0
"""With ``auto``, how long until an exporter that is not there is looked for again."""

_CHUNK_BYTES: Final = 64 << 10
_RATIO_MAX: Final = 1.02  # beyond it, it is no share of time
_BUSY_PERCENT: Final = 95.0
_SILENT_ANSWERS: Final = 2
_MEANS: Final = {
    name: field
    for field in DCGM_FIELDS
    if field.is_mean
    for name in (field.name, field.alias)
    if name is not None
}
_SM_ACTIVE: Final = ("DCGM_FI_PROF_SM_ACTIVE", "DCGM_FI_PROF_SM_UTIL_RATIO")
_UTILISATION: Final = ("DCGM_FI_DEV_GPU_UTIL", "DCGM_FI_DEV_GPU_UTIL_RATIO")  # percent, both
_SAMPLE: Final = re.compile(r"(DCGM_FI_\w+)\{(.*)\}\s+(\S+)")
_LABEL: Final = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_log = structlog.get_logger()

Answer = Mapping[str, Mapping[str, float]]
"""Card's UUID → name of a DCGM field → its value, in DCGM's unit."""


@dataclass(slots=True, kw_only=True)
class _Card:
    """What the exporter said of one card.

    Attributes:
        changed_ns: boottime at which it was first seen.
        until_ns: boottime up to which it speaks; 0 for the first answer.
        silent: how many means in a row said that no SM worked on a busy card.
    """

    values: Mapping[str, float]
    changed_ns: int
    until_ns: int = 0
    silent: int = 0


class Dcgm:
    """Completes readings. `refresh` asks the exporter, `complete` only looks up.

    Args:
        boottime_ns: the clock of the readings.
        fetch: URL → the exporter's text; raises OSError, HTTPException or ValueError.
    """

    name = "dcgm"

    def __init__(
        self,
        config: DcgmConfig,
        *,
        boottime_ns: Callable[[], int],
        fetch: Callable[[str], str] | None = None,
    ) -> None:
        self._config = config
        self._boottime_ns = boottime_ns
        self._fetch = fetch or fetch_text
        self._wanted = config.enabled == "on"
        self._absent = False
        self._cards: dict[str, _Card] = {}

    @property
    def pause_seconds(self) -> float:
        """Return how long to wait until the next `refresh`: three within a collect interval."""
        if self._absent:
            return ABSENT_SECONDS
        return min(10.0, max(1.0, self._config.collect_interval / 3))

    def complete(self, reading: Reading) -> Reading:
        """Return the reading with what NVML does not support and DCGM knows; the same where nothing is."""
        uuid = reading.device.uuid
        if uuid is None or reading.values.get("sm_active_ratio") is not Absence.NOT_SUPPORTED:
            return reading
        self._wanted = True
        card = self._cards.get(uuid)
        if card is None:
            return reading
        fresh = reading.boottime_ns <= card.until_ns
        values: dict[str, Value] = dict(reading.values)
        for name, value in card.values.items():
            mean = _MEANS.get(name)
            if mean is None or values.get(mean.field) is not Absence.NOT_SUPPORTED:
                continue
            largest = _RATIO_MAX if mean.field.endswith("_ratio") else math.inf
            if not fresh:
                values[mean.field] = Absence.MISSING
            elif card.silent >= _SILENT_ANSWERS or not 0.0 <= value <= largest:
                values[mean.field] = Absence.FAILED
            else:
                values[mean.field] = value * mean.scale
        return replace(reading, values=values, method="dcgm")

    async def refresh(self) -> None:
        """Ask the exporter, where it is wanted.

        Raises:
            RetryableError: it gave no answer. With ``auto`` one that is not there is no failure.
        """
        if not self._wanted:
            return
        try:
            answer = await asyncio.to_thread(lambda: parse(self._fetch(self._config.url)))
        except (OSError, http.client.HTTPException, ValueError) as exc:
            if self._config.enabled == "auto" and not self._cards:
                if not self._absent:
                    _log.info("dcgm_exporter_absent", url=self._config.url, reason=str(exc))
                self._absent = True
                return
            raise RetryableError(f"{self._config.url}: {exc}") from exc
        self._absent = False
        self._take(answer, self._boottime_ns())

    def _take(self, answer: Answer, now_ns: int) -> None:
        longest_ns = int((self._config.collect_interval + self.pause_seconds) * 1e9)
        for uuid, values in answer.items():
            card = self._cards.get(uuid)
            if card is None:
                if len(self._cards) < CARDS_MAX:
                    self._cards[uuid] = _Card(values=values, changed_ns=now_ns)
            elif values != card.values:
                span_ns = min(now_ns - card.changed_ns, longest_ns)
                self._cards[uuid] = _Card(
                    values=values,
                    changed_ns=now_ns,
                    until_ns=now_ns + span_ns,
                    silent=card.silent + 1 if _is_silent(values) else 0,
                )


def _is_silent(values: Mapping[str, float]) -> bool:
    """Return whether no SM worked while kernels were resident nearly all of the time."""
    busy = max(values.get(name, 0.0) for name in _UTILISATION)
    return busy >= _BUSY_PERCENT and any(values.get(name) == 0.0 for name in _SM_ACTIVE)


def parse(text: str) -> Answer:
    """Return what an exporter's text says of whole cards; lines that are not understood are left out."""
    cards: dict[str, dict[str, float]] = {}
    for line in text.splitlines():
        if (sample := _SAMPLE.match(line)) is None:
            continue
        labels = dict(_LABEL.findall(sample[2]))
        uuid = labels.get("UUID") or labels.get("uuid")
        if not uuid or labels.get("GPU_I_ID"):
            continue
        try:
            value = float(sample[3])
        except ValueError:
            continue
        if not math.isfinite(value):
            continue
        # A card that several pods share has a line for each, all with the card's value.
        cards.setdefault(uuid, {}).setdefault(sample[1], value)
    return cards


def fetch_text(url: str, *, deadline_seconds: float = DEADLINE_SECONDS) -> str:
    """Return what a plain HTTP address answers. Blocks; no proxy, no redirect.

    Raises:
        OSError, http.client.HTTPException, ValueError: no answer, a slow one, one that is too long, or
            one with another status than 200.
    """
    give_up = time.monotonic() + deadline_seconds
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(
        parts.hostname or "", parts.port or 80, timeout=deadline_seconds
    )
    try:
        connection.request("GET", parts.path or "/", headers={"Accept": "text/plain"})
        response = connection.getresponse()
        if response.status != http.client.OK:
            raise ValueError(f"answers {response.status}")
        body = bytearray()
        while chunk := response.read1(_CHUNK_BYTES):
            body += chunk
            if len(body) > BYTES_MAX:
                raise ValueError(f"answers more than {BYTES_MAX} bytes")
            if time.monotonic() > give_up:
                raise TimeoutError(f"no whole answer within {deadline_seconds:g} s")
        return body.decode("utf-8", "replace")
    finally:
        connection.close()
