"""Listing the cards: handles, names, places."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any, Final

import pynvml

from flopwatch_agent.driver.library import SUCCESS, DeviceLost, Library
from flopwatch_agent.driver.messages import DeviceInfo

_CORES_PER_SM: Final = {(6, 0): 64, (7, 0): 64, (7, 2): 64, (7, 5): 64, (8, 0): 64}
"""Compute capability → FP32 cores of a streaming multiprocessor, where it is not 128."""

_MIG_DEVICES_MAX: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class MigDevice:
    """A MIG device: a compute instance of a GPU instance.

    Attributes:
        gpu_instance: its number on the card; numbers are used again.
        weight: slices of the device over slices of the card.
        sm_count: streaming multiprocessors of the whole GPU instance; None where nobody says.
    """

    uuid: str
    gpu_instance: int | None
    weight: float
    sm_count: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """A card with the handle that this process has of it, and its MIG devices."""

    handle: ctypes.c_void_p
    info: DeviceInfo
    instances: tuple[MigDevice, ...] = ()


def slot_name(bus_id: str) -> str:
    """Return a PCI bus id as the kernel writes it: ``00000000:18:00.0`` → ``0000:18:00.0``."""
    domain, _, rest = bus_id.strip().lower().partition(":")
    return f"{int(domain, 16):04x}:{rest}"


def count(library: Library) -> int | None:
    """Return how many cards the driver lists, or None."""
    return library.number("nvmlDeviceGetCount_v2")


def list_cards(library: Library) -> tuple[list[Listed], int]:
    """Return the cards that can be opened, and how many could not."""
    cards: list[Listed] = []
    unreachable = 0
    for index in range(count(library) or 0):
        try:
            listed = _open(library, index)
        except DeviceLost:
            listed = None
        if listed is None:
            unreachable += 1
        else:
            cards.append(listed)
    return cards, unreachable


def _open(library: Library, index: int) -> Listed | None:
    handle = ctypes.c_void_p()
    code = library.call("nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(index), ctypes.byref(handle))
    pci = pynvml.nvmlPciInfo_t()
    if code == SUCCESS:
        code = library.call("nvmlDeviceGetPciInfo_v3", handle, ctypes.byref(pci))
    if code != SUCCESS:
        return None
    instances = mig_devices(library, handle)
    info = _describe(library, handle, slot_name(pci.busId), instances)
    return Listed(handle=handle, info=info, instances=instances)


def _describe(
    library: Library, handle: Any, slot: str, instances: tuple[MigDevice, ...]
) -> DeviceInfo:
    clock = library.number("nvmlDeviceGetMaxClockInfo", handle, pynvml.NVML_CLOCK_SM)
    return DeviceInfo(
        slot=slot,
        sku=library.text("nvmlDeviceGetName", handle),
        uuid=library.text("nvmlDeviceGetUUID", handle),
        serial=library.text("nvmlDeviceGetSerial", handle),
        minor=library.number("nvmlDeviceGetMinorNumber", handle),
        sm_count=_sm_count(library, handle),
        clock_mhz_max=None if clock is None else float(clock),
        instances=tuple(instance.uuid for instance in instances),
        instance_weights=tuple(instance.weight for instance in instances),
        persistence=library.number("nvmlDeviceGetPersistenceMode", handle),
    )


def _sm_count(library: Library, handle: Any) -> int | None:
    cores = library.number("nvmlDeviceGetNumGpuCores", handle)
    major, minor = ctypes.c_int(), ctypes.c_int()
    code = library.call(
        "nvmlDeviceGetCudaComputeCapability", handle, ctypes.byref(major), ctypes.byref(minor)
    )
    if cores is None or code != SUCCESS:
        return None
    return cores // _CORES_PER_SM.get((major.value, minor.value), 128) or None


def mig_devices(library: Library, handle: Any) -> tuple[MigDevice, ...]:
    """Return the MIG devices on a card; empty where MIG is off or not supported.

    A GPU instance without a compute instance has no MIG device: nothing can run on it.
    """
    current, pending = ctypes.c_uint(), ctypes.c_uint()
    code = library.call(
        "nvmlDeviceGetMigMode", handle, ctypes.byref(current), ctypes.byref(pending)
    )
    if code != SUCCESS or current.value != pynvml.NVML_DEVICE_MIG_ENABLE:
        return ()
    places = library.number("nvmlDeviceGetMaxMigDeviceCount", handle) or 0
    found = []
    for index in range(min(places, _MIG_DEVICES_MAX)):
        instance = ctypes.c_void_p()
        code = library.call(
            "nvmlDeviceGetMigDeviceHandleByIndex",
            handle,
            ctypes.c_uint(index),
            ctypes.byref(instance),
        )
        if code == SUCCESS and (uuid := library.text("nvmlDeviceGetUUID", instance)):
            found.append(_mig_device(library, instance, uuid, places))
    return tuple(found)


def _mig_device(library: Library, handle: Any, uuid: str, places: int) -> MigDevice:
    said = pynvml.c_nvmlDeviceAttributes()
    code = library.call("nvmlDeviceGetAttributes_v2", handle, ctypes.byref(said))
    slices = said.computeInstanceSliceCount if code == SUCCESS else 0
    sm_count = None
    if slices:  # what it says of SMs is of the compute instance
        sm_count = said.multiprocessorCount * said.gpuInstanceSliceCount // slices or None
    return MigDevice(
        uuid=uuid,
        gpu_instance=library.number("nvmlDeviceGetGpuInstanceId", handle),
        # A card holds as many MIG devices as it has slices: 7 on an H100.
        weight=(slices or 1) / places,
        sm_count=sm_count,
    )
