"""The life of a probe's child: bounded, one result or one reason, nothing else on its output.

python -m flopwatch_kernels.<module> SPEC     SPEC and the output: see `messages`
"""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import IO, Final

import msgspec

from flopwatch_kernels.errors import TORCH_MISSING, ProbeError
from flopwatch_kernels.messages import Done, Failed, Message, ProbeResult, ProbeSpec

_SELF_DESTRUCT_SECONDS: Final = 1.0
_PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h

Tell = Callable[[Message], None]
"""Takes what the child has to say before its result."""


def live(arguments: Sequence[str], measure: Callable[[ProbeSpec, Tell], ProbeResult]) -> int:
    """Measure and say so; the exit code is 0 with a result and 1 with a `Failed` line.

    Args:
        arguments: The spec as JSON, and nothing else.
        measure: The probe; a `ProbeError` of it is told in its words.
    """
    output = _claim_standard_output()

    def say(message: Message) -> None:
        output.write(msgspec.json.encode(message) + b"\n")

    try:
        spec = msgspec.json.decode(arguments[0], type=ProbeSpec)
        _bound_this_process(spec)
        result = measure(spec, say)
    except ProbeError as exc:
        say(Failed(text=str(exc)))
        return 1
    except ModuleNotFoundError as exc:
        say(Failed(text=TORCH_MISSING if exc.name == "torch" else str(exc)))
        return 1
    except (RuntimeError, MemoryError) as exc:
        if not (isinstance(exc, MemoryError) or is_out_of_memory(exc)):
            raise
        say(Failed(text=str(out_of_memory("the probe"))))
        return 1
    say(Done(result=result))
    return 0


def now_unix_ns() -> int:
    """The wall clock, ns since 1970: when a measurement starts."""
    return time.time_ns()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a library means by `error` that an allocation failed."""
    text = str(error).lower()
    return "out of memory" in text or "can't allocate memory" in text


def out_of_memory(what: str) -> ProbeError:
    """The error for `what` (a noun phrase) that does not fit under the probe's memory cap."""
    return ProbeError(
        f"no memory for {what} under the probe's cap: raise memory_bytes_max or free memory on"
        " the device"
    )


def _claim_standard_output() -> IO[bytes]:
    """The parent's pipe, for messages only: what libraries print goes to standard error."""
    output = os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=0)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return output


def _bound_this_process(spec: ProbeSpec) -> None:
    """Niceness, and an end with the parent, which keeps the wall limit and looks who is on the card."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if spec.parent_pid is not None and os.getppid() != spec.parent_pid:
        raise ProbeError("whoever started the probe is gone")  # before the kernel was told
    if spec.niceness:
        os.nice(spec.niceness)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, spec.wall_seconds + _SELF_DESTRUCT_SECONDS)
