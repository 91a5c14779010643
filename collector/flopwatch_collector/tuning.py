"""How the process shares one interpreter and one heap among its threads. Measured by `bench/collector.py`."""

from __future__ import annotations

import ctypes
import gc
import sys
from typing import Final

GC_ALLOCATIONS: Final = 50_000
SWITCH_SECONDS: Final = 0.001
"""How long a thread keeps the interpreter while another waits: an acknowledgement needs it several times."""
ARENAS: Final = 2
_M_ARENA_MAX: Final = -8  # malloc.h


def tune() -> None:
    """Set what suits few threads and much data; before any thread is started."""
    # Rows are lists without cycles, by the thousand: looking for cycles among them that often cost a third
    # of the event loop.
    gc.set_threshold(GC_ALLOCATIONS, 20, 20)
    gc.freeze()
    sys.setswitchinterval(SWITCH_SECONDS)
    # Each thread would keep an arena of its own as large as its largest commit or judgement was: with 10,000
    # nodes half a gigabyte, and a tenth of the processor to map it anew. Other C libraries have none.
    if hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(_M_ARENA_MAX, ARENAS)
