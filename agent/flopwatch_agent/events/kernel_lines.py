"""Lines of the kernel log, as NVIDIA's modules write them → events. Pure.

    NVRM: Xid (PCI:0000:4e:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.
    NVRM: Xid (PCI:0000:65:00 GPU-I:03): 94, pid=7194, name=python, Ch 00000008
    nvidia-nvswitch3: SXid (PCI:0000:c1:00.0): 28006, Non-fatal, Link 46 MC TS crumbstore MCTO (First)
    NVRM: GPU at 0000:01:00.0 has fallen off the bus.
    NVRM: The NVIDIA GPU 0000:04:00.0 (PCI ID: 10de:2c02) installed in this system has
    NVRM: fallen off the bus and is not responding to commands.

A code has several lines: of an SXid only the one that says whether it is fatal is told, of an Xid each
is (`once` keeps one). Xid 0 is none. The last two lines above are one message: what the first says of a
card is remembered for the next few lines.
"""

from __future__ import annotations

import re
from typing import Final

from flopwatch_proto.v1 import telemetry_pb2 as pb

LINE_CHARACTERS_MAX: Final = 2_000
_LINES_REMEMBERED: Final = 4

_PCI: Final = r"(?:PCI:)?([0-9a-fA-F]{4,8}):([0-9a-fA-F]{2}):([0-9a-fA-F]{2})"
_XID: Final = re.compile(
    rf"NVRM: Xid \({_PCI}(?:\.\d)?(?: GPU-I:([0-9a-fA-F]+))?[^)]*\): (\d{{1,5}})\b[, ]*(.*)"
)
_SXID: Final = re.compile(
    rf"(nvidia-nvswitch\d+): SXid \({_PCI}(?:\.\d)?\): (\d{{1,6}}), (Non-fatal|Fatal),? *(.*)"
)
_CARD: Final = re.compile(rf"NVRM: .*?\bGPU (?:at )?{_PCI}")
_GONE: Final = "fallen off the bus"
_UNKNOWN: Final = re.compile(r"(pid|name)='?<unknown>'?,? ?")
_UNPRINTABLE: Final = re.compile(r"[^\x20-\x7e]+")


class KernelLines:
    """Reads one line after the other. Times are what the log says, in Unix milliseconds."""

    def __init__(self) -> None:
        self._card = ""
        self._card_lines = 0

    def read(self, message: str, time_unix_ms: int) -> list[pb.Event]:
        """Return what a message says; one message may hold several lines."""
        events = []
        for line in message[: 8 * LINE_CHARACTERS_MAX].splitlines():
            event = self._line(_UNPRINTABLE.sub(" ", line[:LINE_CHARACTERS_MAX]))
            if event is not None:
                event.time_unix_ms = time_unix_ms
                events.append(event)
        return events

    def _line(self, line: str) -> pb.Event | None:
        if found := _XID.search(line):
            return _xid(found)
        if found := _SXID.search(line):
            return _sxid(found)
        if "NVRM" not in line:
            return None
        if found := _CARD.search(line):
            self._card, self._card_lines = _slot(*found.groups()), _LINES_REMEMBERED
        elif self._card_lines:
            self._card_lines -= 1
        if _GONE not in line or not self._card_lines:
            return None
        return pb.Event(kind="card_lost", slot=self._card, text="the GPU has fallen off the bus")


def _slot(domain: str, bus: str, device: str) -> str:
    return f"{int(domain, 16):04x}:{bus.lower()}:{device.lower()}.0"


def _xid(found: re.Match[str]) -> pb.Event | None:
    domain, bus, device, instance, code, rest = found.groups()
    if int(code) == 0:
        return None
    text = f"Xid {code}"
    if instance is not None:
        text += f" in GPU instance {int(instance, 16)}"
    if rest := _UNKNOWN.sub("", rest).strip():
        text += f": {rest[:300]}"
    return pb.Event(kind="xid", slot=_slot(domain, bus, device), code=int(code), text=text)


def _sxid(found: re.Match[str]) -> pb.Event:
    """An SXid is no card's: the switch stands in the text."""
    switch, domain, bus, device, code, fatal, rest = found.groups()
    text = f"{switch} ({_slot(domain, bus, device)}): SXid {code}, {fatal}, {rest[:300]}"
    severity = "fatal" if fatal == "Fatal" else ""
    return pb.Event(kind="sxid", code=int(code), severity=severity, text=text)
