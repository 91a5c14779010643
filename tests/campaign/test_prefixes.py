"""A few hundred power losses of a spool, and the oracle held against one that forgets."""

from __future__ import annotations

from pathlib import Path

from campaign import prefixes
from flopwatch_agent.spool import Spool


def test_no_power_loss_takes_what_was_on_disk_or_keeps_the_agent_from_starting(
    tmp_path: Path,
) -> None:
    verdict = prefixes.run(tmp_path, 400, seed=3)
    assert verdict.problems == []
    assert verdict.prefixes.keys() == {"frame end", "frame head", "page", "sectors", "checkpoint"}


def test_a_spool_that_forgets_a_transaction_is_found_out(tmp_path: Path) -> None:
    spool = Spool.open(tmp_path / "live", prefixes.LIMITS, readers=prefixes.NAMES)
    for number in range(3):
        spool.append(prefixes.payload(number, 1))
    known = prefixes.Known.of(spool)
    files = prefixes._files(tmp_path / "live")
    assert list(prefixes._opened(tmp_path / "lost", files, known, known)) == []
    forgetful = {**files, "spool.db-wal": files["spool.db-wal"][: -4 * prefixes.PAGE]}
    problems = list(prefixes._opened(tmp_path / "lost", forgetful, known, known))
    assert any("is gone or another" in problem for problem in problems)
    assert any("next number" in problem for problem in problems)
    spool.close()
