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
from flopwatch_agent.driver.gpm import METRICS, Gpm, Means, Request
from flopwatch_agent.driver.instances import Instances
from flopwatch_agent.driver.inventory import Listed, MigDevice, mig_devices
from flopwatch_agent.driver.library import SUCCESS, UNKNOWN_ID, UNSUPPORTED, DeviceLost, Library
from flopwatch_agent.driver.messages import DeviceReading, InstanceReading, ProcessInfo
from flopwatch_agent.driver.processes import ComputeProcesses
from flopwatch_proto.rows import Absence

_APPLICATION_CLOCK: Final = 0x2
"""Bit of the clock-event reasons: held at an application clock."""

_TRUST: Final = ("gpm", "cycle_counters")
"""Methods, the lesser first: a card is only as good as the least of what was read of it."""

_APPLICATION_SECONDS: Final = "throttled_application_clock_seconds_total"
_NAMES: Final = frozenset(
    {*(name for p in PROVIDERS for name in p.names), *METRICS, "sm_clock_mhz", _APPLICATION_SECONDS}
)


def _boottime_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


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
        self._listed = listed.instances
        self._processes = processes
        self._first_read = first_read
        self._reads = 0
        self._unsupported: set[Provider] = set()
        self._calls: list[Call] = []
        self._values: dict[str, float] = {}
        self._absences: dict[str, int] = {}
        self._counts: dict[str, tuple[float, int]] = {}
        self._codes: set[int] = set()
        self._read_ns: int | None = None
        request = Request(library)
        handle = listed.handle
        self._gpm = Gpm(library, handle, request, _boottime_ns, listed.info.sm_count)
        self._instances = Instances(library, handle, request, _boottime_ns, listed.instances)
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
        before, self._calls = self._calls, [p for p in chosen if isinstance(p, Call)]
        self._fast_calls = [call for call in self._calls if not call.slow]
        self._due_calls = [call for call in self._calls if not call.slow or call not in before]
        self._planned_gpm = self._gpm.names
        for name in _NAMES - taken - {"sm_clock_mhz", _APPLICATION_SECONDS}:
            self._put(name, Absence.NOT_SUPPORTED)

    def read(self) -> DeviceReading:
        """Return the card's next reading; a card that is lost says so as its failure."""
        taken_unix_ms = time.time_ns() // 1_000_000
        now_ns = _boottime_ns()
        self._codes.clear()
        try:
            means, instances = self._read_metrics(now_ns)
            processes = self._read_rest(now_ns)
        except DeviceLost as lost:
            return self._failed(taken_unix_ms, now_ns, lost.failure)
        self._reads += 1
        self._read_ns = now_ns
        if self.silent:
            return self._failed(taken_unix_ms, now_ns, "no_answer")
        # A mean holds for its own time only: what was not read now is missing, not the last value.
        values, absences = self._values.copy(), self._absences.copy()
        for name, mean in means.items():
            if isinstance(mean, Absence):
                absences[name] = int(mean)
            else:
                values[name] = mean
        gpms = (self._gpm, *self._instances.gpms.values())
        return DeviceReading(
            slot=self.info.slot,
            taken_unix_ms=taken_unix_ms,
            boottime_ns=now_ns,
            values=values,
            absences=absences,
            processes=processes,
            gpm_denied=any(gpm.denied for gpm in gpms),
            method=min(
                (gpm.method for gpm in gpms if "tensor_active_ratio" in gpm.names),
                key=_TRUST.index,
                default="gpm",
            ),
            disagreement=next((why for gpm in gpms if (why := gpm.disagreement)), None),
            instances=instances,
        )

    def _failed(self, taken_unix_ms: int, now_ns: int, failure: str) -> DeviceReading:
        return DeviceReading(
            slot=self.info.slot, taken_unix_ms=taken_unix_ms, boottime_ns=now_ns, failure=failure
        )

    def _is_unsupported(self, code: int) -> bool:
        # Later, an invalid argument is the handle: the card went away, its abilities did not.
        return code != SUCCESS and code in (UNKNOWN_ID if self._reads == 0 else UNSUPPORTED)

    def _read_metrics(self, now_ns: int) -> tuple[Means, dict[str, InstanceReading]]:
        """Return the means since the last reading, of the card and of its MIG devices; and the clock."""
        gpms = (self._gpm, *self._instances.gpms.values())
        clock = self._read_clock() if any(gpm.wants_clock for gpm in gpms) else None
        means = self._gpm.read(now_ns, clock)
        if self._planned_gpm != self._gpm.names:
            self._plan()
        instances: dict[str, InstanceReading] = {}
        if self._listed:
            present = self._look_at_instances()
            instances = self._instances.read(now_ns, clock, present)
            for name, mean in self._instances.of_card(instances).items():
                if not isinstance(means.get(name), float):
                    means[name] = mean
        if "sm_clock_mhz" not in means and clock is None:
            self._read_clock()
        return means, instances

    def _look_at_instances(self) -> tuple[MigDevice, ...]:
        present = mig_devices(self._library, self._handle)
        self.stale |= present != self._listed
        return present

    def _read_rest(self, now_ns: int) -> list[ProcessInfo] | None:
        slow = self._reads == 0 or (self._reads + self._first_read) % SLOW_READS == 0
        self._read_fields(slow, now_ns)
        self._read_calls(slow)
        self._count_application_clock(now_ns)
        if slow and not self._listed:
            self._look_at_instances()
        self.silent = bool(self._codes) and SUCCESS not in self._codes
        return self._processes.read(self._handle)

    def _put(self, name: str, value: float | Absence) -> None:
        if isinstance(value, Absence):
            self._values.pop(name, None)
            if value is Absence.MISSING:
                self._absences.pop(name, None)
            else:
                self._absences[name] = int(value)
        else:
            self._values[name] = value
            self._absences.pop(name, None)

    def _settle(self, name: str, code: int, value: float) -> None:
        self._codes.add(code)
        if code == SUCCESS:
            self._values[name] = value
            self._absences.pop(name, None)
        else:
            self._put(name, Absence.FAILED)

    def _read_clock(self) -> float | None:
        """Return the mean SM clock since it was last read, or the clock now; None: neither is known."""
        if self._clock is None:
            self._clock = ClockBuffer(self._library, self._handle)
        if (mean := self._clock.mean_mhz()) is not None:
            self._settle("sm_clock_mhz", SUCCESS, mean)
            return mean
        code, out = SM_CLOCK_NOW.run(self._library, self._handle)
        if self._is_unsupported(code):
            self._put("sm_clock_mhz", Absence.NOT_SUPPORTED)
            return None
        self._settle("sm_clock_mhz", code, float(out.value))
        return float(out.value) if code == SUCCESS else None

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
            self._put(field.name, Absence.MISSING)
            return
        self._settle(field.name, SUCCESS, (count - before[0]) / ((now_ns - before[1]) / 1e9))

    def _read_calls(self, slow: bool) -> None:
        due = self._calls if slow else self._due_calls
        while gone := [call for call in due if not self._read_call(call)]:
            known = self._calls
            self._unsupported.update(gone)
            self._plan()
            due = [call for call in self._calls if call not in known]
        self._due_calls = self._fast_calls

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
        reasons = self._values.get("clock_event_reasons")
        if reasons is None:
            why = self._absences.get("clock_event_reasons", Absence.NOT_SUPPORTED)
            self._put(_APPLICATION_SECONDS, Absence(why))
            return
        total = self._values.get(_APPLICATION_SECONDS, 0.0)
        if self._read_ns is not None and int(reasons) & _APPLICATION_CLOCK:
            total += (now_ns - self._read_ns) / 1e9
        self._put(_APPLICATION_SECONDS, total)

    def close(self) -> None:
        """Free what the library allocated for the card."""
        self._gpm.close()
        self._instances.close()
