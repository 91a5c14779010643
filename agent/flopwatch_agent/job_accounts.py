"""Counters of jobs by (device, job): sums of what their processes counted. Pure.

- An account never falls while the job lives, whoever joins or leaves.
- What each process of a job counts alike (steps, and time inside them) is taken from one of them, the
  speaker; when it leaves, the next that is heard speaks.
- An account of `EVERY_CARD` flows into the account of each card of the job that is looked at, from the
  first look on; a column that a process of the card counts itself is not counted twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from flopwatch_agent.job_message import EVERY_CARD, OF_THE_JOB

ACCOUNTS_MAX: Final = 4096

Key = tuple[str | None, str]
"""(device, job)."""


@dataclass(slots=True, kw_only=True)
class Account:
    """Counters of one job on one device.

    Attributes:
        totals: column → sum.
        speaker: pid of the process whose word counts for `OF_THE_JOB`.
        own: columns that a process of the device itself counts.
        seen: column → what the job's account of every card stood at when last looked at.
    """

    touched_ms: float
    totals: dict[str, float] = field(default_factory=dict)
    speaker: int | None = None
    own: set[str] = field(default_factory=set)
    seen: dict[str, float] = field(default_factory=dict)

    def add(
        self, pid: int, now: Mapping[str, float], before: Mapping[str, float] | None, *, start: bool
    ) -> None:
        """Take a process's counters.

        Args:
            before: what it said last, under whatever account; None: nothing.
            start: its start was heard, so a counter not heard before began at zero.
        """
        if self.speaker is None:
            self.speaker = pid
        for column, value in now.items():
            self.own.add(column)
            if column in OF_THE_JOB and pid != self.speaker:
                continue
            known = 0.0 if start else value
            if before is not None:
                known = before.get(column, known)
            increase = max(0.0, value - known)  # a fall is a restart
            self.totals[column] = self.totals.get(column, 0.0) + increase


class Accounts:
    """All of them, bounded."""

    def __init__(self) -> None:
        self._accounts: dict[Key, Account] = {}

    def open(self, key: Key, now_ms: float) -> Account | None:
        """Return an account, a new one where there is none; None when there are too many."""
        account = self._accounts.get(key)
        if account is None:
            if len(self._accounts) >= ACCOUNTS_MAX:
                return None
            account = self._accounts[key] = Account(touched_ms=now_ms)
        account.touched_ms = now_ms
        return account

    def left(self, key: Key, pid: int) -> None:
        """A process counts no more under this account."""
        account = self._accounts.get(key)
        if account is not None and account.speaker == pid:
            account.speaker = None

    def totals(self, device: str, job: str) -> Mapping[str, float]:
        """Return the counters of a job on a device, by column; empty: it declares none."""
        account, every = self._accounts.get((device, job)), self._accounts.get((EVERY_CARD, job))
        if every is None:
            return {} if account is None else dict(account.totals)
        if account is None:
            account = self.open((device, job), every.touched_ms)
            if account is None:
                return {}
        for column, total in every.totals.items():
            before = account.seen.get(column, total)
            account.seen[column] = total
            if column not in account.own:
                account.totals[column] = account.totals.get(column, 0.0) + total - before
        return dict(account.totals)

    def jobs(self, device: str) -> Iterator[str]:
        """Yield the jobs that have an account on a device."""
        return iter([job for held, job in self._accounts if held == device])

    def expire(self, held: set[Key], now_ms: float, silent_ms_max: float) -> None:
        """Forget accounts that nobody holds and nobody has touched for long."""
        for key, account in list(self._accounts.items()):
            if key in held or (EVERY_CARD, key[1]) in held:
                account.touched_ms = now_ms
            elif now_ms - account.touched_ms > silent_ms_max:
                del self._accounts[key]
