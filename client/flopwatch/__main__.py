"""The `flopwatch` command: which part of the program an invocation is for.

The daemons are started without the command line's libraries: the agent of a GPU node imports neither
typer nor rich. Exit codes: 0 done, 1 the answer is bad news, 2 wrong usage or configuration.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from typing import Final

_DAEMONS: Final = {
    "agent": ("flopwatch_agent.__main__", "flopwatch"),
    "collector": ("flopwatch_collector.__main__", "flopwatch[collector]"),
}
"""Command → (module whose ``main(argv)`` it is, what to install when that has a part missing)."""

_UNWANTED: Final = ("greenlet", "rich")
"""structlog loads them where it finds them, for tracebacks in colour and for gevent: 5 MiB of every node."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if "--version" in arguments[:2]:  # of the command, or of one of its daemons
        sys.stdout.write(f"flopwatch {version('flopwatch')}\n")
        return 0
    if arguments and arguments[0] in _DAEMONS:
        return _daemon(arguments[0], arguments[1:])
    app = importlib.import_module("flopwatch.cli.app")
    code: int = app.run(arguments)
    return code


def _daemon(command: str, arguments: list[str]) -> int:
    module, distribution = _DAEMONS[command]
    try:
        with _without(*(_UNWANTED if command == "agent" else ())):
            daemon = importlib.import_module(module)
    except ModuleNotFoundError as exc:
        if exc.name is not None and exc.name.startswith("flopwatch"):
            raise
        sys.stderr.write(
            f"flopwatch {command}: {exc.name} is not installed: pip install '{distribution}'\n"
        )
        return 2
    return int(daemon.main(arguments) or 0)


@contextlib.contextmanager
def _without(*modules: str) -> Iterator[None]:
    """Import as if some modules were not there."""
    before = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(dict.fromkeys(modules))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name, module in before.items():
            del sys.modules[name]
            if module is not None:
                sys.modules[name] = module


if __name__ == "__main__":
    sys.exit(main())
