"""``python -m campaign.soak [MINUTES [SEED]]``: faults at random on one system, one after the other.

Senders, a collector and its receiver of pages are those of `campaign.delivery`. A fault is a kill of a
sender, of the collector or of both, or a collector that is stopped for some seconds (SIGSTOP). At the end the
same oracle is asked. Network, disks, clocks, certificates, memory and restores have campaigns of their own.
"""

from __future__ import annotations

import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from campaign.delivery import FRESH_SECONDS_MAX, Campaign, campaign

KILLS: Final = ("sender", "sender", "collector", "both")
STOPPED_SECONDS: Final = (1.0, 5.0)


def faults(
    running: Campaign, seconds: float, chance: random.Random, stops: Counter[str]
) -> Iterator[str]:
    """Yield kills for so long, and stop the collector now and then between them."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if chance.random() < 0.2 and running._collector.running:
            running._collector.send(signal.SIGSTOP)
            time.sleep(chance.uniform(*STOPPED_SECONDS))
            running._collector.send(signal.SIGCONT)
            stops["stopped"] += 1
        yield chance.choice(KILLS)
        stops["killed"] += 1
        if stops["killed"] % 20 == 0:
            sys.stdout.write(f"{stops['killed']} kills, {stops['stopped']} stops\n")
            sys.stdout.flush()


def main(minutes: float, seed: int) -> int:
    """Run one and say how it went; 0 where nothing is wrong."""
    chance, stops = random.Random(seed), Counter[str]()
    with tempfile.TemporaryDirectory() as scratch, campaign(Path(scratch), seed) as running:
        signal.signal(signal.SIGINT, lambda *_: setattr(running, "enough", True))
        verdict = running.run(faults(running, 60 * minutes, chance, stops))
    if verdict.fresh_seconds > FRESH_SECONDS_MAX:
        verdict.problems.append(f"nothing fresh within {FRESH_SECONDS_MAX} s after the last fault")
    sys.stdout.write(
        f"seed {seed}: {minutes} minutes, {stops['killed']} kills {dict(verdict.kills)}, "
        f"{stops['stopped']} stops; {verdict.produced} rows ({verdict.lost} in gaps, "
        f"{verdict.quarantined} quarantined), {verdict.pages} pages, fresh after "
        f"{verdict.fresh_seconds:.1f} s, {len(verdict.problems)} problems\n"
    )
    sys.stdout.write("".join(f"WRONG {problem}\n" for problem in verdict.problems))
    return 1 if verdict.problems else 0


if __name__ == "__main__":
    chosen = [float(word) for word in sys.argv[1:]]
    chosen += [24 * 60, 1][len(chosen) :]
    sys.exit(main(chosen[0], int(chosen[1])))
