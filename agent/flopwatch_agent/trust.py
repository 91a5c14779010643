"""Who this node is towards the collector: the certificate of the day, watched, renewed, and changed over.

    files ─► looked at (`certificates`) ─► channels to the collector
      ▲                                     │ another one? asked over a new connection whether it is let in;
      └── renewed at 2/3 of its life        └ then the stream moves, and closes the old connection last

- Nothing here ends a session that works: of a certificate that is refused, or cannot be read, is told, and
  the session of the old one goes on for as long as its connection lasts.
- Without a certificate the agent speaks in clear text, on loopback alone. To any other address it opens no
  connection; it measures on, and its spool waits.
- A certificate that `flopwatch enroll` wrote is renewed here, by a child process; one brought is not.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from random import Random
from typing import Final, Protocol

import structlog
from google.protobuf.empty_pb2 import Empty
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from flopwatch_agent.certificates import STATES, Certificate, CertificateError, Files, check, load
from flopwatch_agent.channel import BROKEN, Call, Channel, Refusal, ask_once
from flopwatch_agent.clock import Clock, wall_unix_ms
from flopwatch_agent.config import AgentConfig

LOOK_SECONDS: Final = 10.0
PROOF_SECONDS: Final = 20.0
RENEWAL_SECONDS_MAX: Final = 90.0
RETRY_SECONDS: Final = (300.0, 900.0)
RENEWED_FROM, RENEWED_TO = 0.62, 0.70
"""Of a certificate's life: each node has its own moment between, around two thirds."""
LOOPBACK: Final = ("127.0.0.1", "localhost", "[::1]")
_HEALTH: Final = "/grpc.health.v1.Health/Check"

_log = structlog.get_logger()


class Mover(Protocol):
    """A stream, as far as it is moved."""

    target: str

    def move(self) -> None:
        """Go on over a new channel: let what is in flight be acknowledged, and open the next session."""


class Trust:
    """This node's certificate.

    Args:
        renew: gets a newer certificate into the files from the collector at an address; raises OSError.

    Attributes:
        failure: what is wrong with the certificate; None: nothing, or there is none and needs none.
        renewals, renewal_failures: how often it was tried, and failed.
    """

    def __init__(
        self,
        config: AgentConfig,
        clock: Clock,
        *,
        renew: Callable[[Path, str], Awaitable[None]] | None = None,
        random: Random | None = None,
    ) -> None:
        self._files: Files = Files.of(config.identity, config.data)
        self._data = config.data
        self._cluster, self._node = config.cluster, config.node
        self._clock = clock
        self._renew = renew or renewed_by_child
        self._random = random or Random()
        self._signature: object = None
        self._certificate: Certificate | None = None
        self._told = ""
        self._retry_at = 0.0
        self.failure: CertificateError | None = None
        self.renewals = 0
        self.renewal_failures = 0

    # ---- what others ask --------------------------------------------------------------------

    @property
    def state(self) -> str:
        """One of `certificates.STATES`: as last looked at, and expired as soon as it is."""
        if self.failure is not None:
            return self.failure.state
        seconds = self.expires_seconds()
        if seconds is None:
            return "plain"
        return "ok" if seconds > 0 else "expired"

    def expires_seconds(self) -> float | None:
        """How long the certificate still holds; negative: it does not; None: there is none."""
        if self._certificate is None:
            return None
        return (self._certificate.expires_unix_ms - wall_unix_ms(self._clock)) / 1000

    def channel(self, target: str) -> Channel:
        """Return a channel to the collector; one that says why where there can be none."""
        try:
            certificate = self._look(target)
        except CertificateError as exc:
            return _Closed(target, exc)
        return Channel(target, None if certificate is None else certificate.context)

    # ---- the loop ---------------------------------------------------------------------------

    async def run(self, streams: Sequence[Mover]) -> None:
        """Watch and renew for ever; streams are moved when the certificate is another."""
        shown: dict[str, object] = {}
        for stream in streams:
            with contextlib.suppress(CertificateError):
                self._look(stream.target)
            shown[stream.target] = self._signature
        while True:
            await self._clock.sleep(LOOK_SECONDS)
            if self._is_due():
                await self._try_to_renew([stream.target for stream in streams])
            for stream in streams:
                if self._files.signature() == shown[stream.target]:
                    continue
                signature = await self._let_in(stream.target)
                if signature is not None:
                    shown[stream.target] = signature
                    _log.info("certificate_changed", target=stream.target, state=self.state)
                    stream.move()

    async def _let_in(self, target: str) -> object | None:
        """Return the signature of the files that a collector lets in: it answers a question of no weight."""
        try:
            certificate, signature = self._look(target), self._signature
            if certificate is not None:
                await ask_once(
                    target, _HEALTH, Empty(), Empty, certificate.context, seconds_max=PROOF_SECONDS
                )
        except CertificateError:
            return None  # told by `_look`
        except (Refusal, *BROKEN, TimeoutError) as exc:
            self._tell(f"{target} does not let the new certificate in: {exc!r}")
            return None
        return signature

    def _is_due(self) -> bool:
        """Whether it is this node's moment to renew."""
        held = self._certificate
        if held is None or not self._files.ours or self._clock.monotonic_seconds() < self._retry_at:
            return False
        now = wall_unix_ms(self._clock)
        life = held.expires_unix_ms - held.starts_unix_ms
        return held.starts_unix_ms + life * renewal_ratio(self._node) <= now < held.expires_unix_ms

    async def _try_to_renew(self, targets: Sequence[str]) -> None:
        """Renew by the first collector that will; where none does, again some minutes later."""
        self.renewals += 1
        told = []
        for target in targets:
            try:
                await self._renew(self._data, target)
                return
            except OSError as exc:
                told.append(str(exc))
        self.renewal_failures += 1
        self._retry_at = self._clock.monotonic_seconds() + self._random.uniform(*RETRY_SECONDS)
        self._tell(f"the certificate could not be renewed: {'; '.join(told)}")

    # ---- the files --------------------------------------------------------------------------

    def _look(self, target: str) -> Certificate | None:
        """Return the certificate for a target, read again where the files are others; None: clear text.

        Raises:
            CertificateError: there is none that could be used.
        """
        signature = self._files.signature()
        none_needed = target.rpartition(":")[0] in LOOPBACK and self._files.ours
        try:
            if none_needed and not any(signature):
                self._certificate = None
            elif self._certificate is None or signature != self._signature:
                self._certificate = None
                self._certificate = load(self._files)
            if self._certificate is not None:
                now = wall_unix_ms(self._clock)
                check(self._certificate, self._files, self._cluster, self._node, now)
        except CertificateError as exc:
            self.failure = exc
            self._tell(str(exc))
            raise
        finally:
            self._signature = signature
        self.failure, self._told = None, ""
        return self._certificate

    def _tell(self, text: str) -> None:
        if text != self._told:
            self._told = text
            _log.warning("certificate", text=text)


