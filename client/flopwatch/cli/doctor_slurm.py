"""What `doctor` finds out about Slurm: whether it answers, what it hides, and how it numbers cards."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal

from flopwatch_collector.roster.answers import Answers, NotAnsweredError
from flopwatch_collector.roster.slurm import Reading, judge
from flopwatch_collector.roster.slurm_commands import SlurmCommands, configuration, found
from flopwatch_collector.roster.slurm_layout import Node, jobs_of, nodes_of
from flopwatch_collector.roster.slurm_rest import SlurmRest
from flopwatch_proto.errors import RetryableError, UsageError

Fact = tuple[str, Literal["ok", "info", "failed"], str, str | None]
"""(name, state, text, advice)."""

DEADLINE_SECONDS: Final = 15.0
_MINOR: Final = re.compile(r"(\d+)$")


def slurm(environ: Mapping[str, str]) -> list[Fact]:
    """Return what there is to know of Slurm here; nothing without a slurm.conf or a slurmrestd."""
    over_rest = _configured_rest()
    conf = configuration(environ)
    if conf is None or over_rest:
        return over_rest
    if not found(environ):
        text = f"{conf} is here, its commands are not"
        return [("slurm", "info", text, "install sinfo, squeue and scontrol, or use slurmrestd")]
    try:
        answers = asyncio.run(SlurmCommands(environ, DEADLINE_SECONDS).ask())
        facts = answered(answers)
    except RetryableError as exc:
        facts = [("slurm", "failed", f"does not answer: {exc}", "scontrol ping; is munge running?")]
    return [*facts, *_order_of(conf.with_name("gres.conf"))]


def answered(answers: Answers) -> list[Fact]:
    """Return what its answers say of Slurm itself, and of this user's rights.

    Raises:
        RetryableError: they cannot be read.
    """
    nodes = nodes_of(answers.nodes)
    cards = sum(node.cards for node in nodes)
    text = f"cluster {answers.cluster}, {answers.version}: {len(nodes)} nodes, {cards} cards"
    facts: list[Fact] = [("slurm", "ok", text, None)]
    said = judge(nodes, jobs_of(answers.jobs), _all_slots(nodes), reading=Reading())
    hides = ", ".join(sorted(answers.private_data))
    if said.hidden_cards:
        facts.append(
            (
                "slurm jobs",
                "failed",
                f"{said.hidden_cards} allocated cards belong to jobs that this user may not see "
                f"(PrivateData={hides or 'unknown'})",
                "sacctmgr modify user NAME set adminlevel=Operator; or run as SlurmUser",
            )
        )
    elif hides:
        text = f"PrivateData={hides}; this user sees the job of every allocated card"
        facts.append(("slurm jobs", "ok", text, None))
    else:
        facts.append(("slurm jobs", "ok", "PrivateData hides nothing", None))
    facts += [("slurm cards", "info", doubt.text, doubt.action) for doubt in said.doubts[:3]]
    return facts


def _configured_rest() -> list[Fact]:
    """Return what there is to know of the slurmrestd that the collector of this host asks."""
    from flopwatch_collector import config

    if not config.DEFAULT_PATH.exists():
        return []
    try:
        section = config.load(None, {}, {}).slurm
    except UsageError as exc:
        return [("slurm", "failed", str(exc), None)]
    if section.how != "rest" or section.enabled == "off":
        return []
    return [slurmrestd(section.url, section.token_file)]


def slurmrestd(url: str, token_file: Path | None = None) -> Fact:
    """Return whether slurmrestd answers, and in which version."""
    asker = SlurmRest(url, token_file=token_file, deadline_seconds=DEADLINE_SECONDS)
    try:
        answers = asyncio.run(asker.ask())
    except NotAnsweredError as exc:
        return "slurmrestd", "failed", str(exc), "start it; or set [slurm] url and token_file"
    return "slurmrestd", "ok", f"{url} answers in {answers.version}", None


def _all_slots(nodes: tuple[Node, ...]) -> dict[str, list[str]]:
    return {node.name: [str(i) for i in range(node.cards)] for node in nodes}


def _order_of(path: Path) -> list[Fact]:
    """Return whether gres.conf lists device files in the order of their minor numbers."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    by_nodes: dict[str, list[str]] = {}
    for line in text.splitlines():
        words = dict(word.split("=", 1) for word in line.partition("#")[0].split() if "=" in word)
        if words.get("Name") == "gpu" and "File" in words:
            by_nodes.setdefault(words.get("NodeName", ""), []).append(words["File"])
    wrong = [
        files
        for files in by_nodes.values()
        if (minors := [m for file in files for m in _minors(file)]) != sorted(minors)
    ]
    if not wrong:
        return [("gres.conf", "ok", "lists cards in the order of their minor numbers", None)]
    advice = "list them in order, or name the order of slots: [slurm.cards] of the collector"
    return [("gres.conf", "failed", f"lists cards out of order: File={wrong[0][0]} …", advice)]


def _minors(file: str) -> list[int]:
    """Return the minor numbers of ``/dev/nvidia[0-3,7]``, or of one file."""
    listed = re.search(r"\[([\d,-]+)\]", file)
    if listed is None:
        one = _MINOR.search(file)
        return [int(one[1])] if one else []
    minors: list[int] = []
    for span in listed[1].split(","):
        first, _, last = span.partition("-")
        minors += range(int(first), int(last or first) + 1) if first else []
    return minors
