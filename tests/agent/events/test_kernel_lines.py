"""Lines of the kernel log, as drivers of ten years wrote them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flopwatch_agent.events.kernel_lines import KernelLines

NOW = 1_790_000_000_000
SLOT = "0000:4e:00.0"


@pytest.mark.parametrize(
    ("line", "slot", "code", "words"),
    [
        (
            "NVRM: Xid (PCI:0000:4e:00): 79, pid='<unknown>', name=<unknown>, "
            "GPU has fallen off the bus.",
            SLOT,
            79,
            "Xid 79: GPU has fallen off the bus.",
        ),
        (
            "[1235733.431527] NVRM: Xid (PCI:0000:4E:00): 31, pid=7194, name=python3, Ch 00000008",
            SLOT,
            31,
            "pid=7194, name=python3, Ch 00000008",
        ),
        ("NVRM: Xid (0000:4e:00): 14, Channel 00000001", SLOT, 14, "Channel 00000001"),
        ("NVRM: Xid (PCI:0000:4e:00 GPU-I:03): 94, pid=1", SLOT, 94, "in GPU instance 3"),
        ("NVRM: Xid (PCI:0018:01:00): 145, RLW_REMAP Nonfatal XC0", "0018:01:00.0", 145, "RLW"),
        ("NVRM: Xid (PCI:0000:4e:00): 63", SLOT, 63, "Xid 63"),
    ],
)
def test_an_xid_has_its_card_and_its_words(line: str, slot: str, code: int, words: str) -> None:
    (event,) = KernelLines().read(line, NOW)
    assert (event.kind, event.slot, event.code) == ("xid", slot, code)
    assert (event.time_unix_ms, words in event.text) == (NOW, True)


def test_xid_0_and_other_lines_say_nothing() -> None:
    lines = KernelLines()
    for line in (
        "NVRM: Xid (PCI:0000:4e:00): 0, nothing",
        "NVRM: loading NVIDIA UNIX x86_64 Kernel Module  550.54.15",
        "usb 1-1: device has fallen off the bus",
        "NVRM: has fallen off the bus",  # of no card that anybody named
        "",
    ):
        assert lines.read(line, NOW) == []


def test_an_sxid_is_told_once_with_its_switch_and_its_weight() -> None:
    lines = KernelLines()
    told = []
    for line in (
        "nvidia-nvswitch3: SXid (PCI:0000:c1:00.0): 28006, Non-fatal, Link 46 MC TS (First)",
        "nvidia-nvswitch3: SXid (PCI:0000:c1:00.0): 28006, Severity 0 Engine instance 46",
        "nvidia-nvswitch3: SXid (PCI:0000:c1:00.0): 28006, Data {0x00000001, 0x00000001}",
        "nvidia-nvswitch0: SXid (PCI:0000:06:00.0): 20034, Fatal, Link 30 LTSSM Fault Up",
    ):
        told += lines.read(line, NOW)
    assert [(e.kind, e.slot, e.code, e.severity) for e in told] == [
        ("sxid", "", 28006, ""),  # not fatal: how bad it is the catalogue says
        ("sxid", "", 20034, "fatal"),
    ]
    assert "nvidia-nvswitch3 (0000:c1:00.0)" in told[0].text


@pytest.mark.parametrize(
    "message",
    [
        "NVRM: GPU at 0000:4e:00.0 has fallen off the bus.",
        "NVRM: GPU 0000:4e:00.0: GPU has fallen off the bus.",
        "NVRM: The NVIDIA GPU 0000:4e:00.0\nNVRM: (PCI ID: 10de:2330) installed in this system has\n"
        "NVRM: fallen off the bus and is not responding to commands.",
    ],
)
def test_a_lost_card_without_an_xid_is_told(message: str) -> None:
    (at_once,) = KernelLines().read(message, NOW)
    lines = KernelLines()
    line_by_line = [event for line in message.splitlines() for event in lines.read(line, NOW)]
    assert [at_once] == line_by_line
    assert (at_once.kind, at_once.slot) == ("card_lost", SLOT)


@given(st.text(max_size=200), st.sampled_from(["", "NVRM: Xid (PCI:0000:4e:00): ", "SXid (PCI:"]))
def test_no_line_is_too_strange(text: str, start: str) -> None:
    for event in KernelLines().read(start + text, NOW):
        assert event.kind in ("xid", "sxid", "card_lost")
        assert len(event.text) < 1_000
