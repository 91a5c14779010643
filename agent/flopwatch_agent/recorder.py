"""The flight recorder: the last 15 minutes of readings at full resolution, and windows of them on request.

    readings ─► one track per slot (rows of float32) ─► parts of at most 60 s ─► payloads

- Memory is bounded by age and by bytes; what gives way is the oldest, and counted when it was younger than
  15 minutes. A field gets a column when it first has a value.
- A window that lies ahead may ask for more readings a second (`readings_per_second`); it is answered when
  it is over. One that lies back is answered at once, with what is held.
- A part covers a fixed slice of its window, counted from the window's beginning. So an agent that is asked
  again after a restart answers with the same parts, emptier, and the collector keeps the fuller one.
- Asking twice changes nothing: an id that waits, or was answered within the hour, is passed over.

Counters (``*_total``) are kept as differences from the first value seen: a float32 would round the
joules of a month to tens, and only differences of a counter count.
"""

from __future__ import annotations

import itertools
import math
from array import array
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from flopwatch_agent.reading import Reading, Share
from flopwatch_proto.codec import Value
from flopwatch_proto.rows import Absence
from flopwatch_proto.v1 import telemetry_pb2 as pb

KEPT_MS: Final = 15 * 60_000
AHEAD_MS_MAX: Final = 15 * 60_000
"""A window may end this far ahead; with what is held it is at most 30 minutes long."""
ANSWERED_KEPT_MS: Final = 3_600_000
SETTLE_MS: Final = 1_500
"""After a window's end, how long its last reading may take to arrive."""
RATE_MAX: Final = 10
PART_MS: Final = 60_000
PART_READINGS_MAX: Final = RATE_MAX * PART_MS // 1000
COLUMNS_MAX: Final = 96
PART_BYTES_MAX: Final = 256 * 1024
"""Of one part: 600 readings of 96 columns and their times fit."""
PARTS_AT_ONCE_MAX: Final = 8
PENDING_MAX: Final = 8
ANSWERED_MAX: Final = 1_024
EVENTS_MAX: Final = 64
SLOTS_MAX: Final = 256
ID_CHARACTERS_MAX: Final = 64
TRIM_EVERY: Final = 64
_TRIMMED_AT_ONCE: Final = 16
_NAN: Final = math.nan


@dataclass(slots=True, kw_only=True)
class RecorderCounters:
    """What became of readings and requests.

    Attributes:
        dropped_readings: younger than 15 minutes, given up for the bound of memory or of a part.
        refused: requests that make no sense or found no room.
        repeated: requests that were known already.
    """

    dropped_readings: int = 0
    answered: int = 0
    refused: int = 0
    repeated: int = 0


class _Track:
    """The readings of one slot, oldest first, as rows of one array."""

    def __init__(self) -> None:
        self.taken_unix_ms: array[int] = array("q")
        self._rows: array[float] = array("f")
        self._bases: dict[str, float] = {}  # column → what is taken off: a counter's first value
        self._columns: tuple[tuple[str, float], ...] = ()

    def add(self, reading: Reading) -> None:
        values = reading.values
        if len(self._bases) < COLUMNS_MAX:
            new = values.keys() - self._bases.keys()
            if any(type(values[name]) is not Absence for name in new):
                self._widen(values)
        get = values.get
        self.taken_unix_ms.append(reading.taken_unix_ms)
        self._rows.extend(
            [
                _NAN if (value := get(name)) is None or type(value) is Absence else value - base
                for name, base in self._columns
            ]
        )

    def _widen(self, values: Mapping[str, Value]) -> None:
        """Make columns of fields that have a value for the first time."""
        before = len(self._columns)
        for name, value in values.items():
            if name in self._bases or isinstance(value, Absence) or len(self._bases) >= COLUMNS_MAX:
                continue
            self._bases[name] = float(value) if name.endswith("_total") else 0.0
        self._columns = tuple(self._bases.items())
        width = len(self._columns)
        narrow, self._rows = self._rows, array("f", [_NAN]) * (width * len(self.taken_unix_ms))
        for i in range(len(self.taken_unix_ms)):
            self._rows[i * width : i * width + before] = narrow[i * before : (i + 1) * before]

    def held_bytes(self) -> int:
        return len(self.taken_unix_ms) * (8 + 4 * len(self._columns))

    def drop(self, count: int) -> None:
        """Forget the oldest readings."""
        del self.taken_unix_ms[:count]
        del self._rows[: count * len(self._columns)]

    def older_than(self, unix_ms: int) -> int:
        """Return how many readings at the beginning are older."""
        young = (i for i, taken in enumerate(self.taken_unix_ms) if taken >= unix_ms)
        return next(young, len(self.taken_unix_ms))

    def part(self, indexes: Sequence[int]) -> pb.Capture:
        """Return readings as a part, without those columns that have no value in it."""
        made = pb.Capture(taken_unix_ms=[self.taken_unix_ms[i] for i in indexes])
        width = len(self._columns)
        for offset, (name, _) in enumerate(self._columns):
            values = [self._rows[i * width + offset] for i in indexes]
            if not all(map(math.isnan, values)):
                made.columns.add(name=name, values=values)
        return made


