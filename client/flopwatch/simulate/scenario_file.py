"""The scenario file: its keys, and every way to write it wrong. Pure.

A file is TOML. Each error is one UsageError whose text starts with the path of the key
(``cluster[0].phase[2].sm_active``), says what is wrong and, for a misspelling, what was meant.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar

import msgspec

from flopwatch_proto.errors import UsageError

_DURATION_PARTS: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_MILLISECONDS: Final = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_RANGE: Final = re.compile(r"(\d+)(?:-(\d+))?")

_T = TypeVar("_T", bound=msgspec.Struct)

STATES: Final = (
    "active",
    "idle_alloc",
    "free",
    "held",
    "maint",
    "failed",
    "rogue",
    "silent",
    "down",
    "unwatched",
)
THROTTLES: Final = (
    "power",
    "thermal_sw",
    "thermal_hw",
    "power_brake",
    "sync_boost",
    "application_clock",
)
ENDLESS: Final = "endless"


class JobTable(msgspec.Struct, frozen=True, kw_only=True):
    """One job of a shared card. Attributes: weight: its share of the card, (0, 1]."""

    job: str
    weight: float
    team: str | None = None
    workload_class: str | None = None


class PhaseTable(msgspec.Struct, frozen=True, kw_only=True):
    """What the cards of a range do between two moments; keys as in the file."""

    nodes: str = "*"
    cards: str = "*"
    from_: str = msgspec.field(default="0m", name="from")
    to: str | None = None
    state: str = "active"
    job: str | None = None
    team: str | None = None
    jobs: tuple[JobTable, ...] = ()
    workload_class: str | None = None
    sm_active: float = 0.0
    tensor_active: float = 0.0
    dram_active: float = 0.0
    sm_clock_mhz: float | None = None
    power_watts: float | None = None
    throttle: dict[str, float] = {}
    declared_mfu: float | None = None
    noise: float = 0.0


class XidTable(msgspec.Struct, frozen=True, kw_only=True):
    """A critical error that the driver reports of one card."""

    at: str
    node: int
    card: int
    code: int


class ClusterTable(msgspec.Struct, frozen=True, kw_only=True):
    """One simulated cluster. ``pending_cards``: cards its queue waits for; left out: nobody knows."""

    name: str
    sku: str
    nodes: int
    cards_per_node: int = 8
    dtype: str = "bf16"
    pending_cards: int | None = None
    phase: tuple[PhaseTable, ...] = ()
    xid: tuple[XidTable, ...] = ()


class ScenarioTable(msgspec.Struct, frozen=True, kw_only=True):
    """The ``[scenario]`` table."""

    duration: str
    seed: int = 0
    start: Any = None  # a text or a TOML moment; `unix_ms` judges it
    interval: str = "10s"


class ScenarioFile(msgspec.Struct, frozen=True, kw_only=True):
    """The whole file."""

    scenario: ScenarioTable
    cluster: tuple[ClusterTable, ...]


_TABLES: Final[dict[type, dict[str, type]]] = {
    ScenarioFile: {"scenario": ScenarioTable, "cluster": ClusterTable},
    ScenarioTable: {},
    ClusterTable: {"phase": PhaseTable, "xid": XidTable},
    PhaseTable: {"jobs": JobTable},
    XidTable: {},
    JobTable: {},
}
"""Which keys of a table hold further tables."""


def read(text: str) -> ScenarioFile:
    """The file's tables, every key known and every value of its type.

    Raises:
        UsageError: not TOML, an unknown or missing key, or a value of another type.
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise UsageError(f"not a TOML file: {exc}") from exc
    return _table(document, ScenarioFile, "")


def nearest(wrong: str, known: tuple[str, ...]) -> str:
    """``; nearest known: X`` for an error's text, or what is known where nothing is near."""
    close = difflib.get_close_matches(wrong, known, n=1, cutoff=0.5)
    return f"; nearest known: {close[0]}" if close else f"; known: {', '.join(known)}"


