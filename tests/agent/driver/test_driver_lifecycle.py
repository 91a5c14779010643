"""What the driver child does when a card, the driver or its parent goes away."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from fakenvml import Script, device, mig
from flopwatch_agent.driver.messages import (
    EXIT_REINIT,
    DriverEvent,
    EventsReply,
    EventsRequest,
    Failure,
    InventoryRequest,
    ReadRequest,
)
from flopwatch_proto.rows import Absence

Start = Callable[..., Any]
"""Starts a child (conftest.py) on a library without the functions named."""


def test_a_lost_card_is_that_cards_failure_alone(start: Start, script: Script) -> None:
    script.write(device(0), device(1))
    child = start()
    child.inventory()
    script.add("device 1 lost")
    healthy, lost = child.read().devices
    assert healthy.failure is None
    assert healthy.values["power_watts"] == 72.0
    assert (lost.failure, lost.values, lost.absences) == ("gpu_is_lost", {}, {})


def test_a_card_of_which_every_call_fails_has_no_answer(start: Start, script: Script) -> None:
    script.write(device(0), device(1))
    child = start()
    child.inventory()
    assert child.card(1).failure is None
    script.add("device 1 error * UNKNOWN")
    healthy, silent = child.read().devices
    assert (healthy.failure, silent.failure) == (None, "no_answer")
    assert silent.values == {}


@pytest.mark.parametrize("code", ["UNKNOWN", "INVALID_ARGUMENT"])
def test_what_once_answered_and_then_fails_is_not_called_unsupported(
    start: Start, script: Script, code: str
) -> None:
    child = start()
    child.inventory()
    child.read()
    script.add(f"error nvmlDeviceGetTemperature {code}")
    assert child.card().absences["temperature_celsius"] == Absence.FAILED
    script.remove(f"error nvmlDeviceGetTemperature {code}")
    assert child.card().values["temperature_celsius"] == 31


@pytest.mark.parametrize(
    ("code", "state"),
    [
        ("DRIVER_NOT_LOADED", "absent"),
        ("LIB_RM_VERSION_MISMATCH", "mismatch"),
        ("UNINITIALIZED", "lost"),
    ],
)
def test_a_driver_that_cannot_be_opened_is_told_and_ends_the_child(
    start: Start, script: Script, code: str, state: str
) -> None:
    script.add(f"error nvmlInit {code}")
    child = start()
    reply = child.ask(InventoryRequest())
    assert isinstance(reply, Failure)
    assert reply.state == state
    assert child.process.wait(timeout=30) == EXIT_REINIT


@pytest.mark.parametrize(
    ("code", "state"), [("LIB_RM_VERSION_MISMATCH", "mismatch"), ("UNKNOWN", "lost")]
)
def test_a_driver_that_breaks_meanwhile_is_told_and_ends_the_child(
    start: Start, script: Script, code: str, state: str
) -> None:
    child = start()
    child.inventory()
    child.read()
    script.add(f"error * {code}")
    time.sleep(0.05)
    reply = child.ask(ReadRequest())
    assert isinstance(reply, Failure)
    assert reply.state == state
    assert child.process.wait(timeout=30) == EXIT_REINIT


def test_mig_devices_are_listed_and_a_change_of_them_makes_the_list_stale(
    start: Start, script: Script
) -> None:
    script.write(device(0, mig_mode=1), mig(0, 0, gi=1), mig(0, 1, gi=2))
    child = start()
    instances = child.inventory().devices[0].instances
    assert instances == (
        "MIG-00000000-0000-0000-0000-000000000000",
        "MIG-00000000-0000-0000-0000-000000000001",
    )
    assert not child.read().stale
    script.write(device(0, mig_mode=1), mig(0, 0, gi=1))
    assert any(child.read().stale for _ in range(10))
    assert child.inventory().devices[0].instances == instances[:1]
    assert not child.read().stale


def test_an_xid_is_told_once_with_its_card(start: Start, script: Script) -> None:
    script.write(device(0), device(1))
    child = start()
    child.inventory()
    child.read()
    heard: list[DriverEvent] = []
    script.fire_xid(1, 79)
    for _ in range(100):
        reply = child.ask(EventsRequest())
        assert isinstance(reply, EventsReply)
        heard += reply.events
        if heard:
            break
        time.sleep(0.1)
    assert [(event.slot, event.code) for event in heard] == [("0000:19:00.0", 79)]
    assert child.read().events == []


def test_the_child_ends_when_its_parent_closes_the_pipe_or_asks_it_to_terminate(
    start: Start,
) -> None:
    first, second = start(), start()
    for child in (first, second):
        child.inventory()
        child.read()
    assert first.process.stdin is not None
    first.process.stdin.close()
    first.process.stdin = None
    second.process.terminate()
    assert first.process.wait(timeout=30) == 0
    assert second.process.wait(timeout=30) == 0
