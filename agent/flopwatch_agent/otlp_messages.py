"""OpenTelemetry's metrics service, v1: the messages, wire-compatible and no larger than what is read here.

Written from the field numbers of opentelemetry-proto 1.x (`collector/metrics/v1`, `metrics/v1`, `common/v1`,
`resource/v1`); fields left out are skipped by the parser. The package name is our own: names of messages are
not on the wire, and a process may well hold the real ones too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

EXPORT_METHOD: Final = "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export"
DELTA: Final = 1
"""`AggregationTemporality` of a sum that starts again with every export."""

_PACKAGE: Final = "flopwatch.otlp"
_Field: Final = descriptor_pb2.FieldDescriptorProto
_TYPES: Final = {
    "string": _Field.TYPE_STRING,
    "int64": _Field.TYPE_INT64,
    "double": _Field.TYPE_DOUBLE,
    "fixed64": _Field.TYPE_FIXED64,
    "sfixed64": _Field.TYPE_SFIXED64,
}
_MESSAGES: Final[Mapping[str, tuple[tuple[int, str, str], ...]]] = {
    # message: (number, field, a type of `_TYPES` or "Message" for one, "Message*" for many)
    "Request": ((1, "resource_metrics", "ResourceMetrics*"),),
    "ResourceMetrics": ((1, "resource", "Resource"), (2, "scope_metrics", "ScopeMetrics*")),
    "Resource": ((1, "attributes", "KeyValue*"),),
    "KeyValue": ((1, "key", "string"), (2, "value", "AnyValue")),
    "AnyValue": ((1, "string_value", "string"), (3, "int_value", "int64")),
    "ScopeMetrics": ((2, "metrics", "Metric*"),),
    "Metric": ((1, "name", "string"), (5, "gauge", "Gauge"), (7, "sum", "Sum")),
    "Gauge": ((1, "data_points", "Point*"),),
    "Sum": ((1, "data_points", "Point*"), (2, "aggregation_temporality", "int64")),
    "Point": (
        (3, "time_unix_nano", "fixed64"),
        (4, "as_double", "double"),
        (6, "as_int", "sfixed64"),
    ),
    "Response": ((1, "partial_success", "PartialSuccess"),),
    "PartialSuccess": ((1, "rejected_data_points", "int64"), (2, "error_message", "string")),
}


def _file() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(
        name="flopwatch_agent/otlp.proto", package=_PACKAGE, syntax="proto3"
    )
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for number, field, type_ in fields:
            entry = message.field.add(
                name=field,
                number=number,
                label=_Field.LABEL_REPEATED if type_.endswith("*") else _Field.LABEL_OPTIONAL,
                type=_TYPES.get(type_, _Field.TYPE_MESSAGE),
            )
            if entry.type == _Field.TYPE_MESSAGE:
                entry.type_name = f".{_PACKAGE}.{type_.removesuffix('*')}"
    return file


_POOL: Final = descriptor_pool.DescriptorPool()
_POOL.Add(_file())


def message(name: str) -> Any:
    """Return the class of a message, e.g. ``Request``."""
    return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(f"{_PACKAGE}.{name}"))
