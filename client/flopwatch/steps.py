"""The meter of a training loop: plain counters that a step adds to, and nothing else on the step path.

`sender` reads them from its own thread. A step never enters the system, never waits and never allocates
what it does not drop again: `python bench/step.py` says what it costs.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from time import perf_counter
from types import TracebackType
from typing import Final, Protocol

MFU_MAX: Final = 1.5
"""A larger one is a percentage, or wrong."""


class Outbox(Protocol):
    """What a meter needs of the sender."""

    def add(self, meter: Meter) -> None:
        """Take a meter's counters along."""
        ...

    def remove(self, meter: Meter) -> None:
        """Follow it no longer."""
        ...

    def tell(self, event: str | None, event_ms: float | None = None) -> None:
        """Send soon, from another thread; with an event, if one is named."""
        ...


class Meter:
    """Counts the steps of a training loop. Made by `auto` and `meter`; also a context manager.

    Attributes:
        flops_per_step: model FLOPs of one step, this rank's share; None where counted by tokens.
        flops_per_token: model FLOPs of one token; None where counted by steps.
        convention: how they are counted: causal_half, full, params_only.
        reported_factor: FLOPs by the convention of the MFU that the job prints, over ours; None: not known.
        phase: steady, startup, checkpoint, eval, unknown; startup before the first step where nobody says.
        step_number: of the newest step; None: not known.
        model_flops_total: model FLOPs of this rank's share so far.
        tokens_total: tokens of this rank's share so far.
        step_seconds_total: time inside steps, without checkpoints and evaluations.
        reported_seconds_total: the part of it for which the loop reported an MFU of its own.
        reported_mfu_seconds_total: Σ that MFU × its seconds.
        uncounted_steps: steps that said no tokens where tokens were needed.
    """

    def __init__(
        self,
        *,
        flops_per_step: float | None,
        flops_per_token: float | None,
        labels: Mapping[str, str | None],
        world_size: int,
        phase: str | None,
        sender: Outbox | None,
        started_device: Callable[[], str | None],
        reported_factor: float | None = None,
        start_step: int | None = None,
    ) -> None:
        self.flops_per_step = flops_per_step
        self.flops_per_token = flops_per_token
        self.counts_flops = flops_per_step is not None or flops_per_token is not None
        self.reported_factor = reported_factor
        self.world_size = world_size
        self.phase: str | None = phase or "startup"
        self.step_number = start_step
        self.model_flops_total = 0.0
        self.tokens_total = 0.0
        self.steps_total = 0
        self.step_seconds_total = 0.0
        self.reported_seconds_total = 0.0
        self.reported_mfu_seconds_total = 0.0
        self.uncounted_steps = 0
        self._starting = phase is None
        self._unreported_seconds = 0.0
        self._step_began: float | None = None
        self._labels = dict(labels)
        self._started_device = started_device
        self._sender = sender
        if sender is not None:
            sender.add(self)

    @property
    def convention(self) -> str | None:
        return self._labels["convention"]

    def step(
        self,
        *,
        tokens: float | None = None,
        local_tokens: float | None = None,
        mfu: float | None = None,
        step: int | None = None,
        seconds: float | None = None,
    ) -> None:
        """Count one step, at its end.

        Args:
            tokens: tokens of the whole job in this step; this rank counts its share of them.
            local_tokens: instead, tokens that this rank alone worked on (data parallelism only).
            mfu: the MFU that the loop itself computes, 0..1, for the steps since it last gave one.
            step: its number, where that is not the one before plus one.
            seconds: how long it took; left out: since the step before.

        All are plain numbers: a tensor on a card would make the loop wait for it.
        """
        now = perf_counter()
        if seconds is None:
            seconds = 0.0 if self._step_began is None else now - self._step_began
        self._step_began = now
        self.step_seconds_total += seconds
        self._unreported_seconds += seconds
        self.steps_total += 1
        number = self.step_number
        if step is not None:
            self.step_number = step
            if number is not None and step < number:
                self._tell("restart")
        elif number is not None:
            self.step_number = number + 1
        if self._starting:
            self._starting, self.phase = False, "steady"
        if self._labels["device"] is None:
            self._labels["device"] = self._started_device()
        share = local_tokens if tokens is None else tokens / self.world_size
        if share is not None:
            self.tokens_total += share
        if self.flops_per_step is not None:
            self.model_flops_total += self.flops_per_step
        elif self.flops_per_token is not None:
            if share is None:
                self._uncounted("step() needs tokens= here; this step counts no FLOPs")
            else:
                self.model_flops_total += share * self.flops_per_token
        if mfu is not None:
            self.report(mfu)

    def report(self, mfu: float) -> None:
        """Say which MFU the loop itself computed, 0..1, for the steps since it last said one."""
        if not 0.0 <= mfu <= MFU_MAX:
            self._uncounted(f"mfu = {mfu!r}: a ratio is wanted, 0.42 for 42 %")
            return
        self.reported_mfu_seconds_total += mfu * self._unreported_seconds
        self.reported_seconds_total += self._unreported_seconds
        self._unreported_seconds = 0.0

    @contextmanager
    def checkpoint(self) -> Iterator[None]:
        """The time within goes into a checkpoint, and into no step."""
        with self._aside("checkpoint"):
            yield

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """The time within goes into an evaluation, and into no step."""
        with self._aside("eval"):
            yield

    def labels(self) -> Mapping[str, str | None]:
        """Return what this process is called in its datagrams."""
        return self._labels

    def close(self) -> None:
        """Send the last counters and stop; safe twice. Leaving the process does it too."""
        if self._sender is not None:
            self._sender.remove(self)

    def __enter__(self) -> Meter:
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @contextmanager
    def _aside(self, phase: str) -> Iterator[None]:
        began, before, self.phase = perf_counter(), self.phase, phase
        self._tell(None)
        try:
            yield
        finally:
            took = perf_counter() - began
            if self._step_began is not None:
                self._step_began += took
            self.phase = before
            self._tell(phase, took * 1e3)

    def _tell(self, event: str | None, event_ms: float | None = None) -> None:
        if self._sender is not None:
            self._sender.tell(event, event_ms)

    def _uncounted(self, text: str) -> None:
        self.uncounted_steps += 1
        if self.uncounted_steps == 1:
            warnings.warn(f"flopwatch: {text}", stacklevel=3)
