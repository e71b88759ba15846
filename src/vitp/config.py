"""Recipes: strict pydantic models read from YAML, with dotted overrides, and every mistake named with its line."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from enum import Enum
from pathlib import Path, PurePath
from types import UnionType
from typing import Annotated, Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, ValidationError
from pydantic_core import CoreSchema, ErrorDetails

from vitp.errors import ConfigError
from vitp.files import write_text
from vitp.yaml_lines import Document, Loc, parse, read, write

Kinds = tuple[Any, ...]  # the types a value may have: the members of a union, or one type
C = TypeVar("C", bound="Config")


_SCALARS = ("int", "float", "bool", "str")
_INNER = ("schema", "fields", "choices", "items_schema", "keys_schema", "values_schema", "steps", "definitions",
          "lax_schema", "strict_schema", "json_schema", "python_schema")  # fmt: skip


def _make_scalars_strict(node: Any) -> None:
    """Mark the scalars of a core schema strict, in place; pydantic's own switch would refuse lists for tuples too."""
    if isinstance(node, list | tuple):
        for item in node:
            _make_scalars_strict(item)
    elif isinstance(node, dict) and isinstance(node.get("type"), str):
        if node["type"] in _SCALARS:
            node.setdefault("strict", True)
        for key in _INNER:
            _make_scalars_strict(node.get(key))
    elif isinstance(node, dict):  # field or tag names -> schemas
        _make_scalars_strict(list(node.values()))


