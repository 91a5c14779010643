"""House style as a test. Every exception stands here with its reason, and goes when it is not needed."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parent.parent
SHIPPED: Final = ("agent", "client", "collector", "kernels", "proto")
TREES: Final = (*SHIPPED, "tests", "tools", "bench")
FILE_LINES_MAX: Final = 400
TEST_LINES_MAX: Final = 550  # tests are a list: they are searched, not read through
FUNCTION_LINES_MAX: Final = 70

LONG_FILES: Final[dict[str, str]] = {}
LONG_FUNCTIONS: Final[dict[str, str]] = {}
READS_THE_CLOCK: Final = {
    "agent/flopwatch_agent/clock.py": "the agent's clock",
    "collector/flopwatch_collector/app.py": "the collector's clock",
    "bench/fleet.py": "sends rows of now",
    "bench/remote_write.py": "sends readings of now",
    "bench/catchup.py": "sends a backlog up to now, and times it",
    "bench/replay.py": "fills a history up to now",
    "client/flopwatch/cli/replay.py": "replays up to now",
    "bench/measure.py": "dates what was measured",
    "bench/readers.py": "times pages, and asks for windows up to now",
    "client/flopwatch/sender.py": "the moment at which a job declares something",
    "agent/flopwatch_agent/driver/card.py": "a reading's own time, beside the driver call",
    "agent/flopwatch_agent/driver/events.py": "the time of an event that carries none",
    "agent/flopwatch_agent/sources/host.py": "a reading's own time",
    "agent/flopwatch_agent/sources/nvml.py": "a reading's own time where the child is silent",
    "agent/flopwatch_agent/sources/processor.py": "a reading's own time",
    "client/flopwatch/cli/agents.py": "how long an agent is silent",
    "client/flopwatch/cli/inventory.py": "the inventory as it stands now",
    "client/flopwatch/cli/doctor.py": "compares this host's clock with the collector's",
    "client/flopwatch/cli/views.py": "the age of what is shown",
    "kernels/flopwatch_kernels/child.py": "the start of a probe",
}
PRINTS: Final = {
    "tests/fakenvml/harness.py": "its child processes speak over stdout",
    "tests/fakenvml/recording.py": "a command that writes a script to stdout",
}
VAGUE: Final = re.compile(r"(^|_)(utils?|helpers?|common|managers?|misc)(_|$)")
CLOCK_CALLS: Final = frozenset(
    {"time.time", "time.time_ns", "now", "datetime.now", "datetime.utcnow", "date.today"}
)
# Where a line was written, or what it was installed from, is nobody's business but the machine's.
MACHINE: Final = re.compile(
    r"(?<![\w.])/(?:work|root|mnt)/|pypi\.|index-url|pytorch\.org/whl|huggingface\.co"
)
MACHINE_ALLOWED: Final = {
    "tests/test_tidy.py": "names what it looks for",
}
TEXTS: Final = frozenset(
    {".py", ".md", ".toml", ".proto", ".csv", ".txt", ".json", ".html", ".css", ".js", ".service"}
    | {".yaml", ".yml", ".c", ".h", ".def", ".cu", ".sql", ""}
)


def _ours() -> list[Path]:
    """Every Python file that a person wrote, relative to the root."""
    found = (path for tree in TREES for path in (ROOT / tree).rglob("*.py"))
    return sorted(
        path.relative_to(ROOT)
        for path in found
        if "_pb2" not in path.name and "__pycache__" not in path.parts
    )


OURS: Final = _ours()
SOURCES: Final = {str(path): (ROOT / path).read_text(encoding="utf-8") for path in OURS}
PARSED: Final = {name: ast.parse(text, name) for name, text in SOURCES.items()}


def _calls(name: str) -> Iterator[str]:
    for node in ast.walk(PARSED[name]):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func)


def _functions(name: str) -> Iterator[tuple[str, int]]:
    for node in ast.walk(PARSED[name]):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno is not None
            yield f"{name}:{node.name}", node.end_lineno - node.lineno + 1


def test_nobody_prints() -> None:
    assert {name for name in SOURCES if "print" in _calls(name)} - PRINTS.keys() == set()


def test_only_clocks_and_edges_read_the_clock() -> None:
    readers = {
        name
        for name in SOURCES
        if not name.startswith("tests/")  # a store drops what is old, so tests of it begin now
        if {call.removeprefix("datetime.datetime.") for call in _calls(name)} & CLOCK_CALLS
    }
    assert readers - READS_THE_CLOCK.keys() == set()


def test_no_file_is_longer_than_can_be_read_at_once() -> None:
    long = {
        name
        for name, text in SOURCES.items()
        if text.count("\n") > (TEST_LINES_MAX if name.startswith("tests/") else FILE_LINES_MAX)
    }
    assert long - LONG_FILES.keys() == set()


def test_no_function_is_longer_than_a_screen() -> None:
    long = {
        function
        for name in SOURCES
        for function, lines in _functions(name)
        if lines > FUNCTION_LINES_MAX
    }
    assert long - LONG_FUNCTIONS.keys() == set()


@pytest.mark.parametrize(
    "exceptions",
    [LONG_FILES, READS_THE_CLOCK, PRINTS, MACHINE_ALLOWED],
    ids=["long_files", "reads_the_clock", "prints", "machine"],
)
def test_an_exception_names_a_file_that_is_there_and_a_reason(exceptions: dict[str, str]) -> None:
    assert {name for name in exceptions if not (ROOT / name).exists()} == set()
    assert all(exceptions.values())


def test_every_module_is_named_after_what_it_is() -> None:
    names = {part for path in OURS for part in (*path.parent.parts, path.stem)}
    assert {name for name in names if VAGUE.search(name)} == set()


def test_every_shipped_module_says_what_it_is_for() -> None:
    silent = {
        name
        for name, tree in PARSED.items()
        if name.split("/")[0] in SHIPPED and tree.body and ast.get_docstring(tree) is None
    }
    assert silent == set()


def test_test_files_have_names_of_their_own() -> None:
    names = [path.name for path in OURS if path.name.startswith("test_")]
    assert sorted(names) == sorted(set(names))


def _texts() -> Iterator[Path]:
    """Every text file that is or will be in the repository."""
    for tree in (*TREES, "docs", "deploy", "systemd", ".ci"):
        yield from (path for path in (ROOT / tree).rglob("*") if path.is_file())
    yield from (path for path in ROOT.iterdir() if path.is_file())


def test_no_text_names_a_machine_or_a_registry() -> None:
    found = [
        f"{name}: {match[0]}"
        for path in _texts()
        if path.suffix in TEXTS and "__pycache__" not in path.parts
        if (name := str(path.relative_to(ROOT))) not in MACHINE_ALLOWED
        for match in MACHINE.finditer(path.read_text(encoding="utf-8", errors="replace"))
    ]
    assert found == []
