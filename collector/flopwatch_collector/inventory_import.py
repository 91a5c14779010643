"""Slots of record from what others know: a table of a spreadsheet, Slurm's nodes, Kubernetes' nodes. Pure.

A scheduler knows how many cards a node has, not how flopwatch calls their slots: whoever imports names them.
"""

from __future__ import annotations

import csv
import difflib
import io
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from flopwatch_collector.inventory import KEYS, Slot, refuse_overlaps, slots_of
from flopwatch_collector.roster.kubernetes_layout import PRODUCT, Node, cards_in
from flopwatch_collector.roster.slurm_layout import nodes_of
from flopwatch_kernels import peaks
from flopwatch_proto.errors import FlopwatchError, UsageError
from flopwatch_proto.rows import SlotState

COLUMNS: Final = {"node": "nodes", "slot": "slots"} | {key: key for key in KEYS}
"""Column of a table → key of the inventory file."""

Places = Callable[[str, int], Sequence[str]]
"""(node, number of its cards) → names of its slots. Raises: UsageError."""


class _Nodes(msgspec.Struct, frozen=True):
    items: list[Node]


def from_csv(text: str, name: str, cluster: str | None) -> list[Slot]:
    """The slots of a table with a header: cluster, node, slot, and any other key of the inventory file.

    Args:
        cluster: of lines that name none.

    Raises:
        UsageError: naming the line, the column and the fix.
    """
    reader = csv.reader(io.StringIO(text.removeprefix("\ufeff")), strict=True)
    slots: list[Slot] = []
    columns: list[str] = []
    try:
        for cells in reader:
            where = f"{name}: line {reader.line_num}"
            if not any(cell.strip() for cell in cells):
                continue
            if not columns:
                columns = [_column(cell.strip().lower(), where) for cell in cells]
                continue
            if len(cells) != len(columns):
                raise UsageError(f"{where}: {len(cells)} cells under {len(columns)} columns")
            pairs = zip(columns, cells, strict=True)
            table = {key: cell.strip() for key, cell in pairs if cell.strip()}
            slots.extend(slots_of({"cluster": cluster} | table if cluster else table, where))
    except csv.Error as exc:
        raise UsageError(f"{name}: line {reader.line_num}: {exc}") from exc
    return _checked(slots, name)


def _column(text: str, where: str) -> str:
    if text not in COLUMNS:
        nearest = difflib.get_close_matches(text, COLUMNS, n=1, cutoff=0.0)[0]
        raise UsageError(f"{where}: unknown column {text!r}; the nearest known one is {nearest!r}")
    return COLUMNS[text]


def from_slurm(
    content: bytes, name: str, *, cluster: str, places: Places, sku: str, state: SlotState
) -> list[Slot]:
    """The cards of ``sinfo --json`` or ``scontrol show nodes --json``.

    Raises:
        UsageError: it is neither, or has no cards.
    """
    try:
        nodes = nodes_of(content)
    except FlopwatchError as exc:
        raise UsageError(f"{name}: {exc}") from exc
    slots = [
        Slot(cluster=cluster, node=node.name, slot=slot, sku=sku, state=state)
        for node in nodes
        if node.cards
        for slot in places(node.name, node.cards)
    ]
    return _checked(slots, name)


def from_kubernetes(
    content: bytes, name: str, *, cluster: str, places: Places, sku: str, state: SlotState
) -> list[Slot]:
    """The cards of ``kubectl get nodes -o json``, by capacity: unhealthy ones are owned as well.

    Raises:
        UsageError: it is something else, or has no cards.
    """
    try:
        nodes = msgspec.json.decode(content, type=_Nodes).items
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise UsageError(f"{name} is not from kubectl get nodes -o json: {exc}") from exc
    slots = [
        Slot(
            cluster=cluster,
            node=node.metadata.name,
            slot=slot,
            sku=sku or _sku(node.metadata.labels.get(PRODUCT, "")),
            state=state,
        )
        for node in nodes
        if (count := int(cards_in(node.status.capacity)))
        for slot in places(node.metadata.name, count)
    ]
    return _checked(slots, name)


def _sku(product: str) -> str:
    """Return a device's name from a label, in which dashes stand for blanks; empty where it is none."""
    name = product.replace("-", " ")
    return name if peaks.peak_flops(name, "bf16") is not None else ""


def _checked(slots: list[Slot], name: str) -> list[Slot]:
    if not slots:
        raise UsageError(f"{name} has no cards; is it the right file?")
    refuse_overlaps(slots, name)
    return slots
