"""The conservation audit: what spools handed over, against what the tables hold.

Per spool, in interval rows, exactly:

    produced = before + stored + superseded + gap + quarantined + in spool   (+ missing, which must be 0)

- The left side is the spool's own word (table ``spool``): cumulative counters and the mark up to which this
  collector acknowledged, all of one moment. What is compared is what lies below that mark, so nothing that is
  on its way disturbs it, and a word that is old is as true as a new one.
- The right side is made of receipts: one row per batch, written by the commit that stored its rows, after
  them. A receipt is there only if its rows are; a batch that is sent twice has one receipt. No counter is
  kept that a crash could tear from the rows.
- A receipt also says how many rows its spool had before it. So the first receipt of the window stands for all
  that came earlier (``before``), and a window is audited exactly without reading what is older.
- Rows in the tables are counted as well, where a receipt stands for them: after a crash of both sides
  rows may be there that were never acknowledged, and that their spool gave up and declared a gap.
- A row that another spool of the same node sent too stands once, and is ``superseded`` for the other.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from flopwatch_collector.telemetry import Reader
from flopwatch_collector.telemetry.dirty import MINUTE_MS
from flopwatch_proto.errors import RetryableError

SPOOLS_MAX: Final = 20_000
LOSSES_MAX: Final = 100_000

Place = tuple[str, str, str]
Record = Mapping[str, Any]

_ASKED: Final = (
    "({cluster:String} = '' OR cluster = {cluster:String}) AND "
    "({node:String} = '' OR node = {node:String})"
)
_SINCE: Final = f"stored_unix_ms >= {{since:Int64}} AND {_ASKED}"
_PLACE: Final = "cluster, node, spool_id"
_MARKS: Final = f"""(
  SELECT {_PLACE}, argMax(acked_seq, told_unix_ms) AS acked FROM spool WHERE {_ASKED} GROUP BY {_PLACE}
)"""
_BATCHES: Final = f"""(
  SELECT {_PLACE}, seq, max(rows) AS batch_rows, max(rows_before) AS earlier, uniqExact(sha) AS contents
  FROM receipt WHERE {_SINCE} GROUP BY {_PLACE}, seq
)"""
_LOSSES: Final = f"""(
  SELECT {_PLACE}, 'gap' AS kind, first_seq, last_seq, rows AS lost FROM gap FINAL WHERE {_SINCE}
  UNION ALL
  SELECT {_PLACE}, 'quarantine' AS kind, seq AS first_seq, seq AS last_seq, rows AS lost
  FROM quarantine FINAL WHERE {_SINCE}
)"""
WORDS_SQL: Final = f"""
SELECT {_PLACE}, max(told_unix_ms) AS told, argMax(simulated, told_unix_ms) AS is_simulated,
  argMax(next_seq, told_unix_ms) AS next, argMax(acked_seq, told_unix_ms) AS acked,
  argMax(acked_rows, told_unix_ms) AS handed, argMax(produced_rows, told_unix_ms) AS produced
FROM spool WHERE {_ASKED} GROUP BY {_PLACE} ORDER BY {_PLACE} LIMIT {SPOOLS_MAX}
"""
RECEIPTS_SQL: Final = f"""
SELECT {_PLACE}, min(seq) AS first, count() AS batches, sum(batch_rows) AS total,
  argMin(earlier, seq) AS before, countIf(contents > 1) AS twice
FROM {_BATCHES} AS b INNER JOIN {_MARKS} AS m USING ({_PLACE}) WHERE seq <= acked GROUP BY {_PLACE}
"""
LOSSES_SQL: Final = f"SELECT * FROM {_LOSSES} ORDER BY {_PLACE}, first_seq LIMIT {LOSSES_MAX}"
OVERLAP_SQL: Final = f"""
SELECT {_PLACE}, kind, first_seq, count() AS batches, sum(batch_rows) AS total
FROM {_LOSSES} AS l INNER JOIN {_BATCHES} AS b USING ({_PLACE})
WHERE seq BETWEEN first_seq AND last_seq GROUP BY {_PLACE}, kind, first_seq
"""
UNSPOKEN_SQL: Final = f"""
SELECT {_PLACE}, any(simulated) AS is_simulated, count() AS batches, sum(batch_rows) AS total
FROM (
  SELECT {_PLACE}, seq, any(simulated) AS simulated, max(rows) AS batch_rows
  FROM receipt WHERE {_SINCE} AND ({_PLACE}) NOT IN (SELECT {_PLACE} FROM spool)
  GROUP BY {_PLACE}, seq
) GROUP BY {_PLACE} ORDER BY {_PLACE} LIMIT {SPOOLS_MAX}
"""
_LOSERS: Final = f"(SELECT DISTINCT {_PLACE} FROM {_LOSSES})"
# Every commit marks the minutes of its rows: rows stored in the window lie in minutes marked since, or not
# cleared yet. Without them each question would read every row that is kept. Clocks of collectors differ.
_TOUCHED: Final = f"""
SELECT intDiv(minute_unix_ms, {MINUTE_MS}) FROM dirty FINAL
WHERE ({{cluster:String}} = '' OR cluster = {{cluster:String}})
  AND (marked_unix_ms >= {{since:Int64}} - {MINUTE_MS} OR NOT cleared)
