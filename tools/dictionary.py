"""Train the dictionary that payloads are compressed with, on simulated nodes of many kinds.

    .venv/bin/python tools/dictionary.py NUMBER

A dictionary that was ever released is never changed: spools hold payloads that need it. A better one gets
the next number, and `codec.DICTIONARY` names it once every collector knows it.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import zstandard

from flopwatch.simulate import scenario
from flopwatch.simulate.backfill import new_fold, payload_of
from flopwatch.simulate.player import NodePlayer
from flopwatch_proto import codec
from flopwatch_proto.codec import IntervalRow

SIZE_BYTES: Final = 16 * 1024
_START_UNIX_MS: Final = 1_790_000_000_000
_PLACE: Final = Path(codec.__file__).with_name("dictionaries")
_SKUS: Final = (
    ("NVIDIA H100 80GB HBM3", 8),
    ("NVIDIA H200", 8),
    ("NVIDIA B200", 8),
    ("NVIDIA A100-SXM4-80GB", 8),
    ("NVIDIA L40S", 4),
)
_STATES: Final = (
    'state = "active"\njob = "4711"\nteam = "research"\ndeclared_mfu = 0.4\nthrottle = { power = 0.1 }',
    'state = "active"\njob = "18234"\nteam = "platform"\nworkload_class = "inference"',
    'state = "idle_alloc"\njob = "99120"\nteam = "research"\nworkload_class = "interactive"',
    'state = "free"',
)
_SCENARIO: Final = """
[scenario]
seed = {seed}
duration = "1h"
interval = "{interval}"

[[cluster]]
name = "train"
sku = "{sku}"
nodes = 6
cards_per_node = {cards}

[[cluster.phase]]
nodes = "*"
sm_active = {sm_active}
tensor_active = {tensor_active}
dram_active = 0.4
power_watts = 400
noise = 0.03
{state}
"""


def samples() -> Iterator[bytes]:
    """Yield payloads as they are before compression."""
    kinds = itertools.product(_SKUS, _STATES, ("10s", "1s"))
    for seed, ((sku, cards), state, interval) in enumerate(kinds):
        text = _SCENARIO.format(
            seed=seed,
            interval=interval,
            sku=sku,
            cards=cards,
            state=state,
            sm_active=0.95 - 0.01 * (seed % 40),
            tensor_active=0.50 - 0.01 * (seed % 40),
        )
        yield from _played(scenario.parse(text), intervals=1 if interval == "10s" else 10)


def _played(played: scenario.Scenario, intervals: int) -> Iterator[bytes]:
    (cluster,) = played.clusters
    for node in range(cluster.nodes):
        player = NodePlayer(
            played,
            cluster,
            node,
            start_unix_ms=_START_UNIX_MS,
            make_fold=lambda: new_fold(played, cluster),
        )
        for _ in range(3):
            found: list[IntervalRow] = []
            while len({row.start_unix_ms for row in found}) < intervals:
                found += player.step().rows
            payload = payload_of(found, [])
            if payload is not None:
                yield codec.on_wire(payload).SerializeToString()


def main() -> None:
    """Train and write."""
    number = int(sys.argv[1])
    trained = zstandard.train_dictionary(SIZE_BYTES, [*samples()], dict_id=number, level=3)
    _PLACE.mkdir(exist_ok=True)
    (_PLACE / f"{number}.zdict").write_bytes(trained.as_bytes())


if __name__ == "__main__":
    main()
