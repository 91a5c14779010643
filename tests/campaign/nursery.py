"""``python -m campaign.nursery``: a process that has loaded what the others need, and forks them when asked.

A collector that starts so is there after the third of a second that its engine takes; by exec it is four
times as long. Each is a process of its own all the same: its files, its sockets and its death are its
own. The engine itself is not loaded here: it has threads, and those do not live through a fork.

A request is a line of JSON, ``[module, arguments, log]``, the answer the process's number. A process that has
ended is waited for at the next request, so that its number is nobody else's until then.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from processes import Process, environment

LOADED: Final = ("campaign.sender", "campaign.storing")
NUMBER_SECONDS_MAX: Final = 60.0


class Forked:
    """What `Process` asks of a Popen, of a process that is another's child."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._file = os.pidfd_open(pid)
        self._ended = False

    def poll(self) -> int | None:
        """Return None while it runs; how it ended is not known."""
        if not self._ended and select.select([self._file], [], [], 0)[0]:
            self._end()
        return -1 if self._ended else None

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end."""
        if not self._ended:
            if not select.select([self._file], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0)
            self._end()
        return -1

    def send_signal(self, number: int) -> None:
        """Send a signal to it and nobody else."""
        if not self._ended:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._file, number)

    def _end(self) -> None:
        self._ended = True
        os.close(self._file)


class Child(Process):
    """A process from the nursery, with its output in a file."""

    def __init__(self, pid: int, command: tuple[str, ...], log: Path, offset: int) -> None:
        self.log = log
        self.command = command
        self._offset = offset
        self.popen: Any = Forked(pid)


class Nursery:
    """The nursery as others see it."""

    def __init__(self, home: Path, loaded: Sequence[str] = LOADED) -> None:
        """loaded: modules that it loads before it forks."""
        self._home = home
        with (home / "nursery.log").open("ab") as log:
            self._process = subprocess.Popen(
                (sys.executable, "-m", "campaign.nursery", *loaded),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment(),
                start_new_session=True,
            )

    def start(self, module: str, name: str, *arguments: str) -> Child:
        """Run ``campaign.MODULE.main(arguments)`` in a process of its own; ``name`` is its log's."""
        log = self._home / f"{name}.log"
        log.touch()
        offset = log.stat().st_size
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([module, arguments, str(log)]) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, (self._home / "nursery.log").read_text()
        return Child(int(answer), (module, *arguments), log, offset)

    def close(self) -> None:
        """End it, and all that it started and that still runs."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


def main(loaded: Sequence[str]) -> None:
    """Fork what is asked for until nobody asks any more."""
    for module in loaded:
        importlib.import_module(module)
    gc.freeze()
    while line := sys.stdin.readline():
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        module, arguments, log = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _live(module, arguments, log)
        sys.stdout.write(f"{pid}\n")
        sys.stdout.flush()
    os.killpg(0, signal.SIGKILL)


def _live(module: str, arguments: list[str], log: str) -> None:
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        importlib.import_module(f"campaign.{module}").main(*arguments)
        sys.stdout.flush()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