class Config(BaseModel):
    """Base of every configuration: unknown keys are refused, instances are frozen, defaults are checked too.

    Scalars are strict (the text "1" and the boolean true are no numbers; 1 is a fine float). Containers and paths are
    not, so that a list from YAML becomes a tuple and a text becomes a `Path`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)
    early_keys: ClassVar[tuple[str, ...]] = ()  # beginnings of the overrides that `expand` wants applied before it

    @classmethod
    def expand(cls, document: Document) -> None:
        """Rewrite the raw recipe in place before the other overrides, where a key stands for much else.

        Raises:
            VitpError: what the key names cannot be used.
        """

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler, /) -> CoreSchema:
        schema = handler(source)
        _make_scalars_strict(handler.resolve_ref_schema(schema))
        return schema


def load(
    cls: type[C],
    path: Path | str | None,
    overrides: Sequence[str] = (),
    find: Callable[[str], Path | None] | None = None,
) -> C:
    """Read a recipe, apply overrides from left to right, and validate.

    An override is ``a.b.0.c=value``, its value written in YAML. An index equal to the list's length appends; what is
    missing on the way is created, starting from the field's default. Keys that contain a dot cannot be overridden.

    Args:
        cls: the configuration to build.
        path: YAML file, or None to start from an empty recipe.
        overrides: dotted overrides.
        find: turns the bare name of a packaged recipe into its file; asked only when `path` is no file.

    Raises:
        ConfigError: with one line for each mistake: ``recipe.yaml:12: data.root: what is wrong``.
    """
    if path is None:
        document = Document("command line")
    else:
        found = find(str(path)) if find is not None and not Path(path).is_file() else None
        document = read(found or Path(path))
    document.from_command_line = True
    early = [text for text in overrides if text.strip().startswith(cls.early_keys)]
    for text in early:
        _override(document, cls, text)
    cls.expand(document)
    for text in overrides:
        if text not in early:
            _override(document, cls, text)
    try:
        config = cls.model_validate(document.data)
    except ValidationError as error:
        for loc, text in explain(cls, error):
            document.blame(loc, text)
    if document.mistakes:
        raise ConfigError(document.report())
    return config


def dump(config: Config) -> str:
    """YAML text that `load` reads back to an equal configuration; keys stand in the order of declaration."""
    return write(_plain(config))


def save(config: Config, path: Path | str) -> None:
    """Write `dump(config)` to `path` atomically; raises OutputError where that is impossible."""
    write_text(Path(path), dump(config))


def _plain(value: Any) -> Any:
    """A value of a configuration as the types YAML knows."""
    if isinstance(value, BaseModel):
        return {name: _plain(getattr(value, name)) for name in type(value).model_fields}
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, AbstractSet):
        return sorted(_plain(item) for item in value)
    if isinstance(value, Enum):
        return _plain(value.value)
    if isinstance(value, PurePath):
        return str(value)
    assert value is None or isinstance(value, str | bool | int | float), f"a Config cannot hold {type(value)}"
    return value


# ------------------------------------------------------------------------------------------------------------ overrides


def _override(document: Document, cls: type[Config], text: str) -> None:
    """Apply one ``a.b.0.c=value``."""
    path, equals, value = text.partition("=")
    segments = path.strip().split(".")
    if not equals or not all(segments):
        return document.blame((), f"an override looks like key.path=value, got '{text}'", 0)
    try:
        node = parse(value)
    except (yaml.YAMLError, RecursionError):
        return document.blame((), f"the value of '{text}' is not YAML; quote it twice, as in {path}=\"'...'\"", 0)
    if node is None:
        return document.blame((), f"'{text}' has no value; write {path}=null or {path}=\"''\"", 0)
    loc: Loc = ()
    container, kinds = document.data, members(cls)
    for segment in segments[:-1]:
        if (key := _key(document, container, kinds, segment, loc)) is None:
            return None
        loc, below = (*loc, key), inside(kinds, key)
        child = container[key] if _has(container, key) else None
        if child is None:
            child = _start(kinds, key, below)
            _put(document, container, loc, child)
        if not isinstance(child, dict | list):
            return document.blame(loc, f"is {_show(child)}, so '{path}' cannot be set inside it", 0)
        container, kinds = child, below
    if (key := _key(document, container, kinds, segments[-1], loc)) is not None:
        _put(document, container, (*loc, key), document.build(node, (*loc, key)))
    return None


def _key(document: Document, container: Any, kinds: Kinds, segment: str, loc: Loc) -> Any:
    """A segment of an override as a key or index of the container; None, and blamed, where it cannot be one."""
    numeric = re.fullmatch("-?[0-9]+", segment) is not None
    if isinstance(container, dict):
        by_number = any(_origin(kind) in (dict, Mapping) and get_args(kind)[0] is int for kind in kinds)
        return int(segment) if numeric and by_number else segment
    if numeric and 0 <= int(segment) <= len(container):
        return int(segment)
    document.blame(
        (*loc, segment), f"this is a list of {len(container)}; give an index up to {len(container)}, which appends", 0
    )
    return None


def _put(document: Document, container: Any, loc: Loc, child: Any) -> None:
    document.lines = {old: line for old, line in document.lines.items() if old[: len(loc)] != loc} | {loc: 0}
    if _has(container, loc[-1]) or isinstance(container, dict):
        container[loc[-1]] = child
    else:
        container.append(child)


def _has(container: Any, key: Any) -> bool:
    return key in container if isinstance(container, dict) else key < len(container)


def _start(kinds: Kinds, key: Any, below: Kinds) -> Any:
    """What an override that goes deeper than the recipe starts from: the default, or else an empty container."""
    for kind in kinds:
        if _is_model(kind) and key in kind.model_fields and not kind.model_fields[key].is_required():
            value = kind.model_fields[key].get_default(call_default_factory=True)
            default = _plain(value)
            if isinstance(value, BaseModel) and sum(_is_model(member) for member in below) > 1:
                # one of several kinds: what it leaves at its own defaults must not stay when an override names another kind
                fields = type(value).model_fields
                tags = {name for name, field in fields.items() if _origin(field.annotation) is Literal}
                default = {name: default[name] for name in fields if name in tags or name in value.model_fields_set}
            if default is not None:
                return default
    return [] if any(_is_list(kind) for kind in below) else {}


# ------------------------------------------------------------------------------------- the model's types along a path


def _origin(annotation: Any) -> Any:
    return get_origin(annotation)


def members(annotation: Any) -> Kinds:
    """Types a value may have, without Annotated, Union and None."""
    origin = _origin(annotation)
    if origin is Annotated:
        return members(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return tuple(kind for option in get_args(annotation) for kind in members(option))
    return () if annotation is type(None) else (annotation,)


def inside(kinds: Kinds, key: Hashable) -> Kinds:
    """Types of what stands at `key` in a value of one of `kinds`; empty where nothing is known."""
    found: Kinds = ()
    for kind in kinds:
        arguments = get_args(kind)
        if _is_model(kind):
            found += members(kind.model_fields[key].annotation) if key in kind.model_fields else ()
        elif _origin(kind) in (dict, Mapping):
            found += members(arguments[1])
        elif _is_list(kind) and isinstance(key, int) and arguments:
            fixed = _origin(kind) is tuple and Ellipsis not in arguments
            found += members(arguments[min(key, len(arguments) - 1) if fixed else 0])
    return found


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _is_list(kind: Any) -> bool:
    return (_origin(kind) or kind) in (list, tuple, set, frozenset, Sequence)


def _narrow(kinds: Kinds, label: str) -> Kinds:
    """Members of a union that pydantic's label (a discriminator's value or a type's name) stands for."""
    models = [kind for kind in kinds if _is_model(kind)]
    shared = set.intersection(*(set(model.model_fields) for model in models)) if models else set()
    tagged = [m for m in models if any(label in map(str, get_args(m.model_fields[key].annotation)) for key in shared)]
    names = [str(getattr(_origin(kind) or kind, "__name__", kind)) for kind in kinds]
    named = [kind for kind, name in zip(kinds, names, strict=True) if re.search(rf"\b{re.escape(name)}\b", label)]
    return tuple(tagged or named) or kinds


