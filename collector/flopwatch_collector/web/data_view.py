"""What is missing in the data, as values for templates: the books of clusters, and of one node. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from flopwatch_collector.audit.books import NAMED_MAX, Books, is_wrong
from flopwatch_collector.audit.losses import GAP, QUARANTINE, Loss
from flopwatch_collector.ledger.fleet import rfc3339
from flopwatch_collector.web import wording

Json = Mapping[str, Any]

VERDICT_WORDS: Final = {
    "balanced": "balanced: every row it handed over is accounted for",
    "missing": "rows that nobody can account for",
    "cloned": "numbers were used for two contents: its disk was copied, or set back",
    "unspoken": "its spool has not spoken of itself yet: nothing can be proven",
}
CAUSE_WORDS: Final = {
    "spool_full": "spool full",
    "disk_error": "disk error",
    "corrupt": "corrupt on disk",
    "clock_step": "clock step",
    "too_old": "came too late",
    "bad_hash": "damaged on the way",
    "bad_payload": "not readable",
    "bad_rows": "rows that make no sense",
    "future": "from the future",
    "too_large": "too large",
    "unreadable": "not readable",
    "other": "another cause",
}
KINDS: Final = {GAP: "gap", QUARANTINE: "set aside"}


def of_fleet(
    books: Sequence[Books] | None, cluster: str | None, *, simulated: bool
) -> dict[str, Any]:
    """Return the panel of the front page: a summary, and a row per cluster.

    Args:
        books: None: nobody has looked yet.
        cluster: the one that the page is of; None: all, and the summary adds up those that are simulated, or
            those that are not.
    """
    if books is None:
        return {"known": False, "summary": [], "rows": []}
    shown = [b for b in books if cluster in (None, b.cluster)]
    summed = [b for b in shown if b.simulated == simulated]
    return {"known": True, "summary": _summary(summed), "rows": [_row(b) for b in shown]}


def _summary(books: Sequence[Books]) -> list[dict[str, Any]]:
    """Return sentences, each with whether something is wrong."""
    lost = [x for b in books for x in b.losses]
    words: list[dict[str, Any]] = []
    if not books:
        return words
    for kind, name, when in (
        (GAP, "rows in gaps", ""),
        (QUARANTINE, "set aside", " in the last 24 h"),
    ):
        rows = sum(x.rows for x in lost if x.kind == kind)
        words.append({"words": f"{rows:,} {name}{_of_causes(lost, kind)}{when}", "wrong": False})
    judged = [b for b in books if b.nodes is not None]
    wrong = sum(b.unbalanced or 0 for b in judged)
    nodes = sum(sum((b.nodes or {}).values()) for b in judged)
    if wrong:
        missing = sum(b.missing_rows for b in judged)
        said = f"▲ {wrong:,} of {nodes:,} nodes do not balance, {missing:,} rows unexplained"
        words.append({"words": said, "wrong": True})
    elif judged:
        words.append(
            {"words": f"audit: {nodes:,} nodes, none with a row unexplained", "wrong": False}
        )
    if len(judged) < len(books):
        words.append({"words": "audit not answered for all clusters", "wrong": False})
    return words


def _of_causes(losses: Sequence[Loss], kind: str) -> str:
    causes: dict[str, int] = {}
    for loss in losses:
        if loss.kind == kind:
            causes[loss.cause] = causes.get(loss.cause, 0) + loss.rows
    worst = sorted(causes.items(), key=lambda item: -item[1])[:2]
    return f" ({', '.join(CAUSE_WORDS[cause] for cause, _ in worst)})" if worst else ""


def _row(books: Books) -> dict[str, Any]:
    length = (books.audited_unix_ms - books.since_unix_ms) / 1000
    return {
        "cluster": books.cluster,
        "simulated": books.simulated,
        "gap": f"{sum(x.rows for x in books.losses if x.kind == GAP):,}",
        "quarantined": f"{sum(x.rows for x in books.losses if x.kind == QUARANTINE):,}",
        "batches": f"{sum(x.times for x in books.losses if x.kind == QUARANTINE):,}",
        "causes": [
            f"{CAUSE_WORDS[x.cause]} {x.rows:,}"
            for x in sorted(books.losses, key=lambda x: -x.rows)
        ],
        "audit": _audit_words(books),
        "wrong": bool(books.unbalanced),
        "nodes": list(books.wrong),
        "more": max(0, (books.unbalanced or 0) - NAMED_MAX),
        "when": wording.clock(rfc3339(books.audited_unix_ms)),
        "length": wording.length(length),
    }


def _audit_words(books: Books) -> str:
    if books.nodes is None:
        return f"not known: {books.reason}"
    if books.unbalanced:
        return f"{books.unbalanced:,} do not balance, {books.missing_rows:,} rows unexplained"
    unspoken = books.nodes.get("unspoken", 0)
    balanced = f"{books.nodes.get('balanced', 0):,} balance"
    return f"{balanced}, {unspoken:,} not proven yet" if unspoken else balanced


def of_node(audited: Json | None) -> dict[str, Any]:
    """Return the panel of a node's page, of what `web.audit.audited` found; None: it got no answer."""
    if audited is None:
        return {"known": False}
    spools = [
        {
            **spool,
            "short": spool["spool_id"][:8],
            "told": wording.clock(spool["told"]) if spool["acked_seq"] else wording.UNKNOWN,
            "words": VERDICT_WORDS[spool["verdict"]],
            "wrong": is_wrong(spool["verdict"]),
        }
        for spool in audited["spools"]
    ]
    return {
        "known": True,
        "when": wording.clock(audited["audited"]),
        "spools": spools,
        "verdict": _node_words(spools),
        "wrong": any(spool["wrong"] for spool in spools),
        "losses": [
            {
                "when": loss["told"].replace("T", " ")[:16] + " UTC",
                "what": KINDS[loss["kind"]],
                "cause": CAUSE_WORDS[loss["cause"]],
                "times": f"{loss['times']:,}",
                "rows": f"{loss['rows']:,}",
            }
            for loss in audited["losses"]
        ],
    }


def _node_words(spools: Sequence[Json]) -> str:
    """Return what the audit says of a node in one line; the worst spool speaks."""
    if not spools:
        return "nothing to audit: no spool of it has spoken or sent rows"
    worst = spools[0]
    if worst["verdict"] == "missing":
        rows = sum(spool["missing_rows"] for spool in spools if spool["wrong"])
        batches = sum(spool["missing_batches"] for spool in spools if spool["wrong"])
        return f"▲ {rows:,} rows unexplained, {batches:,} batches not accounted for"
    return ("▲ " if worst["wrong"] else "") + VERDICT_WORDS[worst["verdict"]]
