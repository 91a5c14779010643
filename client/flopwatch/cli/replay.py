"""`replay`: what rules would have paged, from the observations that a collector keeps, or from a scenario."""

from __future__ import annotations

import json as json_module
import time
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.console import Console

from flopwatch.cli import replay_plot, replay_table
from flopwatch.cli.backup import Config, Data, collectors_packages, config_of
from flopwatch.cli.options import Json
from flopwatch.cli.progress import counted
from flopwatch_proto.errors import UsageError
from flopwatch_proto.settings import Duration

if TYPE_CHECKING:
    from flopwatch_collector.control.store import ControlStore
    from flopwatch_collector.replay import Moment
    from flopwatch_collector.replay.outcome import Window
    from flopwatch_collector.rules.settings import RulesConfig

_MINUTE_MS: Final = 60_000
_STEP_MS: Final = 10_000
_KEPT_DAYS: Final = 35


def replay(
    rules: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Rules to try: [rules] as in collector.toml."),
    ] = None,
    since: Annotated[str, typer.Option(metavar="DURATION", help="How far to look back.")] = "30d",
    until: Annotated[
        str | None, typer.Option(metavar="RFC3339", help="End of the window; left out: now.")
    ] = None,
    cluster: Annotated[str | None, typer.Option(metavar="NAME", help="Only this cluster.")] = None,
    scenario: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Observations of a file instead of kept ones."),
    ] = None,
    would_have: Annotated[
        bool, typer.Option("--would-have", help="Only a line per rule that would have paged.")
    ] = False,
    config: Config = None,
    data: Data = None,
    json: Json = False,
) -> int:
    """What would have paged, when, how often and how long, with today's rules and with others.

    Today's rules are the collector's. Reads the control store only, beside a collector that runs or not.
    """
    stores = config_of(config, data)
    tried = None if rules is None else _rules(rules)
    answers: list[dict[str, Any]] = []
    for name, window, moments in _sources(stores.control_dsn, scenario, cluster, since, until):
        answer = _answer(name, window, moments, stores.rules, tried)
        if answer is not None:
            answers.append(answer)
    if json:
        typer.echo(json_module.dumps({"clusters": answers}))
        return 0
    console = Console(highlight=False, markup=False)
    for answer in answers:
        for line in replay_table.would_have(answer):
            console.print(line)
        if not would_have:
            for table in (replay_table.outcomes_table(answer), replay_table.outages_table(answer)):
                if table is not None:
                    console.print(table)
            for part in replay_plot.plots(answer, min(console.width, replay_plot.WIDTH_MAX)):
                console.print(part, no_wrap=True, overflow="crop")
    return 0


def _rules(path: Path) -> RulesConfig:
    """The section `[rules]` of a file that may have others."""
    from flopwatch_collector.config import load

    found = load(path, {}, {}).rules
    if "rules" not in tomllib.loads(path.read_text(encoding="utf-8")):
        raise UsageError(f"--rules: {path} has no section [rules]; write it as in collector.toml")
    return found


def _sources(
    dsn: str, scenario: Path | None, cluster: str | None, since: str, until: str | None
) -> Iterator[tuple[str, Window, Iterator[Moment]]]:
    """Yield each cluster's name, window and moments."""
    with collectors_packages():
        from flopwatch_collector.control.store import ControlStore
        from flopwatch_collector.replay import history
        from flopwatch_collector.replay.outcome import Window
        from flopwatch_collector.replay.scenario import read

    if scenario is not None:
        if cluster is not None or until is not None:
            raise UsageError("--scenario: a file has its own cluster and times; leave out the rest")
        found = read(scenario)
        window = Window(since_unix_ms=found.since_unix_ms, until_unix_ms=found.until_unix_ms)
        yield found.cluster, window, found.moments
        return
    window = _window(since, until)
    store = ControlStore.open(dsn, migrate=False)
    try:
        for name in _named(store, cluster, window):
            from_unix_ms = window.since_unix_ms - history.WARM_UP_MS
            yield name, window, history.moments(store, name, from_unix_ms, window.until_unix_ms)
    finally:
        store.close()


