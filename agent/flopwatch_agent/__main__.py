"""``flopwatch agent``: the daemon of a node, and ``flopwatch agent release``: a word to the one that runs.

Exit codes: 0 stopped or released, 1 nobody answered, 2 wrong usage or configuration.
"""

from __future__ import annotations

import argparse
import asyncio
import difflib
import os
import sys
import time
from pathlib import Path
from typing import Final, NoReturn

from flopwatch_agent.app import run_agent
from flopwatch_agent.clock import SystemClock, wall_unix_ms
from flopwatch_agent.config import load_config
from flopwatch_agent.release import RELEASED, SECONDS_MAX, Window
from flopwatch_proto import logs
from flopwatch_proto.errors import UsageError
from flopwatch_proto.settings import Duration

_FLAGS: Final = {
    "--collector": ("collector", "HOST:PORT", "the collector's ingest"),
    "--data": ("data", "DIR", "where the spool is kept"),
    "--cluster": ("cluster", "NAME", "the cluster this node belongs to"),
    "--node": ("node", "NAME", "this node's name"),
    "--http": ("metrics.listen", "HOST:PORT", "where the agent's own /metrics are; '' for none"),
    "--interval": ("interval", "DURATION", "length of a row, e.g. 10s"),
}


_ANSWER_SECONDS: Final = 20.0
"""Longer than a read that hangs and a child that does not end may take."""


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, with the nearest flag there is."""

    def error(self, message: str) -> NoReturn:
        wrong = next((word for word in message.split() if word.startswith("-")), "")
        flags = [flag for action in self._actions for flag in action.option_strings]
        near = difflib.get_close_matches(
            wrong.partition("=")[0].rstrip(":"), flags, n=1, cutoff=0.4
        )
        hint = f"; the nearest known is {near[0]}" if near and near[0] not in message else ""
        raise UsageError(f"{message}{hint}")


def main(argv: list[str] | None = None) -> int:
    """Run the agent, or send it a word, and return the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    logs.configure()
    try:
        return _release(argv[1:]) if argv[:1] == ["release"] else _run(argv)
    except SystemExit as exc:  # --help
        return int(exc.code or 0)
    except UsageError as exc:
        return _complain(str(exc), 2)


def _run(argv: list[str]) -> int:
    parser = _Parser(
        prog="flopwatch agent",
        description="The daemon of a node. `flopwatch agent release --help`: let go of its cards.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE", type=Path, help="instead of the default file")
    for flag, (_, metavar, text) in _FLAGS.items():
        parser.add_argument(flag, metavar=metavar, help=text)
    given = vars(parser.parse_args(argv))
    flags = {flag: (dotted, given[flag[2:]]) for flag, (dotted, _, _) in _FLAGS.items()}
    config = load_config(given["config"], os.environ, flags)
    asyncio.run(run_agent(config))
    return 0


def _release(argv: list[str]) -> int:
    """Ask the agent of this host to let go of its cards for a while, or to take them again."""
    parser = _Parser(
        prog="flopwatch agent release",
        description="Let go of the cards, so that they can be reset or cut into MIG devices.",
        allow_abbrev=False,
    )
    parser.add_argument("--for", dest="length", metavar="DURATION", default="10m", help="e.g. 10m")
    parser.add_argument("--end", action="store_true", help="take the cards again now")
    parser.add_argument(
        "--config", metavar="FILE", type=Path, help="the agent's, if not the default"
    )
    given = parser.parse_args(argv)
    window = Window(load_config(given.config, os.environ).release_file)
    try:
        return _end(window) if given.end else _open(window, _seconds(given.length))
    except OSError as exc:
        return _complain(f"{window.path}: {exc.strerror}; the agent's user or root may write it", 1)


def _seconds(text: str) -> float:
    try:
        seconds = float(Duration.parse(text))
    except ValueError as exc:
        raise UsageError(f"--for {exc}") from exc
    if not 1 <= seconds <= SECONDS_MAX:
        raise UsageError(f"--for {text}: between 1s and {SECONDS_MAX / 3600:.0f}h")
    return seconds


def _open(window: Window, seconds: float) -> int:
    line = window.ask(seconds)
    give_up = time.monotonic() + _ANSWER_SECONDS
    while (word := window.answer_to(line)) is None:
        if time.monotonic() >= give_up:
            window.end()
            return _complain(
                f"no agent answered at {window.path}: does it run, with NVIDIA cards?", 1
            )
        time.sleep(0.1)
    if word != RELEASED:
        return _complain("the agent lets go, but a process of its hangs in the driver for good", 1)
    until = time.strftime("%H:%M:%S", time.localtime(wall_unix_ms(SystemClock()) / 1000 + seconds))
    sys.stdout.write(
        f"released until {until}; `flopwatch agent release --end` takes the cards again sooner\n"
    )
    return 0


def _end(window: Window) -> int:
    if not window.is_held:
        return _complain(f"no agent holds a window open at {window.path}", 1)
    window.end()
    give_up = time.monotonic() + _ANSWER_SECONDS
    while window.is_held:
        if time.monotonic() >= give_up:
            return _complain(f"no agent answered at {window.path}: does it run?", 1)
        time.sleep(0.1)
    sys.stdout.write("the agent reads its cards again\n")
    return 0


def _complain(text: str, code: int) -> int:
    sys.stderr.write(f"flopwatch agent: {text}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
