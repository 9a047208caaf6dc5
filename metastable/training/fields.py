"""Command-line options of a configuration: one for every field, described by its docstring."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re

from metastable import console

_ENTRY = re.compile(r"^    (\w+): (.*(?:\n     +\S.*)*)", re.MULTILINE)


def descriptions(config: type) -> dict[str, str]:
    """What the docstring of a dataclass, and of those that it extends, says of fields under `Attributes:`.

    An entry is `name: text`, with lines after the first indented further; the text comes back on
    one line, without its last full stop.
    """
    found: dict[str, str] = {}
    for one in reversed(config.__mro__):
        text = inspect.cleandoc(vars(one).get("__doc__") or "")
        section = text.partition("Attributes:\n")[2].partition("\n\n")[0]
        entries = _ENTRY.findall(section)
        found |= {name: " ".join(text.split()).removesuffix(".") for name, text in entries}
    return found


def add_fields(parser: argparse.ArgumentParser, config: type, defaults: object = None) -> None:
    """An option for every field of a configuration; its default is that of the class, or of the instance.

    A field whose name another option has says `option` in its metadata.
    """
    texts = descriptions(config)
    for field in dataclasses.fields(config):
        flag = "--" + field.metadata.get("option", field.name).replace("_", "-")
        default = field.default if defaults is None else getattr(defaults, field.name)
        text = texts[field.name].replace("%", "%%")
        if isinstance(default, bool):
            action = argparse.BooleanOptionalAction
            parser.add_argument(flag, dest=field.name, default=default, action=action, help=text)
        else:
            kind = console.seed if field.name == "seed" else type(default)
            parser.add_argument(flag, dest=field.name, type=kind, default=default, help=text)
