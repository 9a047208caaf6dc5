"""What a server says of its model, typed: the metadata of the Open Inference Protocol, version 2."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from metastable.client.fields import items, name


@dataclass(frozen=True)
class Tensor:
    """An input or output: `datatype` as the protocol names it, -1 in a `shape` that is open."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Description:
    """A model: `raw` is the JSON itself, with fields that this version does not know."""

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    raw: dict[str, Any] = field(repr=False)

    @classmethod
    def of(cls, said: Any) -> Description:
        """The description in a reply's JSON; ValueError for anything that is none."""
        try:
            return cls(
                name=name(said["name"]),
                versions=tuple(map(name, items(said.get("versions", [])))),
                platform=name(said.get("platform", "")),
                inputs=tuple(map(_tensor, items(said["inputs"]))),
                outputs=tuple(map(_tensor, items(said["outputs"]))),
                raw=said,
            )
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"no description: {error!r}") from None


def _tensor(said: Any) -> Tensor:
    return Tensor(name(said["name"]), name(said["datatype"]), tuple(map(_length, items(said["shape"]))))


def _length(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not -1 <= value < 1 << 31:
        raise ValueError("not a length")
    return value
