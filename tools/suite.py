"""The test suite, in two processes beside each other: one half waits for processes, the other computes.

.venv/bin/python tools/suite.py

What each half says is shown whole, one after the other; the exit code is of the first half that failed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
PYTEST: Final = (sys.executable, "-m", "pytest", "-p", "no_skips")
WAITING: Final = ("tests/e2e", "tests/slurm", "tests/systemd", "tests/test_verify_gpu.py")


def main() -> int:
    """Run both halves and return the exit code."""
    environment = {**os.environ, "PYTHONPATH": "tests"}
    computing = (*PYTEST, *(f"--ignore={path}" for path in WAITING))
    with tempfile.TemporaryFile() as said:
        waiting = subprocess.Popen(
            (*PYTEST, "-p", "no:cacheprovider", *WAITING),
            cwd=ROOT,
            env=environment,
            stdout=said,
            stderr=subprocess.STDOUT,
        )
        try:
            computed = subprocess.run(computing, cwd=ROOT, env=environment, check=False)
            waiting.wait()
        finally:
            waiting.terminate()
        said.seek(0)
        sys.stdout.buffer.write(said.read())
        sys.stdout.flush()
    return computed.returncode or waiting.returncode


if __name__ == "__main__":
    sys.exit(main())
