"""The catalogue of events, and one event for one thing."""

from __future__ import annotations

import pytest

from flopwatch_agent.events.catalogue import KINDS, SEVERITIES, SXIDS, XIDS, entry, explained
from flopwatch_agent.events.once import SAME_MS_MAX, Once
from flopwatch_proto.v1 import telemetry_pb2 as pb


@pytest.mark.parametrize("table", [KINDS, XIDS, SXIDS])
def test_every_line_says_how_bad_and_what_it_means(table: dict[object, object]) -> None:
    for line in table.values():
        assert line.severity in SEVERITIES  # type: ignore[attr-defined]
        assert line.meaning  # type: ignore[attr-defined]
        if line.severity in ("error", "fatal"):  # type: ignore[attr-defined]
            assert line.action.endswith((".", ")"))  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("code", "severity", "words"),
    [
        (79, "fatal", "reboot"),
        (48, "fatal", "reset"),
        (31, "error", "program"),
        (45, "warning", "other Xids"),
        (63, "warning", "Reset"),
        (9999, "error", "catalog"),
    ],
)
def test_an_xid_is_as_bad_as_nvidia_says(code: int, severity: str, words: str) -> None:
    event = explained(pb.Event(kind="xid", code=code, text=f"Xid {code}"))
    assert event.severity == severity
    assert words in event.action


def test_what_an_event_says_of_itself_stands() -> None:
    event = explained(pb.Event(kind="sxid", code=12028, severity="fatal", action="wait"))
    assert (event.severity, event.action) == ("fatal", "wait")
    assert explained(pb.Event(kind="never_heard_of")).severity == "info"
    assert entry("never_heard_of") is None


def xid(slot: str, code: int, time_unix_ms: int) -> pb.Event:
    return pb.Event(kind="xid", slot=slot, code=code, time_unix_ms=time_unix_ms)


def test_what_two_origins_tell_is_one_event() -> None:
    once = Once()
    driver, log = xid("a", 79, 1_000), xid("a", 79, 1_000 + SAME_MS_MAX)
    assert once.fresh([driver]) == [driver]
    assert once.fresh([log]) == []
    assert once.repeated_total == 1
    others = [xid("b", 79, 1_000), xid("a", 48, 1_000), xid("a", 79, 1_001 + SAME_MS_MAX)]
    assert once.fresh(others) == others


def test_other_kinds_are_never_held_back() -> None:
    event = pb.Event(kind="ecc_uncorrected", slot="a", code=1, time_unix_ms=1)
    assert Once().fresh([event, event]) == [event, event]


def test_switches_with_one_error_each_are_two_events() -> None:
    first, second = (
        pb.Event(kind="sxid", code=20034, text=f"nvidia-nvswitch{n} (0000:0{n}:00.0): SXid")
        for n in (1, 2)
    )
    again = pb.Event(kind="sxid", code=20034, text="nvidia-nvswitch1 (0000:01:00.0): more")
    assert Once().fresh([first, second, again]) != [first, second, again]
    once = Once()
    assert once.fresh([first]) == [first]
    assert once.fresh([second]) == [second]
