"""How the answer about a job is written: the verdict first, then why. Pure; fits into 80 columns.

Only weight sets text apart, no colour: readable on light and on dark backgrounds alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from rich import box
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from flopwatch.cli import number, table

Json = Mapping[str, Any]
Printed = Text | Table | Padding

VERDICTS: Final = {
    "machine": "The machine: its cards or nodes lose it.",
    "workload": "The workload: the job loses it on sound machines.",
    "both": "Both: the machine loses a part, the workload another.",
    "neither": "Neither: it runs about as well as its cards can.",
    "cannot tell": "Cannot tell: what would decide it was not measured.",
}
KINDS: Final = {
    "slow_clock": "slow clock",
    "slow_card": "slow card",
    "late_rank": "late rank",
    "data_stall": "data stall",
    "slow_link": "slow link",
}


def answer(job: Json) -> Iterable[Printed]:
    """Everything that `flopwatch job ID` prints."""
    said = job["answer"]
    yield _head(job)
    yield from _verdict(said["verdict"])
    yield table.subject_table("figures", job)
    yield from _causes(said["causes"])
    yield from _bridge(said["bridge"])
    yield from _peers(said["peers"])
    yield from stragglers(said["stragglers"])
    yield from _flags(said.get("flags") or ())
    yield Text(said["receipt"], style="bold")


def _head(job: Json) -> Text:
    sim = "SIMULATED · " if job.get("simulated") else ""
    cards = number.cards((job.get("cards") or {}).get("allocated"))
    words = [job["name"], job["cluster"]]
    words += [text for name in ("team", "user", "workload_class") if (text := job.get(name))]
    if job.get("attempts", 1) > 1:
        words.append(f"attempt {job['attempt']} of {job['attempts']}")
    end = table.moment(job.get("end"))
    to = f" to {end:%Y-%m-%d %H:%M:%S} UTC" if end is not None else ""
    held = f"{cards} × {job.get('sku') or 'cards'}, {_length(job['window_s'])}{to}"
    return Text(f"{sim}{' · '.join(words)}\n{held}")


def _length(seconds: float) -> str:
    if seconds < 7_200:
        return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"
    return f"{seconds / 3_600:.1f} h"


def _verdict(said: Json) -> Iterable[Printed]:
    yield Text(f"\n{VERDICTS.get(said['value'], said['value'])}", style="bold")
    for side in ("machine", "workload"):
        of = said[side]
        points = f", {number.points(of['points'])} pts" if of["state"] != "unknown" else ""
        yield Text(f"{side}: {of['state']}{points}")
        yield from _listed(of["evidence"])
    yield Text()


def _listed(sentences: Sequence[str]) -> Iterable[Printed]:
    for sentence in sentences:
        yield Padding(Text(f"· {sentence}"), (0, 0, 0, 2), expand=False)


def _causes(causes: Sequence[Json]) -> Iterable[Printed]:
    if not causes:
        return
    unit = causes[0].get("unit") or "HFU"
    made = _table("largest losses", ("cause", "lost pts", f"gain {unit} pts", "cards", "try first"))
    for cause in causes:
        made.add_row(
            str(cause["step"]).replace("_", " "),
            number.points(cause["lost"]),
            number.points(cause["gain_points"]),
            number.cards(cause["gain_cards"]),
            str(cause["first"]),
        )
    yield made


def _bridge(bridge: Json) -> Iterable[Printed]:
    if bridge["reported"] is None:
        yield Text(f"its own MFU: {number.UNKNOWN}, {bridge['reason']}")
        return
    made = _table("from its own MFU to ours", ("step", "factor", "pts", "note"))
    made.add_row("its own MFU", "", number.points(bridge["reported"]), "")
    for step in bridge["steps"]:
        made.add_row(step["step"], _factor(step), number.points(step["points"]), step["note"])
    made.add_row("our MFU", "", number.points(bridge["ours"]), bridge["reason"] or "")
    yield made


def _factor(step: Json) -> str:
    if step["factor"] is not None:
        return f"{step['factor']:.3f}"
    return "" if step["lo"] is None else f"{step['lo']:.2f}–{step['hi']:.2f}"


def _peers(peers: Json) -> Iterable[Printed]:
    for name in ("mfu", "hfu"):
        place = peers.get(name)
        if place is not None:
            rank = f", this one is {place['rank']} of {place['of']}" if place["rank"] else ""
            span = f"{number.percent(place['p25'])}–{number.percent(place['p75'])} %"
            yield Text(f"peers' {name.upper()} (p25–p75 of {place['of'] - 1} jobs): {span}{rank}")
    if peers.get("reason"):
        yield Text(f"peers: {peers['reason']}")


def stragglers(found: Json) -> Iterable[Printed]:
    """Who keeps the job waiting, each with its evidence; or that nobody does, or that it was not seen."""
    every = found.get("every_s")
    seen = f"{found['cards']} cards"
    if every:
        seen += f", {found['from']} every {every:.2g} s"
    if found.get("step_s"):
        seen += f", steps of {number.quantity(found['step_s'])} s"
    yield Text(f"\nstragglers ({seen})", style="bold")
    if not found["judged"]:
        yield Text(f"not judged: {found['reason']}")
        return
    if not found["culprits"]:
        yield Text(f"none: {found['reason']}")
    for place, culprit in enumerate(found["culprits"], 1):
        where = " ".join(str(culprit[n]) for n in ("node", "slot") if culprit[n])
        sure = f"{100 * culprit['confidence']:.0f} % sure"
        yield Text(f"{place}. {where}: {KINDS.get(culprit['kind'], culprit['kind'])}, {sure}")
        yield from _listed(culprit["evidence"])
    if found.get("idle_cards"):
        yield Text(f"{found['idle_cards']} cards of the job do nothing")
    yield Text()


def _flags(flags: Sequence[Json]) -> Iterable[Printed]:
    for flag in flags:
        yield Text(f"flag: {flag['words']}")
        yield from _listed([str(flag["next_step"])])


def _table(title: str, columns: Sequence[str]) -> Table:
    made = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        words = column in ("cause", "step", "note", "try first")
        made.add_column(
            column, justify="left" if words else "right", overflow="fold", no_wrap=not words
        )
    return made
