"""A card through the CUDA driver: context, memory, launches and events, for a process that ends.

Nothing is ever freed: the child that uses this ends with its measurement. Every call is checked.
"""

import ctypes
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Final

from flopwatch_kernels.child import out_of_memory
from flopwatch_kernels.cuda.nvrtc import compiled, cuda_module
from flopwatch_kernels.cuda.table import CAPABILITY_MIN, ONE_BY_ONE, Capability, architecture
from flopwatch_kernels.errors import ProbeError

Argument = tuple[int | float, Any]
"""A kernel's argument: its value and ctypes type."""

_EVENT_DEFAULT: Final = 0
_STREAM_NON_BLOCKING: Final = 1


def pointer(address: int) -> Argument:
    """An address on the card as an argument."""
    return address, ctypes.c_void_p


def u32(value: int) -> Argument:
    """An unsigned int as an argument."""
    return value, ctypes.c_uint32


def u64(value: int) -> Argument:
    """An unsigned long long as an argument."""
    return value, ctypes.c_uint64


class Card:
    """One visible card with a context of this process.

    Attributes: name: full device name; capability: (major, minor); sm_count: of the card or MIG
    slice; l2_bytes: size of its L2 cache.
    """

    def __init__(self, ordinal: int, memory_bytes_max: int) -> None:
        """Args: ordinal: among the visible cards; memory_bytes_max: this process allocates no more.

        Raises:
            ProbeError: No driver, no such card, or one that is too old.
        """
        cuda: Any = cuda_module("cuda.bindings.driver")
        self._cuda = cuda
        try:
            self._ask(cuda.cuInit(0))
        except (RuntimeError, OSError) as exc:
            raise ProbeError(f"the CUDA driver does not load ({exc}): check nvidia-smi") from exc
        (device,) = self._ask(cuda.cuDeviceGet(ordinal))
        attribute = cuda.CUdevice_attribute

        def number(which: Any) -> int:
            return int(self._ask(cuda.cuDeviceGetAttribute(which, device))[0])

        name = bytes(self._ask(cuda.cuDeviceGetName(128, device))[0])
        self.name = name.split(b"\0")[0].decode(errors="replace")
        self.capability: Capability = (
            number(attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR),
            number(attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR),
        )
        if self.capability < CAPABILITY_MIN:
            major, minor = self.capability
            raise ProbeError(f"{self.name} has compute capability {major}.{minor}: 8.0 is needed")
        self.sm_count = number(attribute.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)
        self.l2_bytes = number(attribute.CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)
        self._device = device
        (self.context,) = self._ask(cuda.cuDevicePrimaryCtxRetain(device))
        self.use()
        self._memory_bytes_left = memory_bytes_max
        self._modules: dict[tuple[str, str | None], Any] = {}

    def use(self) -> None:
        """Make this card the one that calls of this thread mean."""
        self._ask(self._cuda.cuCtxSetCurrent(self.context))

    def function(self, source: str, symbol: str) -> Any:
        """A kernel, compiled for this card. Raises: ProbeError: compiler or driver refuse it."""
        only = symbol if source in ONE_BY_ONE else None
        key = (source, only)
        if key not in self._modules:
            code = compiled(source, architecture(source, self.capability), only)
            try:
                (self._modules[key],) = self._ask(self._cuda.cuModuleLoadData(code))
            except ProbeError as exc:
                raise ProbeError(
                    f"the driver does not take NVRTC's code ({exc}): install a newer driver, or"
                    " an older nvidia-cuda-nvrtc"
                ) from exc
        return self._ask(self._cuda.cuModuleGetFunction(self._modules[key], symbol.encode()))[0]

    def blocks_resident(self, function: Any, threads: int) -> int:
        """Blocks of this kernel that the card holds at once: a grid of so many has no tail."""
        ask = self._cuda.cuOccupancyMaxActiveBlocksPerMultiprocessor
        return int(self._ask(ask(function, threads, 0))[0]) * self.sm_count

    def allocate(self, size: int) -> int:
        """An address of `size` bytes. Raises: ProbeError: the cap, or the card's memory, is spent."""
        if size > self._memory_bytes_left:
            raise out_of_memory(f"{size >> 20} MiB")
        self._memory_bytes_left -= size
        return int(self._ask(self._cuda.cuMemAlloc(size))[0])

    def allocate_pinned(self, size: int) -> int:
        """An address of `size` bytes of the host's memory that the card may read and write."""
        return int(self._ask(self._cuda.cuMemHostAlloc(size, 0))[0])

    def upload(self, data: bytes) -> int:
        """The data's address on the card, in memory of its own."""
        address = self.allocate(len(data))
        self._ask(self._cuda.cuMemcpyHtoD(address, data, len(data)))
        return address

    def download(self, address: int, size: int) -> bytearray:
        """What lies at an address of the card, once all work is done."""
        data = bytearray(size)
        self._ask(self._cuda.cuMemcpyDtoH(data, address, size))
        return data

    def clear(self, address: int, size: int) -> None:
        """Set memory to zero."""
        self._ask(self._cuda.cuMemsetD8(address, 0, size))

    def launch(
        self,
        function: Any,
        blocks: int,
        threads: int,
        arguments: Sequence[Argument] = (),
        stream: Any = 0,
    ) -> None:
        """Start a kernel and return."""
        values = tuple(value for value, _ in arguments)
        types = tuple(type_ for _, type_ in arguments)
        packed = (values, types) if arguments else 0
        self._ask(
            self._cuda.cuLaunchKernel(function, blocks, 1, 1, threads, 1, 1, 0, stream, packed, 0)
        )

    def to_card(self, address: int, host: int, size: int, stream: Any = 0) -> None:
        """Copy from pinned memory, in the stream's order."""
        self._ask(self._cuda.cuMemcpyHtoDAsync(address, host, size, stream))

    def to_host(self, host: int, address: int, size: int, stream: Any = 0) -> None:
        """Copy to pinned memory, in the stream's order."""
        self._ask(self._cuda.cuMemcpyDtoHAsync(host, address, size, stream))

    def to_peer(self, peer: "Card", there: int, here: int, size: int, stream: Any = 0) -> None:
        """Copy to another card's memory, in the stream's order."""
        copy = self._cuda.cuMemcpyPeerAsync
        self._ask(copy(there, peer.context, here, self.context, size, stream))

    def reach(self, peer: "Card") -> bool:
        """Let this card read and write the peer's memory; False where the machine does not allow it,
        and copies go through the host's."""
        (can,) = self._ask(self._cuda.cuDeviceCanAccessPeer(self._device, peer._device))
        if not can:
            return False
        self.use()
        self._ask(self._cuda.cuCtxEnablePeerAccess(peer.context, 0))
        return True

    def stream(self) -> Any:
        """A stream beside the default one."""
        return self._ask(self._cuda.cuStreamCreate(_STREAM_NON_BLOCKING))[0]

    def wait(self, stream: Any = None) -> None:
        """Until all work of the stream, or of the context, is done."""
        if stream is None:
            self._ask(self._cuda.cuCtxSynchronize())
        else:
            self._ask(self._cuda.cuStreamSynchronize(stream))

    def timed(self, calls: Sequence[Callable[[], None]], stream: Any = 0) -> list[float]:
        """Start the calls one after the other; seconds of each by events, once all are done."""
        events = [self._event() for _ in range(len(calls) + 1)]
        self._ask(self._cuda.cuEventRecord(events[0], stream))
        for call, after in zip(calls, events[1:], strict=True):
            call()
            self._ask(self._cuda.cuEventRecord(after, stream))
        self._ask(self._cuda.cuEventSynchronize(events[-1]))
        elapsed = self._cuda.cuEventElapsedTime
        seconds = [
            float(self._ask(elapsed(before, after))[0]) / 1e3 for before, after in pairwise(events)
        ]
        for event in events:
            self._ask(self._cuda.cuEventDestroy(event))
        return seconds

    def _event(self) -> Any:
        return self._ask(self._cuda.cuEventCreate(_EVENT_DEFAULT))[0]

    def _ask(self, answer: Any) -> tuple[Any, ...]:
        """A call's values. Raises: ProbeError: in the driver's own words."""
        status, *values = answer
        code = int(status)
        if code == 0:
            return tuple(values)
        if status == self._cuda.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
            raise out_of_memory("the probe")
        name = getattr(status, "name", str(code))
        raise ProbeError(f"the CUDA driver answered {name} ({code}): check nvidia-smi and dmesg")
