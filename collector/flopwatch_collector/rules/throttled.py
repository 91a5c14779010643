"""Throttled: many cards at once are held back by heat or power.

Default: a tenth or more of the cards that tell (line 90 %), and at least eight, held 10 minutes. A card
is held back where for half of the interval its driver named heat (software or hardware thermal control)
or a power brake as the reason, or where its own power limit took a quarter of its time or more from it.
The power limit alone is no news: cards at full work stand at it all day and lose a little clock.

Without any card that tells its throttle reasons there is nothing to judge: UNKNOWN.
"""

from __future__ import annotations

from flopwatch_collector.rules import Observation
from flopwatch_collector.rules.counting import judge as judge


def says(observation: Observation) -> str:
    """The figure of a page: ``12 cards (15.0%)``."""
    count, whole = observation.subjects or 0, observation.subjects_in_all or 0
    share = f" ({100 * count / whole:.1f}%)" if whole else ""
    return f"{count:,} card{'' if count == 1 else 's'}{share}"
