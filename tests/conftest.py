"""What holds for every test."""

from __future__ import annotations

import resource

# The embedded engine keeps some descriptors of every store that was ever opened in a process. A collector
# opens one; the suite opens hundreds.
_SOFT, _HARD = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (_HARD, _HARD))
