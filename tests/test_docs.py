"""The documents say what is there: commands, keys, metrics, tables, files, targets and links."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec
import pytest

import documents
from flopwatch.cli.app import COMMANDS
from flopwatch_agent.config import COLLECTOR_SECTIONS, AgentConfig
from flopwatch_collector.config import AGENT_SECTIONS, CollectorConfig
from flopwatch_collector.rules.registry import RULE_NAMES
from flopwatch_collector.telemetry.schema import TABLES
from flopwatch_proto import settings

ROOT: Final = Path(__file__).resolve().parent.parent
PAGES: Final = sorted(
    path
    for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("deploy/**/*.md"))
    if "node_modules" not in path.parts
)
DAEMONS: Final = {"agent", "collector"}
_IDS: Final = [str(path.relative_to(ROOT)) for path in PAGES]


def _text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def _make_targets() -> set[str]:
    return set(re.findall(r"^([a-z]+):", _text("Makefile"), re.MULTILINE))


@pytest.mark.parametrize("name", documents.PAGES)
def test_a_generated_page_is_in_step_with_the_code(name: str) -> None:
    assert name not in documents.stale(), "run `make docs`"


@pytest.mark.parametrize("path", PAGES, ids=_IDS)
def test_links_lead_to_files_that_are_there(path: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)", path.read_text(encoding="utf-8"))
    dead = [link for link in links if "://" not in link and not (path.parent / link).exists()]
    assert dead == []


@pytest.mark.parametrize("path", PAGES, ids=_IDS)
def test_make_targets_that_a_page_names_exist(path: Path) -> None:
    named = set(re.findall(r"(?:`|^)make ([a-z]+)", path.read_text(encoding="utf-8"), re.MULTILINE))
    assert named - _make_targets() == set()


def test_every_make_target_is_said_to_be_no_file_and_has_a_line_of_help() -> None:
    makefile = _text("Makefile")
    phony = set(re.findall(r"^\.PHONY: (.+)$", makefile, re.MULTILINE)[0].split())
    helped = set(re.findall(r"^([a-z]+):.*## ", makefile, re.MULTILINE))
    assert phony == helped == _make_targets()


@pytest.mark.parametrize("path", PAGES, ids=_IDS)
def test_commands_that_a_page_names_exist(path: Path) -> None:
    known = {name for name, _ in COMMANDS} | DAEMONS
    text = path.read_text(encoding="utf-8")
    named = set(re.findall(r"(?:`|\$ |bin/)flopwatch ([a-z]+)", text, re.MULTILINE))
    assert named - known == set()


def test_the_changelog_names_every_command() -> None:
    line = next(
        line for line in _text("CHANGELOG.md").splitlines() if "`flopwatch` command" in line
    )
    named = set(re.findall(r"[a-z]+", line.partition("command:")[2]))
    assert named == {name for name, _ in COMMANDS} | DAEMONS


@pytest.mark.parametrize("path", PAGES, ids=_IDS)
def test_metrics_and_tables_that_a_page_names_exist(path: Path) -> None:
    metrics = documents.PAGES["docs/metrics.md"]()
    text = path.read_text(encoding="utf-8")
    named = set(
        re.findall(r"`(flopwatch_(?:agent|source|spool|stream|ingest|web|cluster)_[a-z_]+)`", text)
    )
    packages = {"flopwatch_agent"}
    assert {name for name in named - packages if f"`{name}`" not in metrics} == set()
    tables = set(re.findall(r"\btable `([a-z_]+)`", text))
    assert tables - TABLES.keys() == set()


@pytest.mark.parametrize("type_", [AgentConfig, CollectorConfig])
def test_every_configuration_key_has_a_line_with_a_meaning(type_: type[msgspec.Struct]) -> None:
    documented = dict(re.findall(r"^\| `([^`]+)` \|.*?\|.*?\| *(.*?) *\|", _configuration(), re.M))
    documented = {re.sub(r"\[\]|\.RULE|\.NAME", "", key): said for key, said in documented.items()}
    missing = [key for key in settings.keys(type_) if not _documented(key, documented)]
    assert missing == []


def _configuration() -> str:
    return _text("docs/configuration.md")


def _documented(key: str, documented: dict[str, str]) -> bool:
    plain = re.sub(rf"^rules\.({'|'.join(RULE_NAMES)})\.", "rules.", key)
    if plain in documented:
        return documented[plain] != ""
    return any(name.startswith(f"{plain}.") for name in documented)  # a list or table of sections


def _sections(type_: type[msgspec.Struct]) -> set[str]:
    return {key.partition(".")[0] for key in settings.keys(type_) if "." in key}


def test_each_daemon_leaves_the_other_ones_variables_alone() -> None:
    ours, theirs = _sections(AgentConfig), _sections(CollectorConfig)
    assert theirs - set(COLLECTOR_SECTIONS) == set()
    assert ours - set(AGENT_SECTIONS) == set()
    assert ours & theirs == set()


def test_every_decision_is_linked_from_the_architecture() -> None:
    decisions = {path.name for path in (ROOT / "docs/adr").glob("*.md")}
    linked = set(re.findall(r"\(adr/([^)]+)\)", _text("docs/architecture.md")))
    assert linked == decisions
    numbers = sorted(name[:4] for name in decisions)
    assert numbers == [f"{number:04}" for number in range(1, len(numbers) + 1)]


@pytest.mark.parametrize("path", sorted((ROOT / "docs/adr").glob("*.md")), ids=lambda p: p.stem)
def test_a_decision_has_its_three_parts_and_fits_a_page(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.startswith(f"# {path.name[:4]} ")
    assert re.findall(r"^## (.+)$", text, re.M) == ["Context", "Decision", "Consequences"]
    assert text.count("\n") <= 50


def _paths(text: str) -> Iterator[str]:
    """Files and directories of this repository that a text names in backticks."""
    for name in re.findall(r"`([\w./-]+)`", text):
        if name.split("/")[0] in {
            "agent",
            "collector",
            "client",
            "kernels",
            "proto",
            "tests",
            "tools",
        } or (name.split("/")[0] in {"docs", "deploy", "systemd", "bench"} and "/" in name):
            yield name


@pytest.mark.parametrize("path", PAGES, ids=_IDS)
def test_files_that_a_page_names_are_there(path: Path) -> None:
    named = (name for name in _paths(path.read_text(encoding="utf-8")) if "/" in name)
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize(
    "package",
    [
        "flopwatch",
        "flopwatch_agent",
        "flopwatch_collector",
        "flopwatch_kernels",
        "flopwatch_proto",
    ],
)
def test_the_readme_names_every_package(package: str) -> None:
    module = importlib.import_module(package)
    assert module.__file__ is not None
    directory = Path(module.__file__).parent
    assert f"`{directory.relative_to(ROOT)}`" in _text("README.md")


def test_the_licence_is_the_apache_licence_in_full() -> None:
    text = _text("LICENSE")
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_what_ci_runs_can_be_run_by_hand() -> None:
    script = ROOT / ".ci/run"
    assert os.access(script, os.X_OK)
    assert set(re.findall(r"^make ([a-z]+)$", _text(".ci/run"), re.M)) == {"check", "test"}


def test_constraints_pin_versions_and_name_no_place() -> None:
    lines = [line for line in _text("constraints.txt").splitlines() if not line.startswith("#")]
    assert [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.]+", line)] == []
