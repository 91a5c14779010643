"""What is missing in the data, and what flopwatch lacks itself: on pages, in the API and in `/metrics`."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry

from flopwatch_collector.agents import Agents
from flopwatch_collector.audit.books import Books
from flopwatch_collector.audit.losses import Loss
from flopwatch_collector.control import operations
from flopwatch_collector.control.store import ControlStore
from flopwatch_collector.presence import Presence
from flopwatch_collector.shared_metrics import SharedMetrics
from flopwatch_collector.telemetry.remote import RemoteStore
from flopwatch_collector.web import data_view, shapes
from flopwatch_collector.web.answers import Answers
from flopwatch_collector.web.app import create_app
from flopwatch_collector.web.lookout import EVERY_S, RETRY_S, Lookout
from flopwatch_collector.web.sources import Control, Sources
from flopwatch_collector.web.trouble import of_books, trouble
from flopwatch_proto.errors import RetryableError
from flopwatch_proto.v1 import telemetry_pb2 as pb
from web.web_server import Web

NOW = 1_800_000_000_000
DAY = 86_400_000
CERTIFICATE = """\
# TYPE flopwatch_trust_certificate_life_ratio gauge
flopwatch_trust_certificate_life_ratio {life}
# TYPE flopwatch_trust_certificate_expires_seconds gauge
flopwatch_trust_certificate_expires_seconds {seconds}
"""


def test_losses_of_a_day_stand_in_the_api_the_metrics_and_on_both_pages(web: Web) -> None:
    answer = web.get("/api/v1/data", cluster="atlas").json()
    shapes.DataAnswer.model_validate(answer)
    (atlas,) = answer["clusters"]
    (loss,) = atlas["losses"]
    assert (loss["kind"], loss["cause"], loss["times"], loss["rows"]) == (
        "gap",
        "spool_full",
        1,
        10,
    )
    text = web.get("/metrics").text
    place = 'cause="spool_full",cluster="atlas",simulated="false"'
    assert f"flopwatch_cluster_gap_rows{{{place}}} 10.0" in text
    assert "10 rows in gaps (spool full)" in web.get("/").text
    node = web.get("/nodes/n0").text
    assert "spool full" in node
    assert "nothing to audit: no spool of it has spoken or sent rows" in node
    assert "no row of it was declared lost" in web.get("/nodes/n1").text
    audit = web.get("/api/v1/audit", node="n0", window="1h").json()
    assert [x["cause"] for x in audit["losses"]] == ["spool_full"]


def test_a_page_says_what_the_audit_of_a_node_found() -> None:
    spool = {
        "spool_id": "0123456789", "told": "2027-01-15T08:00:00Z", "acked_seq": 3, "verdict": "balanced",
        "missing_rows": 0, "missing_batches": 0,
    }  # fmt: skip
    audited = {"audited": "2027-01-15T08:00:01Z", "losses": [], "spools": [spool]}
    shown = data_view.of_node(audited)
    assert (shown["wrong"], shown["when"]) == (False, "08:00:01 UTC")
    assert shown["verdict"] == "balanced: every row it handed over is accounted for"
    missing = spool | {"verdict": "missing", "missing_rows": 12, "missing_batches": 2}
    shown = data_view.of_node(audited | {"spools": [missing, spool]})
    assert shown["verdict"] == "▲ 12 rows unexplained, 2 batches not accounted for"
    unspoken = spool | {"verdict": "unspoken", "acked_seq": 0}
    shown = data_view.of_node(audited | {"spools": [unspoken]})
    assert (shown["wrong"], shown["spools"][0]["told"]) == (False, "—")
    assert data_view.of_node(None) == {"known": False}


def made(name: str, nodes: dict[str, int] | None, **more: Any) -> Books:
    known: dict[str, Any] = {
        "cluster": name, "simulated": False, "audited_unix_ms": NOW, "since_unix_ms": NOW - 600_000,
        "nodes": nodes, "reason": "" if nodes else "busy",
    }  # fmt: skip
    return Books(**known | more)


def test_the_front_page_adds_up_what_may_be_added_and_says_what_is_not_known() -> None:
    lost = Loss(
        cluster="a", simulated=False, kind="gap", cause="disk_error", times=1, rows=1_200,
        told_unix_ms=NOW,
    )  # fmt: skip
    wrong = made("b", {"missing": 2, "balanced": 8}, missing_rows=7, wrong=["n1", "n2"])
    books = [made("a", None, losses=[lost]), wrong, made("s", {"missing": 1}, simulated=True)]
    shown = data_view.of_fleet(books, None, simulated=False)
    assert [part["words"] for part in shown["summary"]] == [
        "1,200 rows in gaps (disk error)",
        "0 set aside in the last 24 h",
        "▲ 2 of 10 nodes do not balance, 7 rows unexplained",
        "audit not answered for all clusters",
    ]
    assert shown["rows"][0]["audit"] == "not known: busy"
    assert [row["length"] for row in shown["rows"]] == ["10 min"] * 3
    (line,) = of_books(books)
    assert (line["words"], line["names"]) == ("the audit of 2 nodes does not balance", "b/n1, b/n2")
    assert data_view.of_fleet(None, None, simulated=False)["known"] is False


def test_certificates_that_end_and_agents_that_are_refused_are_a_line_each() -> None:
    def agent(node: str, age: int | None) -> dict[str, Any]:
        life = {} if age is None else {"starts": NOW - age * DAY, "expires": NOW + (8 - age) * DAY}
        certificate = {f"certificate_{end}_unix_ms": moment for end, moment in life.items()}
        return {"cluster": "atlas", "node": node, **certificate}

    calm = [agent("n0", 0), agent("n1", 5), agent("clear", None)]
    assert trouble(calm, CERTIFICATE.format(life="NaN", seconds="0.0"), [], NOW) == []
    assert trouble(calm, "", [], NOW) == []
    ending = [agent(f"e{age}", age) for age in (6, 7, 8, 9)]
    refused = [{"subject": "atlas/n7"}, {"subject": "atlas/n7"}]
    own = CERTIFICATE.format(life="0.2", seconds="90000.0")
    nodes, collector, agents = trouble([*calm, *ending], own, refused, NOW)
    assert nodes["words"] == (
        "4 certificates of nodes with a quarter of life or less left, the oldest 0 %"
    )
    assert nodes["names"] == "atlas/e8, atlas/e9, atlas/e7 and 1 more"
    assert (
        collector["words"]
        == "the certificate of the collector holds 25 h more, and was not renewed"
    )
    assert (agents["words"], agents["names"]) == ("1 agent refused in the last hour", "atlas/n7")
    (over,) = trouble([], CERTIFICATE.format(life="0.0", seconds="-5.0"), [], NOW)
    assert over["words"] == "the certificate of the collector is over: agents turn away"


class OneOfTwo(RemoteStore):
    """The store of the others, with agents and metrics of its own."""

    def agents(self) -> list[dict[str, Any]]:
        return [{"cluster": "atlas", "node": "n0", "collector": "a", "heard_unix_ms": NOW}]

    def metrics(self) -> str:
        return CERTIFICATE.format(life="0.9", seconds="600000.0")


async def test_the_front_page_names_agents_that_any_collector_refuses_or_sees_end(
    web: Web, tmp_path: Path
) -> None:
    dsn, now = f"sqlite:///{tmp_path}/control.db", web.end + 12_000
    control = ControlStore.open(dsn)
    what = "atlas/<b>n7", "stream_refused", "atlas/<b>n7"
    operations.record(control, now - 60_000, *what, after={"why": "has expired"})
    operations.record(control, now - 3_700_000, "atlas/n8", "stream_refused", "atlas/n8")
    heard = Agents(lambda cluster, node: (now - 7 * DAY, now + DAY), collector="b")
    heard.hello(pb.Hello(cluster="atlas", node_id="n1"), now)
    Presence(control, heard, SharedMetrics(CollectorRegistry()), lambda: now).tell()
    control.close()
    sources = Sources(
        collector=OneOfTwo(web.directory / "read.sock"),
        control=Control(dsn),
        answers=Answers(time.monotonic),
        now_unix_ms=lambda: now,
    )
    transport = httpx.ASGITransport(app=create_app(sources, asyncio.Event()))
    async with httpx.AsyncClient(transport=transport, base_url="http://web") as client:
        page = (await client.get("/")).text
        agents = (await client.get("/api/v1/agents")).json()["agents"]
    sources.control.close()
    assert "1 certificate of nodes with a quarter of life or less left, the oldest 12 %" in page
    assert "<bdi>atlas/n1</bdi>" in page
    assert "1 agent refused in the last hour</b>: <bdi>atlas/&lt;b&gt;n7</bdi>" in page
    assert "n8" not in page
    assert [(of["node"], of["collector"]) for of in agents] == [("n0", "a"), ("n1", "b")]


async def settled(of: Lookout[int]) -> None:
    while of.looking:
        await asyncio.sleep(0)


async def test_what_is_dear_is_read_once_for_everybody_and_again_only_when_it_is_old() -> None:
    answers: list[int | Exception] = [1, 2, RetryableError("busy"), 3]
    now = 0.0
    left = iter(answers)

    def read() -> int:
        found = next(left)
        if isinstance(found, Exception):
            raise found
        return found

    of = Lookout(read, lambda: now)
    assert of.newest() is None
    assert [await of.looked(), await of.looked()] == [1, 1]
    await settled(of)
    assert of.newest() == 1
    now = EVERY_S
    assert of.newest() == 1  # nobody waits for the new one
    await settled(of)
    assert of.newest() == 2
    now = 2 * EVERY_S
    for moment, known in ((0.0, 2), (RETRY_S - 1, 2), (RETRY_S, 2), (RETRY_S + 1, 3)):
        now = 2 * EVERY_S + moment
        assert of.newest() == known
        await settled(of)


async def test_who_asks_for_what_could_not_be_read_is_told_so() -> None:
    def read() -> int:
        raise RetryableError("busy")

    of = Lookout(read, lambda: 0.0)
    with pytest.raises(RetryableError, match="busy"):
        await of.looked()
    await settled(of)
    with pytest.raises(RetryableError, match="a moment ago"):
        await of.looked()
