"""YAML that people write: whatever is wrong with it is one line, and no name is given twice."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """Plain values only; a name that a mapping gives twice is an error, where PyYAML takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            name = (key.tag, str(key.value))
            if name in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the name {str(key.value)[:40]!r} is given twice", key.start_mark
                )
            seen.add(name)
        return super().construct_mapping(node, deep)


def read(text: str) -> Any:
    """What the text says; ValueError, in one line, where it is not YAML or gives a name twice."""
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:  # of impossible dates, say
        raise ValueError(one_line(error)) from None


def one_line(error: Exception) -> str:
    """What an error of PyYAML says, and where; its own text has a line for each, and a picture."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        said = " ".join(part for part in (error.context, error.problem) if part)
        return f"{said}, in line {mark.line + 1}, column {mark.column + 1}"
    return " ".join(str(error).split())
