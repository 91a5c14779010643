"""Configuration from a TOML file, the environment and flags; strict, and typed by msgspec structs.

Later wins: the struct's defaults, the file, the environment, flags. Nothing is ignored: an unknown key, a
wrong type and a value that is not allowed are each a UsageError of one line that says where the value
came from, the dotted key, what is allowed, and the nearest known key.

    cluster = "atlas"          FLOPWATCH_AGENT__CLUSTER=atlas
    [spool]
    bytes_max = 1_000_000      FLOPWATCH_SPOOL__BYTES_MAX=1000000

A settings type is a frozen ``msgspec.Struct`` with ``forbid_unknown_fields``; a field whose type is
another such struct is a section. Relations between fields are checked in ``__post_init__``, which raises
ValueError with a text that begins with the key.
"""

from __future__ import annotations

import difflib
import re
import tomllib
import types
import typing
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import msgspec

from flopwatch_proto.errors import UsageError

T = TypeVar("T", bound=msgspec.Struct)

ENV_PREFIX: Final = "FLOPWATCH_"
_UNITS_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")


class Duration(float):
    """A length of time in seconds, written ``"500ms"``, ``"10s"``, ``"5m"``, ``"2h"`` or ``"35d"``."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Duration:
        """Return the duration that the text says.

        Raises:
            ValueError: not a number and a unit.
        """
        match = _DURATION.fullmatch(text.strip())
        if match is None:
            raise ValueError(f"{text!r} is not a duration such as 500ms, 10s, 5m, 2h or 35d")
        return cls(float(match[1]) * _UNITS_SECONDS[match[2]])

    @property
    def milliseconds(self) -> int:
        """The duration in whole milliseconds."""
        return round(self * 1000)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Given:
    """A value that somebody gave. Attributes: origin: file, variable or flag; text: from a string."""

    value: Any
    origin: str
    text: bool = False


def load(
    type_: type[T],
    *,
    path: Path | None,
    environ: Mapping[str, str],
    env_prefix: str,
    default_path: Path | None = None,
    flags: Mapping[str, tuple[str, str | None]] | None = None,
    foreign_sections: Collection[str] = (),
) -> T:
    """Return the settings.

    Args:
        path: a file that somebody named; it must exist. None: ``default_path``, which need not.
        environ: usually ``os.environ``.
        env_prefix: of top-level keys, e.g. ``FLOPWATCH_AGENT`` for ``FLOPWATCH_AGENT__CLUSTER``.
        flags: flag → (dotted key, text), e.g. ``{"--node": ("node", "n1")}``; None is not given.
        foreign_sections: sections of the environment that other programs read; left alone.

    Raises:
        UsageError: something is wrong with a key or a value.
    """
    given: dict[str, Any] = {}
    if path is not None or default_path is not None:
        _read_file(given, path, default_path)
    _read_environment(given, type_, environ, env_prefix, frozenset(foreign_sections))
    for flag, (dotted, text) in (flags or {}).items():
        if text is not None:
            _place(given, dotted.split("."), _Given(value=text, origin=flag, text=True))
    settings: T = _build(type_, given, (), type_)
    return settings


def keys(type_: type[msgspec.Struct], prefix: str = "") -> Iterator[str]:
    """Yield every dotted key of a settings type, e.g. ``cluster`` and ``spool.bytes_max``."""
    for field in msgspec.structs.fields(type_):
        section = _section(field.type)
        if section is not None:
            yield from keys(section, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}"


def _read_file(given: dict[str, Any], path: Path | None, default_path: Path | None) -> None:
    file = path or default_path
    assert file is not None
    try:
        tree = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if path is None:
            return
        raise UsageError(f"{file}: no such configuration file") from None
    except (OSError, UnicodeDecodeError) as exc:
        raise UsageError(f"{file}: cannot be read: {exc}") from exc
    except tomllib.TOMLDecodeError as exc:
        raise UsageError(f"{file}: not TOML: {exc}") from exc
    given.update(_wrap(tree, str(file)))


def _wrap(value: Any, origin: str) -> Any:
    """Tables stay dicts; every other value is told where it came from."""
    if isinstance(value, dict):
        return {key: _wrap(inner, origin) for key, inner in value.items()}
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        return [_wrap(item, origin) for item in value]
    return _Given(value=value, origin=origin)


def _read_environment(
    given: dict[str, Any],
    type_: type[msgspec.Struct],
    environ: Mapping[str, str],
    env_prefix: str,
    foreign: frozenset[str],
) -> None:
    root = env_prefix.removeprefix(ENV_PREFIX).lower()
    sections = {f.name: s for f in msgspec.structs.fields(type_) if (s := _section(f.type))}
    for name, text in sorted(environ.items()):
        if not name.startswith(ENV_PREFIX) or "__" not in name:
            continue  # FLOPWATCH_JOB and its like are said by jobs, not by configuration
        section, _, key = name.removeprefix(ENV_PREFIX).lower().partition("__")
        if section != root and section not in sections:
            if section in foreign:
                continue
            known = [_variable(env_prefix, dotted) for dotted in keys(type_)]
            raise UsageError(f"{name}: unknown section {section!r}{_nearest(name, known)}")
        parts = key.split("__") if section == root else [section, *key.split("__")]
        if section == root and parts[0] in sections and len(parts) == 1:
            hint = _variable(env_prefix, f"{parts[0]}.KEY")
            raise UsageError(f"{name}: {parts[0]!r} is a section; set {hint}")
        _place(given, parts, _Given(value=text, origin=name, text=True))


def _variable(env_prefix: str, dotted: str) -> str:
    head, _, tail = dotted.partition(".")
    name = f"{ENV_PREFIX}{head}__{tail.replace('.', '__')}" if tail else f"{env_prefix}__{head}"
    return name.upper()


def _place(given: dict[str, Any], parts: list[str], value: _Given) -> None:
    for part in parts[:-1]:
        inner = given.setdefault(part, {})
        if not isinstance(inner, dict):
            inner = given[part] = {}
        given = inner
    given[parts[-1]] = value


def _build(type_: Any, tree: Any, at: tuple[str, ...], root: type[msgspec.Struct]) -> Any:
    """Return the value of a type from wrapped input."""
    section = _section(type_)
    if section is not None:
        return _build_section(section, tree, at, root)
    item = _item_section(type_)
    if item is not None and isinstance(tree, list):
        container = tuple if typing.get_origin(_plain(type_)) is tuple else list
        return container(_build(item, e, (*at, str(i)), root) for i, e in enumerate(tree))
    if item is not None and isinstance(tree, dict):
        return {key: _build(item, inner, (*at, key), root) for key, inner in tree.items()}
    if isinstance(tree, (dict, list)):
        tree = _Given(value=_unwrap(tree), origin=_origin(tree))
    return _convert(type_, tree, at)


def _build_section(
    type_: type[msgspec.Struct], tree: Any, at: tuple[str, ...], root: type[msgspec.Struct]
) -> msgspec.Struct:
    if not isinstance(tree, dict):
        raise UsageError(f"{_origin(tree)}: {'.'.join(at)} is a section, not a value")
    fields = {field.name: field for field in msgspec.structs.fields(type_)}
    for key in tree:
        if key not in fields:
            dotted = ".".join((*at, key))
            near = _nearest_key(key, at, fields, root)
            raise UsageError(f"{_origin(tree[key])}: unknown key {dotted}{near}")
    values: dict[str, Any] = {}
    for name, field in fields.items():
        if name in tree:
            values[name] = _build(field.type, tree[name], (*at, name), root)
        elif field.required:
            raise UsageError(f"{_origin(tree)}: key {'.'.join((*at, name))} is missing")
    try:
        return type_(**values)
    except ValueError as exc:
        origin = _origin(tree) if tree else "configuration"
        raise UsageError(f"{origin}: {'.'.join(at)}{'.' if at else ''}{exc}") from exc


def _convert(type_: Any, given: _Given, at: tuple[str, ...]) -> Any:
    value = _read_text(type_, given.value) if given.text else given.value
    where = f"{given.origin}: {'.'.join(at)}" if at else given.origin
    try:
        # Text was already read by its type, numbers aside; a file must say the type itself.
        return msgspec.convert(value, type_, strict=not given.text, dec_hook=_decode)
    except msgspec.ValidationError as exc:
        raise UsageError(f"{where} = {given.value!r}: {_allowed(type_, value, exc)}") from exc


def _allowed(type_: Any, value: Any, exc: Exception) -> str:
    choices = [str(c) for c in _choices(type_)]
    if not choices:
        return re.sub(r" - at `\$.*`$", "", str(exc)).replace("`", "")
    return f"allowed are {', '.join(choices)}{_nearest(str(value), choices)}"


def _choices(type_: Any) -> tuple[Any, ...]:
    plain = _plain(type_)
    return typing.get_args(plain) if typing.get_origin(plain) is Literal else ()


def _decode(type_: type, value: Any) -> Any:
    if issubclass(type_, Duration):
        if not isinstance(value, str):
            raise ValueError("expected a duration such as 500ms, 10s, 5m, 2h or 35d, in quotes")
        return Duration.parse(value)
    if issubclass(type_, Path):
        if not isinstance(value, str) or not value:
            raise ValueError("expected a path in quotes")
        return type_(value).expanduser()
    raise NotImplementedError(f"settings of type {type_.__name__}")


def _read_text(type_: Any, text: str) -> Any:
    """Lists are written with commas; everything else msgspec reads from text by the type."""
    if typing.get_origin(_plain(type_)) in (list, tuple, set, frozenset):
        return [part.strip() for part in text.split(",") if part.strip()]
    return text


def _plain(type_: Any) -> Any:
    """Return the type without ``Annotated`` and ``| None``."""
    if typing.get_origin(type_) is typing.Annotated:
        return _plain(typing.get_args(type_)[0])
    if typing.get_origin(type_) in (typing.Union, types.UnionType):
        inner = [t for t in typing.get_args(type_) if t is not type(None)]
        return _plain(inner[0]) if len(inner) == 1 else type_
    return type_


def _section(type_: Any) -> type[msgspec.Struct] | None:
    plain = _plain(type_)
    return plain if isinstance(plain, type) and issubclass(plain, msgspec.Struct) else None


def _item_section(type_: Any) -> Any:
    """Return the struct in ``list[S]``, ``tuple[S, ...]`` or ``dict[str, S]``; else None."""
    plain = _plain(type_)
    arguments = typing.get_args(plain)
    if typing.get_origin(plain) in (list, tuple) and arguments:
        return _section(arguments[0])
    return _section(arguments[1]) if typing.get_origin(plain) is dict else None


def _unwrap(tree: Any) -> Any:
    if isinstance(tree, _Given):
        return tree.value
    if isinstance(tree, dict):
        return {key: _unwrap(inner) for key, inner in tree.items()}
    return [_unwrap(item) for item in tree]


def _origin(tree: Any) -> str:
    """Return where the first value below came from."""
    if isinstance(tree, _Given):
        return tree.origin
    inner = list(tree.values()) if isinstance(tree, dict) else tree
    return _origin(inner[0]) if inner else "configuration"


def _nearest_key(
    key: str, at: tuple[str, ...], fields: Collection[str], root: type[msgspec.Struct]
) -> str:
    siblings = difflib.get_close_matches(key, fields, n=1)
    if siblings:
        return f"; the nearest known key is {'.'.join((*at, siblings[0]))}"
    return _nearest(".".join((*at, key)), list(keys(root)))


def _nearest(word: str, known: Collection[str]) -> str:
    """Return "; the nearest known …" for a list that is not empty."""
    if not known:
        return ""
    best = max(known, key=lambda k: difflib.SequenceMatcher(None, word.lower(), k.lower()).ratio())
    return f"; the nearest known is {best}"
