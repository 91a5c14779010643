"""``python -m campaign.episodes [EPISODES [CLUSTERS [SEED]]]``: outages that come and go while all dies.

Two collectors' pagers (`paging_collector`) share one PostgreSQL and tell PagerDuty, a real pair of
Alertmanagers and a fallback. PagerDuty is a model that keeps the state of every dedup key and answers at
random 202, 429, 500 or 400, or takes the event and hangs up or answers too late; the Alertmanagers are
reached through what fails likewise. Pagers are killed at a crash point (`points.PAGER`) or at a random
moment, frozen for longer than their lease, and lose their database and an Alertmanager by kill -9. All of
them live by one clock (`paging_clock`), `SPEED` times as fast as this machine's. At the end, faults off:

- every breach of the plan (`paging_plan`) has an episode, and every episode is one of the plan's;
- every episode was paged, at PagerDuty or by the fallback, and at the Alertmanagers;
- no episode had two alerts open at once;
- all were closed within `CLOSED_MS_MAX` of the recovery, and nothing is open at the end.
"""

from __future__ import annotations

import contextlib
import json
import random
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import httpx
import psutil

from alertmanagers import Pair, alertmanagers
from campaign import points
from campaign.nursery import Child, Nursery
from campaign.paging_clock import SPEED, Clock
from campaign.paging_plan import Plan
from fake_api import Answering, answering
from postgres import Postgres, postgres
from processes import awaited
from receivers import HANGS_UP, LATE, PagerDuty, serving, watcher

ROUND: Final = 240
"""How many breaches are planned at a time; one that begins before another has cleared is of its episode."""
CLOSED_MS_MAX: Final = 15 * 60_000
DAY_MS: Final = 24 * 60 * 60_000
STEP_MS: Final = 1_000
SLOWER: Final = 8
"""By how much the clock may wait, as far as what holds for a while is concerned."""
LOOK_MS: Final = 20_000
FAULT_MS: Final = 200_000
REST_MS_MAX: Final = 30_000
START_UNIX_MS: Final = 1_800_000_000_000
LUCK: Final = {202: 24, 429: 4, 500: 4, HANGS_UP: 2, LATE: 2, 400: 1}
FAULTS: Final = ("kill", "kill", "kill", "kill", "freeze", "database", "alertmanager")
NO_DATABASE: Final = "cannot be written"
LOADED: Final = ("campaign.paging_collector", "psycopg", "sqlalchemy.dialects.postgresql.psycopg")
Episode = tuple[str, str]
"""Cluster and name."""


@dataclass
class Verdict:
    """What the oracle found.

    Attributes:
        problems: one line each.
        woken: alerts that PagerDuty opened for the same news once more.
        revived: as of `Receivers`.
        slowest_ms: from a recovery until all was closed.
        deaths: by point.
    """

    problems: list[str] = field(default_factory=list)
    episodes: int = 0
    pages: int = 0
    escalations: int = 0
    woken: int = 0
    by_fallback: int = 0
    revived: int = 0
    slowest_ms: int = 0
    answers: Counter[int] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    deaths: Counter[str] = field(default_factory=Counter)


class Service(PagerDuty):
    """A PagerDuty that knows when each alert was open. Attributes: spans: by dedup key, Unix ms."""

    def __init__(self, clock: Clock, luck: Callable[[], int]) -> None:
        super().__init__(luck=luck)
        self.spans: dict[str, list[list[int | None]]] = defaultdict(list)
        self._clock = clock

    def opens(self, key: str) -> None:
        super().opens(key)
        self.spans[key].append([self._clock.now(), None])

    def closes(self, key: str) -> None:
        self.spans[key][-1][1] = self._clock.now()


