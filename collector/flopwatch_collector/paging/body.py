"""The body of a page: its parts as JSON, and all of it once more as text that needs no login. Pure.

Everything with a name is bounded: so many are named, the rest is counted. Names are written as `text.name`
writes them, on one line and without anything invisible.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote, urlencode

from flopwatch_collector.incident_state import IncidentState, rfc3339
from flopwatch_collector.ledger.waterfall import OWNERS
from flopwatch_collector.news import NOT_CAUSES
from flopwatch_collector.paging import text
from flopwatch_collector.paging.background import Background, Change
from flopwatch_collector.paging.evidence import Evidence
from flopwatch_collector.paging.found import Explanation, Subject, named, subjects_of
from flopwatch_collector.paging.kinds import RULE_STEPS
from flopwatch_collector.rules import Observation
from flopwatch_collector.rules.registry import rule_named
from flopwatch_collector.tally import STEPS

LOSSES_SHOWN: Final = 3
NAMED_MAX: Final = 10
CHANGES_SHOWN: Final = 5
TEXT_CHARACTERS_MAX: Final = 3_500
"""Slack takes 40,000 of a message and shows 4,000; annotations of an alert travel with every reminder."""
_NODES_ORDER: Final = ("MISSING", "FAILED", "MAINT", "HELD", "STRANDED", "FREE", "UNSEEN")
_BEHIND: Final = {
    "nodes": "Nodes, cards lost",
    "ended": "Jobs that ended, cards they had",
    "jobs": "Jobs, cards lost",
    "teams": "Teams, cards lost",
}
NO_PRICE: Final = "no price is set"


def parts(
    state: IncidentState, found: Explanation, evidence: Evidence, background: Background
) -> dict[str, Any]:
    """Return the parts that tell why. Args: found: what explains it; evidence: from what."""
    rule, before, price = rule_named(state.rule), background.before, background.usd_per_card_hour
    cards = (evidence.mfu_cards if rule.reads == "mfu" else evidence.cards) or None
    return {
        "before": None if before is None else _before(before, background.figure_before(rule)),
        "cause": {
            "kind": found.kind,
            "words": named(found, text.NAME_CHARACTERS_MAX),
            "owner": found.owner or None,
            "cards": found.cards,
            "points": found.points,
            "subjects": _subjects(found.subjects),
            "more": max(0, found.more + 1 - NAMED_MAX),
            "first_step": RULE_STEPS.get(state.rule) or found.step,
        },
        "usd_per_card_hour": price,
        "largest_losses": [
            _loss(name, lost, cards, price) for name, lost in _losses(state)[:LOSSES_SHOWN]
        ],
        "causes": [
            {
                "kind": cause.kind,
                "name": text.name(cause.name),
                "cards": cause.cards,
                "points": cause.points,
            }
            for cause in state.causes[:NAMED_MAX]
        ],
        "behind": _behind(evidence, rule.reads),
        "changes": None
        if background.changes is None
        else [_change(change) for change in background.changes[:CHANGES_SHOWN]],
    }


def links(
    base_url: str | None, state: IncidentState, episode: str, now_unix_ms: int
) -> dict[str, str]:
    """Return links to the outage, to its cluster, and to its figures at that moment."""
    if base_url is None:
        return {}
    base, name = base_url.rstrip("/"), quote(state.cluster, safe="")
    at = urlencode({"window": "15m", "end": rfc3339(now_unix_ms)})
    return {
        "outage": f"{base}/outages/{quote(state.rule, safe='')}/{name}/{quote(episode, safe='')}",
        "dashboard": f"{base}/?{urlencode({'cluster': state.cluster, 'window': '15m'})}",
        "api": f"{base}/api/v1/clusters/{name}?{at}",
    }


def _before(before: Observation, figure: float | None) -> dict[str, Any]:
    return {
        "at": rfc3339(before.tick_unix_ms),
        "value": figure,
        "subjects": before.subjects,
        "lost_points": dict(before.lost_points),
    }


def _losses(state: IncidentState) -> list[tuple[str, float]]:
    lost = [
        (name, points)
        for name, points in state.lost_points.items()
        if points > 0 and name not in NOT_CAUSES
    ]
    return sorted(lost, key=lambda loss: (-loss[1], loss[0]))


def _loss(name: str, points: float, cards: float | None, price: float | None) -> dict[str, Any]:
    lost = None if cards is None else points / 100 * cards
    return {
        "step": text.name(name),
        "owner": OWNERS.get(name.lower()),
        "points": points,
        "cards": lost,
        "usd_per_hour": None if lost is None or price is None else lost * price,
    }


def _subjects(subjects: Sequence[Subject]) -> list[dict[str, Any]]:
    return [
        {"kind": one.kind, "name": text.name(one.name), "cards": one.cards}
        for one in subjects[:NAMED_MAX]
    ]


def _behind(evidence: Evidence, reads: str) -> dict[str, Any]:
    """Return who is behind it: of allocation nodes and jobs that ended, of MFU jobs and teams."""
    tally = evidence.tally
    if tally is None:
        return {}
    if reads != "mfu":
        # What is new first, and of that what is broken before what is free.
        nodes = [
            one
            for bucket in _NODES_ORDER
            for one in subjects_of(bucket.lower(), evidence.nodes(0.0, bucket))
        ]
        ended = subjects_of("job", evidence.ended())
        return {"nodes": _first(nodes), "ended": _first(ended)}
    jobs = {name: sum(job.steps.get(s, 0.0) for s in STEPS) for name, job in tally.jobs.items()}
    teams: dict[str, float] = {}
    for name, job in tally.jobs.items():
        if job.team:
            teams[job.team] = teams.get(job.team, 0.0) + jobs[name]
    found = subjects_of("job", jobs), subjects_of("team", teams)
    return dict(zip(("jobs", "teams"), map(_first, found), strict=True))


def _first(found: Sequence[Subject]) -> dict[str, Any]:
    lost = [one for one in found if one.cards > 0]
    return {"first": _subjects(lost), "more": max(0, len(lost) - NAMED_MAX)}


def _change(change: Change) -> dict[str, Any]:
    return {
        "at": rfc3339(change.unix_ms),
        "what": text.name(change.what, 120),
        "count": change.count,
        "nodes": [text.name(node) for node in change.nodes],
    }


# ---- the same as text


def text_of(body: Mapping[str, Any]) -> str:
    """Return a body as text, a fact a line; whole lines are left out where it would be too long."""
    told: list[str] = []
    left = TEXT_CHARACTERS_MAX
    for line in _lines(body):
        if len(line) + 1 > left:
            break
        told.append(line)
        left -= len(line) + 1
    return "\n".join(told)


def _lines(body: Mapping[str, Any]) -> list[str]:
    cause = body["cause"]
    lines = [_fell(body)]
    if body["state"] != "resolved":
        lost = ", ".join(_counted_loss(cause))
        owner = f" For: {body['owner']}." if body["owner"] else ""
        lines.append(f"Cause: {cause['words']}{f' ({lost})' if lost else ''}.{owner}")
        lines.append(f"First: {cause['first_step']}")
    lines.append(f"Paste: {body['command']}")
    if body["state"] != "resolved":
        lines += _lost_lines(body)
    return [*lines, *(f"{name}: {href}" for name, href in body["links"].items())]


def _lost_lines(body: Mapping[str, Any]) -> list[str]:
    """What is lost, who is behind it, what changed just before, and what else is wrong."""
    lines = []
    if body["largest_losses"]:
        lines.append(f"Lost: {'; '.join(_loss_words(loss) for loss in body['largest_losses'])}")
        if body["usd_per_card_hour"] is None:
            lines.append(f"Money: {NO_PRICE} (clusters.NAME.usd_per_card_hour).")
    lines += _behind_lines(body)
    if body["changes"] is not None:
        changes = [_change_words(change) for change in body["changes"]]
        lines += ["Just before:", *changes] if changes else ["Just before: nothing was told."]
    return [*lines, *(f"Also: {found['rule']} since {found['since']}." for found in body["also"])]


def _fell(body: Mapping[str, Any]) -> str:
    before = body["before"]
    was = ""
    if before is not None and before["subjects"] is not None:
        was = f"; it was {before['subjects']:,} at {before['at']}"
    elif before is not None and before["value"] is not None:
        was = f"; it was {text.percent(before['value'])}% at {before['at']}"
    since = "" if body["since"] is None else f", since {body['since']}"
    return f"{text.name(body['cluster'])} {body['rule']}: {body['figure']}{since}{was}."


def _counted_loss(lost: Mapping[str, Any]) -> list[str]:
    found = [] if not lost["cards"] else [text.count(lost["cards"], "card")]
    return found if lost["points"] is None else [*found, f"{lost['points']:.1f} points"]


def _loss_words(loss: Mapping[str, Any]) -> str:
    words = [f"{loss['step'].lower().replace('_', ' ')} {loss['points']:.1f} points"]
    if loss["cards"] is not None:
        words.append(text.count(loss["cards"], "card"))
    if loss["usd_per_hour"] is not None:
        words.append(f"${loss['usd_per_hour']:,.0f}/h")
    return ", ".join(words)


def _behind_lines(body: Mapping[str, Any]) -> list[str]:
    lines = []
    cause = body["cause"]
    if len(cause["subjects"]) > 1:
        names = [one["name"] for one in cause["subjects"]]
        lines.append(f"The cause is in: {_and_more(names, cause['more'])}")
    for name, words in _BEHIND.items():
        found = body["behind"].get(name, {"first": ()})
        names = [_loser(one) for one in found["first"]]
        if names:
            lines.append(f"{words}: {_and_more(names, found['more'])}")
    if not body["behind"] and body["causes"]:
        lines.append(f"Behind it, cards lost: {_and_more([_loser(c) for c in body['causes']], 0)}")
    return lines


def _loser(one: Mapping[str, Any]) -> str:
    kind = "" if one["kind"] in ("node", "job", "team") else f" {one['kind']}"
    return f"{one['name']} {text.number(one['cards'])}{kind}"


def _and_more(names: Sequence[str], more: int) -> str:
    return text.listed(names, NAMED_MAX, len(names) + more)


def _change_words(change: Mapping[str, Any]) -> str:
    where = f" on {text.listed(change['nodes'])}" if change["nodes"] else ""
    times = "" if change["count"] == 1 else f" ×{change['count']:,}"
    return f"- {change['at']} {change['what']}{times}{where}"