"""
ROWS_SQL: Final = f"""
SELECT {_PLACE}, count() AS total
FROM (
  SELECT {_PLACE}, seq FROM interval FINAL
  WHERE {_SINCE} AND intDiv(start_unix_ms, {MINUTE_MS}) IN ({_TOUCHED})
) AS i
INNER JOIN {_MARKS} AS m USING ({_PLACE})
WHERE seq <= acked AND (({_PLACE}) NOT IN {_LOSERS} OR ({_PLACE}, seq) IN (
  SELECT {_PLACE}, seq FROM receipt WHERE {_SINCE} AND ({_PLACE}) IN {_LOSERS}
))
GROUP BY {_PLACE}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Balance:
    """One spool. Quantities ending in ``_rows`` are interval rows.

    Attributes:
        told_unix_ms: when the spool said this of itself.
        acked_seq: the mark up to which everything is compared.
        before_rows: handed over before the window; taken from its first receipt, not counted again.
        waiting_rows: in the spool, as it said; losses that it has not told yet among them.
        missing_rows: handed over, and nowhere here; below zero: more is here than it handed over.
        missing_batches: numbers below the mark that nothing here accounts for.
        twice: batches that came with two contents.
        verdict: balanced; missing; cloned (numbers were used twice) and unspoken (rows came, but no word of
            the spool's), of which nothing can be proven.
    """

    cluster: str
    node: str
    spool_id: str
    simulated: bool
    told_unix_ms: int
    acked_seq: int
    produced_rows: int
    before_rows: int
    stored_rows: int
    superseded_rows: int
    gap_rows: int
    quarantined_rows: int
    waiting_rows: int
    missing_rows: int
    missing_batches: int
    twice: int
    verdict: str


def read(
    reader: Reader, since_unix_ms: int, *, cluster: str | None = None, node: str | None = None
) -> list[Balance]:
    """Return the balance of every spool that said something of itself, or sent rows since a moment.

    Raises:
        RetryableError: the store does not answer within its bounds, or more was lost than can be compared.
    """
    asked = {"since": since_unix_ms, "cluster": cluster or "", "node": node or ""}
    words, receipts, losses, overlaps, rows, unspoken = (
        reader.query(sql, asked).to_pylist()
        for sql in (WORDS_SQL, RECEIPTS_SQL, LOSSES_SQL, OVERLAP_SQL, ROWS_SQL, UNSPOKEN_SQL)
    )
    if len(losses) == LOSSES_MAX:
        raise RetryableError(
            f"more than {LOSSES_MAX:,} losses: ask for a shorter window, a cluster or a node"
        )
    return balances(words, receipts, losses, overlaps, rows) + [_unspoken(r) for r in unspoken]


def balances(
    words: Iterable[Record],
    receipts: Iterable[Record],
    losses: Iterable[Record],
    overlaps: Iterable[Record],
    rows: Iterable[Record],
) -> list[Balance]:
    """Return the balance of each spool that has a word; see the queries for what the records hold. Pure."""
    receipt_of = {_place(r): r for r in receipts}
    stored_twice = {(*_place(o), o["kind"], o["first_seq"]): o for o in overlaps}
    present = {_place(r): int(r["total"]) for r in rows}
    of_node: dict[tuple[str, str], int] = defaultdict(int)
    for (cluster, node, _), count in present.items():
        of_node[cluster, node] += count
    lost: dict[Place, list[Record]] = defaultdict(list)
    for loss in losses:
        overlap = stored_twice.get((*_place(loss), loss["kind"], loss["first_seq"]), {})
        net = {
            "lost": int(loss["lost"]) - min(int(loss["lost"]), int(overlap.get("total", 0))),
            "seqs": int(loss["last_seq"] - loss["first_seq"] + 1 - overlap.get("batches", 0)),
        }
        lost[_place(loss)].append({**loss, **net})
    found = []
    for word in words:
        place = _place(word)
        here = present.get(place, 0)
        elsewhere = of_node[place[0], place[1]] - here
        found.append(_balance(word, receipt_of.get(place), lost[place], here, elsewhere))
    return found


