"""What a process says of its work, in one small JSON object, and the counters that it holds.

The same message comes from the SDK and its hooks, from `flopwatch tail`, from anything that can write a
datagram, and, translated, from OTLP metrics. Version 1 only ever gains keys.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from flopwatch_agent.labels import Labels

EVERY_CARD: Final = "*"
"""The device of a message that speaks for each card its job holds here, such as a log line's."""

OF_THE_JOB: Final = frozenset({"steps_count", "step_ms", "reported_mfu_ms", "reported_ms"})
"""Counters that every process of a job counts alike: one process speaks for a card, others say it again."""

DropReason = Literal[
    "accounts_full",
    "counter",
    "events",
    "jobs_full",
    "malformed",
    "otlp",
    "pid",
    "socket",
    "table_full",
    "too_large",
    "version",
]
"""Why something that a job said is dropped."""

_LARGEST: Final = {"model_flops": 1e30, "reported_flops": 1e30, "tokens_count": 1e18}
_LARGEST_OTHER: Final = 1e15


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """One datagram. Unknown keys are ignored, so that an older agent hears a newer SDK.

    Counters are the process's own since it started; all may be left out.

    Attributes:
        v: version of the format; 1.
        device: ``cuda:<uuid>`` or ``cpu``; ``*``: every card of the job here, each counting what is said;
            None when the process does not know.
        event: ``start``, ``exit``, ``checkpoint``, ``eval``, ``restart`` (its steps went back) or nothing.
        event_ms: how long what `event` names took; it ended now.
        convention: of `model_flops_total`.
        model_flops_total: model FLOPs of this process since it started, its own share of the job.
        reported_flops_total: the same FLOPs by the convention of the MFU that the job itself reports.
        tokens_total: tokens of this process; gives FLOPs where a number of FLOPs per token is known.
        steps_total: optimizer steps, of the whole job.
        step: number of the newest step, which goes on where a checkpoint left off; None: not known.
        step_ms_total: time inside steps, ms.
        reported_mfu_ms_total: Σ MFU as the job reports it × ms.
        reported_ms_total: ms of steps for which it reported one.
        flops_per_token: model FLOPs per token, training or inference as the job says.
    """

    v: int
    pid: int
    job: str | None = None
    team: str | None = None
    dtype: str | None = None
    convention: str | None = None
    workload_class: str | None = None
    phase: str | None = None
    device: str | None = None
    event: str | None = None
    event_ms: float | None = None
    model_flops_total: float | None = None
    reported_flops_total: float | None = None
    tokens_total: float | None = None
    steps_total: float | None = None
    step: int | None = None
    step_ms_total: float | None = None
    reported_mfu_ms_total: float | None = None
    reported_ms_total: float | None = None
    flops_per_token: float | None = None
    unix_ms: int | None = None


def counters(message: Message, environment: Labels) -> tuple[dict[str, float], int]:
    """Return the counters of a message by their column, and how many made no sense.

    Args:
        environment: what the process's environment says, for FLOPs per token that the message leaves out.
    """
    flops, tokens = message.model_flops_total, message.tokens_total
    if flops is None and tokens is not None:
        per_token = message.flops_per_token or environment.flops_per_token
        flops = None if per_token is None else tokens * per_token
    said = {
        "model_flops": flops,
        "reported_flops": message.reported_flops_total,
        "tokens_count": tokens,
        "steps_count": message.steps_total,
        "step_ms": message.step_ms_total,
        "reported_mfu_ms": message.reported_mfu_ms_total,
        "reported_ms": message.reported_ms_total,
    }
    found = {
        column: value
        for column, value in said.items()
        if value is not None and 0.0 <= value <= _LARGEST.get(column, _LARGEST_OTHER)
    }
    return found, sum(value is not None for value in said.values()) - len(found)
