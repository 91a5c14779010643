from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Bucket(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    BUCKET_UNSPECIFIED: _ClassVar[Bucket]
    BUCKET_UNSEEN: _ClassVar[Bucket]
    BUCKET_MISSING: _ClassVar[Bucket]
    BUCKET_FAILED: _ClassVar[Bucket]
    BUCKET_ACTIVE: _ClassVar[Bucket]
    BUCKET_IDLE_ALLOC: _ClassVar[Bucket]
    BUCKET_SUSPENDED: _ClassVar[Bucket]
    BUCKET_GANG_WAIT: _ClassVar[Bucket]
    BUCKET_ALLOCATED: _ClassVar[Bucket]
    BUCKET_MAINT: _ClassVar[Bucket]
    BUCKET_HELD: _ClassVar[Bucket]
    BUCKET_STRANDED: _ClassVar[Bucket]
    BUCKET_FREE: _ClassVar[Bucket]

class Absence(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ABSENCE_UNSPECIFIED: _ClassVar[Absence]
    ABSENCE_MISSING: _ClassVar[Absence]
    ABSENCE_NOT_SUPPORTED: _ClassVar[Absence]
    ABSENCE_FAILED: _ClassVar[Absence]

class SlotState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SLOT_STATE_UNSPECIFIED: _ClassVar[SlotState]
    SLOT_STATE_EXPECTED: _ClassVar[SlotState]
    SLOT_STATE_ONBOARDING: _ClassVar[SlotState]
    SLOT_STATE_IN_SERVICE: _ClassVar[SlotState]
    SLOT_STATE_RETIRED: _ClassVar[SlotState]
BUCKET_UNSPECIFIED: Bucket
BUCKET_UNSEEN: Bucket
BUCKET_MISSING: Bucket
BUCKET_FAILED: Bucket
BUCKET_ACTIVE: Bucket
BUCKET_IDLE_ALLOC: Bucket
BUCKET_SUSPENDED: Bucket
BUCKET_GANG_WAIT: Bucket
BUCKET_ALLOCATED: Bucket
BUCKET_MAINT: Bucket
BUCKET_HELD: Bucket
BUCKET_STRANDED: Bucket
BUCKET_FREE: Bucket
ABSENCE_UNSPECIFIED: Absence
ABSENCE_MISSING: Absence
ABSENCE_NOT_SUPPORTED: Absence
ABSENCE_FAILED: Absence
SLOT_STATE_UNSPECIFIED: SlotState
SLOT_STATE_EXPECTED: SlotState
SLOT_STATE_ONBOARDING: SlotState
SLOT_STATE_IN_SERVICE: SlotState
SLOT_STATE_RETIRED: SlotState

class AgentFrame(_message.Message):
    __slots__ = ("hello", "batch", "gap", "status", "goodbye")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    GAP_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    GOODBYE_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    batch: Batch
    gap: Gap
    status: Status
    goodbye: Goodbye
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., batch: _Optional[_Union[Batch, _Mapping]] = ..., gap: _Optional[_Union[Gap, _Mapping]] = ..., status: _Optional[_Union[Status, _Mapping]] = ..., goodbye: _Optional[_Union[Goodbye, _Mapping]] = ...) -> None: ...

class CollectorFrame(_message.Message):
    __slots__ = ("welcome", "ack", "reject", "drain", "capture")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    ACK_FIELD_NUMBER: _ClassVar[int]
    REJECT_FIELD_NUMBER: _ClassVar[int]
    DRAIN_FIELD_NUMBER: _ClassVar[int]
    CAPTURE_FIELD_NUMBER: _ClassVar[int]
    welcome: Welcome
    ack: Ack
    reject: Reject
    drain: Drain
    capture: CaptureRequest
    def __init__(self, welcome: _Optional[_Union[Welcome, _Mapping]] = ..., ack: _Optional[_Union[Ack, _Mapping]] = ..., reject: _Optional[_Union[Reject, _Mapping]] = ..., drain: _Optional[_Union[Drain, _Mapping]] = ..., capture: _Optional[_Union[CaptureRequest, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("protocol_revision", "agent_version", "cluster", "node_id", "simulated", "boot_id", "spool_id", "next_seq", "wall_unix_ns", "boottime_ns", "totals")
    PROTOCOL_REVISION_FIELD_NUMBER: _ClassVar[int]
    AGENT_VERSION_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    SIMULATED_FIELD_NUMBER: _ClassVar[int]
    BOOT_ID_FIELD_NUMBER: _ClassVar[int]
    SPOOL_ID_FIELD_NUMBER: _ClassVar[int]
    NEXT_SEQ_FIELD_NUMBER: _ClassVar[int]
    WALL_UNIX_NS_FIELD_NUMBER: _ClassVar[int]
    BOOTTIME_NS_FIELD_NUMBER: _ClassVar[int]
    TOTALS_FIELD_NUMBER: _ClassVar[int]
    protocol_revision: int
    agent_version: str
    cluster: str
    node_id: str
    simulated: bool
    boot_id: str
    spool_id: str
    next_seq: int
    wall_unix_ns: int
    boottime_ns: int
    totals: SpoolTotals
    def __init__(self, protocol_revision: _Optional[int] = ..., agent_version: _Optional[str] = ..., cluster: _Optional[str] = ..., node_id: _Optional[str] = ..., simulated: _Optional[bool] = ..., boot_id: _Optional[str] = ..., spool_id: _Optional[str] = ..., next_seq: _Optional[int] = ..., wall_unix_ns: _Optional[int] = ..., boottime_ns: _Optional[int] = ..., totals: _Optional[_Union[SpoolTotals, _Mapping]] = ...) -> None: ...

class SpoolTotals(_message.Message):
    __slots__ = ("next_seq", "acked_seq", "acked_rows", "produced_rows", "dropped_rows")
    NEXT_SEQ_FIELD_NUMBER: _ClassVar[int]
    ACKED_SEQ_FIELD_NUMBER: _ClassVar[int]
    ACKED_ROWS_FIELD_NUMBER: _ClassVar[int]
    PRODUCED_ROWS_FIELD_NUMBER: _ClassVar[int]
    DROPPED_ROWS_FIELD_NUMBER: _ClassVar[int]
    next_seq: int
    acked_seq: int
    acked_rows: int
    produced_rows: int
    dropped_rows: int
    def __init__(self, next_seq: _Optional[int] = ..., acked_seq: _Optional[int] = ..., acked_rows: _Optional[int] = ..., produced_rows: _Optional[int] = ..., dropped_rows: _Optional[int] = ...) -> None: ...

class Batch(_message.Message):
    __slots__ = ("seq", "first_unix_ms", "last_unix_ms", "row_count", "rows_before", "sha256_16", "raw_bytes", "payload")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    FIRST_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    LAST_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    ROW_COUNT_FIELD_NUMBER: _ClassVar[int]
    ROWS_BEFORE_FIELD_NUMBER: _ClassVar[int]
    SHA256_16_FIELD_NUMBER: _ClassVar[int]
    RAW_BYTES_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    seq: int
    first_unix_ms: int
    last_unix_ms: int
    row_count: int
    rows_before: int
    sha256_16: bytes
    raw_bytes: int
    payload: bytes
    def __init__(self, seq: _Optional[int] = ..., first_unix_ms: _Optional[int] = ..., last_unix_ms: _Optional[int] = ..., row_count: _Optional[int] = ..., rows_before: _Optional[int] = ..., sha256_16: _Optional[bytes] = ..., raw_bytes: _Optional[int] = ..., payload: _Optional[bytes] = ...) -> None: ...

class Gap(_message.Message):
    __slots__ = ("first_seq", "last_seq", "row_count", "bytes", "first_unix_ms", "last_unix_ms", "reason")
    FIRST_SEQ_FIELD_NUMBER: _ClassVar[int]
    LAST_SEQ_FIELD_NUMBER: _ClassVar[int]
    ROW_COUNT_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    FIRST_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    LAST_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    first_seq: int
    last_seq: int
    row_count: int
    bytes: int
    first_unix_ms: int
    last_unix_ms: int
    reason: str
    def __init__(self, first_seq: _Optional[int] = ..., last_seq: _Optional[int] = ..., row_count: _Optional[int] = ..., bytes: _Optional[int] = ..., first_unix_ms: _Optional[int] = ..., last_unix_ms: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class Status(_message.Message):
    __slots__ = ("taken_unix_ms", "spool_batches", "spool_bytes", "spool_oldest_unix_ms", "rows_produced", "rows_dropped", "driver_state", "newest", "totals")
    TAKEN_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    SPOOL_BATCHES_FIELD_NUMBER: _ClassVar[int]
    SPOOL_BYTES_FIELD_NUMBER: _ClassVar[int]
    SPOOL_OLDEST_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    ROWS_PRODUCED_FIELD_NUMBER: _ClassVar[int]
    ROWS_DROPPED_FIELD_NUMBER: _ClassVar[int]
    DRIVER_STATE_FIELD_NUMBER: _ClassVar[int]
    NEWEST_FIELD_NUMBER: _ClassVar[int]
    TOTALS_FIELD_NUMBER: _ClassVar[int]
    taken_unix_ms: int
    spool_batches: int
    spool_bytes: int
    spool_oldest_unix_ms: int
    rows_produced: int
    rows_dropped: int
    driver_state: str
    newest: IntervalRows
    totals: SpoolTotals
    def __init__(self, taken_unix_ms: _Optional[int] = ..., spool_batches: _Optional[int] = ..., spool_bytes: _Optional[int] = ..., spool_oldest_unix_ms: _Optional[int] = ..., rows_produced: _Optional[int] = ..., rows_dropped: _Optional[int] = ..., driver_state: _Optional[str] = ..., newest: _Optional[_Union[IntervalRows, _Mapping]] = ..., totals: _Optional[_Union[SpoolTotals, _Mapping]] = ...) -> None: ...

class Goodbye(_message.Message):
    __slots__ = ("reason", "back_in_ms")
    REASON_FIELD_NUMBER: _ClassVar[int]
    BACK_IN_MS_FIELD_NUMBER: _ClassVar[int]
    reason: str
    back_in_ms: int
    def __init__(self, reason: _Optional[str] = ..., back_in_ms: _Optional[int] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("session", "oldest_start_unix_ms", "send_spread_ms", "credit_batches", "credit_bytes", "max_batch_bytes", "server_wall_unix_ns")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    OLDEST_START_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    SEND_SPREAD_MS_FIELD_NUMBER: _ClassVar[int]
    CREDIT_BATCHES_FIELD_NUMBER: _ClassVar[int]
    CREDIT_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_BATCH_BYTES_FIELD_NUMBER: _ClassVar[int]
    SERVER_WALL_UNIX_NS_FIELD_NUMBER: _ClassVar[int]
    session: str
    oldest_start_unix_ms: int
    send_spread_ms: int
    credit_batches: int
    credit_bytes: int
    max_batch_bytes: int
    server_wall_unix_ns: int
    def __init__(self, session: _Optional[str] = ..., oldest_start_unix_ms: _Optional[int] = ..., send_spread_ms: _Optional[int] = ..., credit_batches: _Optional[int] = ..., credit_bytes: _Optional[int] = ..., max_batch_bytes: _Optional[int] = ..., server_wall_unix_ns: _Optional[int] = ...) -> None: ...

class Ack(_message.Message):
    __slots__ = ("through_seq", "stored_rows", "credit_batches", "server_wall_unix_ns", "retry_after_ms", "credit_bytes")
    THROUGH_SEQ_FIELD_NUMBER: _ClassVar[int]
    STORED_ROWS_FIELD_NUMBER: _ClassVar[int]
    CREDIT_BATCHES_FIELD_NUMBER: _ClassVar[int]
    SERVER_WALL_UNIX_NS_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_MS_FIELD_NUMBER: _ClassVar[int]
    CREDIT_BYTES_FIELD_NUMBER: _ClassVar[int]
    through_seq: int
    stored_rows: int
    credit_batches: int
    server_wall_unix_ns: int
    retry_after_ms: int
    credit_bytes: int
    def __init__(self, through_seq: _Optional[int] = ..., stored_rows: _Optional[int] = ..., credit_batches: _Optional[int] = ..., server_wall_unix_ns: _Optional[int] = ..., retry_after_ms: _Optional[int] = ..., credit_bytes: _Optional[int] = ...) -> None: ...

class Reject(_message.Message):
    __slots__ = ("seq", "code", "permanent", "message")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    PERMANENT_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    seq: int
    code: str
    permanent: bool
    message: str
    def __init__(self, seq: _Optional[int] = ..., code: _Optional[str] = ..., permanent: _Optional[bool] = ..., message: _Optional[str] = ...) -> None: ...

class Drain(_message.Message):
    __slots__ = ("reconnect_after_ms",)
    RECONNECT_AFTER_MS_FIELD_NUMBER: _ClassVar[int]
    reconnect_after_ms: int
    def __init__(self, reconnect_after_ms: _Optional[int] = ...) -> None: ...

class CaptureRequest(_message.Message):
    __slots__ = ("id", "from_unix_ms", "to_unix_ms", "readings_per_second", "slots")
    ID_FIELD_NUMBER: _ClassVar[int]
    FROM_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    TO_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    READINGS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    id: str
    from_unix_ms: int
    to_unix_ms: int
    readings_per_second: int
    slots: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, id: _Optional[str] = ..., from_unix_ms: _Optional[int] = ..., to_unix_ms: _Optional[int] = ..., readings_per_second: _Optional[int] = ..., slots: _Optional[_Iterable[str]] = ...) -> None: ...

class Payload(_message.Message):
    __slots__ = ("intervals", "hosts", "slots", "rosters", "events", "probes", "captures", "packed_intervals", "packed_hosts")
    INTERVALS_FIELD_NUMBER: _ClassVar[int]
    HOSTS_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    ROSTERS_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    PROBES_FIELD_NUMBER: _ClassVar[int]
    CAPTURES_FIELD_NUMBER: _ClassVar[int]
    PACKED_INTERVALS_FIELD_NUMBER: _ClassVar[int]
    PACKED_HOSTS_FIELD_NUMBER: _ClassVar[int]
    intervals: IntervalRows
    hosts: HostRows
    slots: _containers.RepeatedCompositeFieldContainer[SlotDeclaration]
    rosters: _containers.RepeatedCompositeFieldContainer[Roster]
    events: _containers.RepeatedCompositeFieldContainer[Event]
    probes: _containers.RepeatedCompositeFieldContainer[Probe]
    captures: _containers.RepeatedCompositeFieldContainer[Capture]
    packed_intervals: Packed
    packed_hosts: Packed
    def __init__(self, intervals: _Optional[_Union[IntervalRows, _Mapping]] = ..., hosts: _Optional[_Union[HostRows, _Mapping]] = ..., slots: _Optional[_Iterable[_Union[SlotDeclaration, _Mapping]]] = ..., rosters: _Optional[_Iterable[_Union[Roster, _Mapping]]] = ..., events: _Optional[_Iterable[_Union[Event, _Mapping]]] = ..., probes: _Optional[_Iterable[_Union[Probe, _Mapping]]] = ..., captures: _Optional[_Iterable[_Union[Capture, _Mapping]]] = ..., packed_intervals: _Optional[_Union[Packed, _Mapping]] = ..., packed_hosts: _Optional[_Union[Packed, _Mapping]] = ...) -> None: ...

class Packed(_message.Message):
    __slots__ = ("rows", "texts", "digits", "layout", "cells", "absences")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    DIGITS_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    CELLS_FIELD_NUMBER: _ClassVar[int]
    ABSENCES_FIELD_NUMBER: _ClassVar[int]
    rows: int
    texts: bytes
    digits: bytes
    layout: bytes
    cells: bytes
    absences: _containers.RepeatedCompositeFieldContainer[AbsenceColumn]
    def __init__(self, rows: _Optional[int] = ..., texts: _Optional[bytes] = ..., digits: _Optional[bytes] = ..., layout: _Optional[bytes] = ..., cells: _Optional[bytes] = ..., absences: _Optional[_Iterable[_Union[AbsenceColumn, _Mapping]]] = ...) -> None: ...

class AbsenceColumn(_message.Message):
    __slots__ = ("column", "absences")
    COLUMN_FIELD_NUMBER: _ClassVar[int]
    ABSENCES_FIELD_NUMBER: _ClassVar[int]
    column: str
    absences: bytes
    def __init__(self, column: _Optional[str] = ..., absences: _Optional[bytes] = ...) -> None: ...

class IntervalRows(_message.Message):
    __slots__ = ("strings", "absences", "slot", "start_unix_ms", "job", "instance", "duration_ms", "weight", "bucket", "rogue", "sku", "device_uuid", "serial", "device_kind", "team", "user", "workload_class", "phase", "dtype", "dtype_confidence", "convention", "efficiency_method", "allocation_source", "card_ms", "covered_ms", "counted_ms", "resident_ms", "sm_active_ms", "tensor_active_ms", "hmma_active_ms", "imma_active_ms", "dfma_active_ms", "fp64_active_ms", "fp32_active_ms", "fp16_active_ms", "dram_active_ms", "gpu_utilization_ms", "memory_utilization_ms", "probing_ms", "sm_active_clock_ms", "tensor_active_clock_ms", "sm_clock_mhz_seconds", "throttled_power_ms", "throttled_thermal_sw_ms", "throttled_thermal_hw_ms", "throttled_power_brake_ms", "throttled_sync_boost_ms", "throttled_application_clock_ms", "capacity_flops", "achievable_flops", "u_flops", "u_lo_flops", "u_hi_flops", "hardware_lo_flops", "hardware_hi_flops", "model_flops", "steps_count", "step_ms", "tokens_count", "reported_mfu_ms", "reported_ms", "reported_flops", "energy_joules", "pcie_tx_bytes", "pcie_rx_bytes", "nvlink_tx_bytes", "nvlink_rx_bytes", "ecc_corrected_count", "ecc_uncorrected_count", "power_watts_max", "temperature_celsius_max", "memory_temperature_celsius_max", "memory_used_bytes_max", "memory_total_bytes_max")
    STRINGS_FIELD_NUMBER: _ClassVar[int]
    ABSENCES_FIELD_NUMBER: _ClassVar[int]
    SLOT_FIELD_NUMBER: _ClassVar[int]
    START_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    JOB_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    DURATION_MS_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    BUCKET_FIELD_NUMBER: _ClassVar[int]
    ROGUE_FIELD_NUMBER: _ClassVar[int]
    SKU_FIELD_NUMBER: _ClassVar[int]
    DEVICE_UUID_FIELD_NUMBER: _ClassVar[int]
    SERIAL_FIELD_NUMBER: _ClassVar[int]
    DEVICE_KIND_FIELD_NUMBER: _ClassVar[int]
    TEAM_FIELD_NUMBER: _ClassVar[int]
    USER_FIELD_NUMBER: _ClassVar[int]
    WORKLOAD_CLASS_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    CONVENTION_FIELD_NUMBER: _ClassVar[int]
    EFFICIENCY_METHOD_FIELD_NUMBER: _ClassVar[int]
    ALLOCATION_SOURCE_FIELD_NUMBER: _ClassVar[int]
    CARD_MS_FIELD_NUMBER: _ClassVar[int]
    COVERED_MS_FIELD_NUMBER: _ClassVar[int]
    COUNTED_MS_FIELD_NUMBER: _ClassVar[int]
    RESIDENT_MS_FIELD_NUMBER: _ClassVar[int]
    SM_ACTIVE_MS_FIELD_NUMBER: _ClassVar[int]
    TENSOR_ACTIVE_MS_FIELD_NUMBER: _ClassVar[int]
    HMMA_ACTIVE_MS_FIELD_NUMBER: _ClassVar[int]
    IMMA_ACTIVE_MS_FIELD_NUMBER: _ClassVar[int]
    DFMA_ACTIVE_MS_FIELD_NUMBER: _ClassVar[int]
    FP64_ACTIVE_MS_FIELD_NUMBER: _ClassVar[int]
    FP32_ACTIVE_MS_FIELD_NUMBER: _ClassVar[int]
    FP16_ACTIVE_MS_FIELD_NUMBER: _ClassVar[int]
    DRAM_ACTIVE_MS_FIELD_NUMBER: _ClassVar[int]
    GPU_UTILIZATION_MS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_UTILIZATION_MS_FIELD_NUMBER: _ClassVar[int]
    PROBING_MS_FIELD_NUMBER: _ClassVar[int]
    SM_ACTIVE_CLOCK_MS_FIELD_NUMBER: _ClassVar[int]
    TENSOR_ACTIVE_CLOCK_MS_FIELD_NUMBER: _ClassVar[int]
    SM_CLOCK_MHZ_SECONDS_FIELD_NUMBER: _ClassVar[int]
    THROTTLED_POWER_MS_FIELD_NUMBER: _ClassVar[int]
    THROTTLED_THERMAL_SW_MS_FIELD_NUMBER: _ClassVar[int]
    THROTTLED_THERMAL_HW_MS_FIELD_NUMBER: _ClassVar[int]
    THROTTLED_POWER_BRAKE_MS_FIELD_NUMBER: _ClassVar[int]
    THROTTLED_SYNC_BOOST_MS_FIELD_NUMBER: _ClassVar[int]
    THROTTLED_APPLICATION_CLOCK_MS_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_FLOPS_FIELD_NUMBER: _ClassVar[int]
    ACHIEVABLE_FLOPS_FIELD_NUMBER: _ClassVar[int]
    U_FLOPS_FIELD_NUMBER: _ClassVar[int]
    U_LO_FLOPS_FIELD_NUMBER: _ClassVar[int]
    U_HI_FLOPS_FIELD_NUMBER: _ClassVar[int]
    HARDWARE_LO_FLOPS_FIELD_NUMBER: _ClassVar[int]
    HARDWARE_HI_FLOPS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FLOPS_FIELD_NUMBER: _ClassVar[int]
    STEPS_COUNT_FIELD_NUMBER: _ClassVar[int]
    STEP_MS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_COUNT_FIELD_NUMBER: _ClassVar[int]
    REPORTED_MFU_MS_FIELD_NUMBER: _ClassVar[int]
    REPORTED_MS_FIELD_NUMBER: _ClassVar[int]
    REPORTED_FLOPS_FIELD_NUMBER: _ClassVar[int]
    ENERGY_JOULES_FIELD_NUMBER: _ClassVar[int]
    PCIE_TX_BYTES_FIELD_NUMBER: _ClassVar[int]
    PCIE_RX_BYTES_FIELD_NUMBER: _ClassVar[int]
    NVLINK_TX_BYTES_FIELD_NUMBER: _ClassVar[int]
    NVLINK_RX_BYTES_FIELD_NUMBER: _ClassVar[int]
    ECC_CORRECTED_COUNT_FIELD_NUMBER: _ClassVar[int]
    ECC_UNCORRECTED_COUNT_FIELD_NUMBER: _ClassVar[int]
    POWER_WATTS_MAX_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_CELSIUS_MAX_FIELD_NUMBER: _ClassVar[int]
    MEMORY_TEMPERATURE_CELSIUS_MAX_FIELD_NUMBER: _ClassVar[int]
    MEMORY_USED_BYTES_MAX_FIELD_NUMBER: _ClassVar[int]
    MEMORY_TOTAL_BYTES_MAX_FIELD_NUMBER: _ClassVar[int]
    strings: _containers.RepeatedScalarFieldContainer[str]
    absences: _containers.RepeatedCompositeFieldContainer[AbsenceColumn]
    slot: _containers.RepeatedScalarFieldContainer[int]
    start_unix_ms: _containers.RepeatedScalarFieldContainer[int]
    job: _containers.RepeatedScalarFieldContainer[int]
    instance: _containers.RepeatedScalarFieldContainer[int]
    duration_ms: _containers.RepeatedScalarFieldContainer[int]
    weight: _containers.RepeatedScalarFieldContainer[float]
    bucket: _containers.RepeatedScalarFieldContainer[Bucket]
    rogue: _containers.RepeatedScalarFieldContainer[bool]
    sku: _containers.RepeatedScalarFieldContainer[int]
    device_uuid: _containers.RepeatedScalarFieldContainer[int]
    serial: _containers.RepeatedScalarFieldContainer[int]
    device_kind: _containers.RepeatedScalarFieldContainer[int]
    team: _containers.RepeatedScalarFieldContainer[int]
    user: _containers.RepeatedScalarFieldContainer[int]
    workload_class: _containers.RepeatedScalarFieldContainer[int]
    phase: _containers.RepeatedScalarFieldContainer[int]
    dtype: _containers.RepeatedScalarFieldContainer[int]
    dtype_confidence: _containers.RepeatedScalarFieldContainer[int]
    convention: _containers.RepeatedScalarFieldContainer[int]
    efficiency_method: _containers.RepeatedScalarFieldContainer[int]
    allocation_source: _containers.RepeatedScalarFieldContainer[int]
    card_ms: _containers.RepeatedScalarFieldContainer[int]
    covered_ms: _containers.RepeatedScalarFieldContainer[int]
    counted_ms: _containers.RepeatedScalarFieldContainer[int]
    resident_ms: _containers.RepeatedScalarFieldContainer[int]
    sm_active_ms: _containers.RepeatedScalarFieldContainer[float]
    tensor_active_ms: _containers.RepeatedScalarFieldContainer[float]
    hmma_active_ms: _containers.RepeatedScalarFieldContainer[float]
    imma_active_ms: _containers.RepeatedScalarFieldContainer[float]
    dfma_active_ms: _containers.RepeatedScalarFieldContainer[float]
    fp64_active_ms: _containers.RepeatedScalarFieldContainer[float]
    fp32_active_ms: _containers.RepeatedScalarFieldContainer[float]
    fp16_active_ms: _containers.RepeatedScalarFieldContainer[float]
    dram_active_ms: _containers.RepeatedScalarFieldContainer[float]
    gpu_utilization_ms: _containers.RepeatedScalarFieldContainer[float]
    memory_utilization_ms: _containers.RepeatedScalarFieldContainer[float]
    probing_ms: _containers.RepeatedScalarFieldContainer[float]
    sm_active_clock_ms: _containers.RepeatedScalarFieldContainer[float]
    tensor_active_clock_ms: _containers.RepeatedScalarFieldContainer[float]
    sm_clock_mhz_seconds: _containers.RepeatedScalarFieldContainer[float]
    throttled_power_ms: _containers.RepeatedScalarFieldContainer[float]
    throttled_thermal_sw_ms: _containers.RepeatedScalarFieldContainer[float]
    throttled_thermal_hw_ms: _containers.RepeatedScalarFieldContainer[float]
    throttled_power_brake_ms: _containers.RepeatedScalarFieldContainer[float]
    throttled_sync_boost_ms: _containers.RepeatedScalarFieldContainer[float]
    throttled_application_clock_ms: _containers.RepeatedScalarFieldContainer[float]
    capacity_flops: _containers.RepeatedScalarFieldContainer[float]
    achievable_flops: _containers.RepeatedScalarFieldContainer[float]
    u_flops: _containers.RepeatedScalarFieldContainer[float]
    u_lo_flops: _containers.RepeatedScalarFieldContainer[float]
    u_hi_flops: _containers.RepeatedScalarFieldContainer[float]
    hardware_lo_flops: _containers.RepeatedScalarFieldContainer[float]
    hardware_hi_flops: _containers.RepeatedScalarFieldContainer[float]
    model_flops: _containers.RepeatedScalarFieldContainer[float]
    steps_count: _containers.RepeatedScalarFieldContainer[float]
    step_ms: _containers.RepeatedScalarFieldContainer[float]
    tokens_count: _containers.RepeatedScalarFieldContainer[float]
    reported_mfu_ms: _containers.RepeatedScalarFieldContainer[float]
    reported_ms: _containers.RepeatedScalarFieldContainer[float]
    reported_flops: _containers.RepeatedScalarFieldContainer[float]
    energy_joules: _containers.RepeatedScalarFieldContainer[float]
    pcie_tx_bytes: _containers.RepeatedScalarFieldContainer[float]
    pcie_rx_bytes: _containers.RepeatedScalarFieldContainer[float]
    nvlink_tx_bytes: _containers.RepeatedScalarFieldContainer[float]
    nvlink_rx_bytes: _containers.RepeatedScalarFieldContainer[float]
    ecc_corrected_count: _containers.RepeatedScalarFieldContainer[float]
    ecc_uncorrected_count: _containers.RepeatedScalarFieldContainer[float]
    power_watts_max: _containers.RepeatedScalarFieldContainer[float]
    temperature_celsius_max: _containers.RepeatedScalarFieldContainer[float]
    memory_temperature_celsius_max: _containers.RepeatedScalarFieldContainer[float]
    memory_used_bytes_max: _containers.RepeatedScalarFieldContainer[float]
    memory_total_bytes_max: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, strings: _Optional[_Iterable[str]] = ..., absences: _Optional[_Iterable[_Union[AbsenceColumn, _Mapping]]] = ..., slot: _Optional[_Iterable[int]] = ..., start_unix_ms: _Optional[_Iterable[int]] = ..., job: _Optional[_Iterable[int]] = ..., instance: _Optional[_Iterable[int]] = ..., duration_ms: _Optional[_Iterable[int]] = ..., weight: _Optional[_Iterable[float]] = ..., bucket: _Optional[_Iterable[_Union[Bucket, str]]] = ..., rogue: _Optional[_Iterable[bool]] = ..., sku: _Optional[_Iterable[int]] = ..., device_uuid: _Optional[_Iterable[int]] = ..., serial: _Optional[_Iterable[int]] = ..., device_kind: _Optional[_Iterable[int]] = ..., team: _Optional[_Iterable[int]] = ..., user: _Optional[_Iterable[int]] = ..., workload_class: _Optional[_Iterable[int]] = ..., phase: _Optional[_Iterable[int]] = ..., dtype: _Optional[_Iterable[int]] = ..., dtype_confidence: _Optional[_Iterable[int]] = ..., convention: _Optional[_Iterable[int]] = ..., efficiency_method: _Optional[_Iterable[int]] = ..., allocation_source: _Optional[_Iterable[int]] = ..., card_ms: _Optional[_Iterable[int]] = ..., covered_ms: _Optional[_Iterable[int]] = ..., counted_ms: _Optional[_Iterable[int]] = ..., resident_ms: _Optional[_Iterable[int]] = ..., sm_active_ms: _Optional[_Iterable[float]] = ..., tensor_active_ms: _Optional[_Iterable[float]] = ..., hmma_active_ms: _Optional[_Iterable[float]] = ..., imma_active_ms: _Optional[_Iterable[float]] = ..., dfma_active_ms: _Optional[_Iterable[float]] = ..., fp64_active_ms: _Optional[_Iterable[float]] = ..., fp32_active_ms: _Optional[_Iterable[float]] = ..., fp16_active_ms: _Optional[_Iterable[float]] = ..., dram_active_ms: _Optional[_Iterable[float]] = ..., gpu_utilization_ms: _Optional[_Iterable[float]] = ..., memory_utilization_ms: _Optional[_Iterable[float]] = ..., probing_ms: _Optional[_Iterable[float]] = ..., sm_active_clock_ms: _Optional[_Iterable[float]] = ..., tensor_active_clock_ms: _Optional[_Iterable[float]] = ..., sm_clock_mhz_seconds: _Optional[_Iterable[float]] = ..., throttled_power_ms: _Optional[_Iterable[float]] = ..., throttled_thermal_sw_ms: _Optional[_Iterable[float]] = ..., throttled_thermal_hw_ms: _Optional[_Iterable[float]] = ..., throttled_power_brake_ms: _Optional[_Iterable[float]] = ..., throttled_sync_boost_ms: _Optional[_Iterable[float]] = ..., throttled_application_clock_ms: _Optional[_Iterable[float]] = ..., capacity_flops: _Optional[_Iterable[float]] = ..., achievable_flops: _Optional[_Iterable[float]] = ..., u_flops: _Optional[_Iterable[float]] = ..., u_lo_flops: _Optional[_Iterable[float]] = ..., u_hi_flops: _Optional[_Iterable[float]] = ..., hardware_lo_flops: _Optional[_Iterable[float]] = ..., hardware_hi_flops: _Optional[_Iterable[float]] = ..., model_flops: _Optional[_Iterable[float]] = ..., steps_count: _Optional[_Iterable[float]] = ..., step_ms: _Optional[_Iterable[float]] = ..., tokens_count: _Optional[_Iterable[float]] = ..., reported_mfu_ms: _Optional[_Iterable[float]] = ..., reported_ms: _Optional[_Iterable[float]] = ..., reported_flops: _Optional[_Iterable[float]] = ..., energy_joules: _Optional[_Iterable[float]] = ..., pcie_tx_bytes: _Optional[_Iterable[float]] = ..., pcie_rx_bytes: _Optional[_Iterable[float]] = ..., nvlink_tx_bytes: _Optional[_Iterable[float]] = ..., nvlink_rx_bytes: _Optional[_Iterable[float]] = ..., ecc_corrected_count: _Optional[_Iterable[float]] = ..., ecc_uncorrected_count: _Optional[_Iterable[float]] = ..., power_watts_max: _Optional[_Iterable[float]] = ..., temperature_celsius_max: _Optional[_Iterable[float]] = ..., memory_temperature_celsius_max: _Optional[_Iterable[float]] = ..., memory_used_bytes_max: _Optional[_Iterable[float]] = ..., memory_total_bytes_max: _Optional[_Iterable[float]] = ...) -> None: ...

class HostRows(_message.Message):
    __slots__ = ("absences", "start_unix_ms", "duration_ms", "cpu_busy_ms", "cpu_count", "memory_used_bytes_max", "memory_total_bytes_max", "nic_tx_bytes", "nic_rx_bytes", "agent_cpu_ms", "agent_rss_bytes_max", "rdma_tx_bytes", "rdma_rx_bytes", "link_errors_count")
    ABSENCES_FIELD_NUMBER: _ClassVar[int]
    START_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    DURATION_MS_FIELD_NUMBER: _ClassVar[int]
    CPU_BUSY_MS_FIELD_NUMBER: _ClassVar[int]
    CPU_COUNT_FIELD_NUMBER: _ClassVar[int]
    MEMORY_USED_BYTES_MAX_FIELD_NUMBER: _ClassVar[int]
    MEMORY_TOTAL_BYTES_MAX_FIELD_NUMBER: _ClassVar[int]
    NIC_TX_BYTES_FIELD_NUMBER: _ClassVar[int]
    NIC_RX_BYTES_FIELD_NUMBER: _ClassVar[int]
    AGENT_CPU_MS_FIELD_NUMBER: _ClassVar[int]
    AGENT_RSS_BYTES_MAX_FIELD_NUMBER: _ClassVar[int]
    RDMA_TX_BYTES_FIELD_NUMBER: _ClassVar[int]
    RDMA_RX_BYTES_FIELD_NUMBER: _ClassVar[int]
    LINK_ERRORS_COUNT_FIELD_NUMBER: _ClassVar[int]
    absences: _containers.RepeatedCompositeFieldContainer[AbsenceColumn]
    start_unix_ms: _containers.RepeatedScalarFieldContainer[int]
    duration_ms: _containers.RepeatedScalarFieldContainer[int]
    cpu_busy_ms: _containers.RepeatedScalarFieldContainer[float]
    cpu_count: _containers.RepeatedScalarFieldContainer[float]
    memory_used_bytes_max: _containers.RepeatedScalarFieldContainer[float]
    memory_total_bytes_max: _containers.RepeatedScalarFieldContainer[float]
    nic_tx_bytes: _containers.RepeatedScalarFieldContainer[float]
    nic_rx_bytes: _containers.RepeatedScalarFieldContainer[float]
    agent_cpu_ms: _containers.RepeatedScalarFieldContainer[float]
    agent_rss_bytes_max: _containers.RepeatedScalarFieldContainer[float]
    rdma_tx_bytes: _containers.RepeatedScalarFieldContainer[float]
    rdma_rx_bytes: _containers.RepeatedScalarFieldContainer[float]
    link_errors_count: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, absences: _Optional[_Iterable[_Union[AbsenceColumn, _Mapping]]] = ..., start_unix_ms: _Optional[_Iterable[int]] = ..., duration_ms: _Optional[_Iterable[int]] = ..., cpu_busy_ms: _Optional[_Iterable[float]] = ..., cpu_count: _Optional[_Iterable[float]] = ..., memory_used_bytes_max: _Optional[_Iterable[float]] = ..., memory_total_bytes_max: _Optional[_Iterable[float]] = ..., nic_tx_bytes: _Optional[_Iterable[float]] = ..., nic_rx_bytes: _Optional[_Iterable[float]] = ..., agent_cpu_ms: _Optional[_Iterable[float]] = ..., agent_rss_bytes_max: _Optional[_Iterable[float]] = ..., rdma_tx_bytes: _Optional[_Iterable[float]] = ..., rdma_rx_bytes: _Optional[_Iterable[float]] = ..., link_errors_count: _Optional[_Iterable[float]] = ...) -> None: ...

class SlotDeclaration(_message.Message):
    __slots__ = ("node", "slot", "sku", "device_uuid", "serial", "device_kind", "dtype", "state", "from_unix_ms", "to_unix_ms")
    NODE_FIELD_NUMBER: _ClassVar[int]
    SLOT_FIELD_NUMBER: _ClassVar[int]
    SKU_FIELD_NUMBER: _ClassVar[int]
    DEVICE_UUID_FIELD_NUMBER: _ClassVar[int]
    SERIAL_FIELD_NUMBER: _ClassVar[int]
    DEVICE_KIND_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    FROM_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    TO_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    node: str
    slot: str
    sku: str
    device_uuid: str
    serial: str
    device_kind: str
    dtype: str
    state: SlotState
    from_unix_ms: int
    to_unix_ms: int
    def __init__(self, node: _Optional[str] = ..., slot: _Optional[str] = ..., sku: _Optional[str] = ..., device_uuid: _Optional[str] = ..., serial: _Optional[str] = ..., device_kind: _Optional[str] = ..., dtype: _Optional[str] = ..., state: _Optional[_Union[SlotState, str]] = ..., from_unix_ms: _Optional[int] = ..., to_unix_ms: _Optional[int] = ...) -> None: ...

class Roster(_message.Message):
    __slots__ = ("source", "taken_unix_ms", "valid_until_unix_ms", "strings", "node", "slot", "bucket", "job", "team", "workload_class", "weight", "pending_jobs", "pending_cards", "user", "free_cards")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    TAKEN_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    VALID_UNTIL_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    STRINGS_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    SLOT_FIELD_NUMBER: _ClassVar[int]
    BUCKET_FIELD_NUMBER: _ClassVar[int]
    JOB_FIELD_NUMBER: _ClassVar[int]
    TEAM_FIELD_NUMBER: _ClassVar[int]
    WORKLOAD_CLASS_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    PENDING_JOBS_FIELD_NUMBER: _ClassVar[int]
    PENDING_CARDS_FIELD_NUMBER: _ClassVar[int]
    USER_FIELD_NUMBER: _ClassVar[int]
    FREE_CARDS_FIELD_NUMBER: _ClassVar[int]
    source: str
    taken_unix_ms: int
    valid_until_unix_ms: int
    strings: _containers.RepeatedScalarFieldContainer[str]
    node: _containers.RepeatedScalarFieldContainer[int]
    slot: _containers.RepeatedScalarFieldContainer[int]
    bucket: _containers.RepeatedScalarFieldContainer[Bucket]
    job: _containers.RepeatedScalarFieldContainer[int]
    team: _containers.RepeatedScalarFieldContainer[int]
    workload_class: _containers.RepeatedScalarFieldContainer[int]
    weight: _containers.RepeatedScalarFieldContainer[float]
    pending_jobs: int
    pending_cards: int
    user: _containers.RepeatedScalarFieldContainer[int]
    free_cards: float
    def __init__(self, source: _Optional[str] = ..., taken_unix_ms: _Optional[int] = ..., valid_until_unix_ms: _Optional[int] = ..., strings: _Optional[_Iterable[str]] = ..., node: _Optional[_Iterable[int]] = ..., slot: _Optional[_Iterable[int]] = ..., bucket: _Optional[_Iterable[_Union[Bucket, str]]] = ..., job: _Optional[_Iterable[int]] = ..., team: _Optional[_Iterable[int]] = ..., workload_class: _Optional[_Iterable[int]] = ..., weight: _Optional[_Iterable[float]] = ..., pending_jobs: _Optional[int] = ..., pending_cards: _Optional[int] = ..., user: _Optional[_Iterable[int]] = ..., free_cards: _Optional[float] = ...) -> None: ...

class Event(_message.Message):
    __slots__ = ("slot", "time_unix_ms", "kind", "code", "severity", "text", "action", "job")
    SLOT_FIELD_NUMBER: _ClassVar[int]
    TIME_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    SEVERITY_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    JOB_FIELD_NUMBER: _ClassVar[int]
    slot: str
    time_unix_ms: int
    kind: str
    code: int
    severity: str
    text: str
    action: str
    job: str
    def __init__(self, slot: _Optional[str] = ..., time_unix_ms: _Optional[int] = ..., kind: _Optional[str] = ..., code: _Optional[int] = ..., severity: _Optional[str] = ..., text: _Optional[str] = ..., action: _Optional[str] = ..., job: _Optional[str] = ...) -> None: ...

class Probe(_message.Message):
    __slots__ = ("slot", "start_unix_ms", "kind", "dtype", "sku", "device_uuid", "seconds", "median_flops", "p10_flops", "p90_flops", "sustained", "result_json", "serial", "driver_version", "outcome", "reason", "median_value", "p10_value", "p90_value", "unit", "kappa")
    SLOT_FIELD_NUMBER: _ClassVar[int]
    START_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SKU_FIELD_NUMBER: _ClassVar[int]
    DEVICE_UUID_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    MEDIAN_FLOPS_FIELD_NUMBER: _ClassVar[int]
    P10_FLOPS_FIELD_NUMBER: _ClassVar[int]
    P90_FLOPS_FIELD_NUMBER: _ClassVar[int]
    SUSTAINED_FIELD_NUMBER: _ClassVar[int]
    RESULT_JSON_FIELD_NUMBER: _ClassVar[int]
    SERIAL_FIELD_NUMBER: _ClassVar[int]
    DRIVER_VERSION_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MEDIAN_VALUE_FIELD_NUMBER: _ClassVar[int]
    P10_VALUE_FIELD_NUMBER: _ClassVar[int]
    P90_VALUE_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    KAPPA_FIELD_NUMBER: _ClassVar[int]
    slot: str
    start_unix_ms: int
    kind: str
    dtype: str
    sku: str
    device_uuid: str
    seconds: float
    median_flops: float
    p10_flops: float
    p90_flops: float
    sustained: bool
    result_json: str
    serial: str
    driver_version: str
    outcome: str
    reason: str
    median_value: float
    p10_value: float
    p90_value: float
    unit: str
    kappa: float
    def __init__(self, slot: _Optional[str] = ..., start_unix_ms: _Optional[int] = ..., kind: _Optional[str] = ..., dtype: _Optional[str] = ..., sku: _Optional[str] = ..., device_uuid: _Optional[str] = ..., seconds: _Optional[float] = ..., median_flops: _Optional[float] = ..., p10_flops: _Optional[float] = ..., p90_flops: _Optional[float] = ..., sustained: _Optional[bool] = ..., result_json: _Optional[str] = ..., serial: _Optional[str] = ..., driver_version: _Optional[str] = ..., outcome: _Optional[str] = ..., reason: _Optional[str] = ..., median_value: _Optional[float] = ..., p10_value: _Optional[float] = ..., p90_value: _Optional[float] = ..., unit: _Optional[str] = ..., kappa: _Optional[float] = ...) -> None: ...

class Capture(_message.Message):
    __slots__ = ("id", "slot", "part", "last", "taken_unix_ms", "columns")
    ID_FIELD_NUMBER: _ClassVar[int]
    SLOT_FIELD_NUMBER: _ClassVar[int]
    PART_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    TAKEN_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    id: str
    slot: str
    part: int
    last: bool
    taken_unix_ms: _containers.RepeatedScalarFieldContainer[int]
    columns: _containers.RepeatedCompositeFieldContainer[CaptureColumn]
    def __init__(self, id: _Optional[str] = ..., slot: _Optional[str] = ..., part: _Optional[int] = ..., last: _Optional[bool] = ..., taken_unix_ms: _Optional[_Iterable[int]] = ..., columns: _Optional[_Iterable[_Union[CaptureColumn, _Mapping]]] = ...) -> None: ...

class CaptureColumn(_message.Message):
    __slots__ = ("name", "values")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    name: str
    values: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, name: _Optional[str] = ..., values: _Optional[_Iterable[float]] = ...) -> None: ...

class AuthoritiesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class AuthoritiesAnswer(_message.Message):
    __slots__ = ("authorities_pem",)
    AUTHORITIES_PEM_FIELD_NUMBER: _ClassVar[int]
    authorities_pem: bytes
    def __init__(self, authorities_pem: _Optional[bytes] = ...) -> None: ...

class EnrollRequest(_message.Message):
    __slots__ = ("token", "cluster", "node", "signing_request_der")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    SIGNING_REQUEST_DER_FIELD_NUMBER: _ClassVar[int]
    token: str
    cluster: str
    node: str
    signing_request_der: bytes
    def __init__(self, token: _Optional[str] = ..., cluster: _Optional[str] = ..., node: _Optional[str] = ..., signing_request_der: _Optional[bytes] = ...) -> None: ...

class RenewRequest(_message.Message):
    __slots__ = ("signing_request_der",)
    SIGNING_REQUEST_DER_FIELD_NUMBER: _ClassVar[int]
    signing_request_der: bytes
    def __init__(self, signing_request_der: _Optional[bytes] = ...) -> None: ...

class Issued(_message.Message):
    __slots__ = ("certificate_pem", "authorities_pem", "expires_unix_ms")
    CERTIFICATE_PEM_FIELD_NUMBER: _ClassVar[int]
    AUTHORITIES_PEM_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    certificate_pem: bytes
    authorities_pem: bytes
    expires_unix_ms: int
    def __init__(self, certificate_pem: _Optional[bytes] = ..., authorities_pem: _Optional[bytes] = ..., expires_unix_ms: _Optional[int] = ...) -> None: ...
