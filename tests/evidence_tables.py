"""Tables of evidence for tests of the ledger, written by hand: the columns the store would return."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from flopwatch_collector.ledger.evidence import ROSTER_COLUMNS, ROW_COLUMNS, SLOT_COLUMNS
from flopwatch_collector.ledger.lines import LINE_TEXTS
from flopwatch_proto.rows import Bucket, SlotState

H100 = "NVIDIA H100 80GB HBM3"
H100_BF16_FLOPS = 989.4e12
GPM_SPREAD = 1.96 * (0.005**2 + 0.004**2 + 0.01**2) ** 0.5
"""95 % of counter, sampled clock and calibration: by how much bounds of what was counted are wider."""
MINUTE = 60_000

_ROW_TEXTS = {*LINE_TEXTS, "node", "slot", "spool_id"}
_ROW_INTS = {
    "start_unix_ms", "duration_ms", "bucket", "stored_unix_ms",
    "card_ms", "covered_ms", "counted_ms", "resident_ms",
}  # fmt: skip


def slot(
    node: str = "n0", name: str = "s0", start: int = 0, end: int = 0, **more: Any
) -> dict[str, Any]:
    return {
        "node": node, "slot": name, "from_unix_ms": start, "to_unix_ms": end,
        "state": SlotState.IN_SERVICE, "sku": H100, "device_kind": "gpu", "dtype": "bf16",
        "simulated": False,
    } | more  # fmt: skip


def row(
    start: int,
    bucket: Bucket = Bucket.ACTIVE,
    *,
    node: str = "n0",
    name: str = "s0",
    duration: int = 10_000,
    weight: float = 1.0,
    sm: float | None = None,
    tensor: float | None = None,
    clock: float = 1.0,
    peak: float = H100_BF16_FLOPS,
    **more: Any,
) -> dict[str, Any]:
    """Return a row; ``sm``, ``tensor`` and ``clock`` are ratios, clock of the reference clock."""
    card_ms = round(duration * weight)
    resident = bucket is Bucket.ACTIVE
    made: dict[str, Any] = {
        "node": node, "slot": name, "start_unix_ms": start, "duration_ms": duration,
        "bucket": int(bucket), "rogue": False, "spool_id": "a", "stored_unix_ms": 1,
        "sku": H100, "device_kind": "gpu", "dtype": "bf16",
        "card_ms": card_ms, "covered_ms": card_ms, "counted_ms": 0,
        "resident_ms": card_ms if resident else 0,
        "capacity_flops": peak * card_ms / 1000,
    }  # fmt: skip
    if sm is not None and tensor is not None:
        u = tensor * clock * made["capacity_flops"]
        made |= {
            "counted_ms": card_ms, "efficiency_method": "gpm",
            "sm_active_ms": sm * card_ms, "tensor_active_ms": tensor * card_ms,
            "sm_active_clock_ms": sm * clock * card_ms,
            "tensor_active_clock_ms": tensor * clock * card_ms,
            "u_flops": u, "u_lo_flops": u, "u_hi_flops": u,
        }  # fmt: skip
    return made | more


def roster(
    taken: int,
    entries: Sequence[Mapping[str, Any]],
    valid_ms: int = 5 * MINUTE,
    *,
    pending: int = 0,
    free: float | None = None,
) -> list[dict[str, Any]]:
    """Return a roster's records: its header and one per entry (node, slot, bucket, job, team, weight).

    free: free cards by its own count; None: it knows no queue.
    """
    head = {
        "source": "scenario", "taken_unix_ms": taken, "valid_until_unix_ms": taken + valid_ms,
        "node": "", "slot": "", "bucket": 0, "job": "", "team": "", "workload_class": "",
        "weight": 0.0, "pending_cards": pending, "free_cards": free,
    }  # fmt: skip
    return [head, *(head | {"node": "n0", "slot": "s0", "weight": 1.0} | dict(e) for e in entries)]


def slot_table(records: Sequence[Mapping[str, Any]]) -> pa.Table:
    return _table(records, {n: _slot_type(n) for n in SLOT_COLUMNS})


def row_table(records: Sequence[Mapping[str, Any]]) -> pa.Table:
    return _table(records, {n: _row_type(n) for n in ROW_COLUMNS})


def roster_table(records: Sequence[Mapping[str, Any]]) -> pa.Table:
    return _table(records, {n: _roster_type(n) for n in ROSTER_COLUMNS})


def _table(records: Sequence[Mapping[str, Any]], types: Mapping[str, pa.DataType]) -> pa.Table:
    blank = {pa.string(): "", pa.bool_(): False}
    return pa.table(
        {
            name: pa.array([r.get(name, blank.get(kind)) for r in records], kind)
            for name, kind in types.items()
        }
    )


def _row_type(name: str) -> pa.DataType:
    if name in _ROW_TEXTS:
        return pa.string()
    if name in _ROW_INTS:
        return pa.int64()
    return pa.bool_() if name == "rogue" else pa.float64()


def _slot_type(name: str) -> pa.DataType:
    if name in ("from_unix_ms", "to_unix_ms", "state"):
        return pa.int64()
    return pa.bool_() if name == "simulated" else pa.string()


def _roster_type(name: str) -> pa.DataType:
    if name in ("taken_unix_ms", "valid_until_unix_ms", "bucket", "pending_cards"):
        return pa.int64()
    return pa.float64() if name in ("weight", "free_cards") else pa.string()
