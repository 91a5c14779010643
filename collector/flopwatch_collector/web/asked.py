"""What a request asks for: windows, moments, and names that are spelt right. Pure."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final

from flopwatch_collector.ledger.evidence import Window
from flopwatch_collector.ledger.window import asked_window
from flopwatch_collector.web.problems import Problem
from flopwatch_proto.rows import INTERVAL_MS

DAY_MS: Final = 86_400_000
WINDOW_MS_MAX: Final = 400 * DAY_MS
_LENGTH: Final = re.compile(r"(\d{1,9})(s|m|h|d)")
_UNIT_MS: Final = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": DAY_MS}
_RFC3339: Final = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)")
DEFAULT_WINDOW: Final = "15m"


def window_of(now_unix_ms: int, window: str | None, start: str | None, end: str | None) -> Window:
    """Return the window that ``window``, ``start`` and ``end`` ask for, as it will be used.

    Raises:
        Problem: 422, naming the parameter and the fix.
    """
    if window is not None and start is not None and end is not None:
        raise Problem(
            422, "window: start and end say it all; leave one of the three out", parameter="window"
        )
    end_ms = None if end is None else moment_ms("end", end)
    length = length_ms("window", window or DEFAULT_WINDOW)
    if start is not None:
        start_ms = moment_ms("start", start)
        if window is not None:
            end_ms = start_ms + length
        elif end_ms is None:
            length = asked_window(now_unix_ms, INTERVAL_MS).end - start_ms
        else:
            length = end_ms - start_ms
        if length < INTERVAL_MS:
            raise Problem(
                422,
                f"start: {start} is not {INTERVAL_MS // 1000} s or more before the end; "
                "name an earlier one",
                parameter="start",
            )
        if length > WINDOW_MS_MAX:
            raise Problem(
                422,
                f"start: the window would be longer than {WINDOW_MS_MAX // DAY_MS} days; "
                "name a later one",
                parameter="start",
            )
    return asked_window(now_unix_ms, length, end_ms)


def length_ms(name: str, text: str, least_ms: int = INTERVAL_MS) -> int:
    """Return a length of time such as ``90s``, ``15m``, ``2h`` or ``7d``."""
    match = _LENGTH.fullmatch(text)
    if match is None:
        raise Problem(
            422,
            f"{name}: {_quoted(text)} is no length of time; write 90s, 15m, 2h or 7d",
            parameter=name,
        )
    length = int(match[1]) * _UNIT_MS[match[2]]
    if not least_ms <= length <= WINDOW_MS_MAX:
        raise Problem(
            422,
            f"{name}: {text} is outside {least_ms // 1000}s to {WINDOW_MS_MAX // DAY_MS}d",
            parameter=name,
        )
    return length


def moment_ms(name: str, text: str) -> int:
    """Return an RFC 3339 moment as Unix ms. A ``+`` that arrived as a space is read as ``+``."""
    asked = text.strip()
    if len(asked) > 19:
        asked = asked[:19] + asked[19:].replace(" ", "+")
    try:
        if not _RFC3339.fullmatch(asked):
            raise ValueError
        moment = datetime.fromisoformat(asked.upper()).astimezone(UTC)
    except (ValueError, OverflowError):
        raise Problem(
            422,
            f"{name}: {_quoted(text)} is no RFC 3339 moment; write 2026-11-01T00:00:00Z",
            parameter=name,
        ) from None
    return round(moment.timestamp() * 1000)


def one_of(name: str, text: str, known: Iterable[str]) -> str:
    """Return a word that is among the known ones; else 422 names the nearest."""
    words = list(known)
    if text in words:
        return text
    nearest = difflib.get_close_matches(text, words, n=1, cutoff=0.0)
    raise Problem(
        422,
        f"{name}: {_quoted(text)} is unknown; the nearest known one is {nearest[0]!r}, "
        f"all are {', '.join(words)}",
        parameter=name,
    )


def only_known(given: Iterable[str], known: Iterable[str]) -> None:
    """Refuse a query parameter that nothing reads."""
    words = sorted(known)
    for name in given:
        if name not in words:
            nearest = difflib.get_close_matches(name, words, n=1, cutoff=0.0)
            hint = f"the nearest known one is {nearest[0]!r}" if nearest else "this takes none"
            raise Problem(
                422, f"{_quoted(name)} is no parameter of this; {hint}", parameter=name[:64]
            )


def _quoted(text: str) -> str:
    return repr(text if len(text) <= 64 else text[:61] + "…")
