"""The section ``[probing]``."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from flopwatch_proto.settings import Duration

ProbeKindName = Literal["gemm", "tensor", "fma", "bandwidth", "pcie", "launch", "sdc", "calibrate"]


class ProbingConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Probes that the agent starts by itself, on cards that nobody holds. Off until it is switched on.

    Attributes:
        kinds: what is measured, of the kinds that ``flopwatch probe --help`` lists; ``calibrate`` only
            until there is a calibration of the card under its driver.
        every: between two probes of a kind on a card.
        idle: how long a card is nobody's before it is probed.
        budget_ratio: of a card's time, over 8 hours.
        wall: longest time of one probe; it is charged in full before it starts.
        memory_bytes_max: of the card's memory, for one probe.
        niceness: of a probe's processes.
        turns: hosts take turns of twice ``wall``; those whose names count up have different ones.
        runner: ``child``: the agent starts probes itself; ``unit``: ``flopwatch-probe.path`` does, outside
            the agent's own limits of memory and processors.
        locks: directory of the locks; empty: ``probing`` beside the socket of the jobs.
    """

    enabled: bool = False
    kinds: tuple[ProbeKindName, ...] = ("gemm", "sdc", "calibrate")
    every: Duration = Duration(86_400)
    idle: Duration = Duration(300)
    budget_ratio: float = 0.001
    wall: Duration = Duration(25)
    memory_bytes_max: Annotated[int, msgspec.Meta(ge=1 << 28)] = 4 << 30
    niceness: Annotated[int, msgspec.Meta(ge=0, le=19)] = 10
    turns: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 64
    runner: Literal["child", "unit"] = "child"
    locks: str = ""

    def __post_init__(self) -> None:
        if not 0 < self.budget_ratio <= 0.01:
            raise ValueError("budget_ratio: above 0 and at most 0.01")
        budget_seconds = self.budget_ratio * 8 * 3600
        if not 1 <= self.wall <= budget_seconds:
            raise ValueError(
                f"wall: between 1s and what budget_ratio leaves of 8 hours, {budget_seconds:g}s"
            )
        if self.idle < 60:
            raise ValueError("idle: at least 1m")
        if self.every < 600:
            raise ValueError("every: at least 10m")
