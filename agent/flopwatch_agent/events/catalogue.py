"""What every event means, how bad it is, and what to do first.

Sources of the tables, read 2026-11; the words are ours:

- Xids: NVIDIA, "Analyzing Xid Errors with the Xid Catalog"
  (docs.nvidia.com/deploy/xid-errors/analyzing-xid-catalog.html): its column "Resolution Bucket (Immediate
  Action)" gives the action; codes that it calls unused are left out here;
- what a node should do about them: NVIDIA Health Validation, "Xid Checks"
  (docs.nvidia.com/health-validation/reference/checks/xid.md);
- SXids: NVIDIA, "Fabric Manager User Guide" DU-09883-001 v1.3, appendix D, as tabulated in leptonai/gpud
  ``components/accelerator/nvidia/sxid/sxid.go``; whether one is fatal stands in the line itself;
- the other kinds: this agent; those of jobs (``job_…``) follow what jobs say of themselves.

Origins tell kind, code and words; severity and action are added in one place, where events are collected
(`Outgoing.tell`).

A code that is not in the table is still an event, with the severity of its kind.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from flopwatch_proto.v1 import telemetry_pb2 as pb

SEVERITIES: Final = ("info", "warning", "error", "fatal")
"""Fatal: the card, or what runs on it, does not work any more. Error: somebody must look."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the catalogue. Attributes: meaning, action: a sentence each; action may be empty."""

    severity: str
    meaning: str
    action: str = ""


_RESTART: Final = (
    "Restart the job; if it comes back with other jobs too, drain the node and run diagnostics."
)
_DEBUG: Final = (
    "A fault of the program in most cases: run it under compute-sanitizer; suspect the card only if "
    "different programs meet it on the same one."
)
_RESET: Final = "Drain the node and reset the card; if it comes back, have the card serviced."
_REBOOT: Final = (
    "Drain and reboot the node; if it comes back, check seating and power and have it serviced."
)
_LINK: Final = (
    "Drain the node and reset the cards of the link; if it comes back, check the baseboard and the "
    "switch and have them serviced."
)
_FOLLOW: Final = "Look at the other Xids of the card at that time: this one follows from them."
_NONE: Final = "Nothing; tell NVIDIA if it keeps coming."
_SUPPORT: Final = "Collect nvidia-bug-report.sh and open a case with the vendor."

