"""The command of a page: what to paste first. Pure.

It is quoted for a POSIX shell. A name that nobody can type (control characters, invisible ones, several
lines) is left out of it: pasted into a terminal it could do more than name something.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Final

from flopwatch_collector.paging.found import Explanation

WINDOW: Final = "15m"
CHARACTERS_MAX: Final = 200
"""Of a name; a longer one is left out as well."""
_OF_AGENTS: Final = (
    "blind",
    "data_missing",
    "node_silent",
    "agent_unhealthy",
    "certificate_ending",
)


def command(rule: str, cluster: str, found: Explanation, at: str) -> str:
    """Return the command for a rule's outage of a cluster and its cause at a moment (RFC 3339)."""
    return shlex.join(_words(rule, cluster, found, at))


def _words(rule: str, cluster: str, found: Explanation, at: str) -> Sequence[str]:
    at_that_time = ("--window", WINDOW, "--end", at)
    if not _typed(cluster):
        return ("flopwatch", "fleet", *at_that_time)
    if rule in _OF_AGENTS or found.kind == "blind":
        return ("flopwatch", "agents", f"--cluster={cluster}")
    first = found.subjects[0] if found.subjects else None
    if first is not None and found.more == 0 and _typed(first.name):
        if first.kind == "job":
            return ("flopwatch", "job", "show", *_named(first.name, f"--cluster={cluster}"))
        if first.kind == "node":
            return ("flopwatch", "node", *_named(first.name, *at_that_time))
    return ("flopwatch", "cluster", *_named(cluster, *at_that_time))


def _typed(name: str) -> bool:
    return 0 < len(name) <= CHARACTERS_MAX and name.isprintable()


def _named(name: str, *options: str) -> Sequence[str]:
    """A name with options; one that starts with a dash comes after them, as it is none."""
    return (*options, "--", name) if name.startswith("-") else (name, *options)
