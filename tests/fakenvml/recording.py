"""Recorded answers of a real driver, as a script.

A recording is `{"driver": …, "cuda": …, "devices": [{"calls": {FUNCTION: [{"args": […],
"return": CODE, "value": …, "latency_us": …}, …]}}]}`, values as the Python binding gives them:
structs as objects, pairs as lists. Of a call recorded several times with the same arguments the
last answer counts.
"""

import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from .library import HERE, exported

NOT_SUPPORTED = 3
STRUCTS: Mapping[str, Mapping[str, str]] = {
    "nvmlDeviceGetMemoryInfo": {"total": "memory_total", "used": "memory_used"},
    "nvmlDeviceGetMemoryInfo_v2": {
        "total": "memory_total",
        "used": "memory_used",
        "reserved": "memory_reserved",
    },
    "nvmlDeviceGetBAR1MemoryInfo": {"bar1Total": "bar1_total", "bar1Used": "bar1_used"},
    "nvmlDeviceGetUtilizationRates": {"gpu": "util_gpu", "memory": "util_memory"},
    "nvmlDeviceGetPciInfo_v3": {
        "busId": "pci",
        "pciDeviceId": "pci_device_id",
        "pciSubSystemId": "pci_subsystem_id",
    },
    "nvmlDeviceGetRowRemapperHistogram": {
        name: f"rows_{name}" for name in ("max", "high", "partial", "low", "none")
    },
}
SEQUENCES: Mapping[str, tuple[str, ...]] = {
    "nvmlDeviceGetEncoderUtilization": ("util_encoder",),
    "nvmlDeviceGetDecoderUtilization": ("util_decoder",),
    "nvmlDeviceGetRemappedRows": (
        "remapped_correctable",
        "remapped_uncorrectable",
        "remapped_pending",
        "remapped_failure",
    ),
}
ECC = ("sbe_volatile", "dbe_volatile", "sbe_aggregate", "dbe_aggregate")
TEXTS = {"name", "uuid", "serial", "vbios", "part_number", "pci", "inforom", "gsp_version"}


@cache
def _table() -> dict[str, tuple[str, ...]]:
    """Function to its table's kind and keys, from the table the library itself is made of."""
    rows = re.findall(r"^(\w+)\((nvml\w+), ([^)]+)\)", (HERE / "calls.def").read_text(), re.M)
    return {fn: (kind, *keys.split(", ")) for kind, fn, keys in rows}


def _pairs(fn: str, args: list[Any], value: Any) -> Iterator[tuple[str, Any]]:
    """The keys a recorded answer gives, and their values."""
    kind, *keys = _table().get(fn, ("",))
    if kind == "ARG":
        yield keys[args[0]], value
    elif kind == "PAIR":
        yield from zip(keys, value, strict=True)
    elif kind:
        yield keys[0], value
    elif fn in STRUCTS:
        yield from ((key, value[name]) for name, key in STRUCTS[fn].items() if name in value)
    elif fn in SEQUENCES:
        yield from zip(SEQUENCES[fn], value, strict=False)
    elif fn == "nvmlDeviceGetTotalEccErrors":
        yield f"ecc_{ECC[args[1] * 2 + args[0]]}", value


def _fields(card: str, values: list[dict[str, Any]]) -> Iterator[str]:
    for field in values:
        name = f"{field['fieldId']}" + (f":{field['scopeId']}" if field.get("scopeId") else "")
        if field["nvmlReturn"]:
            yield f"{card} field_return {name} {field['nvmlReturn']}"
        else:
            yield f"{card} field {name} {field['value']}"


def _answer(card: str, fn: str, answer: dict[str, Any]) -> Iterator[str]:
    args: list[Any] = answer.get("args", [])
    value: Any = answer.get("value")
    if fn == "nvmlDeviceGetFieldValues":
        yield from _fields(card, value)
    elif fn == "nvmlGpmMetricsGet":
        yield f"{card} gpm {args[0]} {value}"
    elif pairs := [(k, v) for k, v in _pairs(fn, args, value) if k != "none"]:
        for key, v in pairs:
            yield f"{card} {key} {json.dumps(v, ensure_ascii=False) if key in TEXTS else v}"
    else:
        yield f"# not replayed: {fn}"


def _call(card: str, fn: str, answers: list[dict[str, Any]]) -> Iterator[str]:
    latest = list({json.dumps(a.get("args", [])): a for a in answers}.values())
    codes = {a["return"] for a in latest}
    for answer in latest:
        if answer["return"] == 0:
            yield from _answer(card, fn, answer)
        elif fn == "nvmlGpmMetricsGet":
            yield f"{card} gpm_return {answer['args'][0]} {answer['return']}"
    # A value left out is NOT_SUPPORTED already; a rule would answer for every argument at once.
    if fn not in exported() or fn == "nvmlGpmMetricsGet" or len(codes) > 1:
        return
    if codes - {0, NOT_SUPPORTED}:
        yield f"{card} error {fn} {codes.pop()}"
    if waits := [a["latency_us"] for a in latest if a.get("latency_us", 0) >= 1000]:
        yield f"{card} latency {fn} {max(waits) / 1000}"


def replay(recording: Mapping[str, Any]) -> list[str]:
    """The lines that make the fake answer as the recorded driver did."""
    lines = [f"driver {recording['driver']}"]
    if recording.get("cuda"):
        lines.append(f"cuda {recording['cuda']}")
    for slot, card in enumerate(recording["devices"]):
        lines.append(f"devices {slot + 1}")
        for fn, answers in card["calls"].items():
            lines.extend(_call(f"device {slot}", fn, answers))
    return lines
