"""Every page of every rule: a summary for a lock screen, and a command that can be pasted."""

from __future__ import annotations

import random
import shlex
from collections.abc import Sequence
from dataclasses import replace

import pytest
import typer.main

from flopwatch.cli.app import app
from flopwatch_collector.incident_state import Act, Action, IncidentState, State
from flopwatch_collector.news import NO_DEMAND
from flopwatch_collector.paging import page, text
from flopwatch_collector.paging.background import Background
from flopwatch_collector.paging.found import Explanation, said, subjects_of
from flopwatch_collector.paging.kinds import KINDS
from flopwatch_collector.paging.settings import PagingConfig
from flopwatch_collector.paging.summary import CHARACTERS_MAX
from flopwatch_collector.rules import Cause, Observation
from flopwatch_collector.rules.registry import RULES, Rule, settings_of
from flopwatch_collector.rules.settings import RulesConfig
from flopwatch_collector.tally import Job, Tally, layout_of

NOW_MS = 1_800_000_000_000
INCIDENTS = 500
SEED = 6
PAGING = PagingConfig(deployment="lab", base_url="https://flopwatch.example")
HOSTILE = (
    "atlas",
    "-rf",
    "--help",
    "$(reboot)",
    "`id`",
    "a'b\"c",
    "<!channel>",
    "n{0}{}%s",
    "x" * 300,
    "évry-zürich",
    "two\nlines",
    "\u202egnp.exe",
    "\x1b[2J\x1b]0;pwned\x07",
    "\x1b[201~; reboot\n",
    "a\u200bb",
    "日本" * 40,
    " ",
)
ACTIONS = (
    Action(act=Act.TRIGGER, episode="2027-01-15T07:37Z"),
    Action(act=Act.ESCALATE, episode="2027-01-15T07:37Z", repeat_no=1, reason="value"),
    Action(act=Act.NOTICE, episode="2027-01-15T07:37Z", repeat_no=1, reason="standing"),
    Action(act=Act.NOTICE, episode="2027-01-15T07:37Z", repeat_no=2, reason="flapping"),
    Action(act=Act.RESOLVE, episode="2027-01-15T07:37Z"),
)
LOSSES = ("MISSING", "FAILED", "MAINT", "HELD", "STRANDED", "FREE", "UNSEEN")
STEPS = ("no_process", "sm_idle", "clock", "tensor_gap", "unattributed", "recompute", "dtype")


class Drawn:
    """One incident, drawn at random. Attributes: figure: the judged one; names: of what is behind it."""

    def __init__(self, rng: random.Random, rule: Rule, action: Action) -> None:
        self.rng, self.rule, self.action = rng, rule, action
        self.names = [rng.choice(HOSTILE) + rng.choice(("", f"-r{i}-n{i}")) for i in range(12)]
        self.figure = rng.choice((0.0, rng.random(), rule.defaults.line * 0.99999, 0.9599))
        self.observation = self._observation()
        self.state = self._state()

    def _observation(self) -> Observation:
        rng = self.rng
        of = LOSSES if self.rule.reads == "allocation" else STEPS
        lost = {name: rng.uniform(0, 9) for name in rng.sample(of, rng.randint(0, len(of)))}
        kinds = ("node", "job", "team")
        causes = [
            Cause(kind=rng.choice(kinds), name=name, cards=rng.uniform(0, 99), points=rng.random())
            for name in rng.sample(self.names, rng.randint(0, 10))
        ]
        counts = self.rule.reads not in ("allocation", "mfu")
        return Observation(
            cluster=rng.choice(HOSTILE),
            rule=self.rule.reads,
            simulated=rng.random() < 0.3,
            device_kind="gpu",
            tick_unix_ms=NOW_MS,
            lo=self.figure * rng.choice((1.0, 0.9)),
            hi=self.figure,
            value=None,
            coverage=rng.random(),
            in_service_cards=rng.choice((8.0, 1234.0, 80_000.0)),
            in_service_nodes=10_000,
            unseen_cards=rng.choice((0.0, 7.5)),
            lost_points=lost,
            free_without_demand_points=rng.choice((0.0, 5.0)),
            causes=tuple(causes),
            silent_nodes=dict.fromkeys(rng.sample(self.names, 5), NOW_MS),
            subjects=rng.randint(1, 9_000) if counts else None,
            subjects_in_all=10_000 if counts else None,
        )

    def _state(self) -> IncidentState:
        rng, seen = self.rng, self.observation
        value = rng.choice((None, self.figure))
        return IncidentState(
            rule=self.rule.name,
            cluster=seen.cluster,
            state=State.RESOLVED if self.action.act is Act.RESOLVE else State.FIRING,
            simulated=seen.simulated,
            episode=self.action.episode,
            began_unix_ms=NOW_MS - rng.choice((0, 45_000, 23 * 60_000, 3 * 86_400_000)),
            lo=seen.lo,
            hi=seen.hi,
            value=value,
            line=self.rule.defaults.line,
            lost_points=dict(seen.lost_points),
            causes=seen.causes,
            leading_cause=rng.choice((*seen.lost_points, "", NO_DEMAND)),
            paged_value=rng.choice((None, self.figure)),
            paged_causes=rng.choice(((), ("MISSING",), ("sm_idle", NO_DEMAND))),
            subjects=seen.subjects,
        )

    def background(self) -> Background:
        if self.rng.random() < 0.3:
            return Background()
        nodes = [(name, f"s{card}") for name in self.names for card in range(8)]
        hit = self.rng.choice((1, 6))
        lost = {bucket: dict.fromkeys(self.names[:hit], 8.0) for bucket in LOSSES}
        worst = self.rng.choice((1.0, 50.0))
        jobs = {
            name: Job(
                team=name,
                cards=64.0,
                steps={s: self.rng.random() * (1.0 if place else worst) for s in STEPS},
            )
            for place, name in enumerate(self.names)
        }
        tally = Tally(unix_ms=NOW_MS, layout=layout_of(nodes), lost=lost, jobs=jobs)
        before = replace(self.observation, tick_unix_ms=NOW_MS - 30 * 60_000, value=0.974)
        return Background(
            settings=settings_of(self.rule, self.state.cluster, RulesConfig()),
            now=self.observation,
            before=self.rng.choice((None, before)),
            tally=tally,
            earlier=self.rng.choice((None, replace(tally, lost={}, jobs={}))),
            usd_per_card_hour=self.rng.choice((None, 2.5)),
        )


