"""Every kind of event that the agent's code can tell, read from the code itself, is in the catalogue."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import flopwatch_agent
from flopwatch_agent.events.catalogue import KINDS

ROOT = Path(flopwatch_agent.__file__).parent
DYNAMIC = {
    # made of a state of the driver, or of what the spool noted
    "f'driver_{state}'": {"driver_absent", "driver_mismatch", "driver_lost"},
    "kind for kind, text in self._parts.spool.take_notices()": {
        *("spool_degraded", "spool_recovered", "spool_corrupt"),
    },
}
"""Kinds that are no constants in the code: what stands there → what they can be."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True, eq=False)
class Module:
    """One file. Attributes: constants: name → its value, where it is a literal or a container of them."""

    tree: ast.Module
    constants: dict[str, ast.expr]

    @classmethod
    def of(cls, text: str) -> Module:
        tree = ast.parse(text)
        constants: dict[str, ast.expr] = {}
        for line in tree.body:
            if isinstance(line, ast.AnnAssign) and line.value is not None:
                constants[ast.unparse(line.target)] = line.value
            elif isinstance(line, ast.Assign):
                constants[ast.unparse(line.targets[0])] = line.value
        return cls(tree, constants)

    def functions(self) -> Iterator[Function]:
        return (n for n in ast.walk(self.tree) if isinstance(n, Function))

    def kinds(self, given: ast.expr, within: Function) -> set[str]:
        """Return what an expression can be; what cannot be told must stand in `DYNAMIC`."""
        match given:
            case ast.Constant(value=str(kind)):
                return {kind}
            case ast.IfExp():
                return self.kinds(given.body, within) | self.kinds(given.orelse, within)
            case ast.Subscript(value=ast.Name(id=table)) if table in self.constants:
                values = self.constants[table]
                assert isinstance(values, ast.Dict)
                return set().union(*(self.kinds(value, within) for value in values.values))
            case ast.Name(id=name):
                if name in self.constants:
                    return self.kinds(self.constants[name], within)
                return self._of_variable(name, within)
        return DYNAMIC[ast.unparse(given)]

    def _of_variable(self, name: str, within: Function) -> set[str]:
        found: set[str] = set()
        for node in ast.walk(within):
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
                found |= self.kinds(node.value, within)
            elif isinstance(node, ast.For) and isinstance(node.target, ast.Tuple):
                names = [ast.unparse(target) for target in node.target.elts]
                if name not in names:
                    continue
                table = self.constants.get(ast.unparse(node.iter))
                if table is None:
                    words = f"{name} for {', '.join(names)} in {ast.unparse(node.iter)}"
                    found |= DYNAMIC[words]
                else:
                    assert isinstance(table, ast.Tuple)
                    lines = [line for line in table.elts if isinstance(line, ast.Tuple)]
                    cells = [line.elts[names.index(name)] for line in lines]
                    found |= set().union(*(self.kinds(cell, within) for cell in cells))
        assert found, f"{name} in {within.name}: what kinds of events is that?"
        return found


def parameters(function: Function) -> list[str]:
    given = [a.arg for a in (*function.args.args, *function.args.kwonlyargs)]
    return given[1:] if given[:1] == ["self"] else given


Tellers = dict[tuple[Module | None, str], int]
"""(module, function) → place of its parameter ``kind``; None: what every module may call."""


def told_kind(call: ast.Call, module: Module, tellers: Tellers) -> ast.expr | None:
    """Return the kind that a call tells; None where it tells none."""
    owner, _, name = ast.unparse(call.func).rpartition(".")
    place = tellers.get((module if owner == "self" else None, name))
    if place is None or owner.rpartition(".")[2].lstrip("_") in ("outgoing", "stream"):
        return None  # their `tell` takes what others told
    named = [keyword.value for keyword in call.keywords if keyword.arg == "kind"]
    return named[0] if named else call.args[place] if 0 <= place < len(call.args) else None


def kinds_told(root: Path) -> set[str]:
    """Return every kind that the code below a directory tells.

    A function that hands its own parameter ``kind`` on to an event, or to such a function, tells what it is
    called with.
    """
    tellers: Tellers = {(None, "Event"): -1}
    calls = [
        (module, function, node)
        for module in [Module.of(path.read_text()) for path in sorted(root.rglob("*.py"))]
        for function in module.functions()
        for node in ast.walk(function)
        if isinstance(node, ast.Call)
    ]
    before = 0
    while len(tellers) > before:
        before = len(tellers)
        found: set[str] = set()
        for module, function, call in calls:
            kind = told_kind(call, module, tellers)
            if kind is None:
                continue
            if ast.unparse(kind) == "kind" and "kind" in parameters(function):
                place = parameters(function).index("kind")
                tellers[None, function.name] = tellers[module, function.name] = place
            else:
                found |= module.kinds(kind, function)
    return found


def test_every_kind_that_the_agent_tells_is_in_the_catalogue() -> None:
    told = kinds_told(ROOT)
    assert {"capture_short", "counter_disagreement", "probe_corrupt", "job_eval"} <= told
    assert told == KINDS.keys()  # and the catalogue has none that nobody tells


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("def f():\n    return pb.Event(slot=s, kind='a')", {"a"}),
        ("def f(x):\n    g('a' if x else 'b')\ndef g(kind):\n    pb.Event(kind=kind)", {"a", "b"}),
        ("T = {1: 'a'}\ndef f(x):\n    kind = T[x]\n    return pb.Event(kind=kind)", {"a"}),
        (
            "T = ((1, 'a'), (2, 'b'))\ndef f():\n    for n, kind in T:\n        pb.Event(kind=kind)",
            {"a", "b"},
        ),
    ],
)
def test_kinds_are_found_however_they_are_written(
    tmp_path: Path, text: str, kinds: set[str]
) -> None:
    (tmp_path / "module.py").write_text(text)
    assert kinds_told(tmp_path) == kinds


def test_a_kind_that_nobody_can_read_from_the_code_is_not_passed_over(tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text("def f(x):\n    return pb.Event(kind=x.kind)")
    with pytest.raises(KeyError, match=r"x\.kind"):
        kinds_told(tmp_path)
