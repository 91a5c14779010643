"""Ceilings and acceptances over the API, in this process and on prepared probes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from types import SimpleNamespace
from typing import Any

import httpx
import pyarrow as pa
import pytest

from flopwatch_collector.web import shapes
from flopwatch_collector.web.answers import Answers
from flopwatch_collector.web.app import create_app

H100 = "NVIDIA H100 80GB HBM3"


def probe(card: int, now: int, **more: Any) -> dict[str, Any]:
    return {
        "cluster": "atlas", "node": "n0", "slot": f"s{card}", "start_unix_ms": now - 60_000, "kind": "gemm",
        "dtype": "bf16", "sku": H100, "device_uuid": f"GPU-{card}", "serial": f"{card}",
        "driver_version": "595.58.03", "seconds": 1.0, "sustained": True, "simulated": False,
        "median_flops": 700e12 + card * 1e12, "p10_flops": 0.0, "p90_flops": 0.0, "kappa": None,
        "median_value": 0.0, "p10_value": 0.0, "p90_value": 0.0, "unit": "", "outcome": "",
        "reason": "", "result_json": "{}",
    } | more  # fmt: skip


class Fake:
    """A store that has prepared answers; what it is asked is tested beside the store."""

    def __init__(self, now: int) -> None:
        self.asked: list[Mapping[str, Any]] = []
        self._measured = [
            *(probe(card, now) for card in range(8)),
            probe(9, now, median_flops=600e12),
            probe(3, now, kind="sdc", outcome="corrupt", reason="1 of 64 products is wrong"),
        ]
        self._accepted = [
            probe(3, now, kind="bringup", outcome="failed", reason="sdc: 1 of 64"),
            probe(4, now, kind="bringup", outcome="ok"),
        ]

    def query(self, sql: str, parameters: Mapping[str, Any]) -> pa.Table:
        self.asked.append(parameters)
        found = self._accepted if "kind = 'bringup'" in sql else self._measured
        wanted = parameters.get("sku") or H100
        return pa.Table.from_pylist(found if wanted == H100 else [], schema=None)


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    now = time.time_ns() // 1_000_000
    sources: Any = SimpleNamespace(
        collector=Fake(now), answers=Answers(time.monotonic), now_unix_ms=lambda: now, deployment=""
    )
    app = httpx.ASGITransport(create_app(sources, asyncio.Event()))
    async with httpx.AsyncClient(transport=app, base_url="http://here") as made:
        yield made


async def test_ceilings_are_ranked_and_suspects_named(client: httpx.AsyncClient) -> None:
    answer = (
        await client.get("/api/v1/ceilings", params={"cluster": "atlas", "dtype": "bf16"})
    ).json()
    shapes.CeilingsAnswer.model_validate(answer)
    (fleet,) = answer["fleets"]
    assert (fleet["sku"], fleet["cards"], fleet["unit"]) == (H100, 9, "flop/s")
    assert fleet["cards_list"][0]["measured"].endswith("Z")
    assert sorted((s["what"], s["slot"]) for s in answer["suspects"]) == [
        ("corrupt", "s3"),
        ("slow", "s9"),
    ]
    assert answer["truncated"] is False
    assert (await client.get("/api/v1/ceilings", params={"sku": "B200"})).json()["fleets"] == []
    assert (await client.get("/api/v1/ceilings", params={"cards": "all"})).status_code == 422
    assert (await client.get("/api/v1/ceilings", params={"window": "soon"})).status_code == 422


async def test_acceptances_are_listed_by_card(client: httpx.AsyncClient) -> None:
    answer = (await client.get("/api/v1/bringups", params={"cluster": "atlas"})).json()
    assert [(b["slot"], b["outcome"]) for b in answer["bringups"]] == [
        ("s3", "failed"),
        ("s4", "ok"),
    ]
