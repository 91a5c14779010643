"""A callback for Hugging Face's `Trainer`, and whatever is built on it (TRL, Axolotl, LLaMA-Factory).

    trainer = Trainer(..., callbacks=[callback(seq_len=4096)])

Tokens of a step: what the trainer counted where it does (``include_num_input_tokens_seen``), else its batch
size × ``seq_len``. It has no hook where an evaluation or a checkpoint begins: both begin where the step ends
that asks for them, and a checkpoint not before the evaluation of the same step is over.
"""

from __future__ import annotations

from typing import Any

from flopwatch.hooks.made import Hook


class _Callback(Hook):
    """The calls of `transformers.TrainerCallback` that matter; see `callback`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._seen = 0.0
        self._save_follows = False
        self._counted_model: Any = None

    def on_init_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._counted_model = kwargs.get("model")  # before anything wraps or shards it

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model = kwargs.get("model") if self._counted_model is None else self._counted_model
        self._counted_model = None
        self._seen = float(getattr(state, "num_input_tokens_seen", 0) or 0)
        self.begin(model, int(state.global_step))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.meter is None:
            return
        self.meter.step(tokens=self._step_tokens(args, state), step=int(state.global_step))
        self._save_follows = bool(control.should_save)
        if control.should_evaluate:
            self.enter("eval")
        elif self._save_follows:
            self.enter("checkpoint")

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.leave()
        if self._save_follows:
            self.enter("checkpoint")

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self._save_follows:
            self.enter(
                "checkpoint"
            )  # asked for by somebody who came after us: at least that it was
        self._save_follows = False
        self.leave()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.leave()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.end()

    def _step_tokens(self, args: Any, state: Any) -> float | None:
        seen = float(getattr(state, "num_input_tokens_seen", 0) or 0)
        if seen > self._seen:
            tokens, self._seen = seen - self._seen, seen
            return tokens
        if self.seq_len is None:
            return None
        sequences = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        return float(sequences * self.seq_len)


def callback(**options: Any) -> Any:
    """Return a `transformers.TrainerCallback`; options as for `flopwatch.hooks.made.Hook`."""
    from transformers import TrainerCallback

    return type("FlopwatchCallback", (_Callback, TrainerCallback), {})(**options)