XIDS: Final[dict[int, Entry]] = {
    8: Entry("error", "the GPU stopped processing", _RESTART),
    11: Entry("error", "invalid or corrupted push buffer", _DEBUG),
    13: Entry("error", "exception in the graphics or compute engine", _DEBUG),
    25: Entry("error", "illegal push buffer", _DEBUG),
    31: Entry("error", "page fault of the GPU's memory", _DEBUG),
    32: Entry("error", "invalid or corrupted push buffer", _DEBUG),
    37: Entry("warning", "error in the driver's firmware", _NONE),
    38: Entry("warning", "time-out in the driver's firmware", _NONE),
    **{code: Entry("error", "exception in a copy engine", _RESTART) for code in (39, 40, 41)},
    43: Entry("warning", "a job's channel was stopped; the GPU itself goes on", _DEBUG),
    44: Entry("warning", "fault while the GPU changed contexts", _NONE),
    45: Entry("warning", "a job's channels were torn down after an earlier error", _FOLLOW),
    46: Entry("fatal", "the GPU stopped processing and does not come back", _RESET),
    48: Entry("fatal", "memory error of two bits, not corrected", _RESET),
    54: Entry("fatal", "auxiliary power is not connected", "Check the power cables of the board."),
    60: Entry("error", "exception in a video or security processor", _RESTART),
    62: Entry("fatal", "an internal micro-controller halted", _RESET),
    63: Entry(
        "warning",
        "a row of memory was marked for remapping",
        "Reset the card when it is idle: only then the row is replaced.",
    ),
    64: Entry("fatal", "remapping a row of memory failed", _RESET),
    66: Entry("warning", "illegal access by the driver", _NONE),
    67: Entry("warning", "illegal access by the driver", _NONE),
    68: Entry("error", "exception in a video decoder", _RESTART),
    69: Entry("error", "class error in the graphics or compute engine", _DEBUG),
    **{
        code: Entry("error", "exception in a copy engine", _RESTART)
        for code in (70, 71, 72, 75, 76, 77, 85, *range(126, 136))
    },
    74: Entry("fatal", "NVLink error", _LINK),
    78: Entry(
        "error",
        "a virtual GPU could not start",
        "Bring host and guest driver to versions that fit.",
    ),
    79: Entry("fatal", "the GPU has fallen off the bus", _REBOOT),
    80: Entry("error", "data sent to the GPU arrived corrupted", _RESTART),
    **{
        code: Entry("error", "exception in a video or image engine", _RESTART)
        for code in (82, 83, 84, 86, 88, 89, 96, 97, 98, *range(99, 106), 139, 142)
    },
    92: Entry(
        "warning",
        "many single-bit memory errors, all corrected",
        "Watch the card: plan a reset, and a replacement if the rate stays.",
    ),
    93: Entry("warning", "the InfoROM is written more often than it should be", _SUPPORT),
    94: Entry(
        "error",
        "memory error, contained: only the job that met it is hit",
        "Restart the job; reset the card when it is idle, so that the row is remapped.",
    ),
    95: Entry("fatal", "memory error, not contained: every job on the card is hit", _RESET),
    108: Entry("warning", "NVLink translation error at the other end", _FOLLOW),
    109: Entry("fatal", "time-out while the GPU changed contexts", _RESET),
    110: Entry("fatal", "security fault", _RESET),
    119: Entry("fatal", "the GPU's system processor (GSP) does not answer the driver", _RESET),
    120: Entry("fatal", "error in the GPU's system processor (GSP)", _RESET),
    121: Entry("warning", "error on the chip-to-chip link, corrected", _SUPPORT),
    136: Entry("fatal", "NVLink training failed", _LINK),
    137: Entry("error", "NVLink privilege error: often an illegal access by a peer's job", _FOLLOW),
    140: Entry("fatal", "memory error that the hardware did not recover from", _RESET),
    141: Entry("warning", "error in CUDA's fast path", _NONE),
    143: Entry("fatal", "the GPU could not be initialised", _RESET),
    **{code: Entry("error", "NVLink error (fifth generation)", _LINK) for code in range(144, 151)},
    151: Entry("error", "key rotation failed", "Restart the virtual machine."),
    152: Entry("warning", "error in a deep-learning accelerator's memory management", _NONE),
    153: Entry("warning", "time-out in a deep-learning accelerator", _NONE),
    154: Entry(
        "error",
        "the driver says what the GPU needs to recover",
        "Do what the line says (reset, drain, reboot).",
    ),
    155: Entry("fatal", "NVLink error defined by software", _RESET),
    156: Entry("error", "a resource of the GPU was retired", _RESET),
    157: Entry("error", "retiring a resource of the GPU failed", _SUPPORT),
    158: Entry("fatal", "the GPU timed out", _RESET),
    159: Entry("error", "error on the coherent interface of the CPU", _SUPPORT),
    160: Entry("warning", "a channel of the GPU's memory was retired", _SUPPORT),
    161: Entry("error", "retiring a channel of the GPU's memory failed", _SUPPORT),
    162: Entry("info", "power smoothing works again"),
    163: Entry("warning", "power smoothing is off", _SUPPORT),
    164: Entry("warning", "the power smoothing circuit wears out", _SUPPORT),
    165: Entry("error", "the power smoothing circuit is worn out", _SUPPORT),
    167: Entry("fatal", "fatal time-out on PCIe", _REBOOT),
    168: Entry("error", "the GPU works with less memory: errors in a protected region", _RESET),
    169: Entry("fatal", "an internal micro-controller halted", _RESET),
    171: Entry("fatal", "uncorrectable error in the GPU's memory (more about an Xid 48)", _RESET),
    172: Entry(
        "fatal", "uncorrectable error in a memory on the chip (more about an Xid 48)", _RESET
    ),
}
"""Xid → what it means. NVIDIA calls the codes that are missing here unused."""

_CORRECTED: Final = (
    *(11012, 11021, 11022, 11023, 12021, 12023, 15008, 15011),
    *(19049, 19055, 19057, 19059, 19062, 19065, 19068, 19071, 24001),
)
_SWITCH: Final = (
    "Restart the node so that the switch is reset; if it comes back, have the switch serviced."
)

