"""How far each collector is, where a spool has two. Pure.

    base = the hindmost mark                                  lead = the foremost
    ─────┬───────────────────────────────────────────────────────┬──────────────────── next_seq
     gone│ kept for the hindmost only, at most half of the spool │ wanted by both

A record goes when both have passed it, or becomes part of a gap. Whoever has passed it by then never hears of
that gap. Without marks the base is the one mark there is, and all of this costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from flopwatch_agent.spool_record import SEQ_MAX, Mark, Record, State


def marked_for(state: State, names: Sequence[str]) -> State:
    """Return the state with a mark per reader; a new one begins where the spool does, others are forgotten.

    Two or more names; with fewer the base takes the place of the marks.
    """
    if tuple(mark.name for mark in state.marks) == (tuple(names) if len(names) > 1 else ()):
        return state
    known = {mark.name: mark for mark in state.marks}
    wanted = [known.get(name) or _base(state, name) for name in names]
    if not wanted:
        wanted = list(state.marks)
    return _rebased(replace(state, marks=tuple(wanted)), keep=len(names) > 1)


def mark_of(state: State, name: str) -> Mark:
    """Return how far a reader is."""
    return next((mark for mark in state.marks if mark.name == name), _base(state, name))


def passed(state: State, name: str, seq: int, rows: int) -> State:
    """Return the state after a reader acknowledged everything up to that seq."""
    if not state.marks:
        return replace(state, acked_seq=seq, acked_rows=rows)
    moved = [
        replace(mark, acked_seq=seq, acked_rows=rows) if mark.name == name else mark
        for mark in state.marks
    ]
    return _rebased(replace(state, marks=tuple(moved)), keep=True)


def as_seen_by(state: State, name: str) -> State:
    """Return the state as if the reader were alone: what it had passed was not dropped for it."""
    if not state.marks:
        return state
    mark = mark_of(state, name)
    return replace(
        state,
        acked_seq=mark.acked_seq,
        acked_rows=mark.acked_rows,
        dropped_rows=state.dropped_rows - mark.spared_rows,
        marks=(),
    )


def rows_through(state: State, seq: int) -> int:
    """Return the rows up to a mark that stands at that seq; else those up to the base."""
    return next((m.acked_rows for m in state.marks if m.acked_seq == seq), state.acked_rows)


def lead_seq(state: State) -> int:
    """Return the foremost mark."""
    return max((mark.acked_seq for mark in state.marks), default=state.acked_seq)


def droppable(state: State, sent: Mapping[str, int]) -> Iterator[tuple[int, int]]:
    """Yield (after, through): the seqs that may be dropped, those that only the hindmost needs first.

    What is in flight to anybody may be stored by now, and is left out.
    """
    if not state.marks:
        yield max(state.acked_seq, *sent.values(), 0), SEQ_MAX
        return
    marks = sorted(state.marks, key=lambda mark: mark.acked_seq)
    reached = [max(mark.acked_seq, sent.get(mark.name, 0)) for mark in marks]
    for i, mark in enumerate(marks[1:]):
        if (after := max(reached[: i + 1])) < mark.acked_seq:
            yield after, mark.acked_seq
    yield max(reached), SEQ_MAX


def count_dropped(state: State, lost: Iterable[Record], batches: int) -> State:
    """Return the state after records were lost to those readers that had not passed them."""
    lost = list(lost)
    marks = tuple(
        replace(mark, spared_rows=mark.spared_rows + sum(_spared(mark, r) for r in lost))
        for mark in state.marks
    )
    return replace(
        state,
        dropped_batches=state.dropped_batches + batches,
        dropped_rows=state.dropped_rows + sum(r.rows for r in lost),
        dropped_bytes=state.dropped_bytes + sum(r.frame_bytes for r in lost),
        marks=marks,
    )


def ahead_of(record: Record, state: State, name: str) -> Record:
    """Return the part of a record that a reader has not passed; only a gap may reach over its mark."""
    mark = mark_of(state, name)
    if not state.marks or not record.is_gap or record.first_seq > mark.acked_seq:
        return record
    rows = record.rows - _spared(mark, record)
    return replace(record, first_seq=mark.acked_seq + 1, rows=rows, frame_bytes=0)


def _base(state: State, name: str) -> Mark:
    return Mark(name=name, acked_seq=state.acked_seq, acked_rows=state.acked_rows)


def _rebased(state: State, *, keep: bool) -> State:
    hindmost = min(state.marks, key=lambda mark: mark.acked_seq)
    marks = state.marks if keep else ()
    return replace(state, acked_seq=hindmost.acked_seq, acked_rows=hindmost.acked_rows, marks=marks)


def _spared(mark: Mark, record: Record) -> int:
    return min(max(0, mark.acked_rows - record.rows_before), record.rows)
