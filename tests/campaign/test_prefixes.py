"""A few hundred power losses of a spool, and the oracle held against one that forgets."""

from __future__ import annotations

import itertools
import sqlite3
import struct
from pathlib import Path

from campaign import prefixes
from flopwatch_agent.spool import Spool
from flopwatch_agent.spool_disk import DiskStore


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


def test_a_tree_that_leads_back_to_itself_is_left_and_the_agent_starts(tmp_path: Path) -> None:
    """Found by a campaign: a salvage that took the same way again and again."""
    spool = Spool.open(tmp_path)
    for first in range(1, 1_801, 30):
        spool.append(prefixes.payload(first, 30))
    spool.close()
    database = tmp_path / "spool.db"
    with sqlite3.connect(database) as connection:
        (root,) = connection.execute(
            "select rootpage from sqlite_master where name = 'record'"
        ).fetchone()
    connection.close()
    data = bytearray(database.read_bytes())
    page = (root - 1) * prefixes.PAGE
    assert data[page] == 5, "an inner page: the rows lie in several leaves"
    (count,) = struct.unpack_from(">H", data, page + 3)
    cells = struct.unpack_from(f">{count}H", data, page + 12)
    for cell in cells[1:]:
        data[page + cell : page + cell + 4] = data[page + cells[0] : page + cells[0] + 4]
    database.write_bytes(data)
    damaged = DiskStore(database, damaged=True)
    found = [record.first_seq for record in itertools.islice(damaged.records(61), 1_000)]
    damaged.close()
    assert found == [1, 60]
    spool = Spool.open(tmp_path)
    assert spool.append(prefixes.payload(1_801, 30)) == 61
    spool.close()
