"""The lines of real trainers, and what becomes of them: golden conversions to the default convention."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from flopwatch.log_lines import COMPOSER, MAXTEXT, MEGATRON, NANOGPT, TORCHTITAN, Said, parse
from flopwatch.tail import Lines, LogMeter, follow
from flopwatch_kernels.flops import ModelShape, train_flops_per_token

TERA = 1e12
LABELS = {"job": "llama", "team": None, "dtype": "bf16", "workload_class": "training"}
# As Meta published them; N counts the input embedding, which is not tied.
LLAMA_8B = ModelShape(
    parameters=8_030_261_248, layers=32, attention_width=4096, sequence_tokens=8192,
    input_embedding_parameters=128_256 * 4096,
)  # fmt: skip
LLAMA_70B = ModelShape(
    parameters=70_553_706_496, layers=80, attention_width=8192, sequence_tokens=8192,
    input_embedding_parameters=128_256 * 8192,
)  # fmt: skip
LLAMA_405B = ModelShape(
    parameters=405_853_388_800, layers=126, attention_width=16_384, sequence_tokens=8192,
    input_embedding_parameters=128_256 * 16_384,
)  # fmt: skip

TITAN_LINE = (
    "\x1b[0m[rank0]:[titan] 2026-03-24 10:00:00,123 - root - INFO - \x1b[31mstep: {step:2}  "
    "\x1b[32mloss:  7.0412  \x1b[38;2;180;60;0mgrad_norm:  1.2034  \x1b[38;2;54;234;195mmemory: "
    "47.87GiB(60.38%)  \x1b[34mtps: {tps:,}  \x1b[36mtflops: {tflops:.2f}  \x1b[35mmfu: {mfu:.2f}%\x1b[39m"
)


def test_the_lines_of_the_trainers_we_know() -> None:
    said: dict[str, Said] = {
        TITAN_LINE.format(step=10, tps=7_123, tflops=410.52, mfu=41.51): Said(
            trainer=TORCHTITAN, step=10, tokens_per_second=7123, flops_per_second=410.52e12,
            mfu=41.51 / 100,
        ),
        "step: 50  loss: 3.1  memory: 60GiB(75%)  tps: 9,001  tflops: N/A  mfu: N/A": Said(
            trainer=TORCHTITAN, step=50, tokens_per_second=9001
        ),
        " [2026-11-28 18:48:17] iteration       50/    5000 | consumed samples:        51200 | elapsed "
        "time per iteration (ms): 61674.3 | throughput per GPU (TFLOP/s/GPU): 68.2 | lm loss: 2": Said(
            trainer=MEGATRON, step=50, step_seconds=61.6743, flops_per_second=68.2e12
        ),
        "I0601 22:14:56 metric_logger.py:181] completed step: 2, seconds: 1.103, TFLOP/s/device: "
        "529.591, Tokens/s/device: 29717.876, total_weights: 262144, loss: 12.181": Said(
            trainer=MAXTEXT, step=2, step_seconds=1.103, flops_per_second=529.591e12,
            tokens_per_second=29717.876,
        ),
        "\t Train throughput/device/mfu: 0.3912": Said(trainer=COMPOSER, mfu=0.3912),
        "\t Train throughput/device/flops_per_sec: 1.2206e+14": Said(
            trainer=COMPOSER, flops_per_second=1.2206e14
        ),
        "[batch=20/4800]:": Said(trainer=COMPOSER, step=20),
        "iter 10: loss 7.1234, time 512.34ms, mfu 41.23%": Said(
            trainer=NANOGPT, step=10, step_seconds=0.51234, mfu=41.23 / 100,
            flops_per_second=41.23 / 100 * 312e12,
        ),
        "iter 0: loss 10.9, time 30000.00ms, mfu -100.00%": Said(
            trainer=NANOGPT, step=0, step_seconds=30.0
        ),
        "[titan] INFO - Saving the checkpoint (or staging if async is enabled).": Said(checkpoint=True),
        "  successfully saved checkpoint from iteration     100 to /ckpt": Said(checkpoint=False),
    }  # fmt: skip
    assert {line: parse(line) for line in said} == said


@pytest.mark.parametrize(
    "line",
    [
        "",
        "step: 3, loss: 2.1",
        "tps: 12",
        "iteration 3/5 | lm loss: 7",
        "epoch 1 mfu",
        "\x1b[0m",
        "🦙",
    ],
)
def test_other_lines_say_nothing(line: str) -> None:
    assert parse(line) is None


@pytest.mark.parametrize(
    ("shape", "torchtitan", "llm_foundry"),
    [(LLAMA_8B, 1.125, 1.186), (LLAMA_70B, 1.072, 1.086), (LLAMA_405B, 1.040, 1.045)],
)
def test_the_factors_between_the_trainers_conventions_and_ours(
    shape: ModelShape, torchtitan: float, llm_foundry: float
) -> None:
    assert TORCHTITAN.factor(shape) == pytest.approx(torchtitan, abs=6e-4)
    assert NANOGPT.factor(shape) == pytest.approx(torchtitan, abs=6e-4)
    assert COMPOSER.factor(shape) == pytest.approx(llm_foundry, abs=6e-4)
    assert MEGATRON.factor(shape) == MAXTEXT.factor(shape) == 1.0


@pytest.mark.parametrize("shape", [LLAMA_8B, LLAMA_70B, LLAMA_405B])
def test_a_torchtitan_line_becomes_flops_of_the_causal_half(shape: ModelShape) -> None:
    tps = round(0.4 * 989e12 / train_flops_per_token(shape, "full"))
    own_flops = tps * train_flops_per_token(shape, "full")
    meter = LogMeter(LABELS, shape, None)
    for seconds in (0, 60, 120):
        line = TITAN_LINE.format(
            step=10 + seconds, tps=tps, tflops=own_flops / TERA, mfu=own_flops / 989e12 * 100
        )
        meter.line(line, float(seconds))
    ours = 120 * tps * train_flops_per_token(shape, "causal_half")
    assert meter.model_flops_total == pytest.approx(ours, rel=1e-4)
    assert meter.model_flops_total * (meter.reported_factor or 0) == pytest.approx(
        120 * own_flops, rel=1e-4
    )
    assert meter.labels()["convention"] == "causal_half"
    assert meter.tokens_total == 120 * tps
    assert (meter.steps_total, meter.step_number) == (121, 130)
    mfu = meter.reported_mfu_seconds_total / meter.reported_seconds_total
    assert mfu == pytest.approx(own_flops / 989e12, rel=1e-3)


def test_without_the_models_size_the_trainers_convention_stands() -> None:
    meter = LogMeter(LABELS, None, None)
    for seconds in (0, 10):
        meter.line(TITAN_LINE.format(step=1, tps=1, tflops=400, mfu=40), float(seconds))
    assert (meter.labels()["convention"], meter.reported_factor) == ("full", 1.0)
    assert meter.model_flops_total == pytest.approx(4e15)


def test_lines_that_time_their_steps_are_taken_at_their_word() -> None:
    meter = LogMeter(LABELS, None, None)
    line = (
        " iteration {:8d}/ 500 | elapsed time per iteration (ms): 2000.0 | "
        "throughput per GPU (TFLOP/s/GPU): 400.0 |"
    )
    for number, seconds in ((10, 0.0), (20, 33.0)):  # the clock saw a checkpoint in between
        meter.line(line.format(number), seconds)
    assert meter.step_seconds_total == 22.0
    assert meter.model_flops_total == pytest.approx(22 * 400e12)
    assert meter.labels()["convention"] == "causal_half"


def test_composers_lines_count_since_the_line_of_their_own_kind() -> None:
    meter = LogMeter(LABELS, LLAMA_8B, None)
    for seconds in (0.0, 50.0):
        meter.line(f"[batch={seconds:.0f}/4800]:", seconds)
        meter.line("\t Train throughput/device/flops_per_sec: 4e14", seconds)
        meter.line("\t Train throughput/device/mfu: 0.4", seconds)
    assert meter.model_flops_total == pytest.approx(50 * 4e14 / COMPOSER.factor(LLAMA_8B))
    assert (meter.steps_total, meter.reported_seconds_total) == (51, 50.0)


class Told:
    """An outbox that writes down what it is told."""

    def __init__(self) -> None:
        self.events: list[tuple[str | None, float | None]] = []

    def add(self, meter: object) -> None: ...
    def remove(self, meter: object) -> None: ...
    def tell(self, event: str | None, event_ms: float | None = None) -> None:
        self.events.append((event, event_ms))


def test_checkpoints_and_steps_that_go_back_are_told() -> None:
    told = Told()
    meter = LogMeter(LABELS, None, told)
    meter.line(TITAN_LINE.format(step=50, tps=1, tflops=1, mfu=1), 0.0)
    assert meter.phase == "steady"
    meter.line("Saving the checkpoint (or staging if async is enabled).", 5.0)
    assert meter.phase == "checkpoint"
    meter.line("Finished saving the checkpoint (or staging) in 7.00 seconds.", 12.0)
    meter.line(TITAN_LINE.format(step=40, tps=1, tflops=1, mfu=1), 60.0)
    assert told.events == [(None, None), ("checkpoint", 7000.0), ("restart", None)]
    assert (meter.phase, meter.step_number) == ("steady", 40)


def test_bytes_are_cut_into_lines_wherever_they_break_and_endless_ones_are_not_kept() -> None:
    meter = LogMeter(LABELS, None, None)
    lines = Lines(meter)
    data = TITAN_LINE.format(step=7, tps=1, tflops=1, mfu=1).encode() + b"\r\n\xff\xfe\n"
    for byte in data:
        lines.feed(bytes([byte]))
    assert (meter.lines, meter.step_number) == (1, 7)
    lines.feed(b"x" * 200_000)
    lines.feed(b" step: 9 tps: 1\nstep: 8 tps: 1\n")
    assert meter.step_number == 8


def test_a_file_is_followed_from_its_end_and_after_it_was_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, stop = tmp_path / "train.log", threading.Event()
    line = "completed step: {}, seconds: 1.0, TFLOP/s/device: 400.0, Tokens/s/device: 1.0\n"
    log.write_text(line.format(1), encoding="utf-8")
    meter = LogMeter(LABELS, None, None)
    monkeypatch.setattr("flopwatch.tail._POLL_SECONDS", 0.01)
    follower = threading.Thread(target=follow, args=(log, meter, stop))
    follower.start()

    def until(number: int) -> None:
        deadline = time.monotonic() + 30
        while meter.step_number != number:
            assert time.monotonic() < deadline, f"step {meter.step_number}, not {number}"
            time.sleep(0.01)

    try:
        while meter.step_number is None:  # it may not have seen the end yet
            with log.open("a", encoding="utf-8") as stream:
                stream.write(line.format(2))
            time.sleep(0.05)
        until(2)
        replaced = tmp_path / "new.log"
        replaced.write_text(line.format(3), encoding="utf-8")
        replaced.replace(log)
        until(3)
    finally:
        stop.set()
        follower.join()
