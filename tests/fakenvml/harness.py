"""Running the real binding on the fake in a process of its own, and hearing what it finds.

The code given to these runs after `PRELUDE`: `n` is the binding, `say(…)` prints one line of JSON,
`code(function, …)` is the NVML code a call ends with (0: none), `wait()` waits for `go_on`.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .library import env

PRELUDE = """
import json, sys, time
import pynvml as n
def code(fn, *args):
    try:
        fn(*args)
    except n.NVMLError as e:
        return e.value
    return 0
def say(*values):
    print(json.dumps(values), flush=True)
def wait(): # for the test's word to go on
    sys.stdin.readline()
"""
START = """
n.nvmlInit()
cards = [n.nvmlDeviceGetHandleByIndex(i) for i in range(n.nvmlDeviceGetCount())]
"""


class Process:
    """A Python process with the fake loaded, that says one line at a time."""

    def __init__(self, running: subprocess.Popen[str]) -> None:
        self.running = running
        assert running.stdin is not None
        assert running.stdout is not None
        self._stdin, self._stdout = running.stdin, running.stdout

    def said(self) -> Any:
        line = self._stdout.readline()
        assert line, "the process ended"
        return json.loads(line)

    def go_on(self) -> None:
        print(file=self._stdin, flush=True)


def command(code: str) -> list[str]:
    return [sys.executable, "-c", PRELUDE + code]


@contextmanager
def process(lib: Path, script: os.PathLike[str], code: str) -> Iterator[Process]:
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command(code), env=env(lib, script), stdin=pipe, stdout=pipe, text=True
    ) as running:
        try:
            yield Process(running)
        finally:
            running.kill()


def ask(lib: Path, script: os.PathLike[str], code: str) -> Any:
    """What a process says with its last line."""
    done = subprocess.run(
        command(code), env=env(lib, script), capture_output=True, text=True, timeout=30, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])
