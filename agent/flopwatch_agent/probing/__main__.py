"""The process between agent and probe: `python -m flopwatch_agent.probing ORDER` runs one `Order` in JSON.

It ends with 0 when there is a result of any outcome (it lies in the inbox), with 3 when it was refused; then
the reason is its last line on standard error. SIGTERM ends the probe within a few hundredths of a second.
"""

from __future__ import annotations

import signal
import sys
from typing import Final

import msgspec

from flopwatch_agent.clock import SystemClock
from flopwatch_agent.probing.guard import Guard, Order, Refused
from flopwatch_proto.errors import UsageError

REFUSED: Final = 3


def main(text: str) -> int:
    """Run one order."""
    guard = Guard(SystemClock())
    signal.signal(signal.SIGTERM, lambda *_: guard.stop("the agent ended it"))
    try:
        guard.run(msgspec.json.decode(text, type=Order))
    except (Refused, UsageError) as exc:
        sys.stderr.write(f"{exc}\n")
        return REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
