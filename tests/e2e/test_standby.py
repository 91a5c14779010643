"""Two real collectors, one real agent that ships to both: the standby is silent until the primary is dead."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from e2e.conftest import GPM
from fakenvml import Script, device
from processes import Collector, Process, agent, awaited, collector, environment, running
from webhook import Receiver, receiving

SECRET = "the word that all three know"
CONFIG = """
[rules]
settle_s = 0
[rules.allocation]
for_s = 10
clear_s = 10
[[paging.route]]
name = "receiver"
url = "{url}"
secret_env = "PAGE_SECRET"
"""
BUSY = device(0, gpm=GPM, sm_clock_mhz=1650, graphics_clock_mhz=1650, util_gpu=100)


@dataclass(kw_only=True)
class Pair:
    """Everything that runs. Attributes: holder: process of the job that may have the card."""

    primary: Collector
    standby: Collector
    agent: Process
    receiver: Receiver
    script: Script
    holder: int

    def outbox(self, of: Collector) -> list[dict[str, object]]:
        """A collector's pages of the cluster's allocation."""
        engine = create_engine(f"sqlite:///file:{of.data / 'control.db'}?mode=ro&uri=true")
        query = "select * from outbox where rule = 'allocation' order by seq"
        with engine.connect() as connection:
            found = [dict(row._mapping) for row in connection.execute(text(query))]
        engine.dispose()
        return found


@pytest.fixture(scope="module")
def pair(
    tmp_path_factory: pytest.TempPathFactory, job: subprocess.Popen[bytes], fake_driver: Path
) -> Iterator[Pair]:
    home = tmp_path_factory.mktemp("standby")
    script = Script(home / "script.txt").write(BUSY)
    paths = [str(fake_driver), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
    env = environment(
        LD_LIBRARY_PATH=os.pathsep.join(paths),
        FAKENVML_SCRIPT=str(script.path),
        FLOPWATCH_SOCKET=str(home / "jobs.sock"),
    )
    knows = environment(PAGE_SECRET=SECRET)
    with (
        receiving(SECRET) as receiver,
        collector(home / "primary", CONFIG.format(url=receiver.url), knows) as primary,
        collector(
            home / "standby",
            f'{CONFIG.format(url=receiver.url)}\n[standby]\nprimary = "{primary.url}"\n',
            knows,
        ) as standby,
        running(
            *agent(
                f"{primary.grpc},{standby.grpc}",
                home / "data",
                cluster="twice",
                node="twice-0",
                interval="5s",
            ),
            log=home / "agent.log",
            env=env,
        ) as started,
    ):
        yield Pair(
            primary=primary,
            standby=standby,
            agent=started,
            receiver=receiver,
            script=script,
            holder=job.pid,
        )


def test_while_the_primary_lives_the_standby_decides_the_same_and_sends_nothing(pair: Pair) -> None:
    awaited(lambda: pair.receiver.pages("twice", "allocation"), "the page of a card that is free")
    (mine,) = awaited(
        lambda: [row for row in pair.outbox(pair.standby) if row["sent_unix_ms"]],
        "the standby settles its own page of it",
    )
    assert mine["provider_ref"] == "primary"
    (theirs,) = pair.outbox(pair.primary)
    assert (mine["id"], mine["dedup_key"]) == (theirs["id"], theirs["dedup_key"])
    keys = [each.key for each in pair.receiver.received]
    assert keys.count(str(mine["id"])) == 1
    assert pair.standby.rows("twice") > 0


def test_the_dashboard_says_that_it_is_a_standby(pair: Pair) -> None:
    assert f"standby of {pair.primary.url}" in pair.standby.ask("/").text
    assert "standby" not in pair.primary.ask("/").text


def test_once_the_primary_is_dead_the_standby_goes_on_with_the_same_outage_and_pages_once(
    pair: Pair,
) -> None:
    (trigger,) = pair.receiver.pages("twice", "allocation")
    pair.primary.kill()
    pair.script.write(BUSY, f"device 0 process {pair.holder} compute {40 << 30}")
    pages = awaited(
        lambda: found if len(found := pair.receiver.pages("twice", "allocation")) > 1 else None,
        "the page of the recovery",
    )
    assert [page["action"] for page in pages] == ["trigger", "resolve"]
    assert pages[1]["dedup_key"] == trigger["dedup_key"]
    (sent,) = (row for row in pair.outbox(pair.standby) if row["action"] == "resolve")
    assert json.loads(str(sent["body"]))["dedup_key"] == trigger["dedup_key"]
    keys = [each.key for each in pair.receiver.received]
    assert keys.count(str(sent["id"])) == 1
    assert all(each.genuine for each in pair.receiver.received)


def test_a_primary_that_comes_back_gets_what_it_missed_and_pages_nothing_again(pair: Pair) -> None:
    before = {each.key for each in pair.receiver.received}
    missed = pair.standby.rows("twice")
    pair.primary.restart()
    awaited(lambda: pair.primary.rows("twice") >= missed, "the rows of its absence")
    allocation = [p for p in pair.receiver.pages("twice", "allocation") if p["action"] == "trigger"]
    assert len(allocation) == 1
    assert before <= {each.key for each in pair.receiver.received}
