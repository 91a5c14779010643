"""Generate the stubs of the contract and its reference descriptor; with ``--check`` only compare.

The reference descriptor (`descriptor.binpb`) is the contract as last generated. A change that breaks it
is refused: peers that already run would misread what they receive.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from google.protobuf.descriptor_pb2 import FileDescriptorSet

from contract import breaks

ROOT: Final = Path(__file__).resolve().parent.parent
PROTO: Final = ROOT / "proto"
SOURCE: Final = Path("flopwatch_proto/v1/telemetry.proto")
DESCRIPTOR: Final = SOURCE.with_name("descriptor.binpb")
GENERATED: Final = (
    *(SOURCE.with_name(f"telemetry_{kind}") for kind in ("pb2.py", "pb2.pyi")),
    *(SOURCE.with_name(f"telemetry_{kind}") for kind in ("pb2_grpc.py", "pb2_grpc.pyi")),
    DESCRIPTOR,
)


def generate(into: Path) -> None:
    """Write every file of ``GENERATED`` below a directory.

    Raises:
        subprocess.CalledProcessError: the contract is not a valid .proto.
    """
    plugin = Path(sys.executable).with_name("protoc-gen-mypy_grpc")
    (into / DESCRIPTOR).parent.mkdir(parents=True, exist_ok=True)
    outputs = ("python", "pyi", "grpc_python", "mypy_grpc")
    subprocess.run(
        [
            *(sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={PROTO}"),
            f"--plugin=protoc-gen-mypy_grpc={plugin}",
            *(f"--{kind}_out={into}" for kind in outputs),
            f"--descriptor_set_out={into / DESCRIPTOR}",
            str(PROTO / SOURCE),
        ],
        check=True,
        capture_output=True,
        text=True,
    )


def reference() -> FileDescriptorSet:
    """Return the committed contract; an empty one before the first."""
    path = PROTO / DESCRIPTOR
    return FileDescriptorSet.FromString(path.read_bytes() if path.exists() else b"")


def stale(fresh: Path) -> list[Path]:
    """Return the committed files that differ from freshly generated ones, relative to ``PROTO``."""
    return [
        name
        for name in GENERATED
        if not (PROTO / name).exists() or (PROTO / name).read_bytes() != (fresh / name).read_bytes()
    ]


def main(arguments: Sequence[str]) -> int:
    """Generate or check; return the exit code."""
    with tempfile.TemporaryDirectory() as directory:
        fresh = Path(directory)
        try:
            generate(fresh)
        except subprocess.CalledProcessError as exc:
            sys.stderr.write(str(exc.stderr))
            return 1
        broken = breaks(
            reference(), FileDescriptorSet.FromString((fresh / DESCRIPTOR).read_bytes())
        )
        if broken:
            sys.stderr.write("the contract would break: " + "; ".join(broken) + "\n")
            return 1
        outdated = stale(fresh)
        if "--check" in arguments:
            if outdated:
                sys.stderr.write(f"run `make stubs`: {', '.join(map(str, outdated))}\n")
            return 1 if outdated else 0
        for name in outdated:
            (PROTO / name).write_bytes((fresh / name).read_bytes())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
