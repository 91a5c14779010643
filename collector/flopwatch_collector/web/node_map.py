"""Where every node of the map stands and what it looks like. Pure; positions depend on names only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

WIDTH: Final = 1392
HEIGHT: Final = 153
LABEL_HEIGHT: Final = 16
GAP: Final = 14
PITCHES: Final = (38, 30, 26, 22, 18, 15, 12, 10, 9, 7, 6)
LETTER_PITCH_MIN: Final = 14
NODES_MAX: Final = 4_000
LABEL_PX: Final = 7
"""Width of a letter of a label."""

_STATES: Final = {
    "FAILED": ("solid", "hardware", "F"),
    "MISSING": ("hollow", "hardware", "×"),
    "UNSEEN": ("hatch", "muted", "?"),
    "MAINT": ("solid", "facility", "W"),
    "HELD": ("hollow", "facility", "H"),
    "STRANDED": ("solid", "scheduling", "S"),
    "FREE": ("hollow", "scheduling", ""),
    "IDLE_ALLOC": ("solid", "workload", "•"),
    "SUSPENDED": ("hatch", "workload", ""),
    "GANG_WAIT": ("hatch", "workload", ""),
    "ALLOCATED": ("hatch", "muted", ""),
}
"""Bucket → fill, owner and letter of a node that is all in it. ACTIVE has the ramp."""

Maps = Mapping[str, Sequence[Mapping[str, Any]]]


def layout(maps: Maps, labels: Mapping[str, str]) -> dict[str, Any]:
    """Return blocks of cells, one block per cluster, in the largest size that fits."""
    shown = {name: nodes for name, nodes in maps.items() if nodes}
    total = sum(len(nodes) for nodes in shown.values())
    pitch = next((p for p in PITCHES if _width(shown, labels, p) <= WIDTH), PITCHES[-1])
    rows = HEIGHT // pitch
    blocks: list[dict[str, Any]] = []
    x, left = 0, NODES_MAX
    for name, nodes in shown.items():
        cells = [
            _cell(node, x + i // rows * pitch, LABEL_HEIGHT + i % rows * pitch, pitch)
            for i, node in enumerate(nodes[:left])
        ]
        left -= len(cells)
        blocks.append({"cluster": name, "label": labels.get(name, name), "x": x, "cells": cells})
        x += _block_width(labels.get(name, name), len(nodes), pitch) + GAP
    return {
        "blocks": blocks,
        "pitch": pitch,
        "size": pitch - (1 if pitch < 12 else 2),
        "letters": pitch >= LETTER_PITCH_MIN,
        "width": max(WIDTH, x),
        "height": LABEL_HEIGHT + rows * pitch,
        "hidden": total - sum(len(b["cells"]) for b in blocks),
    }


def _block_width(label: str, count: int, pitch: int) -> int:
    return max(-(-count // (HEIGHT // pitch)) * pitch, min(24, len(label)) * LABEL_PX)


def _width(maps: Maps, labels: Mapping[str, str], pitch: int) -> int:
    widths = [_block_width(labels.get(n, n), len(nodes), pitch) for n, nodes in maps.items()]
    return sum(widths) + GAP * max(0, len(widths) - 1)


def ramp(ratio: float | None) -> int | None:
    """Return the step of the fixed ramp: tens from 0 to 70 %."""
    return None if ratio is None else min(6, max(0, int(ratio * 10)))


def _cell(node: Mapping[str, Any], x: int, y: int, pitch: int) -> dict[str, Any]:
    worst, counts = node["worst"], node["cards"]
    mixed = len(counts) > 1
    speaks = worst
    if mixed:
        # The fill is the mean of what works; the worst card speaks from the corner.
        speaks = "ACTIVE" if "ACTIVE" in counts else max(counts, key=lambda b: counts[b])
    cell: dict[str, Any] = {
        "node": node["node"],
        "x": x,
        "y": y,
        "notch": _STATES[worst][1] if mixed and worst != speaks and worst in _STATES else "",
        "letter": "",
        "title": describe(node),
    }
    if speaks == "ACTIVE" or (speaks == "ALLOCATED" and node["hfu"] is not None):
        step = ramp(node["hfu"])
        fill = "hatch" if step is None else "ramp"
        return cell | {"fill": fill, "owner": "muted" if step is None else f"r{step}"}
    fill, owner, letter = _STATES[speaks]
    return cell | {"fill": fill, "owner": owner, "letter": letter}


def describe(node: Mapping[str, Any]) -> str:
    """Return a node in words: its cards by bucket and its HFU."""
    words = ", ".join(f"{n} {b.lower().replace('_', ' ')}" for b, n in node["cards"].items())
    hfu = "HFU —" if node["hfu"] is None else f"HFU {100 * node['hfu']:.1f} %"
    return f"{node['node']}: {words} · {hfu}"
