"""The test suite, in processes beside each other: some compute, others wait for what they start.

.venv/bin/python tools/suite.py

What each says is shown whole, one after the other; the exit code is of the first that failed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
PYTEST: Final = (sys.executable, "-m", "pytest", "-p", "no_skips", "--durations=10")
# The stage of tests/e2e plays in real time from its beginning: what needs none of it goes elsewhere.
ELSEWHERE: Final = "tests/e2e/test_standby.py"
BESIDE: Final = (
    ("tests/e2e", f"--ignore={ELSEWHERE}"),
    (ELSEWHERE, "tests/cluster", "tests/slurm", "tests/systemd", "tests/test_verify_gpu.py"),
    ("tests/collector", "tests/web"),
    ("tests/campaign", "tests/paging"),
)


def main() -> int:
    """Run all parts and return the exit code."""
    environment = {**os.environ, "PYTHONPATH": "tests"}
    beside = [path for part in BESIDE for path in part if not path.startswith("-")]
    rest = (*PYTEST, *(f"--ignore={path}" for path in beside))
    with ExitStack() as stack:
        parts = []
        for arguments in BESIDE:
            said = stack.enter_context(tempfile.TemporaryFile())
            part = subprocess.Popen(
                (*PYTEST, "-p", "no:cacheprovider", *arguments),
                cwd=ROOT,
                env=environment,
                stdout=said,
                stderr=subprocess.STDOUT,
            )
            stack.callback(part.terminate)
            parts.append((part, said))
        codes = [subprocess.run(rest, cwd=ROOT, env=environment, check=False).returncode]
        for part, said in parts:
            codes.append(part.wait())
            said.seek(0)
            sys.stdout.buffer.write(said.read())
            sys.stdout.flush()
    return next((code for code in codes if code), 0)


if __name__ == "__main__":
    sys.exit(main())
