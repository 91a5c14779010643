"""What the control store remembers of before an outage, for its pages."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import select

from flopwatch_collector.control.observations import observation_of
from flopwatch_collector.control.schema import OBSERVATION, OUTBOX
from flopwatch_collector.control.store import ControlStore
from flopwatch_collector.rules import Observation


@dataclass(frozen=True, slots=True)
class Past:
    """The past of one control store."""

    store: ControlStore

    def best(
        self, rule: str, cluster: str, since_unix_ms: int, until_unix_ms: int
    ) -> Observation | None:
        """The observation with the highest figure of a time, the newest of such; None: there is none."""
        query = (
            select(OBSERVATION)
            .where(
                OBSERVATION.c.rule == rule,
                OBSERVATION.c.cluster == cluster,
                OBSERVATION.c.tick_unix_ms >= since_unix_ms,
                OBSERVATION.c.tick_unix_ms < until_unix_ms,
                OBSERVATION.c.condition != "unknown",
                OBSERVATION.c.hi.is_not(None),
            )
            .order_by(OBSERVATION.c.hi.desc(), OBSERVATION.c.tick_unix_ms.desc())
            .limit(1)
        )
        with self.store.reading() as connection:
            found = connection.execute(query).first()
        return None if found is None else observation_of(found._asdict())

    def routes_told(self, rule: str, cluster: str, episode: str) -> frozenset[str]:
        """The routes that have a page of an episode, sent or not."""
        query = (
            select(OUTBOX.c.route)
            .where(
                OUTBOX.c.rule == rule,
                OUTBOX.c.cluster == cluster,
                OUTBOX.c.episode == episode,
                OUTBOX.c.action.in_(("trigger", "escalate")),
            )
            .distinct()
        )
        with self.store.reading() as connection:
            return frozenset(connection.execute(query).scalars())
