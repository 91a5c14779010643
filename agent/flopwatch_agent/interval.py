"""Consecutive readings of a slot, folded into interval rows. Pure; no clock but the readings' own.

    reading r0 ──── reading r1 ──── reading r2            readings: wall ms and boottime ns
       │ shares s0     │ shares s1     │                  s0 hold from r0 until r1
       ├── row ──┼─────┴── row ─┼──────┤                  rows: cut at UTC multiples of the interval
              boundary       boundary                     and where a share's identity changes

Invariants:

- Rows of a slot tile the time between readings: whole wall milliseconds, no hole, no overlap, no start
  before the end of the slot's last row. The rows of a card's shares add up to its duration exactly.
- r1's means and the differences of the counters belong to [r0, r1), spread evenly over it; so the
  sums do not depend on how often one reads.
- Silence is not data: longer than `gap_ms_max` without a reading, or a wall clock that jumps forward,
  closes the row and leaves a hole. Time that a wall clock stepping back repeats is skipped, unless it is
  more than `AHEAD_MS_MAX`. Both kinds of step are kept in `steps` for whoever reports them.
- A card cut into MIG devices has a row per device: activity is the device's, the rest is the card's, and
  both by the device's weight.
- A driver that does not answer leaves the last bucket for `SILENCE_MS_MAX`, then the slot is FAILED;
  all that while nothing is covered and the quantities are FAILED.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

from flopwatch_agent.between import CARD, between, last_said
from flopwatch_agent.rates import UNCALIBRATED, Rates, Trust, rates
from flopwatch_agent.reading import Device, Reading, Share
from flopwatch_agent.shares import Finals, Holder, confirmed, declared, identity, split, whole
from flopwatch_agent.sums import Increment, Sums
from flopwatch_kernels import peaks
from flopwatch_proto.codec import IntervalRow
from flopwatch_proto.rows import INTERVAL_MS, Bucket

SILENCE_MS_MAX: Final = 30_000
"""How long a slot keeps its bucket while its driver says nothing."""

CLOCK_STEP_MS_MIN: Final = 1_000
"""Wall and boot clock may disagree by less than this between two readings (jitter, slewing)."""

AHEAD_MS_MAX: Final = 3_600_000
"""Rows that end further ahead of the wall clock than this came from a clock that was wrong: a slot does not
wait until the time they claim has passed."""

_STEPS_MAX: Final = 256
_rates = lru_cache(maxsize=1024)(rates)
_CARD_TIME: Final = frozenset({"step_ms", "reported_mfu_ms", "reported_ms"})  # of a job's: weighted
_RELEASED: Final = "released"  # an operator's wish: whoever holds the card by now goes on to
_CARD_LOST: Final = frozenset({"gpu_is_lost"})  # an answer, not a silence: FAILED at once


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockStep:
    """The wall clock moved by something else than the time that passed.

    Attributes:
        before_unix_ms: wall clock of the older reading.
        after_unix_ms: wall clock of the newer one.
        elapsed_ms: time that really passed between them.
    """

    slot: str
    before_unix_ms: int
    after_unix_ms: int
    elapsed_ms: float


@dataclass(slots=True, kw_only=True)
class _Slot:
    """One slot between readings.

    Attributes:
        reading: the newest.
        shares: what holds from it on.
        end_unix_ms: up to here time is accounted for; nothing starts before it.
        start_unix_ms: start of the open row.
        parts: sums of each MIG device, over the same time as `sums`; None: of the card beside those that
            the shares name.
        work: what jobs counted in the open row, by (job, instance) and column.
        answered: the newest reading of an answering driver.
        silent_since_ns: boottime of the first reading of a silence.
        texts: row texts per share, without the method; made when an identity changes.
    """

    reading: Reading
    shares: tuple[Share, ...]
    end_unix_ms: int
    start_unix_ms: int
    sums: Sums = field(default_factory=Sums)
    parts: dict[str | None, Sums] = field(default_factory=dict)
    work: dict[Holder, dict[str, float]] = field(default_factory=dict)
    answered: Reading | None = None
    silent_since_ns: int | None = None
    texts: list[dict[str, str | None]] = field(default_factory=list)


class Fold:
    """Folds the readings of any number of slots.

    Args:
        interval_ms: length of a row; rows are cut at its UTC multiples.
        dtype: of rows whose job declares none that the card has.
        achievable: (device uuid or slot, dtype) → measured ceiling, FLOP/s; looked up as rows close.
        trust: what calibrations say of a device; asked as rows close.
        gap_ms_max: longest time between two readings that still counts as watched. At least three
            times the reading period.
        resume_unix_ms: end of the last row of an earlier run; no row starts before it.
    """

    def __init__(
        self,
        *,
        interval_ms: int = INTERVAL_MS,
        dtype: str = "bf16",
        achievable: Mapping[tuple[str, str], float] | None = None,
        trust: Callable[[Device], Trust] = lambda _: UNCALIBRATED,
        gap_ms_max: int = 30_000,
        resume_unix_ms: int = 0,
    ) -> None:
        self.interval_ms = interval_ms
        self.dtype = dtype
        self.achievable = {} if achievable is None else achievable
        self.trust = trust
        self.gap_ms_max = gap_ms_max
        self.steps: deque[ClockStep] = deque(maxlen=_STEPS_MAX)
        self.steps_total = 0
        self._resume_unix_ms = resume_unix_ms
        self._slots: dict[str, _Slot] = {}

    def add(
        self, reading: Reading, shares: Sequence[Share], finals: Finals | None = None
    ) -> list[IntervalRow]:
        """Take a reading and who holds the card from it on; return the rows it completes.

        Args:
            reading: the slot's next one.
            shares: weights sum to 1; what is missing to 1 is FREE, none at all is one FREE share.
            finals: last counter values of the jobs that held the card until this reading.
        """
        shares = whole(shares, reading.device)
        slot = self._slots.get(reading.device.slot)
        completed: list[IntervalRow] = []
        if slot is None:
            start = reading.taken_unix_ms
            if self._resume_unix_ms - start <= AHEAD_MS_MAX:
                start = max(start, self._resume_unix_ms)
            slot = _Slot(reading=reading, shares=(), end_unix_ms=start, start_unix_ms=start)
            slot.shares = self._in_force(slot, reading, shares)
            slot.texts = self._texts(slot)
            self._slots[reading.device.slot] = slot
        else:
            self._settle(slot, reading, completed)
            self._cover(slot, reading, shares, finals or {}, completed)
            self._hold(slot, reading, shares, completed)
        if reading.alive:
            slot.answered = reading
        return completed

    def close(self, until_unix_ms: int) -> list[IntervalRow]:
        """Return the open rows of the slots last read at or before a moment, up to that reading.

        At the end of a run, or now and then for slots that went silent. Readings may go on after it.
        """
        completed: list[IntervalRow] = []
        for slot in self._slots.values():
            if slot.reading.taken_unix_ms <= until_unix_ms:
                self._finish(slot, completed)
        return completed

    def _settle(self, slot: _Slot, reading: Reading, completed: list[IntervalRow]) -> None:
        """Decide who held the card since the last reading, where that waited for this one."""
        held = confirmed(slot.shares, reading)
        if held is not slot.shares:
            self._finish(slot, completed)
            slot.shares = held
            slot.texts = self._texts(slot)

    def _cover(
        self,
        slot: _Slot,
        reading: Reading,
        shares: tuple[Share, ...],
        finals: Finals,
        completed: list[IntervalRow],
    ) -> None:
        """Account for the time from the last reading to this one, as far as it was watched."""
        before = slot.reading
        start, now = before.taken_unix_ms, reading.taken_unix_ms
        wall_ms = now - start
        elapsed_ms = (reading.boottime_ns - before.boottime_ns) / 1e6
        if elapsed_ms <= 0.0:
            elapsed_ms = float(max(0, wall_ms))  # no boot clock: believe the wall
        end = now
        if abs(wall_ms - elapsed_ms) >= CLOCK_STEP_MS_MIN:
            self._stepped(slot, now, elapsed_ms)
            end = min(now, start + round(elapsed_ms))
        if elapsed_ms <= self.gap_ms_max and end > slot.end_unix_ms:
            steps = between(before, reading, slot.shares, end - start, elapsed_ms / 1e3)
            work = declared(slot.shares, shares, finals)
            self._spread(slot, steps, work, (start, end), completed)
        if not 0 <= slot.end_unix_ms - now <= AHEAD_MS_MAX:  # a hole, or the reading's own time
            self._finish(slot, completed)
            slot.end_unix_ms = slot.start_unix_ms = now

    def _spread(
        self,
        slot: _Slot,
        steps: Mapping[str | None, Increment],
        work: Mapping[Holder, Mapping[str, float]],
        span: tuple[int, int],
        completed: list[IntervalRow],
    ) -> None:
        """Add increments, of the card and its parts, over [start, end), cut at the interval's boundaries."""
        start, end = span
        resident = bool(slot.reading.processes)
        while slot.end_unix_ms < end:
            at = slot.end_unix_ms
            boundary = at - at % self.interval_ms + self.interval_ms
            part_ms = min(boundary, end) - at
            ratio = part_ms / (end - start)
            for name, step in steps.items():
                sums = slot.sums if name == CARD else slot.parts.setdefault(name, Sums())
                sums.add(step, part_ms, ratio, resident=resident)
            for key, counted in work.items():
                sum_ = slot.work.setdefault(key, {})
                for column, amount in counted.items():
                    sum_[column] = sum_.get(column, 0.0) + amount * ratio
            slot.end_unix_ms = at + part_ms
            if slot.end_unix_ms == boundary:
                self._finish(slot, completed)

    def _hold(
        self,
        slot: _Slot,
        reading: Reading,
        shares: tuple[Share, ...],
        completed: list[IntervalRow],
    ) -> None:
        """Let the new shares hold from here on; another identity or device cuts the row."""
        held = self._in_force(slot, reading, shares)
        before, slot.shares = slot.shares, held
        same_device = reading.device is slot.reading.device or (
            reading.device == slot.reading.device
        )
        if not same_device or [*map(identity, before)] != [*map(identity, held)]:
            slot.shares = before
            self._finish(slot, completed)
            slot.shares, slot.reading = held, reading
            slot.texts = self._texts(slot)
        slot.reading = reading

    def _in_force(
        self, slot: _Slot, reading: Reading, shares: tuple[Share, ...]
    ) -> tuple[Share, ...]:
        """Return who holds the card, given whether its driver speaks."""
        if reading.alive or reading.failure == _RELEASED:
            slot.silent_since_ns = None
            return shares
        if slot.silent_since_ns is None:
            slot.silent_since_ns = reading.boottime_ns
        silent_ms = (reading.boottime_ns - slot.silent_since_ns) / 1e6
        if silent_ms >= SILENCE_MS_MAX or reading.failure in _CARD_LOST:
            return (Share(bucket=Bucket.FAILED, resident=False),)
        return slot.shares or shares

    def _stepped(self, slot: _Slot, now_unix_ms: int, elapsed_ms: float) -> None:
        self.steps_total += 1
        self.steps.append(
            ClockStep(
                slot=slot.reading.device.slot,
                before_unix_ms=slot.reading.taken_unix_ms,
                after_unix_ms=now_unix_ms,
                elapsed_ms=elapsed_ms,
            )
        )

    # ---- closing a row --------------------------------------------------------------------------

    def _finish(self, slot: _Slot, completed: list[IntervalRow]) -> None:
        """Emit the open row, one per share, and open the next where it ended."""
        sums = slot.sums
        if sums.duration_ms:
            weights = [share.weight for share in slot.shares]
            times = zip(
                split(sums.duration_ms, weights),
                split(sums.covered_ms, weights),
                split(sums.resident_ms, weights),
                strict=True,
            )
            for i, (share, texts, card_times) in enumerate(
                zip(slot.shares, slot.texts, times, strict=True)
            ):
                own = slot.parts.get(share.instance, sums)
                counted_ms = split(own.counted_ms, weights)[i]
                completed.append(self._row(slot, own, share, texts, card_times, counted_ms))
            slot.sums, slot.parts, slot.work = Sums(), {}, {}
        slot.start_unix_ms = slot.end_unix_ms

    def _row(
        self,
        slot: _Slot,
        sums: Sums,
        share: Share,
        texts: dict[str, str | None],
        card_times: tuple[int, int, int],
        counted_ms: int,
    ) -> IntervalRow:
        """Return the row of one share; `sums` are the card's, or those of the share's MIG device."""
        dtype = texts["dtype"] or self.dtype
        found = self._rates_of(slot.reading.device, dtype)
        card_ms, covered_ms, resident_ms = card_times
        if share.resident is not None:
            resident_ms = card_ms if share.resident else 0
        elif slot.reading.processes is None:  # nobody said; active means that something runs
            resident_ms = card_ms if share.bucket is Bucket.ACTIVE else 0
        values = sums.values(
            found,
            share.weight,
            declared=texts["dtype_confidence"] == "declared",
            last={} if slot.answered is None else last_said(slot.answered, share.instance),
        )
        if found.peak_flops is not None:
            values["capacity_flops"] = found.peak_flops * card_ms / 1e3
        ceiling = self._ceiling(slot.reading.device, dtype)
        if ceiling is not None:
            values["achievable_flops"] = ceiling * card_ms / 1e3
        work = slot.work.get((share.job, share.instance), {})
        for column, amount in work.items():
            values[column] = amount * share.weight if column in _CARD_TIME else amount
        method = sums.method if counted_ms else "declared" if "model_flops" in work else "none"
        if found.ref_mhz is None:
            counted_ms = 0  # u is only bounded: the row has no exact counters to divide by
        return IntervalRow(
            slot=slot.reading.device.slot,
            start_unix_ms=slot.start_unix_ms,
            duration_ms=sums.duration_ms,
            bucket=share.bucket,
            weight=share.weight,
            rogue=share.rogue,
            texts={**texts, "efficiency_method": method},
            card_times={
                "card_ms": card_ms,
                "covered_ms": min(covered_ms, card_ms),
                "counted_ms": min(counted_ms, covered_ms, card_ms),
                "resident_ms": min(resident_ms, card_ms),
            },
            values=values,
        )

    def _ceiling(self, device: Device, dtype: str) -> float | None:
        if device.uuid is not None:
            found = self.achievable.get((device.uuid, dtype))
            if found is not None:
                return found
        return self.achievable.get((device.slot, dtype))

    def _texts(self, slot: _Slot) -> list[dict[str, str | None]]:
        """Return what all rows of the shares in force have in common."""
        device = slot.reading.device
        result = []
        for share in slot.shares:
            dtype, confidence = self._dtype(device, share)
            texts = {
                "job": share.job,
                "instance": share.instance,
                "sku": device.sku,
                "device_uuid": device.uuid,
                "serial": device.serial,
                "device_kind": device.kind,
                "team": share.team,
                "user": share.user,
                "workload_class": share.workload_class,
                "phase": share.phase,
                "dtype": dtype,
                "dtype_confidence": confidence,
                "convention": share.convention,
                "allocation_source": share.source,
            }
            result.append(texts)
        return result

    def _dtype(self, device: Device, share: Share) -> tuple[str, str]:
        """Return the row's dtype; a declared one that the card has no peak for is not believed."""
        if share.dtype in peaks.DTYPES:
            found = self._rates_of(device, share.dtype)
            if found.peak_flops is not None or not found.other:
                return share.dtype, "declared"
        return self.dtype, "cluster"

    def _rates_of(self, device: Device, dtype: str) -> Rates:
        return _rates(device.sku, dtype, device.clock_mhz_max, self.trust(device))
