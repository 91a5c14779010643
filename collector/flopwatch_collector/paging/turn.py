"""Whose turn it is to send pages, where more than one collector could."""

from __future__ import annotations

from typing import Final, Protocol

from flopwatch_collector.control.leases import Lease

TRY_SECONDS_MAX: Final = 8.0
"""Bound of one try under a lease: a lease that is renewed in time has 10 s left at least."""


class Turn(Protocol):
    """Asked before anything is sent."""

    async def refusal(self, now_ms: int) -> str | None:
        """Return why this collector waits; None: it may send now."""


class AlwaysTurn:
    """A collector that is alone."""

    async def refusal(self, now_ms: int) -> str | None:
        """Nothing to wait for."""
        return None


class LeaseTurn:
    """Of several collectors with one control store: the holder of the lease.

    A try must end before the lease can be anybody else's, so the last ``TRY_SECONDS_MAX`` and a second of a
    lease are not used. Renewed in time, it never comes to that.
    """

    def __init__(self, lease: Lease) -> None:
        self._lease = lease
        self._margin_ms = round(TRY_SECONDS_MAX * 1000) + 1000

    async def refusal(self, now_ms: int) -> str | None:
        """Return who else sends, or that the lease is about to end."""
        if self._lease.fence is None:
            return f"the lease {self._lease.name} is not held here"
        if self._lease.left_ms() < self._margin_ms:
            return f"the lease {self._lease.name} was not renewed in time"
        return None
