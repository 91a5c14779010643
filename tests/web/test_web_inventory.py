"""What reports, and which agents, over the API."""

from __future__ import annotations

from web.web_server import Web


def test_cards_report_with_what_their_newest_row_says(web: Web) -> None:
    answer = web.get("/api/v1/reported", cluster="atlas", window="1h").json()
    assert [(c["node"], c["slot"]) for c in answer["slots"]] == [
        ("n0", "s0"), ("n0", "s1"), ("n1", "s0"), ("n1", "s1"),
    ]  # fmt: skip
    first = answer["slots"][0]
    assert (first["sku"], first["serial"]) == ("NVIDIA H100 80GB HBM3", None)
    assert first["heard"].endswith("Z")
    assert answer["truncated"] is False
    assert len(web.get("/api/v1/reported", window="1h").json()["slots"]) > 4
    assert web.get("/api/v1/reported", window="soon").status_code == 422


def test_agents_are_told_as_the_collector_knows_them(web: Web) -> None:
    both = web.get("/api/v1/agents").json()["agents"]
    assert [a["node"] for a in both] == ["n0", "host"]
    (one,) = web.get("/api/v1/agents", cluster="atlas").json()["agents"]
    assert (one["version"], one["driver_state"]) == ("0.1.0", None)
    assert (one["heard"], one["clock_skew_ms"]) == ("2027-01-15T08:00:00Z", -12)


def test_free_cards_are_told_apart_by_demand_where_a_roster_knows_it(web: Web) -> None:
    cards = web.get("/api/v1/clusters/atlas").json()["cards"]
    assert cards["free"] > 0
    assert cards["free_demand"] is cards["free_no_demand"] is None
