"""One event for one thing that happened, though two origins tell it (the driver's event set and the kernel
log), or one tells it line by line."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

from flopwatch_proto.v1 import telemetry_pb2 as pb

SAME_MS_MAX: Final = 5_000
"""Two events of one slot and code that are nearer than this are one."""

_REMEMBERED: Final = 1_000
_DOUBLED: Final = frozenset({"xid", "sxid", "card_lost"})


class Once:
    """Keeps the first of each. Attributes: repeated_total: events that said what was told already."""

    def __init__(self) -> None:
        self.repeated_total = 0
        self._told: OrderedDict[tuple[str, str, int, str], int] = OrderedDict()

    def fresh(self, events: Iterable[pb.Event]) -> list[pb.Event]:
        """Return the events that say something new, in their order."""
        return [event for event in events if self._is_fresh(event)]

    def _is_fresh(self, event: pb.Event) -> bool:
        if event.kind not in _DOUBLED:
            return True
        # An SXid has no slot; its text begins with the switch.
        switch = event.text.partition(":")[0] if event.kind == "sxid" else ""
        key = (event.kind, event.slot, event.code, switch)
        before = self._told.get(key)
        if before is not None and abs(event.time_unix_ms - before) <= SAME_MS_MAX:
            self.repeated_total += 1
            return False
        self._told[key] = event.time_unix_ms
        self._told.move_to_end(key)
        while len(self._told) > _REMEMBERED:
            self._told.popitem(last=False)
        return True