def _follow(cls: type[Config], error: ErrorDetails) -> tuple[Loc, Kinds, tuple[int, ...]]:
    """An error's place in the data, the types of what holds that place, and the depths of the unions passed.

    pydantic adds the label of the union's member to its locations; the data has no such level.
    """
    loc: Loc = ()
    owners: Kinds = ()
    forks: tuple[int, ...] = ()
    kinds, labelled = members(cls), False
    for element in error["loc"]:
        if element == "[key]":  # the key itself is wrong, not its value
            continue
        if len(kinds) > 1 and not (labelled and inside(kinds, element)):
            kinds, forks, labelled = _narrow(kinds, str(element)), (*forks, len(loc)), True
            continue
        loc, owners, kinds, labelled = (*loc, element), kinds, inside(kinds, element), False
    return loc, owners, forks


# ---------------------------------------------------------------------------------------------- mistakes in plain words

_WORDING = {
    "union_tag_not_found": "the key {discriminator} is missing, which says what this is",
    "union_tag_invalid": "{discriminator} must be one of {expected_tags}",
    "literal_error": "must be {expected}",
    "enum": "must be {expected}",
    "finite_number": "must be a finite number",
    "string_type": "must be a text",
    "path_type": "must be a path",
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "multiple_of": "must be a multiple of {multiple_of}",
    "too_short": "must have at least {min_length} items",
    "too_long": "must have at most {max_length} items",
    "string_too_short": "must have at least {min_length} characters",
    "string_too_long": "must have at most {max_length} characters",
    "string_pattern_mismatch": "must match the pattern {pattern}",
}
_PLAIN = r"[-+]?[0-9.]+([eE][-+]?[0-9]+)?|true|false"  # what would be a number or boolean without its quotes
_SHAPES = {  # beginnings of the many names pydantic has for a wrong type
    "int_": "must be a whole number",
    "float_": "must be a number",
    "bool_": "must be true or false",
    "list_": "must be a list",
    "tuple_": "must be a list",
    "set_": "must be a list",
    "frozen_set_": "must be a list",
    "model_": "must be a mapping of keys to values",
    "dict_": "must be a mapping of keys to values",
    "mapping_": "must be a mapping of keys to values",
}


