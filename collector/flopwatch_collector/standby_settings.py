"""The section ``[standby]``: light, because the command line reads configurations too."""

from __future__ import annotations

import msgspec


class StandbyConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The section ``[standby]``: this collector pages only when another one is gone.

    Attributes:
        primary: URL of the other one's dashboard and API; empty: this collector is nobody's standby.
        rank: waits rank × 15 s of silence: 1 for the first standby, 2 for a standby of both.
    """

    primary: str = ""
    rank: int = 1

    def __post_init__(self) -> None:
        if self.primary and not self.primary.startswith(("http://", "https://")):
            raise ValueError(f"primary = {self.primary!r}: write http://HOST:PORT or https://…")
        if not 1 <= self.rank <= 9:
            raise ValueError(f"rank = {self.rank}: 1 to 9")
