"""The ready-made Prometheus rules: their own unit tests, and the same outages as our machine finds."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from flopwatch_collector.replay import Moment
from flopwatch_collector.replay.player import Player
from flopwatch_collector.rules import Observation
from flopwatch_collector.rules.settings import RulesConfig
from flopwatch_collector.web.rule_gauges import judgements

DEPLOYED: Final = Path(__file__).resolve().parents[2] / "deploy" / "prometheus"
STEP_S: Final = 10
RULES: Final = RulesConfig(settle_s=0)
ALERTS: Final = {"allocation": "FlopwatchAllocation", "mfu": "FlopwatchMfu"}
WELL, EDGE, LOW, GONE, HIDDEN = (0.99, 0.99), (0.965, 0.965), (0.93, 0.93), None, (0.90, 0.97)

Phase = tuple[int, tuple[float, float] | None]
# Steps of 10 s with bounds, or with nothing known. Outages end well, before the end.
HISTORIES: Final[tuple[tuple[str, tuple[Phase, ...]], ...]] = (
    ("allocation", ((30, WELL),)),
    ("allocation", ((6, WELL), (30, LOW), (90, WELL))),
    ("allocation", ((6, WELL), (31, LOW), (90, WELL))),
    ("allocation", ((6, WELL), (60, LOW), (61, WELL), (40, WELL))),
    ("allocation", ((6, WELL), (60, LOW), (30, EDGE), (90, WELL))),
    ("allocation", ((6, WELL), (60, LOW), (30, WELL), (10, LOW), (90, WELL))),
    ("allocation", ((6, WELL), (60, LOW), (30, WELL), (10, EDGE), (90, WELL))),
    ("allocation", ((6, WELL), (60, LOW), (120, GONE), (90, WELL))),
    ("allocation", ((6, WELL), (60, LOW), (120, HIDDEN), (90, WELL))),
    ("allocation", ((6, WELL), (90, HIDDEN), (90, WELL))),
    ("allocation", ((6, WELL), (90, GONE), (90, WELL))),
    ("allocation", ((6, WELL), (60, LOW), (200, WELL), (60, LOW), (90, WELL))),
    ("allocation", ((6, WELL), (29, LOW), (2, WELL), (29, LOW), (90, WELL))),
    ("allocation", ((6, WELL), (32, LOW), (1, WELL), (40, LOW), (90, WELL))),
    ("mfu", ((6, (0.65, 0.65)), (90, (0.5, 0.5)), (90, (0.65, 0.65)))),
    ("mfu", ((6, (0.65, 0.65)), (91, (0.5, 0.5)), (90, (0.65, 0.65)))),
    ("mfu", ((6, (0.65, 0.65)), (120, (0.5, 0.5)), (60, (0.61, 0.61)), (90, (0.65, 0.65)))),
    ("mfu", ((6, (0.65, 0.65)), (120, (0.5, 0.5)), (60, GONE), (90, (0.65, 0.65)))),
    ("mfu", ((6, (0.65, 0.65)), (200, (0.55, 0.64)), (10, (0.65, 0.65)))),
    ("mfu", ((6, (0.65, 0.65)), (120, (0.5, 0.58)), (90, (0.5, 0.63)))),
)


def test_the_rules_pass_their_own_tests() -> None:
    ran = promtool("test", "rules", str(DEPLOYED / "flopwatch.test.yml"))
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_twenty_histories_page_in_prometheus_when_they_page_here(tmp_path: Path) -> None:
    tests = [_promtool_test(rule, phases) for rule, phases in HISTORIES]
    paged = sum(of["value"] for test in tests for of in _expected(test))
    assert paged > 20, "histories that page nobody agree with anything"
    (tmp_path / "agree.test.yml").write_text(_document(tests), encoding="utf-8")
    ran = promtool("test", "rules", str(tmp_path / "agree.test.yml"))
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_the_comparison_can_fail(tmp_path: Path) -> None:
    test = _promtool_test(*HISTORIES[2])
    for of in _expected(test):
        of["value"] = 1 - of["value"]
    (tmp_path / "wrong.test.yml").write_text(_document([test]), encoding="utf-8")
    assert promtool("test", "rules", str(tmp_path / "wrong.test.yml")).returncode == 1


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["promtool", *arguments], capture_output=True, text=True, timeout=120, check=False
    )


def _expected(test: dict[str, Any]) -> list[dict[str, Any]]:
    return [sample for asked in test["promql_expr_test"] for sample in asked["exp_samples"]]


def _document(tests: Sequence[dict[str, Any]]) -> str:
    return json.dumps(
        {  # JSON is YAML
            "rule_files": [str(DEPLOYED / "flopwatch.rules.yml")],
            "evaluation_interval": f"{STEP_S}s",
            "tests": tests,
        }
    )


def _observations(rule: str, phases: Sequence[Phase]) -> Iterator[Observation]:
    bounds = [of for steps, of in phases for _ in range(steps)]
    for number, of in enumerate(bounds):
        lo, hi = of or (None, None)
        yield Observation(
            cluster="atlas",
            rule=rule,
            simulated=False,
            device_kind="gpu",
            tick_unix_ms=number * STEP_S * 1000,
            lo=lo,
            hi=hi,
            value=hi if lo == hi else None,
            coverage=1.0,
            in_service_cards=1000,
            unseen_cards=0.0,
        )


def _turns(paged: Sequence[int], number: int) -> bool:
    """Whether the tick before or after says something else."""
    return len(set(paged[max(0, number - 1) : number + 2])) > 1


def _promtool_test(rule: str, phases: Sequence[Phase]) -> dict[str, Any]:
    """The history as series, and at each tick whether our machine has an outage that paged."""
    values: dict[str, list[str]] = {}
    player = Player("atlas", RULES)
    paged: list[int] = []
    for observation in _observations(rule, phases):
        (judged,) = [of for of in judgements([observation], RULES) if of.rule == rule]
        for name, value in judged.figures.items():
            values.setdefault(name, []).append("_" if value is None else repr(value))
        tick = observation.tick_unix_ms
        player.play(Moment(tick_unix_ms=tick, step_ms=10_000, observed={rule: observation}))
        holds = [o for o in player.outages if o.rule == rule and o.ended_unix_ms is None]
        paged.append(sum(o.fired_unix_ms is not None for o in holds))
    labels = f'cluster="atlas",simulated="false",rule="{rule}"'
    asked = f'count(ALERTS{{alertname="{ALERTS[rule]}",alertstate="firing"}}) or vector(0)'
    return {
        "interval": f"{STEP_S}s",
        "input_series": [
            {"series": f"flopwatch_rule_{name}{{{labels}}}", "values": " ".join(of)}
            for name, of in values.items()
        ],
        "promql_expr_test": [
            {
                "expr": asked,
                "eval_time": f"{number * STEP_S}s",
                "exp_samples": [{"labels": "{}", "value": value}],
            }
            for number, value in enumerate(paged)
            if number % 30 == 0 or _turns(paged, number)
        ],
    }
