"""YAML files, strictly: one mapping, no key twice, and a mistake is one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import yaml

from flatmin.training.errors import InputError


class _Loader(yaml.CSafeLoader):
    """Refuses a key that stands twice in one mapping; plain YAML lets the last one win."""

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        """A value; what looks like a date or a number and is none has its line as well."""
        try:
            return cast("Any", super().construct_object(node, deep))
        except InputError:
            raise
        except _NO_VALUE:
            line = node.start_mark.line + 1
            kind = node.tag.rpartition(":")[2]
            raise InputError(
                f"line {line}: {node.value!r} is no {kind}: if it is a text, put it in quotes"
            ) from None


_NO_VALUE = (ValueError, LookupError, AttributeError, TypeError, OverflowError)
"""What PyYAML lets escape from a value that does not fit its tag."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[str] = set()
    for key, _ in node.value:
        name = str(key.value)
        if name in seen:
            line = key.start_mark.line + 1
            raise InputError(f"line {line}: the key {name!r} stands there twice: remove one")
        seen.add(name)
    loader.flatten_mapping(node)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def read(path: Path) -> dict[str, Any]:
    """The mapping in the file at `path`; InputError names file and line of a mistake."""
    try:
        content = _parsed(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    if not isinstance(content, dict):
        raise InputError(
            f"{path} is not a mapping of keys to values, as YAML writes it: key: value"
        )
    return cast("dict[str, Any]", content)


def scalar(text: str) -> Any:
    """What `text` means where a file says nothing but that."""
    try:
        return _parsed(text)
    except InputError as error:
        raise InputError(
            f"the label {text!r} is no value ({error}): give it changes, as in label: {{field: 1}}"
        ) from None


def _parsed(text: str) -> Any:
    """What `text` says; InputError names the line of a mistake."""
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise InputError(f"line {line}: {error.problem}") from None
    except yaml.reader.ReaderError as error:
        line = text.encode()[: error.position].count(b"\n") + 1
        raise InputError(f"line {line}: {error.reason}") from None
    except RecursionError:
        raise InputError("line 1: it is nested too deeply") from None
