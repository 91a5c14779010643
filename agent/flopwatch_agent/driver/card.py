"""One card: what of the tables it supports, and its next reading."""

from __future__ import annotations

import time
from typing import Final

from flopwatch_agent.driver.calls import (
    PROVIDERS,
    SLOW_READS,
    SM_CLOCK_NOW,
    Call,
    Field,
    FieldBatch,
    Provider,
)
from flopwatch_agent.driver.clock import ClockBuffer
from flopwatch_agent.driver.gpm import METRICS, Gpm
from flopwatch_agent.driver.inventory import Listed, mig_instances
from flopwatch_agent.driver.library import SUCCESS, UNKNOWN_ID, UNSUPPORTED, DeviceLost, Library
from flopwatch_agent.driver.messages import DeviceReading, ProcessInfo
from flopwatch_agent.driver.processes import ComputeProcesses
from flopwatch_proto.rows import Absence

_APPLICATION_CLOCK: Final = 0x2
"""Bit of the clock-event reasons: held at an application clock."""

_APPLICATION_SECONDS: Final = "throttled_application_clock_seconds_total"
_NAMES: Final = frozenset(
    {*(name for p in PROVIDERS for name in p.names), *METRICS, "sm_clock_mhz", _APPLICATION_SECONDS}
)


class Card:
    """A card and what is remembered between its readings.

    Attributes:
        stale: its MIG devices are not those of the inventory any more.
        silent: every call of the last reading failed, as when the device node was taken away.
    """

    def __init__(
        self, library: Library, listed: Listed, processes: ComputeProcesses, first_read: int
    ) -> None:
        """Look at what the card supports.

        Args:
            first_read: offset of its slow readings, so that those of all cards do not fall together.
        """
        self.info = listed.info
        self.stale = False
        self.silent = False
        self._library = library
        self._handle = listed.handle
        self._processes = processes
        self._first_read = first_read
        self._reads = 0
        self._unsupported: set[Provider] = set()
        self._asked: set[Call] = set()
        self._held: dict[str, float | Absence] = {}
        self._counts: dict[str, tuple[float, int]] = {}
        self._codes: set[int] = set()
        self._read_ns: int | None = None
        self._gpm = Gpm(library, listed.handle)
        self._clock: ClockBuffer | None = None
        self._plan()

    def _plan(self) -> None:
        """Choose the provider of every field: the first that has not said "not supported"."""
        taken = set(self._gpm.names)
        chosen: list[Provider] = []
        for provider in PROVIDERS:
            if provider not in self._unsupported and not taken.issuperset(provider.names):
                chosen.append(provider)
                taken.update(provider.names)
        fields = [p for p in chosen if isinstance(p, Field)]
        self._fast_fields = FieldBatch(tuple(f for f in fields if not f.slow))
        self._all_fields = FieldBatch(tuple(fields))
        self._calls = [p for p in chosen if isinstance(p, Call)]
        self._planned_gpm = self._gpm.names
        for name in _NAMES - taken - {"sm_clock_mhz", _APPLICATION_SECONDS}:
            self._held[name] = Absence.NOT_SUPPORTED

    def read(self) -> DeviceReading:
        """Return the card's next reading; a card that is lost says so as its failure."""
        taken_unix_ms = time.time_ns() // 1_000_000
        now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        try:
            processes = self._read_all(now_ns)
        except DeviceLost as lost:
            return self._failed(taken_unix_ms, now_ns, lost.failure)
        self._reads += 1
        self._read_ns = now_ns
        if self.silent:
            return self._failed(taken_unix_ms, now_ns, "no_answer")
        values = {n: v for n, v in self._held.items() if not isinstance(v, Absence)}
        absences = {n: int(v) for n, v in self._held.items() if isinstance(v, Absence)}
        return DeviceReading(
            slot=self.info.slot,
            taken_unix_ms=taken_unix_ms,
            boottime_ns=now_ns,
            values=values,
            absences={n: code for n, code in absences.items() if code != Absence.MISSING},
            processes=processes,
            gpm_denied=self._gpm.denied,
        )

    def _failed(self, taken_unix_ms: int, now_ns: int, failure: str) -> DeviceReading:
        return DeviceReading(
            slot=self.info.slot, taken_unix_ms=taken_unix_ms, boottime_ns=now_ns, failure=failure
        )

    def _is_unsupported(self, code: int) -> bool:
        # Later, an invalid argument is the handle: the card went away, its abilities did not.
        return code in (UNKNOWN_ID if self._reads == 0 else UNSUPPORTED)

    def _read_all(self, now_ns: int) -> list[ProcessInfo] | None:
        slow = self._reads == 0 or (self._reads + self._first_read) % SLOW_READS == 0
        self._codes.clear()
        self._read_gpm(now_ns)
        self._read_clock()
        self._read_fields(slow, now_ns)
        self._read_calls(slow)
        self._count_application_clock(now_ns)
        if slow:
            self.stale |= mig_instances(self._library, self._handle) != self.info.instances
        self.silent = bool(self._codes) and SUCCESS not in self._codes
        return self._processes.read(self._handle)

    def _settle(self, name: str, code: int, value: float) -> None:
        self._codes.add(code)
        self._held[name] = value if code == SUCCESS else Absence.FAILED

    def _read_gpm(self, now_ns: int) -> None:
        # A mean holds for its own time only: what was not read now is missing, not the last value.
        self._held.update(dict.fromkeys(self._gpm.names, Absence.MISSING))
        self._held.update(self._gpm.read(now_ns))
        if self._planned_gpm != self._gpm.names:
            self._plan()

    def _read_clock(self) -> None:
        if self._clock is None:
            self._clock = ClockBuffer(self._library, self._handle)
        if (mean := self._clock.mean_mhz()) is not None:
            self._settle("sm_clock_mhz", SUCCESS, mean)
            return
        code, out = SM_CLOCK_NOW.run(self._library, self._handle)
        if self._is_unsupported(code):
            self._held["sm_clock_mhz"] = Absence.NOT_SUPPORTED
        else:
            self._settle("sm_clock_mhz", code, float(out.value))

    def _read_fields(self, slow: bool, now_ns: int) -> None:
        batch = self._all_fields if slow or self._reads == 0 else self._fast_fields
        gone = set()
        for field, code, value in batch.read(self._library, self._handle):
            if self._is_unsupported(code):
                gone.add(field)
            elif field.per_second and code == SUCCESS:
                self._settle_rate(field, value * field.scale, now_ns)
            else:
                self._settle(field.name, code, value * field.scale)
        if gone:
            self._unsupported |= gone
            self._plan()
            self._read_fields(slow, now_ns)  # with the next providers of what is gone

    def _settle_rate(self, field: Field, count: float, now_ns: int) -> None:
        before = self._counts.get(field.name)
        self._counts[field.name] = (count, now_ns)
        if before is None or now_ns <= before[1] or count < before[0]:
            self._held[field.name] = Absence.MISSING
            return
        self._settle(field.name, SUCCESS, (count - before[0]) / ((now_ns - before[1]) / 1e9))

    def _read_calls(self, slow: bool) -> None:
        done: set[Call] = set()
        while due := [
            call
            for call in self._calls
            if call not in done and (slow or not call.slow or call not in self._asked)
        ]:
            gone = {call for call in due if not self._read_call(call)}
            done.update(due)
            if gone:
                self._unsupported |= gone
                self._plan()
        self._asked |= done

    def _read_call(self, call: Call) -> bool:
        """Read one; False when the card does not support it."""
        code, out = call.run(self._library, self._handle)
        if self._is_unsupported(code):
            return False
        for name, attribute, scale in call.gives:
            value = float(getattr(out, attribute)) * scale if code == SUCCESS else 0.0
            self._settle(name, code, value)
        return True

    def _count_application_clock(self, now_ns: int) -> None:
        """Add up the time with the bit set: the driver has no counter of this reason."""
        reasons = self._held.get("clock_event_reasons", Absence.NOT_SUPPORTED)
        if isinstance(reasons, Absence):
            self._held[_APPLICATION_SECONDS] = reasons
            return
        total = self._held.get(_APPLICATION_SECONDS, 0.0)
        total = 0.0 if isinstance(total, Absence) else total
        if self._read_ns is not None and int(reasons) & _APPLICATION_CLOCK:
            total += (now_ns - self._read_ns) / 1e9
        self._held[_APPLICATION_SECONDS] = total

    def close(self) -> None:
        """Free what the library allocated for the card."""
        self._gpm.close()