def duration_ms(path: str, text: str) -> int:
    """Milliseconds of ``30m``, ``90s``, ``1h30m``, ``1.5h``, ``250ms`` or ``2d``.

    Raises:
        UsageError: it is none of these, or has a fraction of a millisecond.
    """
    stripped = text.strip()
    if not stripped or _DURATION_PARTS.sub("", stripped):
        raise UsageError(f'{path}: {text!r} is no duration; write "30m", "90s" or "1h30m"')
    total = sum(float(n) * _MILLISECONDS[unit] for n, unit in _DURATION_PARTS.findall(stripped))
    if total != int(total):
        raise UsageError(f"{path}: {text!r} is finer than a millisecond")
    return int(total)


def indexes(path: str, text: str, count: int) -> frozenset[int]:
    """The numbers that ``0-3,7`` or ``*`` stand for, of 0 … count − 1.

    Raises:
        UsageError: it is no range, runs backwards, or leaves what exists.
    """
    if text.strip() == "*":
        return frozenset(range(count))
    chosen: set[int] = set()
    for part in text.split(","):
        match = _RANGE.fullmatch(part.strip())
        if match is None:
            raise UsageError(f'{path}: {text!r} is no range; write "0-3,7" or "*"')
        first, last = int(match[1]), int(match[2] or match[1])
        if first > last:
            raise UsageError(f"{path}: {part.strip()!r} runs backwards")
        if last >= count:
            raise UsageError(f"{path}: {last} does not exist; the last one is {count - 1}")
        chosen.update(range(first, last + 1))
    return frozenset(chosen)


def unix_ms(path: str, moment: object) -> int:
    """Milliseconds since 1970 of an RFC 3339 moment; one without an offset is UTC.

    Raises:
        UsageError: it is no such moment.
    """
    if isinstance(moment, str):
        try:
            moment = datetime.fromisoformat(moment)
        except ValueError:
            raise UsageError(
                f'{path}: {moment!r} is no moment; write "2026-11-01T00:00:00Z"'
            ) from None
    if not isinstance(moment, datetime):
        raise UsageError(f'{path}: {moment} is no moment; write "2026-11-01T00:00:00Z"')
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)


def share(path: str, value: float) -> float:
    """The value, which lies in 0 … 1.

    Raises:
        UsageError: it does not.
    """
    if not 0.0 <= value <= 1.0:
        raise UsageError(f"{path}: {value:g} is not between 0 and 1")
    return value


def _table(table: Any, of: type[_T], path: str) -> _T:
    """The table as a value: keys first, so that a misspelt one is named before values are judged."""
    if not isinstance(table, dict):
        raise UsageError(f"{path or 'file'}: a table is wanted here")
    known = tuple(field.encode_name for field in msgspec.structs.fields(of))
    read: dict[str, Any] = {}
    for key, value in table.items():
        here = f"{path}.{key}" if path else key
        if key not in known:
            raise UsageError(f"{here}: unknown key{nearest(key, known)}")
        inner = _TABLES[of].get(key)
        if inner is None:
            read[key] = value
        elif inner is ScenarioTable:
            read[key] = _table(value, inner, here)
        elif isinstance(value, list):
            read[key] = [_table(entry, inner, f"{here}[{i}]") for i, entry in enumerate(value)]
        else:
            raise UsageError(f"{here}: a list of tables is wanted, [[{key}]]")
    try:
        return msgspec.convert(read, of)
    except msgspec.ValidationError as exc:
        raise UsageError(_in_words(str(exc), path)) from exc


def _in_words(message: str, path: str) -> str:
    """msgspec's "Expected `int`, got `str` - at `$.nodes`" with the whole path in front."""
    what, _, where = message.partition(" - at `")
    here = ".".join(part for part in (path, where.rstrip("`").lstrip("$.")) if part)
    if what.startswith("Object missing required field"):
        return f"{'.'.join(p for p in (here, what.split('`')[1]) if p)}: this key is required"
    return f"{here or 'file'}: {what[0].lower()}{what[1:].replace('`', '')}"
