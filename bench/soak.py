"""Does the agent grow? 8 cards of the fake driver, one reading a second, for hours.

.venv/bin/python bench/soak.py [--minutes 120]

Memory and descriptors of agent and driver child are looked at once a minute; the slope is the median of
the slopes of all pairs of looks (Theil and Sen) after 16 minutes, in which the flight recorder fills up.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Final

from fake_host import CARDS, fake_driver, running_agent
from measure import machine, tree, write
from sink import sink

LOOK_SECONDS: Final = 60.0
WARM_MINUTES: Final = 16
_REMARKS: Final = (
    "The flight recorder holds 15 minutes: memory rises until it is full, and is flat from then on.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """All processes of the agent at one moment."""

    minute: float
    rss_mib: float
    descriptors: int


async def soak(minutes: int) -> list[Look]:
    """Return what was seen, one look a minute."""
    looks: list[Look] = []
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        driver = fake_driver(directory)
        async with sink() as counted, running_agent(counted.port, directory, driver) as pid:
            for minute in range(1, minutes + 1):
                await asyncio.sleep(LOOK_SECONDS)
                usages = tree(pid).values()
                looks.append(
                    Look(
                        minute=minute,
                        rss_mib=round(sum(u.rss_bytes for u in usages) / 2**20, 2),
                        descriptors=sum(u.descriptors for u in usages),
                    )
                )
                sys.stderr.write(f"\r{minute}/{minutes} min: {looks[-1].rss_mib} MiB ")
                sys.stderr.flush()
    return looks


def slope_per_hour(looks: Sequence[Look], field: str) -> float:
    """Return the median slope of a field (Sen 1968, doi:10.1080/01621459.1968.10480934)."""
    slopes: list[float] = [
        (getattr(b, field) - getattr(a, field)) / (b.minute - a.minute) * 60
        for a, b in combinations(looks, 2)
    ]
    return round(statistics.median(slopes), 3)


def result(looks: Sequence[Look], warm_minutes: int) -> dict[str, Any]:
    """Return the figures of a soak."""
    warm = [look for look in looks if look.minute > warm_minutes]
    return {
        "minutes": len(looks),
        "cards": CARDS,
        "rss_mib_first": warm[0].rss_mib,
        "rss_mib_last": warm[-1].rss_mib,
        "rss_mib_max": max(look.rss_mib for look in warm),
        "rss_slope_mib_per_hour": slope_per_hour(warm, "rss_mib"),
        "descriptors_first": warm[0].descriptors,
        "descriptors_last": warm[-1].descriptors,
        "descriptors_slope_per_hour": slope_per_hour(warm, "descriptors"),
    }


def main() -> None:
    """Soak and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=int, default=120)
    minutes = parser.parse_args().minutes
    on = machine()
    looks = asyncio.run(soak(minutes))
    command = f"python bench/soak.py --minutes {minutes}"
    write("soak", "Soak of the agent", command, on, result(looks, WARM_MINUTES), _REMARKS)


if __name__ == "__main__":
    main()
