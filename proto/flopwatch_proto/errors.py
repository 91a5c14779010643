"""The error tree. Each class says who must act.

FlopwatchError
├── UsageError       the caller: a wrong flag, key, file or value; exit code 2
├── RetryableError   nobody yet: try again later, the data stays where it is
└── PermanentError   the sender: trying the same thing again cannot help
"""


class FlopwatchError(Exception):
    """Base of every error that flopwatch raises on purpose."""


class UsageError(FlopwatchError):
    """A wrong flag, key or value; the text names it and the fix. Commands exit with 2."""


class RetryableError(FlopwatchError):
    """A condition that may pass: the work must be kept and tried again."""


class PermanentError(FlopwatchError):
    """A condition that will not pass: the work must be set aside and counted."""