def _unspoken(record: Record) -> Balance:
    rows = int(record["total"])
    return Balance(
        cluster=record["cluster"],
        node=record["node"],
        spool_id=record["spool_id"],
        simulated=bool(record["is_simulated"]),
        told_unix_ms=0,
        acked_seq=0,
        produced_rows=0,
        before_rows=0,
        stored_rows=rows,
        superseded_rows=0,
        gap_rows=0,
        quarantined_rows=0,
        waiting_rows=0,
        missing_rows=-rows,
        missing_batches=-int(record["batches"]),
        twice=0,
        verdict="unspoken",
    )


def _balance(
    word: Record, receipt: Record | None, losses: list[Record], here: int, elsewhere: int
) -> Balance:
    acked, handed = int(word["acked"]), int(word["handed"])
    losses = _outermost(loss for loss in losses if loss["last_seq"] <= acked)
    first, before, batches, total, twice = acked + 1, handed, 0, 0, 0
    if receipt is not None:
        first, before = int(receipt["first"]), int(receipt["before"])
        batches, total, twice = (int(receipt[name]) for name in ("batches", "total", "twice"))
    if any(loss["first_seq"] == 1 for loss in losses):
        first, before = 1, 0
    # What was lost before the first receipt of the window is part of what that receipt had before it.
    losses = [loss for loss in losses if loss["first_seq"] >= first]
    by_kind = {kind: sum(x["lost"] for x in losses if x["kind"] == kind) for kind in _KINDS}
    superseded = min(max(0, total - here), elsewhere)
    vanished = total - here - superseded
    unsaid = handed - before - total - sum(by_kind.values())
    gone = (acked - first + 1) - batches - sum(loss["seqs"] for loss in losses)
    verdict = "cloned" if twice else "missing" if (vanished or unsaid or gone) else "balanced"
    return Balance(
        cluster=word["cluster"],
        node=word["node"],
        spool_id=word["spool_id"],
        simulated=bool(word["is_simulated"]),
        told_unix_ms=int(word["told"]),
        acked_seq=acked,
        produced_rows=int(word["produced"]),
        before_rows=before,
        stored_rows=here,
        superseded_rows=superseded,
        gap_rows=by_kind["gap"],
        quarantined_rows=by_kind["quarantine"],
        waiting_rows=int(word["produced"]) - handed,
        missing_rows=vanished + unsaid,
        missing_batches=gone,
        twice=twice,
        verdict=verdict,
    )


def _outermost(losses: Iterable[Record]) -> list[Record]:
    """Return the losses that lie in no other one.

    A spool that was killed forgets what it had sent: what was quarantined or declared a gap here, unknown
    to it, may become part of a larger gap there.
    """
    kept, reached = [], 0
    for loss in sorted(losses, key=lambda x: (x["first_seq"], -x["last_seq"])):
        if loss["last_seq"] > reached:
            kept.append(loss)
            reached = loss["last_seq"]
    return kept


def answer(found: list[Balance]) -> dict[str, Any]:
    """Return the balances as the API gives them, with their sum; those that do not balance come first."""
    ordered = sorted(found, key=lambda b: (b.verdict == "balanced", b.cluster, b.node))
    names = [name for name in Balance.__slots__ if name.endswith("_rows")]
    truncated = len(found) >= SPOOLS_MAX
    return {
        "balanced": not truncated and all(b.verdict == "balanced" for b in found),
        "total": {name: sum(getattr(b, name) for b in found) for name in names},
        "spools": [asdict(b) for b in ordered],
        "truncated": truncated,
    }


_KINDS: Final = ("gap", "quarantine")


def _place(record: Record) -> Place:
    return record["cluster"], record["node"], record["spool_id"]
