"""One child process with a deadline: started, listened to, and certainly gone afterwards.

The child leads its own session, so that it and whatever it starts can be killed together. Its
standard output is read line by line without ever blocking past the deadline; its standard error
goes to an unnamed file of which the end is kept for the error text. Both have bounds.
"""

import os
import selectors
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, Final

from flopwatch_kernels.errors import ProbeError

_POLL_SECONDS: Final = 0.01
"""How late a reason to stop may be heard: a tenant on the card waits for it."""
_CHUNK_BYTES: Final = 65_536
_OUTPUT_BYTES_MAX: Final = 1 << 20
_STDERR_TAIL_BYTES: Final = 2_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildExit:
    """How a child ended. Attributes: returncode: negative for a signal, as in subprocess;
    stderr_tail: the last of what it wrote to standard error."""

    returncode: int
    stderr_tail: str


def run_child(
    command: Sequence[str],
    *,
    environment: Mapping[str, str],
    wall_seconds: float,
    on_line: Callable[[bytes], None],
    stop_reason: Callable[[], str | None] | None = None,
) -> ChildExit:
    """Run `command` to its end, or to the wall limit, and leave none of its processes behind.

    Args:
        command: Program and arguments; never a shell line.
        environment: The whole environment of the child.
        wall_seconds: The child is killed after this, s.
        on_line: Called with each complete line of its standard output, in this thread.
        stop_reason: Asked about a hundred times a second; a text kills the child.

    Raises:
        ProbeError: The wall limit passed, `stop_reason` gave one, the child wrote without end, or
            it could not be started.
    """
    deadline = time.monotonic() + wall_seconds
    with tempfile.TemporaryFile() as stderr:
        try:
            child = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=dict(environment),
                start_new_session=True,
            )
        except OSError as exc:
            raise ProbeError(f"cannot start {command[0]}: {exc.strerror}") from exc
        assert child.stdout is not None
        try:
            with child.stdout as stdout:
                _listen(stdout, child.pid, deadline, wall_seconds, on_line, stop_reason)
            _await_exit(child.pid, deadline, wall_seconds)
        finally:
            # Until wait() has reaped the child its id cannot belong to anyone else.
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            returncode = child.wait()
        return ChildExit(returncode=returncode, stderr_tail=_tail(stderr))


def _listen(
    stdout: IO[bytes],
    pid: int,
    deadline: float,
    wall_seconds: float,
    on_line: Callable[[bytes], None],
    stop_reason: Callable[[], str | None] | None,
) -> None:
    """Hand on lines until the output ends, or the child does while a descendant keeps it open."""
    pending, received = b"", 0
    with selectors.DefaultSelector() as selector:
        selector.register(stdout, selectors.EVENT_READ)
        while True:
            remaining = _remaining(deadline, wall_seconds)
            if stop_reason is not None and (reason := stop_reason()) is not None:
                raise ProbeError(f"the probe was stopped: {reason}")
            if not selector.select(min(_POLL_SECONDS, remaining)):
                if _has_exited(pid):
                    return
                continue
            chunk = os.read(stdout.fileno(), _CHUNK_BYTES)
            if not chunk:
                return
            received += len(chunk)
            if received > _OUTPUT_BYTES_MAX:
                raise ProbeError(f"the probe wrote more than {_OUTPUT_BYTES_MAX} bytes; killed")
            *lines, pending = (pending + chunk).split(b"\n")
            for line in lines:
                on_line(line)


def _await_exit(pid: int, deadline: float, wall_seconds: float) -> None:
    while not _has_exited(pid):
        time.sleep(min(_POLL_SECONDS, _remaining(deadline, wall_seconds)))


def _remaining(deadline: float, wall_seconds: float) -> float:
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        raise ProbeError(
            f"the probe did not end within its wall limit of {wall_seconds:g} s and was killed"
        )
    return remaining


def _has_exited(pid: int) -> bool:
    """Whether the child has ended, without reaping it."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _tail(stderr: IO[bytes]) -> str:
    size = stderr.seek(0, os.SEEK_END)
    stderr.seek(max(0, size - _STDERR_TAIL_BYTES))
    return stderr.read().decode(errors="replace").strip()
