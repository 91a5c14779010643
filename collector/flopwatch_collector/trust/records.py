"""What trust counts, and what it writes into the audit log."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge

from flopwatch_collector.control import operations
from flopwatch_collector.control.store import ControlStore
from flopwatch_collector.trust.identity import Identity

REFUSALS: Final = ("stream_refused", "stream_ended", "enrollment_refused", "renewal_refused")
"""Entries of the audit log that say a node was turned away."""
WAITING_MAX: Final = 1_000
ORIGINS_MAX: Final = 10_000
SHOWN_MAX: Final = 200_000
DAY_MS: Final = 86_400_000
LIFE_LEFT_MIN: Final = 0.25
"""A certificate is renewed at about two thirds of its life: one with less left than this was not."""
EVERY_MS: Final = 60_000
"""One host's refusals are written at most so often: it tries again by itself, for ever."""


class TrustMetrics:
    """Counters of trust, for one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, meaning: str, *labels: str) -> Counter:
            return Counter(f"flopwatch_trust_{name}_total", meaning, labels, registry=registry)

        outcome = "outcome"
        self.enrollments = counter("enrollments", "Tokens shown: issued, refused, failed.", outcome)
        self.renewals = counter(
            "renewals", "Certificates renewed: issued, refused, failed.", outcome
        )
        self.refusals = counter("refusals", "Nodes refused, by what they wanted.", "what")
        self.unwritten = counter("audit_dropped", "Refusals that found no room in the audit log.")
        self.expires = Gauge(
            "flopwatch_trust_certificate_expires_seconds",
            "How long the listener's certificate still holds.",
            registry=registry,
        )
        self.life = Gauge(
            "flopwatch_trust_certificate_life_ratio",
            "Share of its life that the listener's certificate has left; NaN where there is none.",
            registry=registry,
        )
        self.life.set(math.nan)
        self.unread = Gauge(
            "flopwatch_trust_certificate_read_failures",
            "Times that certificates on disk could not be used; those before are shown on.",
            registry=registry,
        )
        self.ending = Gauge(
            "flopwatch_trust_ending_certificates",
            "Nodes whose certificate, as last shown here, has less than a quarter of its life left.",
            registry=registry,
        )
        self.denied = Gauge("flopwatch_trust_denied_nodes", "Nodes denied.", registry=registry)


class Shown:
    """How long certificates hold that nodes showed when they were let in. Bounded; of a loop and its threads.

    One that is over for a day is forgotten: its node is gone, or is refused and in the audit log.
    """

    def __init__(self) -> None:
        self._lives: dict[tuple[str, str], tuple[int, int]] = {}

    def note(self, identity: Identity, now_unix_ms: int) -> None:
        """Take what a node showed just now."""
        name = identity.cluster, identity.node
        if name not in self._lives and len(self._lives) >= SHOWN_MAX:
            self._forget(now_unix_ms)
            if len(self._lives) >= SHOWN_MAX:
                return
        self._lives[name] = identity.issued_unix_ms, identity.expires_unix_ms

    def of(self, cluster: str, node: str) -> tuple[int, int] | None:
        """Return from when and until when a node's certificate holds; None: it showed none."""
        return self._lives.get((cluster, node))

    def ending(self, now_unix_ms: int) -> int:
        """Return how many have less than a quarter of their life left."""
        self._forget(now_unix_ms)
        lives = list(self._lives.values())  # the loop notes on, meanwhile
        return sum(ends - now_unix_ms < (ends - begins) * LIFE_LEFT_MIN for begins, ends in lives)

    def _forget(self, now_unix_ms: int) -> None:
        for name, (_, ends) in list(self._lives.items()):
            if ends <= now_unix_ms - DAY_MS:
                self._lives.pop(name, None)


@dataclass(frozen=True, slots=True)
class _Refusal:
    at_unix_ms: int
    what: str
    subject: str
    origin: str
    why: str


def refused(control: ControlStore, since_unix_ms: int = 0) -> list[dict[str, Any]]:
    """Return who was refused since a moment, newest first: of the audit log's newest thousand entries."""
    return [
        {
            "at_unix_ms": entry["at_unix_ms"],
            "what": entry["what"],
            "subject": entry["subject"],
            "origin": entry["origin"],
            "why": (entry["after"] or {}).get("why", ""),
        }
        for entry in operations.audit(control)
        if entry["what"] in REFUSALS and entry["at_unix_ms"] >= since_unix_ms
    ]


class Refusals:
    """Who was refused, on the way to the audit log: bounded, and written aside."""

    def __init__(self, metrics: TrustMetrics, now_unix_ms: Callable[[], int]) -> None:
        self._metrics = metrics
        self._now_unix_ms = now_unix_ms
        self._waiting: list[_Refusal] = []
        self._told: dict[tuple[str, str], int] = {}

    def note(self, what: str, subject: str, origin: str, why: str) -> None:
        """Count a refusal, and keep it to be written unless its host was just told off."""
        self._metrics.refusals.labels(what).inc()
        now, host = self._now_unix_ms(), origin.rpartition(":")[0]
        if now - self._told.get((what, host), -EVERY_MS) < EVERY_MS:
            return
        if len(self._waiting) >= WAITING_MAX:
            self._metrics.unwritten.inc()
            return
        if len(self._told) >= ORIGINS_MAX:
            self._told.clear()
        self._told[what, host] = now
        self._waiting.append(_Refusal(now, what, subject, origin, why[:500]))

    def write(self, control: ControlStore) -> None:
        """Write what waits. Raises: RetryableError: the rest waits on."""
        while self._waiting:
            first = self._waiting[0]
            operations.record(
                control,
                first.at_unix_ms,
                first.subject,
                first.what,
                first.subject,
                origin=first.origin,
                after={"why": first.why},
            )
            del self._waiting[0]
