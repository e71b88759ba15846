"""Leaving sources out of a mixture: by name, or all of a modality, a task or a domain."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vitp.errors import ConfigError
from vitp.instruction.source import SourceConfig


def leave_out(data: Mapping[str, Any]) -> dict[str, Any]:
    """The raw ``data`` section without the sources that ``without`` names; the key is gone then.

    An entry is the name of a source; where none is called so, a modality (``SAR``), a task (``grounding``) or a domain
    (``general``), and all sources that say so of themselves go.

    Raises:
        ConfigError: an entry fits no source, or no source is left.
    """
    kept = dict(data)
    wanted, sources = kept.pop("without", None), kept.get("sources")
    if not wanted or not isinstance(wanted, list | tuple) or not isinstance(sources, list | tuple):
        return dict(data)
    gone: set[int] = set()
    for entry in wanted:
        named = {i for i, source in enumerate(sources) if _fact(source, "name") == entry}
        found = named or {i for i, source in enumerate(sources) if str(entry).lower() in _kinds(source)}
        if not found:
            kinds = sorted(set().union(*map(_kinds, sources)))
            names = ", ".join(str(_fact(source, "name")) for source in sources)
            raise ConfigError(
                f"without: '{entry}' is no source ({names}) and no modality, task or domain of one "
                f"({', '.join(kinds) or 'none is stated'})"
            )
        gone |= found
    if len(gone) == len(sources):
        raise ConfigError("without: leaves no source; name fewer")
    kept["sources"] = [source for i, source in enumerate(sources) if i not in gone]
    return kept


def _fact(source: Any, key: str) -> Any:
    if isinstance(source, SourceConfig):
        return getattr(source, key)
    default = SourceConfig.model_fields[key].default
    return source.get(key, default) if isinstance(source, dict) else None


def _kinds(source: Any) -> set[str]:
    """What a source says of itself, in small letters."""
    tasks = _fact(source, "tasks")
    found = [_fact(source, "modality"), _fact(source, "domain"), *(tasks if isinstance(tasks, list | tuple) else ())]
    return {str(kind).lower() for kind in found if kind}