class TrustGauges(Collector):
    """The certificate, for the agent's ``/metrics``."""

    def __init__(self, trust: Trust) -> None:
        self._trust = trust

    def collect(self) -> list[Metric]:
        """Return every family; how long it holds has no sample where there is no certificate."""
        trust = self._trust
        state = GaugeMetricFamily(
            "flopwatch_agent_certificate_state",
            "1 for the state that this node's certificate is in.",
            labels=["state"],
        )
        for known in STATES:
            state.add_metric([known], float(known == trust.state))
        expires = GaugeMetricFamily(
            "flopwatch_agent_cert_expires_seconds",
            "How long this node's certificate still holds; negative: it has expired.",
        )
        if (seconds := trust.expires_seconds()) is not None:
            expires.add_metric([], seconds)
        tries = CounterMetricFamily(
            "flopwatch_agent_certificate_renewals", "Renewals tried.", value=trust.renewals
        )
        failures = CounterMetricFamily(
            "flopwatch_agent_certificate_renewal_failures",
            "Renewals that failed.",
            value=trust.renewal_failures,
        )
        return [state, expires, tries, failures]


class _Closed(Channel):
    """A channel that does not open, and says why."""

    def __init__(self, target: str, error: CertificateError) -> None:
        super().__init__(target)
        self._error = error

    async def stream(self) -> Call:
        raise self._error


async def renewed_by_child(data: Path, target: str) -> None:
    """Renew in a process of its own. Raises: OSError: it failed; the text is the child's last line."""
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "flopwatch_agent.enrollment", str(data), target),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(RENEWAL_SECONDS_MAX):
            _, said = await child.communicate()
    except TimeoutError as exc:
        raise OSError(f"no end after {RENEWAL_SECONDS_MAX:.0f} s") from exc
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    if child.returncode:
        lines = said.decode(errors="replace").strip().splitlines()
        raise OSError(lines[-1] if lines else f"ended with {child.returncode}")


def renewal_ratio(node: str) -> float:
    """Return after which part of a certificate's life a node renews it."""
    digest = hashlib.blake2b(node.encode(), digest_size=8).digest()
    share = int.from_bytes(digest, "big") / 2**64
    return RENEWED_FROM + share * (RENEWED_TO - RENEWED_FROM)
