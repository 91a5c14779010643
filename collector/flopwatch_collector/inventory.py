"""The inventory of record: which slots are in service, since when, by the operator's word.

A TOML file, one table per group of slots that share a state::

    [[slot]]
    cluster = "atlas"
    nodes = "atlas-[0000-0063,0070]"      # or a list of names
    slots = "0-7"                          # or a list: PCI addresses, declared names
    sku = "NVIDIA H100 80GB HBM3"
    state = "in_service"                   # expected, onboarding, in_service (default), retired
    from = 2026-11-01T00:00:00Z            # default: when a collector first reads it
    to = 2027-11-01T00:00:00Z              # default: until further notice

A slot may stand in several tables for times that do not overlap. Without a file a slot is in service from
its first row. Numbers in ranges keep their width: ``[08-11]`` is 08, 09, 10, 11.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, Self, cast

from flopwatch_proto.errors import UsageError
from flopwatch_proto.rows import SlotState
from flopwatch_proto.v1 import telemetry_pb2 as pb

SLOTS_MAX: Final = 1_000_000
KEYS: Final = (
    "cluster nodes slots sku serial device_kind dtype state from to".split()  # noqa: SIM905
)
STATES: Final = {state.name.lower(): state for state in SlotState}
RANGE: Final = re.compile(r"\[([^\[\]]*)\]")
SPAN: Final = re.compile(r"(\d+)(?:-(\d+))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """A slot in one state.

    Attributes:
        from_unix_ms: 0: when a collector first reads it.
        to_unix_ms: None: until further notice.
    """

    cluster: str
    node: str
    slot: str
    sku: str = ""
    serial: str = ""
    device_kind: str = "gpu"
    dtype: str = "bf16"
    state: SlotState = SlotState.IN_SERVICE
    from_unix_ms: int = 0
    to_unix_ms: int | None = None

    @classmethod
    def from_columns(cls, columns: Mapping[str, Any]) -> Self:
        """A slot from its stored columns."""
        return cls(**(dict(columns) | {"state": STATES[columns["state"]]}))

    def declaration(self) -> pb.SlotDeclaration:
        """The slot as agents declare theirs."""
        return pb.SlotDeclaration(
            node=self.node,
            slot=self.slot,
            sku=self.sku,
            serial=self.serial,
            device_kind=self.device_kind,
            dtype=self.dtype,
            state=cast("pb.SlotState", int(self.state)),
            from_unix_ms=self.from_unix_ms,
            to_unix_ms=self.to_unix_ms or 0,
        )


def load(path: Path) -> tuple[Slot, ...]:
    """The slots of an inventory file. Raises: UsageError naming the key and the fix."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "not UTF-8 text"
        raise UsageError(f"inventory {path} cannot be read: {reason}") from exc
    return parse(text, name=str(path))