class Luck:
    """What receivers answer. Attributes: fair: nothing but 202; drawn: how often what."""

    def __init__(self, seed: int) -> None:
        self.fair = False
        self.drawn: Counter[int] = Counter()
        self._chance = random.Random(seed)

    def draw(self) -> int:
        """Draw an answer."""
        (answer,) = (202,) if self.fair else self._chance.choices([*LUCK], [*LUCK.values()])
        self.drawn[answer] += 1
        return answer

    def of_last_resort(self) -> int:
        """Draw an answer of who refuses nothing: the fallback has none of its own."""
        answer = self.draw()
        return 500 if answer == 400 else answer


@contextlib.contextmanager
def before(url: str, clock: Clock, luck: Luck) -> Iterator[str]:
    """What stands before an Alertmanager, whose time is this machine's: it translates moments, and fails."""

    def moment(text: str) -> str:
        ahead_s = datetime.fromisoformat(text).timestamp() - clock.now() / 1000
        # The clock may wait for a busy machine; what holds for a while must not end meanwhile.
        ahead_s *= (SLOWER if ahead_s > 0 else 1) / SPEED
        return (datetime.now(UTC) + timedelta(seconds=ahead_s)).isoformat()

    class Handler(Answering):
        def do_POST(self) -> None:
            alerts = self.posted_json()
            status = luck.draw()
            if status not in (202, HANGS_UP, LATE):
                self.say(status, {})
                return
            for alert in alerts:
                alert |= {name: moment(alert[name]) for name in ("startsAt", "endsAt")}
            self._forward("POST", alerts, status)

        def do_GET(self) -> None:
            self._forward("GET", None, 202)

        def _forward(self, method: str, content: Any, status: int) -> None:
            try:
                answer = httpx.request(method, url + self.path, json=content, trust_env=False)
            except httpx.TransportError:
                status = HANGS_UP
            if status == HANGS_UP:
                self.close_connection = True
                return
            if status == LATE:
                time.sleep(1.0)
            self.say(answer.status_code, answer.content)

        def handle(self) -> None:
            with contextlib.suppress(ConnectionError, json.JSONDecodeError):
                super().handle()

    with answering(Handler) as here:
        yield here


@dataclass(kw_only=True)
class Receivers:
    """Attributes: seen: by episode, when the Alertmanagers were first and last seen to hold it; doubled:
    episodes of which one held two; revived: times that one was seen again after neither had held it."""

    luck: Luck
    service: Service
    fallback: Service
    pair: Pair
    urls: dict[str, str]
    seen: dict[Episode, list[int]] = field(default_factory=dict)
    doubled: set[Episode] = field(default_factory=set)
    revived: int = 0

    def look(self, now_unix_ms: int) -> int:
        """See what the Alertmanagers hold; return how many alerts."""
        found = 0
        for member in range(2):
            with contextlib.suppress(httpx.HTTPError):
                alerts = [alert["labels"] for alert in self.pair.active(member)]
                held = [a for a in alerts if a.get("alertname") == "FlopwatchAllocation"]
                of = Counter((labels["cluster"], labels["episode"]) for labels in held)
                for episode, count in of.items():
                    span = self.seen.setdefault(episode, [now_unix_ms, now_unix_ms])
                    self.revived += now_unix_ms - span[1] > 2 * LOOK_MS
                    span[1] = now_unix_ms
                    if count > 1:
                        self.doubled.add(episode)
                found += len(held)
        return found


