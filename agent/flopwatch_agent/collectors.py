"""Which collectors an agent delivers to: one, or a primary and its warm standby."""

from __future__ import annotations

from typing import Final

COLLECTORS_MAX: Final = 2


def addresses(text: str) -> tuple[str, ...]:
    """Return the addresses in ``HOST:PORT`` or ``HOST:PORT,HOST:PORT``.

    Raises:
        ValueError: there are more than two, or one twice.
    """
    found = tuple(part.strip() for part in text.split(","))
    if len(found) > COLLECTORS_MAX:
        raise ValueError(f"collector = {text!r}: at most {COLLECTORS_MAX}, a primary and a standby")
    if len(set(found)) < len(found):
        raise ValueError(f"collector = {text!r}: the same address twice")
    return found
