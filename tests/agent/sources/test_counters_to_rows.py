"""From a driver's counters to rows: cards with cycle counters, with means, with neither, and cut up."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from fakenvml import Script, device, mig
from flopwatch_agent.interval import Fold
from flopwatch_agent.reading import Share
from flopwatch_agent.suspect import SILENT_ZERO, Suspicion
from flopwatch_proto.codec import IntervalRow
from flopwatch_proto.rows import Absence, Bucket
from flopwatch_proto.v1 import telemetry_pb2 as pb
from nvml_source import Make

READ_SECONDS, READS = 0.25, 20
CYCLES, MEANS, NEITHER, WRONG, LYING, CUT = (f"0000:{0x18 + i:02x}:00.0" for i in range(6))


def cycles(sm_count: int, sm: float, tensor: float) -> dict[int, Any]:
    elapsed = 1650e6 * sm_count
    return {248: elapsed, 249: sm * elapsed, 250: tensor * elapsed}


@pytest.fixture
def host(script: Script) -> None:
    busy: dict[str, Any] = {
        "sm_clock_mhz": 1650,
        "util_gpu": 100,
        "power_milliwatts": 600_000,
    }
    means: dict[int, Any] = {2: 90, 5: 45}
    script.write(
        device(0, gpm={**means, **cycles(132, 0.9, 0.45)}, **busy),
        device(1, gpm=means, **busy),
        device(2, **busy),
        device(3, gpm={**means, **cycles(1, 0.9, 0.2)}, **busy),
        device(4, gpm={2: 0, 5: 0}, **busy),
        device(5, mig_mode=1, gpm={20: 1}, **busy),
        mig(5, 0, gi=1, gpm={**means, **cycles(60, 0.9, 0.45)}),
        mig(5, 1, gi=2, gpm={2: 80, 5: 10, **cycles(60, 0.8, 0.1)}),
    )


async def test_every_card_says_how_well_it_knows(make: Make, host: None) -> None:
    source, fold, suspicion = make(), Fold(interval_ms=1000), Suspicion()
    rows: list[IntervalRow] = []
    events: list[pb.Event] = []
    await source.start()
    for _ in range(READS):
        await asyncio.sleep(READ_SECONDS)
        for raw in (await source.read()).readings:
            reading = suspicion.checked(raw)
            named = reading.device.instances[:1] or (None,)
            share = Share(bucket=Bucket.ACTIVE, job="j", instance=named[0])
            rows += fold.add(reading, (share,))
        events += suspicion.events()
    last = {
        (row.slot, (row.texts["instance"] or "")[-1:]): row
        for row in sorted(rows, key=lambda row: row.start_unix_ms)
        if row.duration_ms == 1000
    }
    assert {key: row.texts["efficiency_method"] for key, row in last.items()} == {
        (CYCLES, ""): "cycle_counters",
        (MEANS, ""): "gpm",
        (NEITHER, ""): "none",
        (WRONG, ""): "gpm",
        (LYING, ""): "none",
        (CUT, "0"): "cycle_counters",
        (CUT, "1"): "cycle_counters",
        (CUT, ""): "cycle_counters",
    }
    tensor_ms = {key: row.values["tensor_active_ms"] for key, row in last.items()}
    assert tensor_ms == {
        (CYCLES, ""): pytest.approx(450),
        (MEANS, ""): pytest.approx(450),
        (NEITHER, ""): Absence.NOT_SUPPORTED,
        (WRONG, ""): pytest.approx(450),
        (LYING, ""): Absence.FAILED,
        (CUT, "0"): pytest.approx(450 * 3 / 7),
        (CUT, "1"): pytest.approx(100 * 3 / 7),
        (CUT, ""): 0.0,
    }
    weights = [last[CUT, part].weight for part in ("0", "1", "")]
    assert weights == pytest.approx([3 / 7, 3 / 7, 1 / 7])
    assert {(event.slot, event.kind, event.code) for event in events} == {
        (LYING, "counter_suspect", SILENT_ZERO),
        (WRONG, "counter_disagreement", 0),
    }