SXIDS: Final[dict[int, Entry]] = {
    10001: Entry("warning", "the host accessed a switch register it may not", _SUPPORT),
    10002: Entry("warning", "a switch register did not answer the host", _SUPPORT),
    10003: Entry("fatal", "interrupt of the switch that nobody handles", _SWITCH),
    10004: Entry("warning", "the switch is too hot and may narrow its links", "Check the cooling."),
    11001: Entry("error", "a packet came in with an invalid command", _SWITCH),
    11004: Entry(
        "error",
        "a packet came in that the routing forbids: the GPU behind the port hangs",
        "Check the partition in the fabric manager, then restart the node.",
    ),
    11009: Entry("error", "a packet came in on an invalid virtual channel", _SWITCH),
    **{
        code: Entry("error", "memory error in the switch", _SWITCH)
        for code in (11013, 11018, 11019)
    },
    11020: Entry("error", "parity error at the way in", _SWITCH),
    12001: Entry("error", "overflow inside the switch", _SWITCH),
    12002: Entry("error", "a packet could not be routed out", _SWITCH),
    **{code: Entry("error", "memory error in the switch", _SWITCH) for code in (12022, 12024)},
    12025: Entry("error", "credit overflow at the way out", _SWITCH),
    12026: Entry("error", "request to an unknown destination", _SWITCH),
    12027: Entry("error", "response to an unknown destination", _SWITCH),
    12028: Entry(
        "warning", "privilege error at the way out: a GPU asked for what it may not", _FOLLOW
    ),
    12030: Entry("error", "parity error at the way out", _SWITCH),
    12031: Entry("error", "parity error of a credit", _SWITCH),
    20034: Entry("error", "the link of a port went down", _LINK),
    **{
        code: Entry("fatal", "error of the switch's crossbar", _SWITCH)
        for code in range(23006, 23018)
    },
    **{
        code: Entry("info", "memory error of one bit in the switch, corrected")
        for code in _CORRECTED
    },
}

