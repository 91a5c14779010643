"""flopwatch in a training loop: one line says what the model costs, one line counts a step.

    import flopwatch

    meter = flopwatch.auto(model, seq_len=4096)        # before DDP/FSDP wraps the model
    for batch in loader:
        ...
        meter.step(tokens=global_batch_tokens)
        if step % 1000 == 0:
            with meter.checkpoint():
                save(model)

Where the FLOPs are known already: ``flopwatch.meter(flops_per_token=...)`` or ``flops_per_step=``.
Trainers have hooks: `flopwatch.hooks`; programs that only print, `flopwatch tail`.
Importing this package imports neither torch nor the command line.
"""

from flopwatch.sdk import Meter, auto, meter
from flopwatch_kernels.flops import ModelShape

__all__ = ["Meter", "ModelShape", "auto", "meter"]
