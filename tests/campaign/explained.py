"""Outages with one planted cause, and whether their pages name it: `campaign.explained [COUNT [SEED]]`."""

from __future__ import annotations

import sys
from collections import Counter

from planted import CAUSES, Planted, planted

RIGHT_SHARE_MIN = 0.95


def main(count: int, seed: int) -> int:
    """Plant causes in turn, tell each page that is wrong and the share that is right; return an exit code."""
    right: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    for number in range(count):
        cause = CAUSES[number % len(CAUSES)]
        one = planted(cause, seed * 1_000_003 + number)
        asked[cause] += 1
        right[cause] += one.right
        if not one.right:
            sys.stdout.write(wrong(one))
    for cause in CAUSES:
        sys.stdout.write(f"{cause:13} {right[cause]:4} of {asked[cause]}\n")
    share = right.total() / max(1, asked.total())
    sys.stdout.write(f"named first: {share:.1%} of {asked.total()}, seed {seed}\n")
    return 0 if share >= RIGHT_SHARE_MIN else 1


def wrong(one: Planted) -> str:
    """Return a line of a page that names another cause."""
    return f"planted {one.cause}, told {one.body['cause']['kind']}: {one.body['summary']}\n"


if __name__ == "__main__":
    arguments = [int(argument) for argument in sys.argv[1:]]
    sys.exit(main(*(arguments + [200, 1][len(arguments) :])))