class Campaign:
    """Two pagers on one plan, and what is done to them."""

    def __init__(
        self,
        *,
        clock: Clock,
        plan: tuple[int, int, int, int],
        server: Postgres,
        nursery: Nursery,
        receivers: Receivers,
        armed: Sequence[str],
    ) -> None:
        """plan: seed, episodes, clusters and start, as of `Plan`; armed: where the first two pagers die."""
        self.verdict = Verdict()
        self.plan = Plan(*plan)
        self.dsn = server.database()
        self._arguments = (json.dumps(plan), json.dumps(receivers.urls))
        self._clock, self._server, self._nursery = clock, server, nursery
        self._receivers = receivers
        self._chance = random.Random(plan[0])
        self._points: dict[str, str] = {}
        named = zip(("a", "b"), armed, strict=True)
        self._pagers = {name: self._start(name, point) for name, point in named}
        self._back: dict[str, int] = {}
        self._frozen: dict[str, int] = {}
        self._killed: set[str] = set()
        self._refused: set[Episode] = set()

    def run(self) -> Verdict:
        """Do harm while the plan lasts, then none until all is closed, and judge."""
        fault, look = START_UNIX_MS + FAULT_MS, START_UNIX_MS
        until = self.plan.end_unix_ms + CLOSED_MS_MAX + 60_000
        while (now := self._clock.now()) < until:
            quiet = now > self.plan.end_unix_ms
            self._receivers.luck.fair = quiet
            self._mend(now, quiet)
            if now >= fault and not quiet:
                fault = now + round(self._chance.expovariate(1) * FAULT_MS)
                self._harm(self._chance.choice(FAULTS), now)
            if now >= look:
                look = now + LOOK_MS
                if not self._receivers.look(now) and quiet and self._is_over():
                    break
            time.sleep(STEP_MS / 1000 / SPEED)
            if not self._clock.is_behind():
                self._clock.move(STEP_MS)
        for pager in self._pagers.values():
            pager.end(signal.SIGKILL)
        return self._judged()

    def _is_over(self) -> bool:
        waits = "SELECT 1 FROM outbox WHERE sent_unix_ms IS NULL AND dropped_unix_ms IS NULL"
        fires = "SELECT 1 FROM incident WHERE state NOT IN ('resolved', 'inactive')"
        service, fallback = self._receivers.service, self._receivers.fallback
        open_there = service.open or fallback.open
        return not (open_there or self._rows(waits) or self._rows(fires))

    def _rows(self, sql: str) -> list[tuple[Any, ...]]:
        return self._server.rows(self.dsn, sql)

    # ---- faults

    def _start(self, name: str, armed: str) -> Child:
        self._points[name] = armed
        where, (planned, urls) = str(self._clock.path.parent), self._arguments
        return self._nursery.start("paging_collector", name, where, self.dsn, planned, urls, armed)

    def _holder(self) -> str | None:
        """Return which pager has the lease."""
        try:
            found = self._rows("SELECT holder FROM lease WHERE name = 'pager'")
        except Exception:  # the database is on its way back
            return None
        pids = [int(holder.split("/")[1]) for (holder,) in found]
        return next((name for name, p in self._pagers.items() if p.pid in pids), None)

    def _harm(self, fault: str, now: int) -> None:
        self.verdict.faults[fault] += 1
        name = self._holder() or self._chance.choice(("a", "b"))
        if fault == "kill":
            self._killed.add(name)
            self._pagers[name].end(signal.SIGKILL)
        elif fault == "freeze" and name not in self._frozen:
            self._pagers[name].send(signal.SIGSTOP)
            self._frozen[name] = now + self._chance.randrange(10, 50) * 1000
        elif fault == "database":
            backends = psutil.Process(self._server.pid).children()
            with contextlib.suppress(psutil.NoSuchProcess):
                ours = [b for b in backends if "flopwatch" in " ".join(b.cmdline())]
                self._chance.choice(ours or backends).kill()
            # Its way back is of this machine's time.
            time.sleep(1.0)  # until it has noticed
            awaited(self._server.answers, "PostgreSQL is back")
        elif fault == "alertmanager":
            self._receivers.pair.kill(self._chance.randrange(2))

    def _mend(self, now: int, quiet: bool) -> None:
        """Wake who is frozen long enough, and start again who is dead for long enough."""
        for name, until in list(self._frozen.items()):
            if now >= until or quiet:
                del self._frozen[name]
                self._pagers[name].send(signal.SIGCONT)
        for name, pager in self._pagers.items():
            if pager.running:
                continue
            if name not in self._back:
                armed = self._points[name].rpartition(":")[0]
                crashed = f"{points.CRASHED}{armed}\n" in pager.said()
                self.verdict.deaths[armed if crashed else "at random"] += 1
                # One that starts while its database is away says so and ends; somebody starts it again.
                refused = NO_DATABASE in pager.said()
                if not (crashed or refused or name in self._killed):
                    self.verdict.problems.append(f"pager {name} ended: {pager.said()[-500:]}")
                self._killed.discard(name)
                self._frozen.pop(name, None)
                self._back[name] = now + self._chance.randrange(REST_MS_MAX)
            if now >= self._back[name] or quiet:
                del self._back[name]
                drawn = self._chance.choice([*points.PAGER])
                times = self._chance.choice((1, 2, 5, 20, 60))
                armed = f"{drawn}:{times}" if self._chance.random() < 0.7 and not quiet else ""
                self._pagers[name] = self._start(name, armed)

    # ---- oracle

    def _judged(self) -> Verdict:
        verdict, receivers = self.verdict, self._receivers
        verdict.answers = receivers.luck.drawn
        verdict.revived = receivers.revived
        rows = self._rows(
            "SELECT cluster, episode, began_unix_ms, resolved_unix_ms FROM episode"
            " WHERE rule = 'allocation'"
        )
        keys = self._keys()
        refused = self._rows(
            "SELECT cluster, episode FROM outbox WHERE route = 'am' AND dropped_unix_ms IS NOT NULL"
        )
        self._refused = set(refused)
        began: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for cluster, name, began_unix_ms, resolved_unix_ms in rows:
            began[cluster].append((began_unix_ms, resolved_unix_ms or sys.maxsize))
            recovered = self.plan.recovered(cluster, resolved_unix_ms or sys.maxsize)
            self._judge(cluster, name, keys[cluster, name], recovered)
            if self.plan.newest(cluster, began_unix_ms) is None:
                verdict.problems.append(f"{cluster} {name} began and nothing was wrong")
        for cluster, breaches in self.plan.breaches.items():
            for breach in breaches:
                if not any(b < breach.end_unix_ms < r for b, r in began[cluster]):
                    verdict.problems.append(f"{cluster}: no episode of {breach}")
        if not self._is_over():
            verdict.problems.append("something is open, or waits to be sent, at the end")
        news = self._rows("SELECT dedup_key FROM outbox WHERE action = 'escalate' AND route = 'pd'")
        verdict.episodes = len(rows)
        verdict.pages = self._rows("SELECT count(*) FROM outbox")[0][0]
        verdict.escalations = len(news)
        worse = Counter(key for (key,) in news)
        for key, spans in receivers.service.spans.items():
            verdict.woken += max(0, len(spans) - 1 - worse[key])
        return verdict

    def _told(self, cluster: str, name: str) -> str:
        """Return what the outbox knows of an episode, for whoever looks for the cause."""
        rows = self._rows(
            "SELECT route, action, repeat_no, attempts, last_error, sent_unix_ms, dropped_unix_ms"
            f" FROM outbox WHERE cluster = '{cluster}' AND episode = '{name}' ORDER BY seq"
        )
        return "; ".join(" ".join(map(str, row)) for row in rows)

    def _keys(self) -> Mapping[Episode, set[str]]:
        keys: dict[Episode, set[str]] = defaultdict(set)
        for cluster, name, key in self._rows("SELECT cluster, episode, dedup_key FROM outbox"):
            keys[cluster, name].add(key)
        return keys

    def _judge(self, cluster: str, name: str, keys: set[str], recovered: int) -> None:
        """Judge one episode."""
        verdict, receivers = self.verdict, self._receivers
        what = f"{cluster} {name}"
        if len(keys) != 1:
            verdict.problems.append(f"{what} has {len(keys)} keys")
        spans = [span for key in keys for span in receivers.service.spans.get(key, ())]
        other = [span for key in keys for span in receivers.fallback.spans.get(key, ())]
        seen = receivers.seen.get((cluster, name))
        if not spans:
            verdict.by_fallback += 1
            if not other:
                verdict.problems.append(f"{what} was never paged")
        if seen is None and not (other and (cluster, name) in self._refused):
            verdict.problems.append(f"{what} was never with an Alertmanager")
        if (cluster, name) in receivers.doubled:
            verdict.problems.append(f"{what} had two alerts at an Alertmanager")
        closed = [sys.maxsize if span[1] is None else span[1] for span in (*spans, *other)]
        closed_ms = max((*closed, seen[1] if seen else 0), default=0) - recovered
        verdict.slowest_ms = max(verdict.slowest_ms, min(closed_ms, DAY_MS))
        if closed_ms > CLOSED_MS_MAX:
            verdict.problems.append(
                f"{what} was closed {closed_ms / 60_000:.1f} min after recovery"
            )


