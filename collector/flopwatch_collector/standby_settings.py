"""The section ``[standby]``: light, because the command line reads configurations too."""

from __future__ import annotations

import msgspec


class StandbyConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The section ``[standby]``: this collector pages only when another one is gone.

    Attributes:
        primary: URL of the other one's dashboard and API; empty: this collector is nobody's standby.
        rank: waits rank × 15 s of silence: 1 for the first standby, 2 for a standby of both.
        certificate, key, authority: PEM files for a primary behind mutual TLS: our chain and its key, and
            whom to believe about the primary; all three, or none. Read again after a question without answer.
    """

    primary: str = ""
    rank: int = 1
    certificate: str = ""
    key: str = ""
    authority: str = ""

    def __post_init__(self) -> None:
        if self.primary and not self.primary.startswith(("http://", "https://")):
            raise ValueError(f"primary = {self.primary!r}: write http://HOST:PORT or https://…")
        if not 1 <= self.rank <= 9:
            raise ValueError(f"rank = {self.rank}: 1 to 9")
        given = [bool(path) for path in (self.certificate, self.key, self.authority)]
        if any(given) and not all(given):
            raise ValueError("certificate, key and authority: name all three files, or none")
        if any(given) and not self.primary.startswith("https://"):
            raise ValueError(f"primary = {self.primary!r}: certificates need https://…")
