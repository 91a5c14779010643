"""Crash points: where a process of the campaign kills itself, at the n-th time that it comes there.

Nothing of this is in the product: a method is wrapped in the process that is to die. ``within`` is
between the statements of a transaction and its commit.
"""

from __future__ import annotations

import functools
import importlib
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

_SPOOL: Final = "flopwatch_agent.spool_disk:DiskStore"
_SESSION: Final = "flopwatch_agent.session:Session"
_GROUP: Final = "flopwatch_collector.telemetry.group"
_CONTROL: Final = "flopwatch_collector.control.store:ControlStore"
_PAGERDUTY: Final = "flopwatch_collector.paging.pagerduty:PagerDuty"


def _appends(*arguments: Any) -> bool:
    change = arguments[1]
    return bool(change.put) and not change.put[0].is_gap


def _acks(*arguments: Any) -> bool:
    change = arguments[1]
    return change.delete is not None and not change.put


def _drops(*arguments: Any) -> bool:
    change = arguments[1]
    return bool(change.put) and bool(change.put[0].is_gap)


def _receipts(*arguments: Any) -> bool:
    return bool(arguments[1] == "receipt")


def _rows(*arguments: Any) -> bool:
    return bool(arguments[1] == "interval")


def _acknowledges(*arguments: Any) -> bool:
    return bool(arguments[1].HasField("ack"))


def _some_pages(*arguments: Any) -> bool:
    return bool(arguments[2])


def _opens_again(*arguments: Any) -> bool:
    event = arguments[2]
    details = event.get("payload", {}).get("custom_details", {})
    return bool(event.get("event_action") == "trigger" and details.get("action") == "escalate")


def _always(*_: Any) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Point:
    """Attributes: owner: ``module`` or ``module:Class``; after: the call has returned; of: which calls."""

    owner: str
    name: str
    after: bool = False
    of: Callable[..., bool] = _always


SENDER: Final = {
    "append, before": Point(_SPOOL, "commit", of=_appends),
    "append, within": Point(_SPOOL, "_apply", after=True, of=_appends),
    "append, after": Point(_SPOOL, "commit", after=True, of=_appends),
    "ack, before": Point(_SPOOL, "commit", of=_acks),
    "ack, within": Point(_SPOOL, "_apply", after=True, of=_acks),
    "ack, after": Point(_SPOOL, "commit", after=True, of=_acks),
    "gap, before": Point(_SPOOL, "commit", of=_drops),
    "gap, within": Point(_SPOOL, "_apply", after=True, of=_drops),
    "gap, after": Point(_SPOOL, "commit", after=True, of=_drops),
    "spool opened": Point(_SPOOL, "__init__", after=True),
    "batches read, not sent": Point("flopwatch_agent.spool:Spool", "pending", after=True),
    "welcomed": Point(_SESSION, "_take_welcome", after=True),
    "ack came": Point(_SESSION, "_take_ack"),
}
COLLECTOR: Final = {
    "store opened": Point(
        "flopwatch_collector.telemetry.store:TelemetryStore", "__init__", after=True
    ),
    "before the commit": Point(_GROUP, "commit"),
    "rows without receipts": Point(
        "flopwatch_collector.telemetry.store:TelemetryStore", "append", after=True, of=_rows
    ),
    "rows and receipts": Point(
        "flopwatch_collector.telemetry.store:TelemetryStore", "append", after=True, of=_receipts
    ),
    "committed, not acknowledged": Point(_GROUP, "commit", after=True),
    "before the ack is written": Point(
        "flopwatch_collector.ingest_stream:OpenStream", "tell", of=_acknowledges
    ),
    "pages, before they are stored": Point(_CONTROL, "save"),
    "pages stored": Point(_CONTROL, "save", after=True),
    "page, before it is sent": Point("flopwatch_collector.paging.webhook:Webhook", "send"),
    "page taken, not noted": Point(_CONTROL, "sent"),
    "page noted": Point(_CONTROL, "sent", after=True),
}
PAGER: Final = {
    "tick, before it is stored": Point(_CONTROL, "save"),
    "states without pages": Point(_CONTROL, "_add_pages", of=_some_pages),
    "pages, not committed": Point(_CONTROL, "_add_pages", after=True, of=_some_pages),
    "tick stored": Point(_CONTROL, "save", after=True),
    "page due, not sent": Point("flopwatch_collector.paging.outbox:Sender", "_try"),
    "before a post to PagerDuty": Point(_PAGERDUTY, "_post"),
    "closed, to be opened again": Point(_PAGERDUTY, "_post", of=_opens_again),
    "before a post to Alertmanager": Point(
        "flopwatch_collector.paging.alertmanager:Alertmanager", "_tell"
    ),
    "page taken, not noted": Point(_CONTROL, "sent"),
    "outcome, not committed": Point("flopwatch_collector.control.outbox", "change", after=True),
    "page noted": Point(_CONTROL, "sent", after=True),
    "failure, not noted": Point(_CONTROL, "failed"),
    "failure noted": Point(_CONTROL, "failed", after=True),
    "refusal, not noted": Point(_CONTROL, "refused"),
    "refusal noted": Point(_CONTROL, "refused", after=True),
    "handed over, not stored": Point(_CONTROL, "enqueue"),
    "handed over": Point(_CONTROL, "enqueue", after=True),
    "lease taken": Point("flopwatch_collector.control.leases", "take", after=True),
    "reminded": Point("flopwatch_collector.paging.alertmanager:Alertmanager", "remind"),
}
CRASHED: Final = "crashed at "


def _kill(name: str) -> None:
    os.write(1, f"{CRASHED}{name}\n".encode())
    os.kill(os.getpid(), signal.SIGKILL)


def arm(text: str, die: Callable[[str], None] = _kill) -> Callable[[], None]:
    """Make this process die at ``NAME:TIMES``; an empty text: nowhere. Return what disarms it."""
    if not text:
        return lambda: None
    name, _, times = text.rpartition(":")
    point = {**SENDER, **COLLECTOR, **PAGER}[name]
    module, _, class_ = point.owner.partition(":")
    owner: Any = importlib.import_module(module)
    owner = getattr(owner, class_) if class_ else owner
    inner = getattr(owner, point.name)
    left, lock = int(times), threading.Lock()

    def count(*arguments: Any) -> None:
        nonlocal left
        if point.of(*arguments):
            with lock:
                left -= 1
                reached = left == 0
            if reached:
                die(name)

    @functools.wraps(inner)
    def wrapped(*arguments: Any, **named: Any) -> Any:
        if not point.after:
            count(*arguments)
        answer = inner(*arguments, **named)
        if point.after:
            count(*arguments)
        return answer

    setattr(owner, point.name, wrapped)
    return functools.partial(setattr, owner, point.name, inner)
