"""Stages of an acceptance and what they say. Values, and what is kept of them to go on later."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, Literal

import msgspec

from flopwatch_agent.probing.files import write_whole
from flopwatch_kernels.messages import ProbeResult
from flopwatch_proto.errors import UsageError

Outcome = Literal["pass", "fail", "not_run"]

RESUME_MS: Final = 86_400_000
"""Stages passed longer ago are passed anew."""


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was looked at. Attributes: card: its slot; empty: the node's, rack's or pod's."""

    outcome: Outcome
    text: str
    card: str = ""


class Stage(msgspec.Struct, frozen=True, kw_only=True):
    """One stage.

    Attributes:
        required: a stage that could not run is a failure where it is.
        before: it was passed in an earlier run.
    """

    name: str
    checks: tuple[Check, ...]
    ended_unix_ms: int
    required: bool = True
    before: bool = False

    @property
    def outcome(self) -> Outcome:
        """Return ``fail`` where one check failed, else ``pass`` where one passed."""
        found = {check.outcome for check in self.checks}
        if "fail" in found or (self.required and "not_run" in found):
            return "fail"
        return "pass" if "pass" in found else "not_run"

    def failures(self, card: str | None = None) -> list[Check]:
        """Return what failed: all of it, or what concerns one card."""
        wrong = ("fail", "not_run") if self.required else ("fail",)
        return [c for c in self.checks if c.outcome in wrong and card in (None, c.card)]


def passed(text: str, card: str = "") -> Check:
    """Return a check that passed."""
    return Check(outcome="pass", text=text, card=card)


def failed(text: str, card: str = "") -> Check:
    """Return a check that failed."""
    return Check(outcome="fail", text=text, card=card)


def not_run(text: str, card: str = "") -> Check:
    """Return a check that could not be made."""
    return Check(outcome="not_run", text=text, card=card)


def reason(stages: Iterable[Stage], card: str) -> str:
    """Return why a card does not pass, in words; empty where it does."""
    for stage in stages:
        wrong = stage.failures(card) or stage.failures("")
        if wrong:
            return f"{stage.name}: {wrong[0].text}"
    return ""


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """What an acceptance keeps.

    Attributes:
        subject: what was accepted, and how.
        cards: of which it consisted.
        results: (slot, what was measured).
    """

    v: int = 1
    subject: str = ""
    cards: tuple[str, ...] = ()
    stages: tuple[Stage, ...] = ()
    results: tuple[tuple[str, ProbeResult], ...] = ()

    def still(self, subject: str, cards: Sequence[str], now_unix_ms: int) -> tuple[Stage, ...]:
        """Return the stages that count now: passed one after the other, lately, by the same cards."""
        if subject != self.subject or tuple(cards) != self.cards:
            return ()
        counting: list[Stage] = []
        for stage in self.stages:
            fresh = 0 <= now_unix_ms - stage.ended_unix_ms < RESUME_MS
            if stage.outcome == "fail" or not fresh:
                break
            counting.append(msgspec.structs.replace(stage, before=True))
        return tuple(counting)


def load(path: Path) -> Kept:
    """Return what an earlier run left. Raises: UsageError: the file is something else."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Kept)
    except FileNotFoundError:
        return Kept()
    except (OSError, msgspec.DecodeError) as exc:
        raise UsageError(f"--state {path}: not the state of a bring-up: {exc}") from exc


def save(path: Path, kept: Kept) -> None:
    """Keep it. Raises: UsageError: it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, msgspec.json.format(msgspec.json.encode(kept)))
    except OSError as exc:
        raise UsageError(f"--state {path}: cannot be written: {exc.strerror}") from exc
