"""What was seen, as JSON, as Markdown, and as the closing table."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gpu.result import FORMAT, Card, CheckResult, Finding, file_part, plain
from gpu.tolerances import TOLERANCES

FAKE_REMARK = (
    "**driver: fake.** The driver was a script and the processor stood in for the card: this says that the "
    "program works, and nothing about any GPU."
)
_VERDICTS = {True: "yes", False: "**no**", None: "–"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What a report is about. Attributes: date: UTC, ``YYYY-MM-DD HH:MM UTC``."""

    card: Card
    command: str
    date: str
    fake: bool
    quick: bool
    versions: Mapping[str, str]
    results: Sequence[CheckResult]

    @property
    def agrees(self) -> bool:
        """Return whether every check ran and agrees; what a card does not have is no disagreement."""
        return all(result.status in ("agrees", "not_supported") for result in self.results)


def write_report(run: Run, out: Path) -> tuple[Path, Path]:
    """Write both files, each whole or not at all; return their paths."""
    day = run.date.split()[0]
    prefix = "fake-" if run.fake else ""
    stem = f"{prefix}verify-{file_part(run.card.sku)}-{file_part(run.card.driver)}-{day}"
    paths = out / f"{stem}.json", out / f"{stem}.md"
    text = json.dumps(as_json(run), indent=1, ensure_ascii=False) + "\n"
    for path, content in zip(paths, (text, as_markdown(run)), strict=True):
        scratch = path.with_name(f".{path.name}")
        scratch.write_text(content, encoding="utf-8")
        scratch.replace(path)
    return paths


def as_json(run: Run) -> dict[str, Any]:
    """Return the report; the card without the names of one piece of hardware."""
    card = {k: v for k, v in asdict(run.card).items() if k not in ("uuid", "in_use_by")}
    found: dict[str, Any] = plain(
        {
            "format": FORMAT,
            "driver": "fake" if run.fake else run.card.driver,
            "card": card,
            "date": run.date,
            "command": run.command,
            "quick": run.quick,
            "versions": run.versions,
            "agrees": run.agrees,
            "checks": [asdict(result) for result in run.results],
            "tolerances": {name: {**asdict(t), "text": t.text} for name, t in TOLERANCES.items()},
        }
    )
    return found


def as_markdown(run: Run) -> str:
    """Return the report for a reader."""
    driver = "fake" if run.fake else run.card.driver
    versions = ", ".join(f"{name} {version}" for name, version in run.versions.items())
    lines = [f"# {run.card.sku}, driver {driver}", ""]
    if run.fake:
        lines += [FAKE_REMARK, ""]
    lines += [
        f"`{run.command}`, {run.date}; driver: {driver}; {run.card.sm_count} SMs, at most "
        f"{run.card.clock_mhz_max or 0:g} MHz; {versions}.",
        "",
        *_findings_table(run.results),
        "",
        "## Tolerances",
        "",
        "| what | bounds | why |",
        "|---|---|---|",
        *(f"| {name.replace('_', ' ')} | {t.text} | {t.why} |" for name, t in TOLERANCES.items()),
        "",
        "## Everything measured",
        "",
        "| check | what | value |",
        "|---|---|---|",
    ]
    for result in run.results:
        lines += [f"| {result.name} | {what} | {value} |" for what, value in _flat(result.values)]
    return "\n".join(lines) + "\n"


def _findings_table(results: Sequence[CheckResult]) -> Iterator[str]:
    yield "| check | question | expected | seen | agrees |"
    yield "|---|---|---|---|---|"
    for result in results:
        if result.error is not None:
            error = result.error.replace("|", "\\|")
            yield f"| {result.name} | runs | to its end | {error} | **{result.status}** |"
        for finding in result.findings:
            yield (
                f"| {result.name} | {finding.name} | {finding.expected} | {seen_text(finding)} "
                f"| {_VERDICTS[finding.agrees]} |"
            )


def seen_text(finding: Finding) -> str:
    """Return what was seen, four digits of a number."""
    if finding.seen is None:
        return "nothing"
    return f"{finding.seen:.4g}" if isinstance(finding.seen, float) else str(finding.seen)


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(item, f"{prefix} · {key}" if prefix else str(key))
    elif isinstance(value, (list, tuple)) and any(isinstance(v, Mapping) for v in value):
        for number, item in enumerate(value):
            yield from _flat(item, f"{prefix} {number}")
    else:
        text = f"{value:.5g}" if isinstance(value, float) else str(value)
        yield prefix, text.replace("|", "\\|")


def closing_table(run: Run) -> str:
    """Return the table for the terminal: one line a check, and what disagrees below it."""
    driver = "fake" if run.fake else run.card.driver
    lines = [f"{run.card.sku}, driver: {driver}, {run.date}", ""]
    for result in run.results:
        judged = [finding for finding in result.findings if finding.agrees is not None]
        yes = sum(finding.agrees is True for finding in judged)
        count = f"{yes}/{len(judged)}"
        lines.append(f"{result.name:<12} {result.status:<14} {count:>6} {result.seconds:>6.1f} s")
    lines.append("")
    lines += disagreements(run.results) or ["every check ran and agrees"]
    return "\n".join(lines) + "\n"


def disagreements(results: Sequence[CheckResult]) -> list[str]:
    """Return a line for each finding that disagrees and each check without an answer."""
    lines = []
    for result in results:
        if result.status in ("failed", "not_run"):
            lines.append(f"{result.name}: {result.status}: {result.error}")
        lines += [
            f"{result.name}: {f.name}: expected {f.expected}, seen {seen_text(f)}"
            for f in result.findings
            if f.agrees is False
        ]
    return lines