@contextlib.contextmanager
def campaign(
    home: Path, episodes: int, clusters: int, seed: int, armed: Sequence[str] = ("", "")
) -> Iterator[Campaign]:
    """A campaign, and no process of it after the block. Args: armed: where the first two pagers die."""
    clock, luck = Clock(home / "clock", START_UNIX_MS), Luck(seed)
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(postgres())
        service = stack.enter_context(serving(Service(clock, luck.draw)))
        fallback = stack.enter_context(serving(Service(clock, luck.of_last_resort)))
        hook, _ = stack.enter_context(watcher())
        pair = stack.enter_context(alertmanagers(home, hook))
        urls = {"pd": service.url, "fallback": fallback.url}
        for number, url in enumerate(pair.urls):
            urls[f"am{number}"] = stack.enter_context(before(url, clock, luck))
        nursery = Nursery(home, LOADED)
        stack.callback(nursery.close)
        yield Campaign(
            clock=clock,
            plan=(seed, episodes, clusters, START_UNIX_MS),
            server=server,
            nursery=nursery,
            armed=armed,
            receivers=Receivers(
                luck=luck, service=service, fallback=fallback, pair=pair, urls=urls
            ),
        )


def main(episodes: int, clusters: int, seed: int) -> int:
    """Run as many rounds as it takes and say how they went; 0 where nothing is wrong."""
    left, wrong, number = episodes, 0, seed
    while left > 0:
        with (
            tempfile.TemporaryDirectory() as scratch,
            campaign(Path(scratch), min(left, ROUND), clusters, number) as running,
        ):
            verdict = running.run()
        left -= verdict.episodes
        wrong += len(verdict.problems)
        _say(verdict, number)
        number += 1
    return 1 if wrong else 0


def _say(verdict: Verdict, seed: int) -> None:
    answers = ", ".join(f"{n} x {status}" for status, n in sorted(verdict.answers.items()))
    harm = ", ".join(f"{n} {what}" for what, n in sorted((verdict.faults + verdict.deaths).items()))
    sys.stdout.write(
        f"seed {seed}: {verdict.episodes} episodes, {verdict.pages} pages, {verdict.escalations} "
        f"escalations; {verdict.by_fallback} paged by the fallback alone, {verdict.woken} alerts opened "
        f"once more, {verdict.revived} seen again at an Alertmanager, all closed "
        f"{verdict.slowest_ms / 60_000:.1f} min after recovery at the latest; "
        f"{len(verdict.problems)} problems\n  answers: {answers}\n  harm: {harm}\n"
    )
    sys.stdout.write("".join(f"WRONG {problem}\n" for problem in verdict.problems))
    sys.stdout.flush()


if __name__ == "__main__":
    chosen = [int(word) for word in sys.argv[1:]]
    sys.exit(main(*(chosen + [2000, 40, 1][len(chosen) :])))