def explain(cls: type[Config], error: ValidationError) -> Iterator[tuple[Loc, str]]:
    """(place in the data, what is wrong) of each mistake, in our own words; a union's complaints become one."""
    placed = [(*_follow(cls, details), details) for details in error.errors(include_url=False)]
    entered = {loc[:fork] for loc, _, forks, _ in placed for fork in forks if fork < len(loc)}
    complaints: dict[Loc, list[tuple[str, str]]] = {}
    for loc, owners, forks, details in placed:
        if details["type"] == "too_short" and len(details["input"]) >= details["ctx"]["min_length"]:
            continue  # pydantic counts the valid items only, and names the others anyway
        if len(loc) in forks and loc in entered:  # another member of the union had the right shape and complains inside
            continue
        complaints.setdefault(loc, []).append(_describe(details, owners))
    for loc, texts in complaints.items():
        wordings = list(dict.fromkeys(wording for wording, _ in texts))
        joined = " or ".join([wordings[0], *(wording.removeprefix("must be ") for wording in wordings[1:])])
        yield loc, joined + texts[0][1]


def _describe(details: ErrorDetails, owners: Kinds) -> tuple[str, str]:
    """Wording of one error, and what follows it: the value that was found and a hint."""
    kind, given = details["type"], details["input"]
    context = {key: str(value).removesuffix(".0") for key, value in details.get("ctx", {}).items()}
    if kind in ("extra_forbidden", "invalid_key"):
        keys = [name for owner in owners if _is_model(owner) for name in owner.model_fields]
        return f"unknown key{_suggest(details['loc'][-1], keys)} (keys here: {', '.join(keys) or 'none'})", ""
    if kind in ("value_error", "assertion_error"):
        return context["error"], ""
    if kind == "missing":
        return ("required item is missing" if isinstance(details["loc"][-1], int) else "required key is missing"), ""
    if kind == "union_tag_invalid":
        tags = re.findall("'([^']*)'", context["expected_tags"])
        return _WORDING[kind].format(**context), f", got {_show(context['tag'])}{_suggest(context['tag'], tags)}"
    if kind == "union_tag_not_found":
        return _WORDING[kind].format(**context), ""
    wording = _WORDING.get(kind) or next((text for start, text in _SHAPES.items() if kind.startswith(start)), "")
    hint = ""
    if kind in ("literal_error", "enum"):
        hint = _suggest(given, re.findall("'([^']*)'", context["expected"]))
    elif kind == "string_type" and isinstance(given, int | float):
        hint = "; put it in quotes"
    elif kind == "int_from_float" or (isinstance(given, float) and kind.startswith("int_") and given.is_integer()):
        hint = f"; write {int(given)}" if given.is_integer() else ""
    elif kind.startswith(("int_", "float_", "bool_")) and isinstance(given, str) and re.fullmatch(_PLAIN, given):
        hint = "; remove the quotes"
    return (wording.format(**context) or details["msg"]), f", got {_show(given)}{hint}"


def _suggest(given: object, choices: Sequence[str]) -> str:
    """``; did you mean 'x'?`` where a choice is close to what was given."""
    by_lower = {choice.lower(): choice for choice in choices}
    close = difflib.get_close_matches(str(given).lower(), by_lower, n=1, cutoff=0.6)
    return f"; did you mean '{by_lower[close[0]]}'?" if close else ""


def _show(value: object) -> str:
    """A value as a message names it: short, in the words of YAML."""
    if isinstance(value, str):
        return repr(value if len(value) <= 60 else value[:57] + "...")
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | tuple) and (len(value) > 6 or len(str(value)) > 60):
        return f"a list of {len(value)}"
    return f"[{', '.join(map(_show, value))}]" if isinstance(value, list | tuple) else str(value)