KINDS: Final[dict[str, Entry]] = {
    "xid": Entry(
        "error", "the driver reported an Xid", "Look the code up in NVIDIA's Xid catalog."
    ),
    "sxid": Entry("warning", "a switch reported an SXid", "See the Fabric Manager user guide."),
    "card_lost": Entry("fatal", "the driver lost the card", _REBOOT),
    "reset_required": Entry(
        "error",
        "the card wants a reset before it works again",
        "Drain the node, `flopwatch agent release --for 10m`, then `nvidia-smi --gpu-reset`.",
    ),
    "count_changed": Entry(
        "warning",
        "PCI bus, driver and what was there before do not have the same number of cards",
        "Compare `lspci -d 10de:` with `nvidia-smi -L`, and look for Xid 79.",
    ),
    "unresponsive": Entry(
        "error",
        "a call into the driver does not return",
        "Look for Xids and for processes in state D; drain the node before anything is killed.",
    ),
    "driver_given_up": Entry(
        "fatal",
        "several processes hang in the driver for good; the cards are not read any more",
        "Drain and reboot the node; after a repair without one, open and close a release window.",
    ),
    "driver_absent": Entry("error", "no NVIDIA driver is loaded", "Load the driver; see its log."),
    "driver_mismatch": Entry(
        "error",
        "library and kernel module of the driver have different versions",
        "Drain the node, then reload the kernel module or reboot.",
    ),
    "driver_lost": Entry(
        "error",
        "the driver answers nothing that makes sense",
        "Look at the kernel log; in a container, restart it: it may have lost its device nodes.",
    ),
    "persistence_off": Entry(
        "warning", "persistence mode is off", "Enable nvidia-persistenced before the agent starts."
    ),
    "mig_changed": Entry("info", "the card was cut into other MIG devices"),
    "gpm_denied": Entry("warning", "the performance counters may not be read", "As the text says."),
    "kernel_log_unreadable": Entry(
        "warning",
        "the kernel log cannot be read: Xids come from the driver alone",
        "Put the agent's user into the group systemd-journal.",
    ),
    "throttle_onset": Entry("warning", "the card is held below the clock it could have"),
    "throttle_end": Entry("info", "the card is not held back any more"),
    "ecc_uncorrected": Entry("error", "memory errors that were not corrected", _RESET),
    "remap_pending": Entry(
        "warning",
        "rows of memory wait to be remapped",
        "Reset the card when it is idle: only then they are replaced.",
    ),
    "remap_failed": Entry("fatal", "remapping rows of memory failed", _RESET),
    "nvlink_errors": Entry("warning", "the errors of the NVLinks grow", _LINK),
    "pcie_degraded": Entry(
        "warning",
        "the PCIe link is slower under load than the slot allows",
        "Reseat the card or its riser; check the slot's settings in the BIOS.",
    ),
    "counter_suspect": Entry(
        "warning",
        "a counter of the card cannot be right and is not used",
        "Compare with `nvidia-smi dmon`; restart other profilers of the card, then its driver.",
    ),
    "counter_trusted": Entry("info", "a counter that was suspect is used again"),
    "counter_disagreement": Entry(
        "warning",
        "the card's cycle counters do not agree with its utilisation and are not used",
        "None at once: utilisation is used instead; look for other profilers of the card.",
    ),
    "calibration_refused": Entry(
        "warning",
        "what is known to have run and what the counters say differ too much: no FLOPs of the card's rows",
        "Do what the text says, then calibrate again: `flopwatch probe --kind calibrate`.",
    ),
    "meter_dispute": Entry(
        "warning",
        "two who should know name different jobs for a card",
        "Compare with `flopwatch check allocation`.",
    ),
    "rogue": Entry(
        "error",
        "a process is on a card that was given to somebody else",
        "Find out who started it, and end it or drain the node.",
    ),
    "scheduler_silent": Entry(
        "error",
        "the scheduler's traces on this node say nothing: nobody knows who holds its cards",
        "Run `flopwatch doctor` on the node.",
    ),
    "scheduler_heard": Entry("info", "the scheduler's traces speak again"),
    "allocation_file": Entry("error", "the allocation file is wrong", "Correct it."),
    "prolog_file": Entry(
        "warning", "a job's prolog wrote a file that is wrong", "Correct the prolog."
    ),
    "device_unplaced": Entry(
        "warning",
        "a pod holds a device that no card here is known by",
        "Name its UUID in the file of [allocation] dra_devices.",
    ),
    "capture_refused": Entry(
        "info",
        "a capture was asked for that cannot be taken",
        "Ask again as the text says.",
    ),
    "capture_short": Entry(
        "info",
        "a capture does not reach over all of its window",
        "Ask sooner: the recorder of a node holds 15 minutes, and none of before its start.",
    ),
    "probe_corrupt": Entry(
        "error",
        "a probe on the card computed something wrong",
        "Drain the node, repeat the screen cold and warm; if it comes back, return the card.",
    ),
    "job_start": Entry("info", "a job began"),
    "job_checkpoint": Entry("info", "a job wrote a checkpoint"),
    "job_eval": Entry("info", "a job evaluated its model"),
    "job_restart": Entry(
        "warning", "a job began again", "Look for events of its cards and hosts at that time."
    ),
    "job_exit": Entry("info", "a job ended"),
    "clock_step": Entry("warning", "the wall clock jumped", "Check the time service of the node."),
    "spool_degraded": Entry(
        "error", "the disk refuses data", "Make room on the disk, or repair it."
    ),
    "spool_recovered": Entry("info", "the disk takes data again"),
    "spool_corrupt": Entry("error", "the spool's file was damaged", "Check the disk."),
}
"""Kind → what it means; for Xids and SXids the code says more."""

_THROTTLES: Final[dict[int, Entry]] = {
    0x4: Entry("info", "power limit", "None: a card at full work is held at its power limit."),
    0x10: Entry("info", "sync boost with other cards"),
    0x20: Entry("warning", "software thermal limit", "Check air flow, inlet temperature and fans."),
    0x40: Entry(
        "error", "hardware thermal protection", "Check the cooling now; drain if it lasts."
    ),
    0x80: Entry("error", "external power brake", "Check the power supplies and the rack's power."),
}
"""Bit of the clock-event reasons → what a ``throttle_onset`` with it as its code means."""


def entry(kind: str, code: int = 0) -> Entry | None:
    """Return what is known of an event; None for a kind that the catalogue does not have."""
    codes = {"xid": XIDS, "sxid": SXIDS, "throttle_onset": _THROTTLES}.get(kind, {})
    return codes.get(code) or KINDS.get(kind)


def explained(event: pb.Event) -> pb.Event:
    """Return the event, with severity and action from the catalogue where it has none of its own."""
    found = entry(event.kind, event.code)
    if found is not None:
        event.severity = event.severity or found.severity
        event.action = event.action or found.action
        if event.kind == "xid" and found is not KINDS["xid"] and found.meaning not in event.text:
            event.text = f"{event.text} ({found.meaning})"
    event.severity = event.severity or "info"
    return event
