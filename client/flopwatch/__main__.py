"""The `flopwatch` command: which part of the program an invocation is for.

The daemons are started without the command line's libraries: the agent of a GPU node imports neither
typer nor rich. Exit codes: 0 done, 1 the answer is bad news, 2 wrong usage or configuration.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import Final

_DAEMONS: Final = {
    "agent": ("flopwatch_agent.__main__", "flopwatch"),
    "collector": ("flopwatch_collector.__main__", "flopwatch[collector]"),
}
"""Command → (module whose ``main(argv)`` it is, what to install when that has a part missing)."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0] in _DAEMONS:
        return _daemon(arguments[0], arguments[1:])
    app = importlib.import_module("flopwatch.cli.app")
    code: int = app.run(arguments)
    return code


def _daemon(command: str, arguments: list[str]) -> int:
    module, distribution = _DAEMONS[command]
    try:
        daemon = importlib.import_module(module)
    except ModuleNotFoundError as exc:
        if exc.name is not None and exc.name.startswith("flopwatch"):
            raise
        sys.stderr.write(
            f"flopwatch {command}: {exc.name} is not installed: pip install '{distribution}'\n"
        )
        return 2
    return int(daemon.main(arguments) or 0)


if __name__ == "__main__":
    sys.exit(main())