def drawn() -> Sequence[tuple[Drawn, page.Page]]:
    """Incidents of every rule in turn, and their pages."""
    rng = random.Random(SEED)
    found = []
    for number in range(INCIDENTS):
        rule = RULES[number % len(RULES)]
        one = Drawn(rng, rule, ACTIONS[number // len(RULES) % len(ACTIONS)])
        others = [replace(one.state, rule=rng.choice(RULES).name, state=State.FIRING)]
        built = page.build(one.state, one.action, NOW_MS, PAGING, others, one.background())
        found.append((one, built))
    return found


@pytest.fixture(scope="module")
def pages() -> Sequence[tuple[Drawn, page.Page]]:
    return drawn()


def test_every_summary_has_cluster_value_line_age_and_cause_in_ninety_characters(
    pages: Sequence[tuple[Drawn, page.Page]],
) -> None:
    for one, built in pages:
        line, state = built.summary, one.state
        assert len(line) <= CHARACTERS_MAX, line
        assert line.isprintable(), line
        figure, _, cause = line.partition(": ")
        age = text.lasted(NOW_MS - (state.began_unix_ms or 0))
        assert cause, line
        assert figure.endswith(f" {age}"), line
        assert f" {one.rule.short} " in figure, line
        assert text.clean(state.cluster)[:7] in figure, line
        assert any(mark in figure for mark in ("<", "≥", ">", "line")), line
        assert any(character.isdigit() for character in figure.removesuffix(age)), line


def test_every_command_parses_as_the_real_command_line_would(
    pages: Sequence[tuple[Drawn, page.Page]],
) -> None:
    command_line = typer.main.get_command(app)
    known: set[str] = set()
    for one, built in pages:
        pasted = built.body["command"]
        assert pasted.isprintable(), pasted
        program, *words = shlex.split(pasted)
        assert program == "flopwatch"
        parent, group = command_line.make_context(program, list(words)), command_line
        while hasattr(group, "resolve_command"):
            name, found, words = group.resolve_command(parent, words)
            parent, group = found.make_context(name, list(words), parent=parent), found
            words = [*parent._protected_args, *parent.args] if hasattr(found, "commands") else []
        known.add(asked := shlex.split(pasted)[1])
        if asked in ("cluster", "agents"):
            assert one.state.cluster in parent.params.values()
    assert {"cluster", "fleet", "agents", "node", "job"} <= known


def test_no_body_carries_what_a_terminal_or_a_reader_could_be_misled_by(
    pages: Sequence[tuple[Drawn, page.Page]],
) -> None:
    for _, built in pages:
        told = built.body["text"]
        assert all(line.isprintable() for line in told.split("\n")), told
        assert len(told) <= 3_500
        for name in ("cause", "causes", "behind", "changes", "largest_losses"):
            for word in strings(built.body[name]):
                assert word.isprintable(), word
                assert len(word) <= 400


def strings(of: object) -> Sequence[str]:
    if isinstance(of, str):
        return [of]
    if isinstance(of, dict):
        return [word for pair in of.items() for part in pair for word in strings(part)]
    if isinstance(of, list | tuple):
        return [word for part in of for word in strings(part)]
    return []


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_cause_has_words_for_any_room(kind: str) -> None:
    for names in ((), ("n1",), ("n1", "n2", "n3"), ("{" * 50,)):
        found = Explanation(
            kind=kind,
            subjects=subjects_of("node", dict.fromkeys(names, 8.0)),
            cards=24,
            points=1.25,
        )
        lengths = [len(words) for words in said(found)]
        assert lengths[0] == max(lengths)
        assert lengths[-1] <= 24
        assert "1.2pt" in said(found)[0]
