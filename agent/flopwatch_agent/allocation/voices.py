"""The tellers of a host, asked again and again: what each said last, and whether that still holds.

A teller that falls silent is never replaced: its last word holds for `HOLD_MS`; after that nobody knows.
One that is not configured counts from its first word on.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final

import structlog

from flopwatch_agent.allocation.holders import (
    Held,
    SilentError,
    Teller,
    Word,
    on_card,
    speaks_for,
    told,
)
from flopwatch_agent.clock import Clock, wall_unix_ms
from flopwatch_agent.reading import Device
from flopwatch_proto.v1 import telemetry_pb2 as pb

HOLD_MS: Final = 300_000
"""How long a word holds: as long as a roster does."""

ASK_SECONDS_MAX: Final = 10.0

_log = structlog.get_logger()


class Voice:
    """One teller and its last word."""

    def __init__(self, teller: Teller, now_ms: float) -> None:
        self.teller = teller
        self.word: Word | None = None
        self.heard_ms = now_ms
        self.silent = ""
        self.told_silent = False
        self._asking: asyncio.Task[Word | None] | None = None

    @property
    def counts(self) -> bool:
        """Whether this host is known to be one of its nodes."""
        return self.teller.required or self.word is not None

    def holds(self, now_ms: float) -> bool:
        """Return whether its last word still holds."""
        return self.word is not None and now_ms - self.heard_ms <= HOLD_MS

    async def ask(self) -> None:
        """Ask once; a question that hangs is waited for, not asked again."""
        asking = self._asking = self._asking or asyncio.ensure_future(self.teller.ask())
        done, _ = await asyncio.wait({asking}, timeout=ASK_SECONDS_MAX)
        if not done:
            self.silent = "does not answer in time"
            return
        self._asking = None
        self.silent = "failed"
        try:
            word = asking.result()
        except SilentError as exc:
            self.silent = str(exc)
            return
        if word is None and self.word is None:
            self.silent = "this host is none of its nodes"
            return
        self.word = word if word is not None else Word()
        self.silent = ""


class Voices:
    """All tellers, in order of precedence."""

    def __init__(self, tellers: Iterable[Teller], clock: Clock) -> None:
        self._clock = clock
        self._voices = tuple(Voice(teller, self._now_ms()) for teller in tellers)
        self._events: deque[pb.Event] = deque(maxlen=64)
        self.rounds = 0

    def _now_ms(self) -> float:
        return self._clock.monotonic_seconds() * 1000

    async def ask(self) -> None:
        """Ask all of them, side by side; one that fails is silent, and its error comes last."""
        results = await asyncio.gather(
            *(voice.ask() for voice in self._voices), return_exceptions=True
        )
        now_ms = self._now_ms()
        self.rounds += 1
        for voice in self._voices:
            if not voice.silent:
                voice.heard_ms = now_ms
            self._tell(voice, now_ms)
        for result in results:
            if result is not None:
                raise result

    def events(self) -> tuple[pb.Event, ...]:
        """Return silences and what the tellers tell, since the last call."""
        events = [*self._events, *(e for voice in self._voices for e in voice.teller.events())]
        self._events.clear()
        return tuple(events)

    def state(self) -> tuple[int | bool, ...]:
        """Return what changes whenever `said` may say something else."""
        now_ms = self._now_ms()
        return (self.rounds, *(voice.holds(now_ms) for voice in self._voices))

    def said(self, device: Device, rank: int) -> Said:
        """Return what the tellers say of a card."""
        now_ms = self._now_ms()
        speaking: list[tuple[str, Word, tuple[Held, ...]]] = []
        silent = ""
        for voice in self._voices:
            if not voice.counts:
                continue
            if voice.word is None or not voice.holds(now_ms):
                silent = silent or voice.teller.name
            elif speaks_for(voice.word, device, rank):
                held = on_card(voice.word, device, rank)
                speaking.append((voice.teller.name, voice.word, held))
        if any(name == "slurm" for name, _, _ in speaking):
            speaking = [
                (name, word, tuple(h for h in held if not h[0].yields))
                for name, word, held in speaking
            ]
        return Said(speaking, silent)

    def _tell(self, voice: Voice, now_ms: float) -> None:
        silent = voice.counts and bool(voice.silent) and now_ms - voice.heard_ms >= HOLD_MS
        if silent == voice.told_silent:
            return
        voice.told_silent = silent
        name = voice.teller.name
        kind = "scheduler_silent" if silent else "scheduler_heard"
        (_log.warning if silent else _log.info)(kind, source=name, reason=voice.silent)
        text = f"{name}: {voice.silent}" if silent else f"{name} speaks again"
        self._events.append(told(kind, text, wall_unix_ms(self._clock)))


class Said:
    """What the tellers say of one card.

    Attributes:
        source: whose word counts; empty where none speaks for it.
        held: who holds the card by that word.
        silent: the first teller that should speak of the card and does not.
        unplaced: holders of cards that nobody can name, so this may be one.
        by_environ: a process's own word on its job counts.
        dispute: both words, where two tellers name different jobs.
    """

    def __init__(self, speaking: Sequence[tuple[str, Word, tuple[Held, ...]]], silent: str) -> None:
        naming = [(name, held) for name, _, held in speaking if held]
        names = [name for name, _, _ in speaking]
        self.held = naming[0][1] if naming else ()
        self.source = naming[0][0] if naming else (silent or (names[0] if names else ""))
        self.silent = silent if not naming else ""
        self.unplaced = tuple(holder for _, word, _ in speaking for holder in word.unplaced)
        self.by_environ = any(word.by_environ for _, word, _ in speaking)
        self.dispute = ""
        if len({frozenset(h.job for h, _ in held) for _, held in naming}) > 1:
            self.dispute = "; ".join(
                f"{name}: {', '.join(sorted({h.job for h, _ in held}))}" for name, held in naming
            )