class Recorder:
    """A Watcher that remembers. One event loop uses it; nothing here waits.

    Args:
        bytes_max: of the readings held, over all slots.
    """

    def __init__(self, *, bytes_max: int = 8 * 1024**2) -> None:
        self.counters = RecorderCounters()
        self._bytes_max = bytes_max
        self._tracks: dict[str, _Track] = {}
        self._pending: dict[str, pb.CaptureRequest] = {}
        self._answering: dict[str, Iterator[pb.Capture]] = {}
        self._answered: dict[str, int] = {}
        self._events: deque[pb.Event] = deque(maxlen=EVENTS_MAX)
        self._seen = 0

    # ---- watching

    def see(self, reading: Reading, shares: Sequence[Share]) -> None:
        """Keep a reading; one without an answer of its device is kept without values."""
        self._tracks.setdefault(reading.device.slot, _Track()).add(reading)
        self._seen += 1
        if self._seen % TRIM_EVERY == 0:
            self._trim(reading.taken_unix_ms)

    def events(self) -> Sequence[pb.Event]:
        """Return what could not be answered, or not in full, since the last call."""
        told = tuple(self._events)
        self._events.clear()
        return told

    @property
    def held_bytes(self) -> int:
        """Size of the readings held."""
        return sum(track.held_bytes() for track in self._tracks.values())

    def _trim(self, now_unix_ms: int) -> None:
        for slot, track in list(self._tracks.items()):
            track.drop(track.older_than(now_unix_ms - KEPT_MS))
            if not track.taken_unix_ms:
                del self._tracks[slot]
        held = self.held_bytes
        while held > self._bytes_max:
            oldest = min(
                (t for t in self._tracks.values() if t.taken_unix_ms),
                key=lambda t: t.taken_unix_ms[0],
            )
            count = min(_TRIMMED_AT_ONCE, len(oldest.taken_unix_ms))
            held -= oldest.held_bytes()
            oldest.drop(count)
            held += oldest.held_bytes()
            self.counters.dropped_readings += count

    # ---- requests

    def request(self, capture: pb.CaptureRequest, now_unix_ms: int) -> None:
        """Take a request; `due` answers it when its window is over."""
        if capture.id in self._pending or capture.id in self._answered:
            self.counters.repeated += 1
            return
        wrong = _wrong(capture, now_unix_ms)
        if wrong is None and len(self._pending) >= PENDING_MAX:
            wrong = f"{PENDING_MAX} others wait"
        if wrong is not None:
            self.counters.refused += 1
            name = capture.id[:ID_CHARACTERS_MAX]
            self._tell("capture_refused", "", now_unix_ms, 0, f"capture {name!r}: {wrong}")
            return
        self._pending[capture.id] = capture

    def readings_per_second(self, now_unix_ms: int) -> int:
        """Return how often sources shall be read now: 1, or what a window that is open asks for."""
        rates = [
            min(RATE_MAX, capture.readings_per_second)
            for capture in self._pending.values()
            if capture.from_unix_ms - 1000 <= now_unix_ms < capture.to_unix_ms
        ]
        return max([1, *rates])

    def due(self, now_unix_ms: int) -> list[pb.Capture]:
        """Return the next parts of windows that are over, a few at a time; empty: nothing is due."""
        parts: list[pb.Capture] = []
        for capture in list(self._pending.values()):
            if now_unix_ms < capture.to_unix_ms + SETTLE_MS:
                continue
            answer = self._answering.setdefault(capture.id, self._parts(capture, now_unix_ms))
            parts += itertools.islice(answer, PARTS_AT_ONCE_MAX - len(parts))
            if len(parts) == PARTS_AT_ONCE_MAX:
                break
            del self._pending[capture.id], self._answering[capture.id]
            self._remember(capture.id, now_unix_ms)
            self.counters.answered += 1
        return parts

    def _remember(self, capture_id: str, now_unix_ms: int) -> None:
        self._answered[capture_id] = now_unix_ms
        oldest_unix_ms = now_unix_ms - ANSWERED_KEPT_MS
        self._answered = dict(
            [(i, at) for i, at in self._answered.items() if at >= oldest_unix_ms][-ANSWERED_MAX:]
        )

    def _parts(self, capture: pb.CaptureRequest, now_unix_ms: int) -> Iterator[pb.Capture]:
        """Yield every part of an answer; each slot's last one comes even where it holds nothing."""
        last_part = (capture.to_unix_ms - 1 - capture.from_unix_ms) // PART_MS
        for slot in list(capture.slots) or sorted(self._tracks) or [""]:
            track = self._tracks.get(slot, _Track())
            slices: dict[int, list[int]] = {last_part: []}
            for i, taken in enumerate(track.taken_unix_ms):
                if capture.from_unix_ms <= taken < capture.to_unix_ms:
                    part = (taken - capture.from_unix_ms) // PART_MS
                    slices.setdefault(part, []).append(i)
            self._tell_short(capture, slot, track, now_unix_ms)
            # Built before the first is given away: what is held may be trimmed between two calls.
            made = []
            for number, indexes in sorted(slices.items()):
                self.counters.dropped_readings += max(0, len(indexes) - PART_READINGS_MAX)
                part_made = track.part(indexes[-PART_READINGS_MAX:])
                part_made.id, part_made.slot, part_made.part = capture.id, slot, number
                part_made.last = number == last_part
                made.append(part_made)
            yield from made

    def _tell_short(
        self, capture: pb.CaptureRequest, slot: str, track: _Track, now_unix_ms: int
    ) -> None:
        """Say where a window begins before what is held."""
        begins = track.taken_unix_ms[0] if track.taken_unix_ms else capture.to_unix_ms
        missing_ms = min(begins, capture.to_unix_ms) - capture.from_unix_ms
        if missing_ms > SETTLE_MS + 1000:
            text = f"capture {capture.id}: readings are held from {begins} (Unix ms) on"
            if not track.taken_unix_ms:
                text = f"capture {capture.id}: no readings of this slot"
            self._tell("capture_short", slot, now_unix_ms, missing_ms, text)

    def _tell(self, kind: str, slot: str, now_unix_ms: int, code: int, text: str) -> None:
        self._events.append(
            pb.Event(
                slot=slot,
                time_unix_ms=now_unix_ms,
                kind=kind,
                code=code,
                severity="info",
                text=text,
            )
        )


def _wrong(capture: pb.CaptureRequest, now_unix_ms: int) -> str | None:
    """Return what is wrong with a request, or None."""
    if not (1 <= len(capture.id) <= ID_CHARACTERS_MAX) or not capture.id.isprintable():
        return f"its id must have 1 to {ID_CHARACTERS_MAX} printable characters"
    if not 0 < capture.from_unix_ms < capture.to_unix_ms:
        return "its window ends before it begins"
    if capture.to_unix_ms > now_unix_ms + AHEAD_MS_MAX:
        return f"its window ends more than {AHEAD_MS_MAX // 60_000} minutes ahead"
    if capture.to_unix_ms - capture.from_unix_ms > KEPT_MS + AHEAD_MS_MAX:
        return f"its window is longer than {(KEPT_MS + AHEAD_MS_MAX) // 60_000} minutes"
    if len(capture.slots) > SLOTS_MAX:
        return f"it names more than {SLOTS_MAX} slots"
    return None
