"""The inventory file, written: tables of `inventory`, ranges where names count up.

What an operator wrote stays as it stands: new slots are added at the end. Only a change of state rewrites
the file, and then its comments are lost.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from flopwatch_collector.inventory import Slot, load, parse, refuse_overlaps
from flopwatch_proto.errors import UsageError
from flopwatch_proto.rows import SlotState

_LAST_NUMBER: Final = re.compile(r"(.*?)(\d+)(\D*)", re.DOTALL)
_DEFAULTS: Final = {"sku": "", "serial": "", "device_kind": "gpu", "dtype": "bf16"}

Place = tuple[str, str, str]
"""(cluster, node, slot)."""


def place(slot: Slot) -> Place:
    """Where a slot is."""
    return slot.cluster, slot.node, slot.slot


def render(slots: Iterable[Slot]) -> str:
    """The text of slots: `inventory.parse` of it gives them back."""
    by_node: dict[tuple[str, Slot], list[str]] = {}
    for slot in slots:
        kind = replace(slot, node="", slot="")
        by_node.setdefault((slot.node, kind), []).append(slot.slot)
    groups: dict[tuple[tuple[str, ...], Slot], list[str]] = {}
    for (node, kind), names in by_node.items():
        groups.setdefault((tuple(names), kind), []).append(node)
    return "\n".join(_table(kind, nodes, names) for (names, kind), nodes in groups.items())


def _table(kind: Slot, nodes: list[str], slots: Sequence[str]) -> str:
    lines = [
        "[[slot]]",
        f"cluster = {_text(kind.cluster)}",
        f"nodes = {_list(compressed(nodes))}",
        f"slots = {_list(compressed(slots))}",
    ]
    for name, default in _DEFAULTS.items():
        if getattr(kind, name) != default:
            lines.append(f"{name} = {_text(getattr(kind, name))}")
    if kind.state is not SlotState.IN_SERVICE:
        lines.append(f"state = {_text(kind.state.name.lower())}")
    if kind.from_unix_ms:
        lines.append(f"from = {_moment(kind.from_unix_ms)}")
    if kind.to_unix_ms is not None:
        lines.append(f"to = {_moment(kind.to_unix_ms)}")
    return "\n".join(lines) + "\n"


def compressed(names: Iterable[str]) -> list[str]:
    """Names as ranges where their last number counts up: ``n08 n09 n10`` is ``n[08-10]``."""
    found: list[str] = []
    head = tail = first = ""
    last = -1
    for name in [*names, ""]:
        match = _LAST_NUMBER.fullmatch(name)
        following = head, str(last + 1).zfill(len(first)), tail
        if match is not None and first and match.groups() == following:
            last += 1
            continue
        if first:
            number = str(last).zfill(len(first))
            whole = f"{head}{first}{tail}"
            found.append(whole if number == first else f"{head}[{first}-{number}]{tail}")
            first = ""
        if match is not None:
            head, first, tail = match.groups()
            last = int(first)
        elif name:
            found.append(name)
    return found


def added(path: Path, slots: Sequence[Slot]) -> tuple[int, list[str]]:
    """Add the slots that a file lacks; return how many, and what the file says otherwise of the rest.

    Raises:
        UsageError: the file cannot be read or written, or is wrong.
    """
    known: dict[Place, Slot] = {}
    text = ""
    if path.exists():
        known = {place(slot): slot for slot in load(path)}
        text = path.read_text(encoding="utf-8").rstrip("\n") + "\n\n"
    new = [slot for slot in slots if place(slot) not in known]
    differ = [
        f"{slot.cluster} {slot.node} {slot.slot}: the file says {name} {ours!r}, the import {theirs!r}"
        for slot in slots
        if place(slot) in known
        for name in ("sku", "serial")
        for ours, theirs in [(getattr(known[place(slot)], name), getattr(slot, name))]
        if theirs and ours != theirs
    ]
    if new:
        text += render(new)
        parse(text, name=str(path))
        _write(path, text)
    return len(new), differ


def with_state(
    slots: Sequence[Slot], wanted: Iterable[Place], state: SlotState, at_unix_ms: int
) -> tuple[tuple[Slot, ...], int]:
    """Return slots of which the wanted ones are in a state from a moment on, and how many changed.

    Raises:
        UsageError: a wanted slot is not there, or its states leave no room at that moment.
    """
    places = set(wanted)
    unknown = places - {place(slot) for slot in slots}
    if unknown:
        cluster, node, name = min(unknown)
        raise UsageError(
            f"slot {name!r} of node {node!r} in cluster {cluster!r} is not in the inventory; "
            "see flopwatch inventory list"
        )
    made: list[Slot] = []
    changed = 0
    for slot in slots:
        ends = slot.to_unix_ms
        stands = slot.from_unix_ms <= at_unix_ms and (ends is None or ends > at_unix_ms)
        if place(slot) not in places or not stands or slot.state is state:
            made.append(slot)
            continue
        changed += 1
        if slot.from_unix_ms < at_unix_ms:
            made.append(replace(slot, to_unix_ms=at_unix_ms))
        made.append(replace(slot, state=state, from_unix_ms=at_unix_ms))
    refuse_overlaps(made, "inventory")
    return tuple(made), changed


def rewritten(path: Path, slots: Sequence[Slot]) -> None:
    """Write a file anew. Raises: UsageError: it cannot be written."""
    _write(path, render(slots))


def _write(path: Path, text: str) -> None:
    """Replace a file whole, or not at all; it keeps its mode."""
    try:
        mode = path.stat().st_mode & 0o777 if path.exists() else 0o644
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=path.parent, prefix=f".{path.name}.", delete=False
        ) as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(file.name, mode)
        os.replace(file.name, path)
    except OSError as exc:
        raise UsageError(f"inventory {path} cannot be written: {exc.strerror or exc}") from exc


def _text(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)


def _list(values: Sequence[str]) -> str:
    alone = len(values) == 1 and "," not in values[0]
    return _text(values[0]) if alone else json.dumps(values, ensure_ascii=False)


def _moment(unix_ms: int) -> str:
    moment = datetime.fromtimestamp(unix_ms / 1000, UTC)
    digits = "milliseconds" if unix_ms % 1000 else "seconds"
    return moment.isoformat(timespec=digits).replace("+00:00", "Z")
