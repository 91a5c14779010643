"""The kubelet's PodResources API, v1: the messages, wire-compatible and no larger than what is read here.

Written from the API's field numbers (kubernetes/kubelet, ``pkg/apis/podresources/v1``); fields left out are
skipped by the parser. Built when imported: the package name on the wire is ``v1``, which no file of ours has.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_MESSAGES: Final[Mapping[str, tuple[tuple[int, str, str], ...]]] = {
    # message: (number, field, type: "str", "strs" for many, "Message" for one, "Message*" for many)
    "ListPodResourcesRequest": (),
    "ListPodResourcesResponse": ((1, "pod_resources", "PodResources*"),),
    "GetPodResourcesRequest": ((1, "pod_name", "str"), (2, "pod_namespace", "str")),
    "GetPodResourcesResponse": ((1, "pod_resources", "PodResources"),),
    "PodResources": (
        (1, "name", "str"),
        (2, "namespace", "str"),
        (3, "containers", "ContainerResources*"),
    ),
    "ContainerResources": (
        (1, "name", "str"),
        (2, "devices", "ContainerDevices*"),
        (5, "dynamic_resources", "DynamicResource*"),
    ),
    "ContainerDevices": ((1, "resource_name", "str"), (2, "device_ids", "strs")),
    "DynamicResource": (
        (2, "claim_name", "str"),
        (3, "claim_namespace", "str"),
        (4, "claim_resources", "ClaimResource*"),
    ),
    "ClaimResource": (
        (2, "driver_name", "str"),
        (3, "pool_name", "str"),
        (4, "device_name", "str"),
    ),
}

_Field: Final = descriptor_pb2.FieldDescriptorProto


def _file() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(
        name="flopwatch_agent/podresources.proto", package="v1", syntax="proto3"
    )
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for number, field, type_ in fields:
            many = type_.endswith("*") or type_ == "strs"
            entry = message.field.add(
                name=field,
                number=number,
                label=_Field.LABEL_REPEATED if many else _Field.LABEL_OPTIONAL,
                type=_Field.TYPE_STRING if type_[:3] == "str" else _Field.TYPE_MESSAGE,
            )
            if entry.type == _Field.TYPE_MESSAGE:
                entry.type_name = f".v1.{type_.removesuffix('*')}"
    return file


# A pool of its own: whoever else speaks a package called v1 in this process is not in the way.
_POOL: Final = descriptor_pool.DescriptorPool()
_POOL.Add(_file())


def message(name: str) -> Any:
    """Return the class of a message of the API, e.g. ``ListPodResourcesResponse``."""
    return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(f"v1.{name}"))
