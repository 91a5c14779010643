"""What breaks a reader or a sender of an older contract. Pure.

The contract grows: messages, fields, enum values and methods may be added. A field or value that goes
leaves its number and its name reserved. Names count as much as numbers, because they are the columns of
the telemetry store.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorSet,
    ServiceDescriptorProto,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scope:
    """Everything in a set of files, by its full name."""

    messages: dict[str, DescriptorProto] = field(default_factory=dict)
    enums: dict[str, EnumDescriptorProto] = field(default_factory=dict)
    services: dict[str, ServiceDescriptorProto] = field(default_factory=dict)

    def names(self) -> set[str]:
        """Return every name."""
        return {*self.messages, *self.enums, *self.services}


def breaks(old: FileDescriptorSet, new: FileDescriptorSet) -> list[str]:
    """Return one sentence per change from old to new that breaks the contract."""
    return [*_breaks(_scope(old), _scope(new))]


def _scope(files: FileDescriptorSet) -> _Scope:
    scope = _Scope()
    for file in files.file:
        todo = [(file.package, message) for message in file.message_type]
        scope.enums.update((f"{file.package}.{enum.name}", enum) for enum in file.enum_type)
        scope.services.update((f"{file.package}.{s.name}", s) for s in file.service)
        while todo:
            parent, message = todo.pop()
            name = f"{parent}.{message.name}"
            scope.messages[name] = message
            scope.enums.update((f"{name}.{enum.name}", enum) for enum in message.enum_type)
            todo += [(name, nested) for nested in message.nested_type]
    return scope


def _breaks(old: _Scope, new: _Scope) -> Iterator[str]:
    yield from (f"{name} is gone" for name in sorted(old.names() - new.names()))
    for name in old.messages.keys() & new.messages.keys():
        yield from _message_breaks(name, old.messages[name], new.messages[name])
    for name in old.enums.keys() & new.enums.keys():
        yield from _enum_breaks(name, old.enums[name], new.enums[name])
    for name in old.services.keys() & new.services.keys():
        yield from _service_breaks(name, old.services[name], new.services[name])


def _message_breaks(name: str, old: DescriptorProto, new: DescriptorProto) -> Iterator[str]:
    fields = {now.number: now for now in new.field}
    ranges = [range(r.start, r.end) for r in new.reserved_range]
    for was in old.field:
        now = fields.get(was.number)
        if now is None:
            if was.name not in new.reserved_name or not any(was.number in r for r in ranges):
                yield f"{name}.{was.name} is gone, and {was.number} and its name are not reserved"
        elif now.name != was.name:
            yield f"{name}: number {was.number} was {was.name} and is {now.name}"
        elif _shape(was, old) != _shape(now, new):
            yield f"{name}.{was.name} was {_shape(was, old)} and is {_shape(now, new)}"
    for held in old.reserved_range:
        if not any(held.start in r and held.end - 1 in r for r in ranges):
            yield f"{name}: reserved numbers {held.start} to {held.end - 1} are free again"
    for text in set(old.reserved_name) - set(new.reserved_name):
        yield f"{name}: the reserved name {text} is free again"


def _shape(of: FieldDescriptorProto, message: DescriptorProto) -> str:
    """Label, type and oneof of a field, in words."""
    label = FieldDescriptorProto.Label.Name(of.label).removeprefix("LABEL_").lower()
    kind = of.type_name or FieldDescriptorProto.Type.Name(of.type).removeprefix("TYPE_").lower()
    choice = ""
    if of.HasField("oneof_index"):
        choice = f" of oneof {message.oneof_decl[of.oneof_index].name}"
    return f"{label} {kind}{choice}"


def _enum_breaks(name: str, old: EnumDescriptorProto, new: EnumDescriptorProto) -> Iterator[str]:
    values = {value.number: value.name for value in new.value}
    for was in old.value:
        now = values.get(was.number)
        if now is None and was.name not in new.reserved_name:
            yield f"{name}.{was.name} is gone, and its name is not reserved"
        elif now is not None and now != was.name:
            yield f"{name}: number {was.number} was {was.name} and is {now}"


def _service_breaks(
    name: str, old: ServiceDescriptorProto, new: ServiceDescriptorProto
) -> Iterator[str]:
    methods = {method.name: method for method in new.method}
    for was in old.method:
        now = methods.get(was.name)
        if now is None:
            yield f"{name}.{was.name} is gone"
        elif was.SerializeToString() != now.SerializeToString():
            yield f"{name}.{was.name} takes, gives or streams something else"
