"""Tables of a replay; each fits into 80 columns. Pure: they are made from what `--json` prints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from rich import box
from rich.markup import escape
from rich.table import Table

from flopwatch.cli import number

SHOWN_MAX: Final = 20
_SIMULATED: Final = " (simulated)"
_HOUR_MS: Final = 3_600_000
_DAY_MS: Final = 24 * _HOUR_MS

_WHOSE: Final = {
    "": "",
    "both": " with either",
    "today": " with today's rules",
    "file": " with the file's",
}

Json = Mapping[str, Any]


def would_have(answer: Json) -> Iterator[str]:
    """``atlas mfu: would have paged 14 times in 7 days, 12 standing``, a line per rule and set of rules."""
    days = _length(
        answer["until_unix_ms"] - max(answer["since_unix_ms"], answer["history_unix_ms"])
    )
    if answer["history_unix_ms"] - answer["since_unix_ms"] > _HOUR_MS:
        yield f"{answer['cluster']}: history begins {_moment(answer['history_unix_ms'])} UTC"
    told, name = False, _name(answer)
    for of in _rows(answer):
        if any(rule["pages"] or rule["outages"] for _, rule in of):
            told = True
            for whose, rule in of:
                yield (
                    f"{name} {rule['rule']}: would have paged {_times(rule['pages'])} "
                    f"in {days}, {rule['standing']} standing{_WHOSE[whose]}"
                )
    if not told:
        yield f"{name}: nothing would have paged in {days}"


def outcomes_table(answer: Json) -> Table:
    """A line per rule that did something; where the file's differs, one more for it."""
    until = _moment(answer["until_unix_ms"])
    made = _table(f"{_name(answer)} · {_moment(answer['since_unix_ms'])} to {until}, UTC")
    compared = "tried" in answer
    for column in ("rule", *(("whose",) if compared else ())):
        made.add_column(column, no_wrap=True)
    for column in ("line %", "pages", "outages", "stand", "hours", "longest"):
        made.add_column(column, justify="right", no_wrap=True)
    quiet: list[str] = []
    for of in _rows(answer):
        if len(of) == 1 and not any(of[0][1][name] for name in ("pages", "notices", "outages")):
            quiet.append(of[0][1]["rule"])
            continue
        for number_of, (whose, rule) in enumerate(of):
            label = "" if number_of else rule["rule"]
            made.add_row(label, *((whose,) if compared else ()), *_cells(rule))
    if quiet:
        made.caption = f"nothing: {', '.join(quiet)}"
        made.caption_justify = "left"
    return made


def _name(answer: Json) -> str:
    return f"{answer['cluster']}{_SIMULATED if answer['simulated'] else ''}"


def _rows(answer: Json) -> list[list[tuple[str, Json]]]:
    """Each rule with whose it is: one where both sets did alike, else today's and the file's."""
    today = answer["today"]["rules"]
    if "tried" not in answer:
        return [[("", rule)] for rule in today]
    return [
        [("both", now)] if now == then else [("today", now), ("file", then)]
        for now, then in zip(today, answer["tried"]["rules"], strict=True)
    ]


def _cells(rule: Json) -> list[str]:
    return [
        number.percent(rule["line"]) if rule["enabled"] else "off",
        str(rule["pages"]),
        str(rule["outages"]),
        str(rule["standing"]),
        f"{rule['out_ms'] / _HOUR_MS:.1f}",
        _length(rule["longest_ms"]) if rule["outages"] else number.UNKNOWN,
    ]


def outages_table(answer: Json) -> Table | None:
    """The newest outages, of a comparison those that differ; None where there is none."""
    compared = "tried" in answer
    rows = [pair for pair in answer["pairs"] if not compared or pair["today"] != pair["tried"]]
    if not rows:
        return None
    more = f", the newest {SHOWN_MAX} of {len(rows)}" if len(rows) > SHOWN_MAX else ""
    made = _table(f"outages{' that differ, today → file' if compared else ''}{more}")
    for column in ("began, UTC", "rule", "lasted", "worst %", "pages"):
        left = column in ("began, UTC", "rule")
        made.add_column(column, justify="left" if left else "right", no_wrap=True)
    for pair in rows[-SHOWN_MAX:]:
        now, then = pair["today"], pair["tried"] if compared else pair["today"]
        either = now or then
        made.add_row(
            _moment(either["began_unix_ms"])[5:],
            either["rule"],
            _both(_lasted(now, answer), _lasted(then, answer)),
            number.percent(either["worst"], line=either["line"]),
            _both(_pages(now), _pages(then)),
        )
    return made


def _lasted(outage: Json | None, answer: Json) -> str:
    if outage is None:
        return number.UNKNOWN
    ended = outage["ended_unix_ms"] or answer["until_unix_ms"]
    more = "" if outage["ended_unix_ms"] else "+"
    return _length(ended - outage["began_unix_ms"]) + more


def _pages(outage: Json | None) -> str:
    if outage is None:
        return number.UNKNOWN
    return str(sum(told["act"] != "notice" for told in outage["told"]))


def _both(now: str, then: str) -> str:
    return now if now == then else f"{now} → {then}"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _length(ms: float) -> str:
    if ms < 2 * _HOUR_MS:
        return f"{ms / 60_000:.0f} min"
    return f"{ms / _HOUR_MS:.1f} h" if ms < 2 * _DAY_MS else f"{ms / _DAY_MS:.3g} days"


def _moment(unix_ms: int) -> str:
    return f"{datetime.fromtimestamp(unix_ms / 1000, UTC):%Y-%m-%d %H:%M}"


def _table(title: str) -> Table:
    return Table(title=escape(title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
