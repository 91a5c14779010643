"""``gres.conf``: which device file stands behind Slurm's index of a GPU. Pure.

``SLURM_JOB_GPUS`` and ``gres_detail`` count the GPUs of a node in the order of its gres.conf; where that
names no files (``AutoDetect=nvml``) by PCI address, which need not be the order of device files.
Source: ``common_gres_set_env`` of Slurm's gres plugin.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import Final

_PAIR: Final = re.compile(r"(\w+)=(\S+)")
_RANGE: Final = re.compile(r"(\d+)(?:-(\d+))?")
_NAMES_MAX: Final = 100_000
_MINOR: Final = re.compile(r"(\d+)$")


def minors(text: str, node: str | None) -> tuple[int, ...]:
    """Return the minor number behind each GPU index of a node; empty where gres.conf names no files.

    Args:
        text: of gres.conf.
        node: the node's name in Slurm; None takes lines for any node.
    """
    found: list[int] = []
    for line in text.splitlines():
        pairs = {match[1].lower(): match[2] for match in _PAIR.finditer(line.partition("#")[0])}
        if pairs.get("name", "").lower() != "gpu":
            continue
        nodes = pairs.get("nodename")
        if nodes is not None and node is not None and node not in set(expand(nodes)):
            continue
        # With MultipleFiles one index has many files: the card's own comes first.
        many = pairs.get("multiplefiles")
        files = list(expand(pairs.get("file") or many or ""))
        files = files[:1] if many else files
        found += (int(match[1]) for file in files if (match := _MINOR.search(file)))
    return tuple(found)


def expand(text: str) -> Iterator[str]:
    """Yield the names that a host or file list stands for: ``n[01-03,7],m1`` is n01 n02 n03 n7 m1."""
    parts = re.findall(r"(?:\[[^\]]*\]|[^,\[])+", text)
    return itertools.islice(
        itertools.chain.from_iterable(_expand(part) for part in parts), _NAMES_MAX
    )


def _expand(part: str) -> Iterator[str]:
    head, bracket, rest = part.partition("[")
    if not bracket:
        yield part
        return
    inside, _, tail = rest.partition("]")
    for item in inside.split(","):
        match = _RANGE.fullmatch(item.strip())
        if match is None:
            continue
        first, last = match[1], match[2] or match[1]
        for number in range(int(first), min(int(last), int(first) + _NAMES_MAX) + 1):
            yield from (f"{head}{number:0{len(first)}d}{end}" for end in _expand(tail))
