"""A request's options, from headers or form fields.

TorchServe drops the query string of a prediction, so an option is a header `X-Metastable-<Name>`
or, in a multipart form, a field of that name:

    setting       one of the server's settings
    top_k         how many classes to list, 1 to the number of classes
    deadline_ms   give up after this many milliseconds, 1 to 600000
    seed          of the chains, 0 to 2^64 - 1; only where the operator allows it
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from metastable.errors import InvalidOption, MalformedRequest

HEADER_PREFIX = "x-metastable-"
NAMES = ("setting", "top_k", "deadline_ms", "seed")
IMAGE_FIELDS = ("image", "body", "data", "file")
MAX_DEADLINE_MS = 600_000
MAX_SEED = 2**64 - 1


@dataclass(frozen=True)
class Allowed:
    """What the operator allows: settings that may be named, that of requests which name none, class count,
    client seeds."""

    settings: tuple[str, ...]
    default: str
    classes: int
    allow_seed: bool = False


@dataclass(frozen=True)
class RequestOptions:
    """Checked options of one request; seed None means a fresh secret one."""

    setting: str
    top_k: int
    deadline_ms: int | None
    seed: int | None


def split_body(row: Mapping[str, object]) -> tuple[bytes, dict[str, str]]:
    """The image bytes and the text fields of a TorchServe row.

    Raises MalformedRequest for no image, two images, a body that TorchServe decoded as JSON or
    text, or an option that is not text; InvalidOption for a field of an unknown name.
    """
    images = [name for name in IMAGE_FIELDS if name in row]
    if len(images) != 1:
        found = "none" if not images else "more than one"
        raise MalformedRequest(
            f"the request must carry exactly one image ({found} found): send its bytes as the body with "
            "Content-Type application/octet-stream, or as the form field 'image'"
        )
    image = row[images[0]]
    if not isinstance(image, bytes | bytearray):
        raise MalformedRequest(
            "the body arrived as text or JSON: send the bytes of an image with Content-Type "
            "application/octet-stream"
        )
    fields = {}
    for name, value in row.items():
        if name in images:
            continue
        if name not in NAMES:
            raise InvalidOption(f"a form field has an unknown name: use image and {', '.join(NAMES)}")
        fields[name] = _text(name, value)
    return bytes(image), fields


def parse(
    headers: Mapping[str, str] | Sequence[tuple[str, str]], fields: Mapping[str, str], policy: Allowed
) -> RequestOptions:
    """Options from headers (any case) and form fields; raises InvalidOption naming the one at fault."""
    given = dict(fields)
    for header, value in headers.items() if isinstance(headers, Mapping) else headers:
        name = header.lower().removeprefix(HEADER_PREFIX).replace("-", "_")
        if not header.lower().startswith(HEADER_PREFIX):
            continue
        if name not in NAMES:
            raise InvalidOption(f"a header X-Metastable-... has an unknown name: use {', '.join(NAMES)}")
        if given.setdefault(name, value) != value:
            raise InvalidOption(f"{name} is given twice with different values: send it once")
    if "setting" in given and not policy.settings:
        raise InvalidOption("this server does not let clients choose the setting: leave it out")
    setting = given.get("setting", policy.default)
    if "setting" in given and setting not in policy.settings:
        raise InvalidOption(f"setting must be one of {', '.join(policy.settings)}")
    if "seed" in given and not policy.allow_seed:
        raise InvalidOption("this server does not let clients choose the seed: leave it out")
    return RequestOptions(
        setting=setting,
        top_k=_whole(given, "top_k", 1, policy.classes) or min(3, policy.classes),
        deadline_ms=_whole(given, "deadline_ms", 1, MAX_DEADLINE_MS),
        seed=_whole(given, "seed", 0, MAX_SEED),
    )


def names_setting(headers: Sequence[tuple[str, str]], fields: Mapping[str, str]) -> bool:
    """Whether the client says which setting it wants."""
    header = HEADER_PREFIX + "setting"
    return "setting" in fields or any(name.lower() == header for name, _ in headers)


def _whole(given: Mapping[str, str], name: str, least: int, greatest: int) -> int | None:
    if name not in given:
        return None
    text = given[name].strip()
    if not re.fullmatch(r"[0-9]{1,20}", text) or not least <= int(text) <= greatest:
        raise InvalidOption(f"{name} must be a whole number from {least} to {greatest}")
    return int(text)


def _text(name: str, value: object) -> str:
    if isinstance(value, bytes | bytearray):
        try:
            value = bytes(value).decode("utf-8")
        except UnicodeDecodeError:
            value = None
    if not isinstance(value, str) or len(value) > 100:
        raise MalformedRequest(f"the form field {name} is not a short text")
    return value
