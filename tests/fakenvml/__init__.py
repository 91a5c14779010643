"""A fake of NVIDIA's driver library at its C ABI, answering from a script.

Use it with the real binding: build the library, write a script, start the process under test with
`env`. The script may change while the process runs; its grammar is in README.md.
"""

from .library import build, env, exported
from .recording import replay
from .scripting import Script, device, mig

__all__ = ["Script", "build", "device", "env", "exported", "mig", "replay"]
