"""What a check is told and what it answers: plain values, written as JSON between processes."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

Status = Literal["agrees", "disagrees", "failed", "not_supported", "not_run"]

FORMAT: Final = 1
"""Version of the JSON that is written; a change of meaning is another number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One question and its answer.

    Attributes:
        seen: a number, a text, or None: nothing was to be seen, which never agrees.
        expected: in words, with the unit.
        tolerance: its name in the table of tolerances; None: no numbers were compared.
        agrees: None: for information only.
    """

    name: str
    seen: float | str | None
    expected: str
    tolerance: str | None = None
    agrees: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """The answer of one check.

    Attributes:
        values: everything measured, for whoever reads the JSON.
        error: why there is no answer, one line; the place in the code is part of it.
    """

    name: str
    status: Status
    seconds: float
    findings: tuple[Finding, ...] = ()
    values: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """The card under test. Attributes: index: of the driver; in_use_by: compute processes on it before."""

    index: int
    slot: str
    sku: str
    uuid: str
    driver: str
    sm_count: int | None
    clock_mhz_max: float | None
    in_use_by: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Fake:
    """The stand-in for a card. Attributes: script: of the fake driver; lines: put behind what a check
    scripts, so that they win."""

    script: str
    lines: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What every check is told.

    Attributes:
        out: folder for files that a check writes.
        quick: short spans, for tests of this program.
        fake: None: a real card.
        earlier: values of the checks before, by name.
    """

    index: int
    out: str
    quick: bool = False
    fake: Fake | None = None
    card: Card | None = None
    earlier: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def the_card(self) -> Card:
        """Return the card; only the check that finds it runs without one."""
        if self.card is None:
            raise ValueError("the card is not known yet")
        return self.card


class NotSupportedHere(Exception):
    """The card's datasheet does not have what the check is about."""


def status_of(findings: tuple[Finding, ...]) -> Status:
    """Return what the findings say together; none judged agrees."""
    return "disagrees" if any(f.agrees is False for f in findings) else "agrees"


def context_from(data: Mapping[str, Any]) -> Context:
    """Return the context that `dataclasses.asdict` made this from."""
    card, fake = data["card"], data["fake"]
    return Context(
        **{
            **data,
            "card": None if card is None else Card(**{**card, "in_use_by": (*card["in_use_by"],)}),
            "fake": None if fake is None else Fake(**{**fake, "lines": (*fake["lines"],)}),
        }
    )


def result_from(data: Mapping[str, Any]) -> CheckResult:
    """Return the result that `dataclasses.asdict` made this from."""
    return CheckResult(**{**data, "findings": tuple(Finding(**f) for f in data["findings"])})


def plain(value: Any) -> Any:
    """Return the value with what JSON has no words for (NaN, infinities) as None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def file_part(text: str) -> str:
    """Return a name as part of a file name: ``NVIDIA H100 80GB HBM3`` → ``nvidia-h100-80gb-hbm3``."""
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-") or "unknown"
