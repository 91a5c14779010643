"""A callback for Lightning's `Trainer`, of the package `lightning` or `pytorch_lightning`.

    trainer = L.Trainer(..., callbacks=[callback(seq_len=4096)])

Tokens of a step: those of this rank's batches since the step before, by the shape of ``input_ids`` (or
``tokens_of``). A checkpoint begins where the trainer collects its state and is over when the loop goes on:
there is no later call.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

from flopwatch.hooks.made import Hook


class _Callback(Hook):
    """The calls of `lightning.pytorch.Callback` that matter; see `callback`."""

    def __init__(self, *, model_of: Callable[[Any], Any] | None = None, **options: Any) -> None:
        super().__init__(**options)
        self._model_of = model_of
        self._step = 0
        self._tokens: float | None = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._step = int(trainer.global_step)
        model = pl_module if self._model_of is None else self._model_of(pl_module)
        self.begin(model, self._step)

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        self.leave()

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        tokens = self.tokens(batch)
        if tokens is not None:
            self._tokens = (self._tokens or 0.0) + tokens
        step = int(trainer.global_step)
        if self.meter is not None and step != self._step:  # batches may be accumulated
            self.meter.step(local_tokens=self._tokens, step=step)
            self._step, self._tokens = step, None

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        self.enter("eval")

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self.leave()

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: Any) -> None:
        self.enter("checkpoint")

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.leave()

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self.end()


def callback(**options: Any) -> Any:
    """Return a callback of the Lightning package that is in use.

    Args:
        options: as for `flopwatch.hooks.made.Hook`; ``model_of``: LightningModule → the part of it that
            takes token ids, where that is not itself.
    """
    older = "pytorch_lightning" in sys.modules and "lightning.pytorch" not in sys.modules
    package = importlib.import_module("pytorch_lightning" if older else "lightning.pytorch")
    return type("FlopwatchCallback", (_Callback, package.Callback), {})(**options)