def parse(text: str, *, name: str = "inventory") -> tuple[Slot, ...]:
    """The slots of an inventory text, in its order. Raises: UsageError naming the key and the fix."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise UsageError(f"{name} is not TOML: {exc}") from exc
    for key in document:
        if key != "slot":
            raise UsageError(f"{name}: unknown key {key!r}; every table is a [[slot]]")
    tables = document.get("slot", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise UsageError(f"{name}: slot must be a list of tables: write [[slot]]")
    slots: list[Slot] = []
    for number, table in enumerate(tables, start=1):
        slots.extend(slots_of(table, f"{name}: [[slot]] {number}"))
        if len(slots) > SLOTS_MAX:
            raise UsageError(f"{name}: more than {SLOTS_MAX} slots; check the ranges")
    refuse_overlaps(slots, name)
    return tuple(slots)


def declarations(slots: Iterable[Slot], read_unix_ms: int) -> dict[str, list[pb.SlotDeclaration]]:
    """Declarations by cluster. What has no beginning begins when it is read: the file invents no past."""
    by_cluster: dict[str, list[pb.SlotDeclaration]] = {}
    for slot in slots:
        if (
            not slot.from_unix_ms
            and slot.to_unix_ms is not None
            and slot.to_unix_ms <= read_unix_ms
        ):
            continue  # it ended before this reading, and an earlier one declared it
        declaration = slot.declaration()
        declaration.from_unix_ms = declaration.from_unix_ms or read_unix_ms
        by_cluster.setdefault(slot.cluster, []).append(declaration)
    return by_cluster


def slots_of(table: Mapping[str, Any], where: str) -> list[Slot]:
    """The slots of one table. Raises: UsageError naming the key and the fix, beginning with ``where``."""
    for key in table:
        if key not in KEYS:
            nearest = difflib.get_close_matches(key, KEYS, n=1, cutoff=0.0)[0]
            raise UsageError(f"{where}: unknown key {key!r}; the nearest known one is {nearest!r}")
    state = _text(table, "state", where, default="in_service")
    if state not in STATES:
        raise UsageError(f"{where}: state {state!r} is unknown; known are {', '.join(STATES)}")
    starts, ends = _moment(table, "from", where), _moment(table, "to", where)
    if ends is not None and ends <= (starts or 0):
        raise UsageError(f"{where}: to must come after from")
    cluster = _text(table, "cluster", where)
    texts = {
        key: _text(table, key, where, default=default)
        for key, default in (("sku", ""), ("serial", ""), ("device_kind", "gpu"), ("dtype", "bf16"))
    }
    names = _names(table, "nodes", where)
    places = _names(table, "slots", where)
    if len(names) * len(places) > SLOTS_MAX:
        raise UsageError(f"{where}: more than {SLOTS_MAX} slots; check the ranges")
    return [
        Slot(
            cluster=cluster,
            node=node,
            slot=slot,
            state=STATES[state],
            from_unix_ms=starts or 0,
            to_unix_ms=ends,
            **texts,
        )
        for node in names
        for slot in places
    ]


def _text(table: Mapping[str, Any], key: str, where: str, default: str | None = None) -> str:
    value = table.get(key, default)
    if value is None:
        raise UsageError(f"{where}: {key} is missing")
    if not isinstance(value, str) or (default is None and not value):
        raise UsageError(f"{where}: {key} must be a text")
    return value


def _moment(table: Mapping[str, Any], key: str, where: str) -> int | None:
    value = table.get(key)
    if value is None:
        return None
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError as exc:
            raise UsageError(f"{where}: {key} must be a time like 2026-11-01T00:00:00Z") from exc
    if not isinstance(value, datetime) or value.tzinfo is None:
        raise UsageError(f"{where}: {key} must be a time with its zone, like 2026-11-01T00:00:00Z")
    return round(value.astimezone(UTC).timestamp() * 1000)


def _names(table: Mapping[str, Any], key: str, where: str) -> list[str]:
    value = table.get(key)
    if isinstance(value, str) and value:
        texts = _split(value)
    elif isinstance(value, list) and value and all(isinstance(v, str) and v for v in value):
        texts = value
    else:
        raise UsageError(f'{where}: {key} must be a range like "n[0-7]" or a list of names')
    return _expanded(texts, f"{where}: {key}", numbers=key == "slots")


def names_in(text: str, where: str, *, numbers: bool = False) -> list[str]:
    """The names that a text stands for, as in the file; numbers: ``0-7`` is a range by itself.

    Raises:
        UsageError: beginning with ``where``.
    """
    return _expanded(_split(text), where, numbers=numbers)


def _expanded(texts: Sequence[str], where: str, *, numbers: bool) -> list[str]:
    names: list[str] = []
    for text in texts:
        span = numbers and SPAN.fullmatch(text)
        names.extend(expand(f"[{text}]" if span else text, where))
    if len(set(names)) != len(names):
        raise UsageError(f"{where} names something twice")
    return names


def _split(text: str) -> list[str]:
    """A list written as one text: split at commas outside brackets."""
    return [part.strip() for part in re.split(r",(?![^\[]*\])", text)]


def expand(text: str, where: str = "nodes") -> list[str]:
    """The names that a pattern with ``[first-last,…]`` stands for, in order. Raises: UsageError."""
    found = RANGE.search(text)
    if found is None:
        if not text or "[" in text or "]" in text:
            raise UsageError(f"{where}: {text!r} is no name; write a range as n[0-7]")
        return [text]
    head, tail = text[: found.start()], text[found.end() :]
    numbers = _numbers(found.group(1), where)
    return [head + number + rest for number in numbers for rest in _expand_tail(tail, where)]


def _expand_tail(tail: str, where: str) -> list[str]:
    return expand(tail, where) if tail else [""]


def _numbers(spans: str, where: str) -> list[str]:
    numbers: list[str] = []
    for span in spans.split(","):
        found = SPAN.fullmatch(span.strip())
        if found is None:
            raise UsageError(f"{where}: {span!r} is no range; write 0-7 or 3")
        first, last = found.group(1), found.group(2) or found.group(1)
        count = int(last) - int(first) + 1
        if count < 1 or len(numbers) + count > SLOTS_MAX:
            raise UsageError(f"{where}: the range {span!r} runs backwards or is too long")
        numbers.extend(str(n).zfill(len(first)) for n in range(int(first), int(last) + 1))
    return numbers


def refuse_overlaps(slots: Sequence[Slot], name: str) -> None:
    """Raises: UsageError: a slot has two states at one time."""
    ordered = sorted(slots, key=lambda s: (s.cluster, s.node, s.slot, s.from_unix_ms))
    for one, two in pairwise(ordered):
        same = (one.cluster, one.node, one.slot) == (two.cluster, two.node, two.slot)
        if same and (one.to_unix_ms is None or one.to_unix_ms > two.from_unix_ms):
            raise UsageError(
                f"{name}: slot {two.slot!r} of node {two.node!r} has two states at one time;"
                " close the earlier one with to"
            )
