"""The HTTP API of a real web process over a real store."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from evidence_tables import GPM_SPREAD
from flopwatch_collector.ledger.waterfall import OWNERS
from flopwatch_collector.web import shapes
from web.web_server import HOSTILE, METRICS, Web


def moment(unix_ms: int) -> str:
    return datetime.fromtimestamp(unix_ms / 1000, UTC).isoformat().replace("+00:00", "Z")


def whole(web: Web) -> dict[str, str]:
    return {"start": moment(web.end - 900_000), "end": moment(web.end)}


def test_the_fleet_has_every_cluster_and_sums_real_cards_only(web: Web) -> None:
    answer = web.get("/api/v1/fleet", **whole(web)).json()
    assert answer["window_s"] == 900
    assert [(c["name"], c["simulated"], c["device_kind"]) for c in answer["clusters"]] == [
        ("atlas", False, "gpu"),
        ("home", False, "cpu"),
        (HOSTILE, True, "gpu"),
    ]
    assert answer["simulated"] is False
    assert answer["fleet"]["cards"]["in_service"] == pytest.approx(4.0)
    assert answer["fleet"]["allocation"]["value"] == pytest.approx(0.75)
    assert answer["fleet"]["hfu"]["value"] == pytest.approx(0.4)


def test_the_waterfall_lists_every_step_and_adds_up(web: Web) -> None:
    for cluster in web.get("/api/v1/fleet", **whole(web)).json()["clusters"]:
        steps = cluster["waterfall"]
        assert [s["step"] for s in steps] == list(OWNERS)
        assert sum(s["share"] or 0 for s in steps) == pytest.approx(1, abs=1e-9)
        held = cluster["cards"]["in_service"] * 900
        assert sum(s["card_seconds"] or 0 for s in steps) == pytest.approx(held, rel=1e-9)


def test_answers_have_the_shapes_of_the_openapi_document(web: Web) -> None:
    shapes.Fleet.model_validate(web.get("/api/v1/fleet", **whole(web)).json())
    shapes.ClusterAnswer.model_validate(web.get("/api/v1/clusters/atlas").json())
    shapes.NodeAnswer.model_validate(web.get("/api/v1/nodes/n0", **whole(web)).json())
    shapes.NodesAnswer.model_validate(web.get("/api/v1/nodes", cluster="atlas").json())
    shapes.OutagesAnswer.model_validate(web.get("/api/v1/outages").json())
    shapes.SeriesAnswer.model_validate(web.get("/api/v1/series").json())
    document = web.get("/api/openapi.json").json()
    assert {"/api/v1/fleet", "/api/v1/nodes/{node}", "/api/v1/stream"} <= set(document["paths"])


def test_a_window_is_moved_back_to_the_interval_and_echoed(web: Web) -> None:
    answer = web.get("/api/v1/fleet", window="90s", end=moment(web.end - 3_000)).json()
    assert answer["end"] == moment(web.end - 10_000)
    assert answer["window_s"] == 90


@pytest.mark.parametrize(
    ("path", "parameters", "parameter", "fix"),
    [
        ("/api/v1/fleet", {"window": "15x"}, "window", "write 90s, 15m, 2h or 7d"),
        ("/api/v1/fleet", {"window": "1s"}, "window", "outside 10s to"),
        ("/api/v1/fleet", {"end": "yesterday"}, "end", "2026-11-01T00:00:00Z"),
        ("/api/v1/fleet", {"end": "2026-11-01T00:00:00"}, "end", "2026-11-01T00:00:00Z"),
        ("/api/v1/fleet", {"windw": "15m"}, "windw", "'window'"),
        (
            "/api/v1/fleet",
            {"start": "2026-11-02T00:00:00Z", "end": "2026-11-01T00:00:00Z"},
            "start",
            "name an earlier one",
        ),
        ("/api/v1/outages", {"state": "fireing"}, "state", "'firing'"),
        ("/api/v1/series", {"metric": "mfu"}, "metric", "mfu_lo"),
        ("/api/v1/series", {"step": "1s"}, "step", "60s"),
        ("/api/v1/nodes", {}, "cluster", "required"),
    ],
)
def test_a_wrong_parameter_is_named_with_its_fix(
    web: Web, path: str, parameters: dict[str, str], parameter: str, fix: str
) -> None:
    response = web.get(path, **parameters)
    problem = response.json()
    assert response.status_code == problem["status"] == 422
    assert response.headers["content-type"] == "application/problem+json"
    assert problem["parameter"] == parameter
    assert fix in problem["detail"]


@pytest.mark.parametrize(
    "path", ["/api/v1/clusters/nix", "/api/v1/nodes/nix", "/api/v1/nodes?cluster=nix", "/api/nix"]
)
def test_what_is_not_there_is_a_problem_document(web: Web, path: str) -> None:
    response = web.get(path)
    assert response.status_code == response.json()["status"] == 404
    assert response.headers["content-type"] == "application/problem+json"


def test_a_card_says_why_each_quantity_is_null(web: Web) -> None:
    answer = web.get("/api/v1/nodes/n0", **whole(web)).json()
    assert (answer["cluster"], answer["cards"]["in_service"]) == ("atlas", pytest.approx(2.0))
    card = answer["cards_list"][0]
    assert (card["slot"], card["bucket"], card["job"]) == ("s0", "ACTIVE", "llama")
    assert card["power_watts"] == 600
    absent = card["row"]["absent"]
    assert absent["nvlink_tx_bytes"] == "not_supported"
    assert absent["energy_joules"] == "failed"
    assert absent["pcie_tx_bytes"] == "missing"
    nulls = {n for n, v in card["row"]["quantities"].items() if v is None}
    assert nulls == set(absent)


def test_nodes_come_in_the_order_people_count(web: Web) -> None:
    nodes = web.get("/api/v1/nodes", cluster=HOSTILE, end=moment(web.end)).json()["nodes"]
    assert [n["node"] for n in nodes] == [f"{HOSTILE}-0", "m2", "m10"]
    assert (nodes[1]["worst"], nodes[1]["cards"]) == ("FAILED", {"FAILED": 1, "IDLE_ALLOC": 1})


def test_outages_are_listed_by_urgency_and_by_state(web: Web) -> None:
    listed = web.get("/api/v1/outages").json()["outages"]
    assert [(o["rule"], o["state"]) for o in listed] == [
        ("allocation", "firing"),
        ("mfu", "standing"),
    ]
    assert listed[0]["lost_points"] == {"MISSING": 1.6, "FREE": 2.44}
    assert listed[0]["acked_by"] == HOSTILE
    firing = web.get("/api/v1/outages", state="firing").json()["outages"]
    assert [o["rule"] for o in firing] == ["allocation"]
    fleet = web.get("/api/v1/fleet", **whole(web)).json()
    assert [o["rule"] for o in fleet["fleet"]["outages"]] == ["allocation", "mfu"]


def test_lists_carry_what_happened(web: Web) -> None:
    event = web.get("/api/v1/events").json()["events"][0]
    assert (event["kind"], event["code"], event["text"]) == ("xid", 79, HOSTILE)
    gap = web.get("/api/v1/gaps").json()["gaps"][0]
    assert (gap["reason"], gap["rows"]) == ("spool_full", 10)
    assert web.get("/api/v1/probes").json()["probes"] == []
    slots = web.get("/api/v1/inventory", cluster="atlas").json()["slots"]
    assert [(s["node"], s["slot"], s["state"]) for s in slots[:2]] == [
        ("n0", "s0", "in_service"),
        ("n0", "s1", "in_service"),
    ]


def test_a_series_has_the_figures_of_its_steps_and_null_elsewhere(web: Web) -> None:
    start = web.end // 60_000 * 60_000 - 600_000
    asked: dict[str, Any] = {"start": moment(start - 3_600_000), "end": moment(start + 300_000)}
    answer = web.get("/api/v1/series", metric="allocation", step="1m", **asked).json()
    values = {s["name"]: s["values"] for s in answer["series"]}["atlas"]
    assert len(values) == len(answer["times"]) == 65
    assert values[0] is None
    assert values[-5:] == pytest.approx([0.75] * 5)
    bounds = [
        web.get("/api/v1/series", metric=m, by="fleet", step="1m", **asked).json()["series"][0]
        for m in ("mfu_lo", "mfu_hi")
    ]
    assert bounds[0]["values"][-1] == pytest.approx(0.4 * 0.72 * (1 - GPM_SPREAD))
    assert bounds[1]["values"][-1] == pytest.approx(0.4 * (1 + GPM_SPREAD))


def test_metrics_are_the_collectors_and_the_clusters(web: Web) -> None:
    text = web.get("/metrics").text
    assert METRICS in text
    assert 'flopwatch_cluster_in_service_cards{cluster="atlas",simulated="false"} 4.0' in text
    assert 'flopwatch_cluster_in_service_cards{cluster="home"' in text
    assert not re.search(r"flopwatch_cluster_hfu_ratio\{cluster=\"home\"", text)
    families = re.findall(r"^# TYPE (\S+)", text, re.M)
    assert len(families) == len(set(families))
    assert all(line.startswith(("#", "flopwatch_")) for line in text.splitlines())


def test_health_tells_what_the_collector_says(web: Web) -> None:
    health = web.get("/healthz").json()
    assert (health["status"], health["dirty_minutes"]) == ("ok", 0)
    ready = web.get("/readyz")
    assert ready.status_code == 200
    assert {k for k, v in ready.json().items() if k != "ready" and v["ok"]} == {
        "ingest",
        "store",
        "control",
        "web",
    }


def test_the_stream_begins_with_the_answer_of_now(web: Web) -> None:
    with httpx.stream("GET", f"{web.url}/api/v1/stream", timeout=30, trust_env=False) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        lines = stream.iter_lines()
        for line in lines:
            if line == "event: fleet":
                data = json.loads(next(lines).removeprefix("data: "))
                break
    assert {c["name"] for c in data["clusters"]} == {"atlas", "home", HOSTILE}


@pytest.mark.parametrize("path", ["/", "/api/v1/fleet", "/static/flopwatch.css", "/api/nix"])
def test_every_response_carries_the_policy(web: Web, path: str) -> None:
    headers = web.get(path).headers
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
