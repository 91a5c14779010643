"""What of a card's time probes have taken: a file per card, so that a restart forgets nothing.

The whole wall limit of a probe is charged before it starts and settled when it has ended; a probe that dies
with its host stays charged in full. In every `WINDOW_MS` the charges are at most the budget: a probe is
admitted only where what the window before it holds, and its own limit, fit.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import msgspec

from flopwatch_agent.probing.files import file_name, make_directory, write_whole

WINDOW_MS: Final = 8 * 3_600_000
_RUNS_MAX: Final = 2_048
DIRECTORY: Final = "probing"


def budget_ms(ratio: float) -> int:
    """Return how much of a window probes may take of a card."""
    return int(ratio * WINDOW_MS)


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One probe. Attributes: what: kind, dtype and load; charged_ms: of the card's time."""

    what: str
    start_unix_ms: int
    charged_ms: int
    aborted: bool = False

    @property
    def end_unix_ms(self) -> int:
        """Return when what is charged ends."""
        return self.start_unix_ms + self.charged_ms


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """The probes of one card, oldest first. Values: each change is a new one."""

    v: int = 1
    runs: tuple[Run, ...] = ()

    def spent_ms(self, now_unix_ms: int) -> int:
        """Return what probes took in the window before now. One of the future counts: the clock stepped."""
        since = now_unix_ms - WINDOW_MS
        return sum(run.charged_ms for run in self.runs if run.end_unix_ms > since)

    def affords(self, wall_ms: int, now_unix_ms: int, budget: int) -> bool:
        """Whether a probe of that wall limit fits into a budget in ms."""
        full = len(self.runs) >= _RUNS_MAX  # what is forgotten would not be charged
        return not full and self.spent_ms(now_unix_ms) + wall_ms <= budget

    def last(self, what: str) -> Run | None:
        """Return the newest probe of a kind."""
        found = [run for run in self.runs if run.what == what]
        return max(found, key=lambda run: run.start_unix_ms, default=None)

    def charged(self, run: Run) -> Account:
        """Return the account with a probe. What neither budget nor `last` needs any more goes."""
        since = run.start_unix_ms - WINDOW_MS
        newest = {each.what: each for each in self.runs}
        kept = [r for r in self.runs if r.end_unix_ms > since or newest[r.what] is r]
        return Account(runs=(*kept, run)[-_RUNS_MAX:])

    def settled(self, run: Run, charged_ms: int, *, aborted: bool) -> Account:
        """Return the account with a probe's real time; never more than was charged for it."""
        charged_ms = max(0, min(charged_ms, run.charged_ms))
        done = msgspec.structs.replace(run, charged_ms=charged_ms, aborted=aborted)
        return Account(runs=tuple(done if each == run else each for each in self.runs))


class Accounts:
    """The accounts of a host's cards. Written only by who holds the card's lock."""

    def __init__(self, data: Path) -> None:
        self._directory = data / DIRECTORY

    def load(self, device: str) -> Account:
        """Return a card's account; one that cannot be read is a new one.

        Raises:
            OSError: it is there and cannot be read: nobody knows what is left.
        """
        try:
            return msgspec.json.decode(self._path(device).read_bytes(), type=Account)
        except (FileNotFoundError, msgspec.DecodeError):
            return Account()

    def save(self, device: str, account: Account) -> None:
        """Keep an account. Raises: OSError: it cannot be written."""
        make_directory(self._directory)
        write_whole(self._path(device), msgspec.json.encode(account))

    def writable(self) -> bool:
        """Whether accounts can be kept."""
        there = self._directory
        while not there.exists():
            there = there.parent
        return os.access(there, os.W_OK)

    def _path(self, device: str) -> Path:
        return self._directory / f"{file_name(device)}.json"
