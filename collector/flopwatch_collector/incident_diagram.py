"""The state machine of incidents as a document, generated from its table.

``python -m flopwatch_collector.incident_diagram > docs/incident-states.md`` writes it again.
"""

from __future__ import annotations

import sys
from typing import Final

from flopwatch_collector.incident_state import TRANSITIONS


def diagram() -> str:
    """The table as a Mermaid state diagram."""
    lines = ["stateDiagram-v2", "    [*] --> INACTIVE"]
    for (state, event), transition in TRANSITIONS.items():
        effect = f" / {transition.effect}" if transition.effect else ""
        lines.append(f"    {state.name} --> {transition.to.name}: {event.value}{effect}")
    return "\n".join(lines) + "\n"


def document() -> str:
    """The text of ``docs/incident-states.md``."""
    return DOCUMENT.format(diagram=diagram())


DOCUMENT: Final = """# States of an incident

Generated from `TRANSITIONS` in
`collector/flopwatch_collector/incident_state.py`; a test holds the two together.

There is one such machine per rule and cluster, evaluated every 10 s.

```mermaid
{diagram}```

- UNKNOWN (missing data) follows no arrow and stops every timer: no outage resolves on missing data.
- *breach held*: 5 minutes for allocation, 15 for MFU.
- *held above the hysteresis line*: 10 minutes, 60 when flapping.
- Four flaps within an hour make an incident FLAPPING: one notice, and the longer hold to resolve.
- A resolve is sent again every 5 minutes for 15 minutes. A breach in that time begins a new episode.
- What follows a slash is sent. The change of state and the page to send are one transaction.
"""


if __name__ == "__main__":
    sys.stdout.write(document())
