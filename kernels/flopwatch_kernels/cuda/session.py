"""What every probe on a card does alike: taking the card, repeating until the median is known, and
putting the figures together."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from flopwatch_kernels import peaks
from flopwatch_kernels.card import lock_device, open_card
from flopwatch_kernels.child import Tell, now_unix_ns
from flopwatch_kernels.cuda.driver import Card
from flopwatch_kernels.messages import ProbeResult, ProbeSpec, Progress
from flopwatch_kernels.peaks import Sku
from flopwatch_kernels.sensors import NoSensor, Sensor, Summary, Watch, told
from flopwatch_kernels.statistic import (
    coefficient_of_variation,
    iterations_needed,
    median_precision,
    rates,
)

_WARM_UP: Final = 3
_LEAST: Final = 20
_MOST: Final = 300
BATCH: Final = 20
"""Calls that are started before the next wait."""
_TOLD_SECONDS: Final = 2.0


class Session:
    """The card of a probe, taken: known to NVML, used by nobody, locked, with a context of ours.

    Attributes: card; name: "cuda:UUID"; sensor: what can be read of it meanwhile; spec.
    """

    def __init__(self, spec: ProbeSpec) -> None:
        """Raises: ProbeError: no such card, one in use, or one that another probe holds."""
        self.spec = spec
        self.started_at_unix_ns = now_unix_ns()
        taken = [_take(each) for each in (spec.device, spec.peer) if each is not None]
        self.name, self.sensor = taken[0][:2]
        self.peer_name = taken[1][0] if len(taken) > 1 else None
        self._locks = [lock for _, _, lock in taken]
        self.card = Card(0, spec.memory_bytes_max)

    def sheet(self) -> Sku | None:
        """The card's datasheet; None for an unknown card or a slice of one."""
        return None if self.name.startswith("cuda:MIG-") else peaks.find(self.card.name)

    def result(self, repeated: "Repeated", **figures: Any) -> ProbeResult:
        """A result of this kind and card, with what the sensors said; `figures` overrule it."""
        said = {
            **told(self.sensor.identity(), repeated.device),
            "precision": median_precision(repeated.durations_seconds),
            **figures,
        }
        return ProbeResult(
            kind=self.spec.kind,
            device=self.name,
            sku=self.card.name,
            iterations=len(repeated.durations_seconds),
            seconds=repeated.seconds,
            sustained=self.spec.sustained,
            started_at_unix_ns=self.started_at_unix_ns,
            **said,
        )

    def result_of_copies(
        self,
        repeated: "Repeated",
        *,
        bytes_each: int,
        bytes_per_second_most: float | None,
        wrong: str | None,
        detail: dict[str, float | str | int],
    ) -> ProbeResult:
        """A result in bytes per second.

        Args:
            bytes_each: Of one repetition.
            bytes_per_second_most: What it is held against; None where not known.
            wrong: What came out wrong, in words; None where all is right.
        """
        measured = rates(repeated.durations_seconds, flops=bytes_each)
        most = bytes_per_second_most
        return self.result(
            repeated,
            median_value=measured.median,
            p10_value=measured.p10,
            p90_value=measured.p90,
            max_value=measured.maximum,
            unit="bytes/s",
            of_datasheet=None if most is None else measured.median / most,
            outcome="ok" if wrong is None else "corrupt",
            reason=wrong,
            detail=detail,
        )

    def repeated(
        self,
        call: Callable[[int], Callable[[], None]],
        what: str,
        tell: Tell,
        after_batch: Callable[[], None] | None = None,
    ) -> "Repeated":
        """Time a call until its median is known to 1 %, or for the sustained span.

        Args:
            call: Gives the call to start for a place, 0 to `BATCH` - 1, in a batch.
            what: For the lines to whoever waits.
            after_batch: Called when a batch has ended.
        """
        self.card.timed([call(0)] * _WARM_UP)
        durations: list[float] = []
        began_at = told_at = time.monotonic()
        with Watch(self.sensor) as watch:
            while self._more(durations, began_at):
                durations += self.card.timed([call(place) for place in range(BATCH)])
                if after_batch is not None:
                    after_batch()
                if time.monotonic() - told_at > _TOLD_SECONDS:
                    told_at = time.monotonic()
                    tell(Progress(text=f"{what}, {told_at - began_at:.0f} s"))
        return Repeated(durations_seconds=durations, seconds=watch.seconds, device=watch.summary())

    def _more(self, durations: Sequence[float], began_at: float) -> bool:
        if self.spec.sustained:
            return time.monotonic() - began_at < self.spec.sustained_seconds
        variation = coefficient_of_variation(durations)
        return len(durations) < iterations_needed(variation, least=_LEAST, most=_MOST)


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeated:
    """Repetitions of one call. Attributes: durations_seconds: of each; seconds: wall time of all;
    device: what the sensors said meanwhile."""

    durations_seconds: Sequence[float]
    seconds: float
    device: Summary


def _take(device: str) -> tuple[str, Sensor, Any]:
    """A card's name, sensor and lock."""
    selector = device.removeprefix("cuda:")
    # A MIG slice has no counters of its own; the whole card's would be somebody else's.
    if selector.startswith("MIG-"):
        return device, NoSensor(), lock_device(device)
    card = open_card(selector)
    name = f"cuda:{card.uuid()}"
    return name, card, lock_device(name)
