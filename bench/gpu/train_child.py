"""A training loop in a process of its own: forward, backward, optimiser, step after step.

    python -m gpu.train_child cuda|cpu

Writes ``{"step": [boottime ns, seconds]}`` as each step has ended on the device, until it is killed.
"""

from __future__ import annotations

import sys
import time
from typing import Any, Final

from gpu.load_child import die_with_parent, say

_LAYERS, _WIDTH, _TOKENS, _BATCH = 8, 1024, 1024, 8
_STAND_IN: Final = (1, 32, 16, 2)
_WARM_UP: Final = 5


def main() -> int:
    """Train for ever."""
    die_with_parent()
    import torch

    on_card = sys.argv[1] == "cuda"
    layers, width, tokens, batch = (_LAYERS, _WIDTH, _TOKENS, _BATCH) if on_card else _STAND_IN
    dtype = torch.bfloat16 if on_card else torch.float32
    if not on_card:
        torch.set_num_threads(1)
    made: dict[str, Any] = {"device": sys.argv[1], "dtype": dtype}
    model = torch.nn.Sequential(
        *(
            torch.nn.TransformerEncoderLayer(
                width, width // 16, 4 * width, dropout=0.0, batch_first=True, **made
            )
            for _ in range(layers)
        )
    )
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    x_btd = torch.randn(batch, tokens, width, **made)

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        loss: Any = torch.nn.functional.mse_loss(model(x_btd), x_btd)
        loss.backward()
        optimiser.step()
        if on_card:
            torch.cuda.synchronize()

    for _ in range(_WARM_UP):
        step()
    ended = time.perf_counter()
    while True:
        step()
        now = time.perf_counter()
        say(step=[time.clock_gettime_ns(time.CLOCK_BOOTTIME), now - ended])
        ended = now


if __name__ == "__main__":
    sys.exit(main())
