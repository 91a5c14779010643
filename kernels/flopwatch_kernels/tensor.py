"""The tensor probe's child: what the tensor pipes do when nothing but them is needed.

    python -m flopwatch_kernels.tensor SPEC     SPEC and the output: see `messages`

Operands lie in registers (wgmma's B in shared memory), so no memory, launch or tile edge is in
the figure: what a library GEMM lacks of it is the library's and the memory's. FLOP/s = blocks x
iterations x 2 x rows x columns x k / duration. Before, every block multiplies small integers, and
all of D is compared with the product computed by the host, bit for bit; after, every block's D of
the timed load is compared with the first block's. One block that differs is a corrupting card.

Source: PTX ISA, "Warp Level Matrix Multiply-Accumulate" and "Asynchronous Warpgroup Level Matrix
Instructions"; sections 3.1 and 4.1 of this project's measurement science.
"""

import sys
from typing import TYPE_CHECKING, Any, Final

from flopwatch_kernels.child import Tell, live
from flopwatch_kernels.cuda import operands
from flopwatch_kernels.cuda.clocked import Clocked, clocked
from flopwatch_kernels.cuda.driver import Argument, pointer, u32
from flopwatch_kernels.cuda.session import Session
from flopwatch_kernels.cuda.table import TensorKernel, tensor_kernel
from flopwatch_kernels.errors import ProbeError
from flopwatch_kernels.messages import ProbeResult, ProbeSpec, Progress

if TYPE_CHECKING:
    import numpy as np

_CHECK_ITERATIONS: Final = 3
_ACCUMULATOR_BYTES: Final = 4


class _Bench:
    """A tensor kernel on a card, ready to be started. Attributes: kernel; blocks: in a launch."""

    def __init__(self, session: Session, kernel: TensorKernel, dtype: str) -> None:
        self.kernel = kernel
        self._card = session.card
        self._dtype = dtype
        self.function = session.card.function(kernel.source, kernel.symbol)
        self.blocks = session.card.blocks_resident(self.function, kernel.threads)
        size = 8 if dtype == "fp64" else _ACCUMULATOR_BYTES
        self._bytes = self.blocks * kernel.rows * kernel.columns * size
        self._d = session.card.allocate(self._bytes)

    def arguments(self, matrices: operands.Matrices) -> Any:
        """What a launch takes, for iterations and the address of the clocks."""
        a, b = (self._card.upload(operands.encoded(each, self._dtype)) for each in matrices)

        def packed(iterations: int, clocks: int) -> tuple[Argument, ...]:
            return pointer(a), pointer(b), pointer(self._d), u32(iterations), pointer(clocks)

        return packed

    def products(self) -> "np.ndarray[Any, Any]":
        """D of every block: [block, row, column]."""
        import numpy as np

        data = self._card.download(self._d, self._bytes)
        flat = np.frombuffer(data, dtype=operands.accumulator(self._dtype))
        return flat.reshape(self.blocks, self.kernel.rows, self.kernel.columns)

    def check(self) -> int:
        """Multiply small integers; blocks that are wrong.

        Raises:
            ProbeError: All are wrong alike, which is no card's fault.
        """
        import numpy as np

        matrices = operands.integers(self.kernel)
        self._card.clear(self._d, self._bytes)
        packed = self.arguments(matrices)(_CHECK_ITERATIONS, self._card.allocate(16))
        self._card.launch(self.function, self.blocks, self.kernel.threads, packed)
        expected = operands.product(matrices, _CHECK_ITERATIONS, self._dtype)
        wrong = (self.products() != expected).any(axis=(1, 2))
        if wrong.all() and self._differing() == 0:
            seen = self.products()[0]
            place = tuple(int(i) for i in np.argwhere(seen != expected)[0])
            raise ProbeError(
                f"{self.kernel.symbol} of {self.kernel.source} computes another product than the"
                f" host, the same on every SM (row, column {place}: {seen[place]}, not"
                f" {expected[place]}): a fault of this program, please report it"
            )
        return int(wrong.sum())

    def _differing(self) -> int:
        """Blocks whose bits are not those of the first: all were given the same."""
        bits = self.products().view("uint8").reshape(self.blocks, -1)
        return int((bits != bits[0]).any(axis=1).sum())

    def differing(self) -> int:
        """Blocks that differ from what most have; at most half of all."""
        found = self._differing()
        return min(found, self.blocks - found)


def measure(spec: ProbeSpec, tell: Tell) -> ProbeResult:
    """Measure in this process. Raises ProbeError, in words for whoever asked."""
    assert spec.dtype is not None
    session = Session(spec)
    kernel = tensor_kernel(spec.dtype, session.card.capability)
    if kernel is None:
        major, minor = session.card.capability
        raise ProbeError(
            f"{session.card.name} (compute capability {major}.{minor}) has no tensor instruction"
            f" for {spec.dtype} that this probe covers: pass another --dtype"
        )
    bench = _Bench(session, kernel, spec.dtype)
    tell(Progress(text=f"{spec.dtype} check of {bench.blocks} blocks", done=0, total=2))
    wrong = bench.check()
    tell(Progress(text=f"{spec.dtype} {kernel.instruction}", done=1, total=2))
    matrices = operands.normals(kernel, spec.dtype)
    timed = clocked(
        session, bench.function, bench.blocks, kernel.threads, bench.arguments(matrices), tell
    )
    return _result(session, bench, timed, wrong, bench.differing())


def _result(
    session: Session, bench: _Bench, timed: Clocked, wrong: int, differing: int
) -> ProbeResult:
    kernel, dtype = bench.kernel, session.spec.dtype
    assert dtype is not None
    flops = bench.blocks * timed.iterations * kernel.flops
    sheet = session.sheet() if kernel.is_peak else None
    peak = None
    if sheet is not None:
        peak = sheet.peaks.get("fp64_tensor" if dtype == "fp64" else dtype)
    reason = None
    if wrong or differing:
        reason = (
            f"of {bench.blocks} blocks that compute the same, {wrong} got an exact product wrong"
            f" and {differing} differ after the load"
        )
    return session.result(
        timed.repeated,
        dtype=dtype,
        shape=(kernel.rows, kernel.columns, kernel.k),
        **timed.figures(flops, peak, session.card.sm_count),
        outcome="ok" if reason is None else "corrupt",
        reason=reason,
        detail={
            "instruction": kernel.instruction,
            "blocks": bench.blocks,
            "sm_count": session.card.sm_count,
            "blocks_wrong": wrong,
            "blocks_differing": differing,
            **timed.sensor_clock(),
        },
    )


if __name__ == "__main__":
    sys.exit(live(sys.argv[1:], measure))
