"""The errors of this package.

FlopwatchError
└── ProbeError   who started the probe: the text names the flag, package or card, and the fix
"""

from typing import Final

from flopwatch_proto.errors import FlopwatchError

TORCH_MISSING: Final = "torch is not installed: pip install 'flopwatch[probes]'"


class ProbeError(FlopwatchError):
    """A probe could not be run or did not finish; the text says why and what to change."""
