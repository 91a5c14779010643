"""A small torch model, trained on the processor at a steady pace; run by a test, with the SDK's one line.

Writes one JSON line per second: wall clock (Unix ms), steps so far. Ends when its standard input does; the
last line has what it measured without the SDK: FLOPs of one step, counted live, and the time of the steps
after the first by its own clock.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import flopwatch
from flopwatch_agent.clock import SystemClock, wall_unix_ms

BATCH, WIDE, OUT = 64, 256, 16
STEPS_PER_SECOND = 20


def main() -> None:
    torch.manual_seed(7)
    torch.set_num_threads(1)
    model = nn.Sequential(nn.Linear(WIDE, WIDE), nn.ReLU(), nn.Linear(WIDE, OUT))
    inputs, wanted = torch.randn(BATCH, WIDE), torch.randn(BATCH, OUT)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    ended = threading.Event()

    def until_told() -> None:
        sys.stdin.read()
        ended.set()

    def step() -> None:
        optimizer.zero_grad()
        loss: Any = nn.functional.mse_loss(model(inputs), wanted)
        loss.backward()
        optimizer.step()

    with FlopCounterMode(display=False) as live:
        step()
    threading.Thread(target=until_told, daemon=True).start()
    clock = SystemClock()
    first_done = last_done = 0.0
    with flopwatch.auto(model, example_inputs=inputs, dtype="fp32", job="toy", team="ci") as meter:
        began = time.monotonic()
        say(wall_unix_ms(clock), 0)
        while not ended.is_set():
            step()
            last_done = time.monotonic()
            first_done = first_done or last_done
            meter.step()
            if meter.steps_total % STEPS_PER_SECOND == 0:
                say(wall_unix_ms(clock), meter.steps_total)
            due = began + meter.steps_total / STEPS_PER_SECOND
            time.sleep(max(0.0, due - time.monotonic()))
        say(
            wall_unix_ms(clock),
            meter.steps_total,
            step_flops=live.get_total_flops(),
            loop_seconds=last_done - first_done,
        )


def say(unix_ms: int, steps: int, **more: float) -> None:
    sys.stdout.write(json.dumps({"unix_ms": unix_ms, "steps": steps, **more}) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