def _window(since: str, until: str | None) -> Window:
    from flopwatch_collector.replay.outcome import Window

    try:
        length_ms = Duration.parse(since).milliseconds
    except ValueError as exc:
        raise UsageError(f"--since: {exc}") from exc
    if not 0 < length_ms <= _KEPT_DAYS * 86_400_000:
        raise UsageError(f"--since: {since}; observations are kept for {_KEPT_DAYS} days")
    end_unix_ms = time.time_ns() // 1_000_000
    if until is not None:
        try:
            moment = datetime.fromisoformat(until)
        except ValueError as exc:
            raise UsageError(
                f"--until: {until!r} is no moment; write it as 2026-11-01T00:00:00Z"
            ) from exc
        moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
        end_unix_ms = int(moment.timestamp() * 1000)
    end_unix_ms = end_unix_ms // _STEP_MS * _STEP_MS
    return Window(since_unix_ms=end_unix_ms - length_ms, until_unix_ms=end_unix_ms)


def _named(store: ControlStore, cluster: str | None, window: Window) -> Sequence[str]:
    from flopwatch_collector.replay import history

    known = history.clusters(store, window.since_unix_ms, window.until_unix_ms)
    if cluster is not None and cluster in known:
        return [cluster]
    if not known:
        raise UsageError(
            "--since: no observation is kept of that time; look back further, or name another --data"
        )
    if cluster is not None:
        raise UsageError(f"--cluster: no observation of {cluster!r}; known: {', '.join(known)}")
    return known


def _answer(
    cluster: str,
    window: Window,
    moments: Iterator[Moment],
    today: RulesConfig,
    tried: RulesConfig | None,
) -> dict[str, Any] | None:
    """Replay one cluster; what `--json` prints of it."""
    from flopwatch_collector.replay import outcome
    from flopwatch_collector.replay.player import Player

    players = [Player(cluster, rules) for rules in (today, tried) if rules is not None]
    lowest = outcome.Lowest(window, replay_plot.PARTS)
    first: list[Moment] = []

    def noted() -> Iterator[Moment]:
        for moment in moments:
            if not first and moment.tick_unix_ms >= window.since_unix_ms:
                first.append(moment)
            yield moment

    with _progress(cluster, window) as show:
        for at_unix_ms in outcome.played(noted(), players, lowest):
            show(at_unix_ms)
    if not first:
        return None
    sets = {
        name: {
            "rules": [asdict(of) for of in outcome.outcomes(player, window)],
            "outages": [asdict(of) for of in outcome.paged(player.outages, window)],
        }
        for name, player in zip(("today", "tried"), players, strict=False)
    }
    return {
        "cluster": cluster,
        "since_unix_ms": window.since_unix_ms,
        "until_unix_ms": window.until_unix_ms,
        "history_unix_ms": first[0].tick_unix_ms,
        "simulated": any(of.simulated for of in first[0].observed.values()),
        "lowest": lowest.figures,
        **sets,
        "pairs": [
            asdict(pair)
            for pair in outcome.pairs(*(outcome.paged(of.outages, window) for of in players))
        ],
    }


@contextmanager
def _progress(cluster: str, window: Window) -> Iterator[Any]:
    bar = counted()
    task = bar.add_task(f"{cluster}, minutes", total=None)
    began_unix_ms: int | None = None

    def show(at_unix_ms: int) -> None:
        nonlocal began_unix_ms
        if began_unix_ms is None:
            began_unix_ms = at_unix_ms  # of the days before the window, where they were kept
        bar.start()  # not before there is progress: what is refused is one line
        total = (window.until_unix_ms - began_unix_ms) // _MINUTE_MS
        bar.update(task, total=total, completed=(at_unix_ms - began_unix_ms) // _MINUTE_MS)

    try:
        yield show
        if began_unix_ms is not None:
            show(window.until_unix_ms)
    finally:
        if bar.live.is_started:
            bar.stop()
