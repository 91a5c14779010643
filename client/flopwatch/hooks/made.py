"""What all hooks have in common: a meter made late, tokens found in a batch, phases that begin and end."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

from flopwatch.sdk import Meter, auto, meter
from flopwatch_proto.errors import UsageError


class Hook:
    """The meter of a trainer that calls back.

    Args:
        seq_len: tokens per sequence; the model is then counted on shapes alone, see `flopwatch.auto`.
        tokens_of: batch → its tokens, for batches without ``input_ids``.
        options: else ``flops_per_token`` or ``flops_per_step`` (of the whole job), and whatever
            `flopwatch.meter` or `flopwatch.auto` take.

    Attributes:
        meter: None before the training began, after it, and where the model could not be counted.

    Raises:
        UsageError: neither ``seq_len`` nor FLOPs are given.
    """

    def __init__(
        self,
        *,
        seq_len: int | None = None,
        tokens_of: Callable[[Any], float] | None = None,
        **options: Any,
    ) -> None:
        if seq_len is None and not {"flops_per_token", "flops_per_step"} & options.keys():
            raise UsageError("callback(): give seq_len=, flops_per_token= or flops_per_step=")
        super().__init__()
        self.meter: Meter | None = None
        self.seq_len = seq_len
        self._tokens_of = tokens_of
        self._options = options
        self._counts = not {"flops_per_token", "flops_per_step"} & options.keys()
        self._aside: AbstractContextManager[None] | None = None

    def begin(self, model: Any, step: int) -> None:
        """Make the meter; where that cannot be, warn and go on without."""
        if self.meter is not None:
            return
        options = {**self._options, "start_step": step}
        try:
            if self._counts:
                self.meter = auto(model, seq_len=self.seq_len, **options)
            else:
                self.meter = meter(**options)
        except Exception as exc:  # any error of any model's own code: the training goes on
            warnings.warn(f"flopwatch: {exc}; this training is not counted", stacklevel=3)

    def end(self) -> None:
        """Send the last counters."""
        self.leave()
        if self.meter is not None:
            self.meter.close()
            self.meter = None

    def enter(self, phase: str) -> None:
        """A checkpoint or an evaluation begins; another that was open is over."""
        self.leave()
        if self.meter is not None:
            self._aside = (
                self.meter.checkpoint() if phase == "checkpoint" else self.meter.evaluating()
            )
            self._aside.__enter__()

    def leave(self) -> None:
        """What was open is over."""
        if self._aside is not None:
            aside, self._aside = self._aside, None
            aside.__exit__(None, None, None)

    def tokens(self, batch: Any) -> float | None:
        """Return the tokens of a batch; None where it shows none. Looks at shapes, never at data."""
        if self._tokens_of is not None:
            return self._tokens_of(batch)
        ids = batch.get("input_ids") if isinstance(batch, Mapping) else batch
        if isinstance(ids, list | tuple) and ids:
            ids = ids[0]
        shape = getattr(ids, "shape", None)
        return None if shape is None or len(shape) < 2 else float(math.prod(shape[:2]))
