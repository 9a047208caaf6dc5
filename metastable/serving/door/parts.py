"""What a body holds: images, and options beside them."""

from __future__ import annotations

import base64
import binascii
import json
import logging
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from metastable.errors import InvalidOption, MalformedRequest, TooLarge
from metastable.serving.options import IMAGE_FIELDS, MAX_DEADLINE_MS, MAX_SEED, NAMES

# It warns of damaged forms, a line for each, with bytes of the client.
logging.getLogger("python_multipart").setLevel(logging.CRITICAL)

SEVERAL = "images"
_NO_OBJECT = "the body is no JSON object: send one, or the bytes of an image as they are"
_MOST_PARTS = 64
_MOST_TEXT = 100


@dataclass(frozen=True)
class Parts:
    """Images as they were sent, one or several, and the options given as fields.

    Attributes:
        several: whether the answer is a list, as it is where `images` was sent.
    """

    images: list[bytes]
    several: bool
    options: dict[str, str] = field(default_factory=dict)


class ClassifyBody(BaseModel):
    """One image, or several, in base64, with the options of all of them."""

    model_config = ConfigDict(extra="forbid", strict=True)

    image: str | None = Field(None, description="base64 of a PNG, JPEG, WebP or .npy file")
    images: Annotated[list[str], Field(min_length=1)] | None = Field(None, description="several of them")
    setting: str | None = Field(None, description="one of the server's settings")
    top_k: int | None = Field(None, ge=1, description="how many classes are listed")
    deadline_ms: int | None = Field(None, ge=1, le=MAX_DEADLINE_MS, description="give up after so long")
    seed: int | None = Field(None, ge=0, le=MAX_SEED, description="of the chains, where it is allowed")


def of_body(body: bytes, content_type: str, most: int) -> Parts:
    """The parts of a body of this Content-Type; anything that is neither a form nor JSON is an image itself.

    Args:
        most: images of one request.

    Raises MalformedRequest for a damaged form or JSON, for none, two or doubled fields; InvalidOption for an
    unknown field; TooLarge for more images.
    """
    kind, parameters = parse_options_header(content_type)
    if kind == b"multipart/form-data":
        parts = _of_form(body, parameters.get(b"boundary", b""))
    elif kind == b"application/json":
        parts = _of_json(body, most)
    else:
        if not body:
            raise MalformedRequest("the body is empty: send the bytes of a PNG, JPEG, WebP or .npy file")
        parts = Parts([body], several=False)
    if len(parts.images) > most:
        raise _too_many(len(parts.images), most)
    return parts


def _too_many(count: int, most: int) -> TooLarge:
    return TooLarge(f"there are {count} images in the request: send at most {most}")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; MalformedRequest for a name that is there twice."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise MalformedRequest("the JSON has a name twice: send each once")
    return found


def _of_json(body: bytes, most: int) -> Parts:
    try:
        # Pydantic's own reader of JSON takes the last of two equal names.
        found = ClassifyBody.model_validate(json.loads(body, object_pairs_hook=_once))
    except ValidationError as error:
        raise _explained(error) from None
    except (ValueError, RecursionError):  # no UTF-8, no JSON, a number of thousands of digits
        raise MalformedRequest(_NO_OBJECT) from None
    if (found.image is None) == (found.images is None):
        raise MalformedRequest("the JSON must have either `image` or `images`, in base64")
    given = [found.image] if found.images is None else found.images
    if len(given) > most:
        raise _too_many(len(given), most)
    options = {name: str(value) for name in NAMES if (value := getattr(found, name)) is not None}
    return Parts([_bytes_of(one) for one in given if one is not None], found.images is not None, options)


def _bytes_of(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise MalformedRequest("an image of the JSON is no base64: encode its file on one line") from None


def _explained(error: ValidationError) -> MalformedRequest | InvalidOption:
    """The first fault; names are told only where they are ours."""
    fault = error.errors(include_input=False, include_url=False, include_context=False)[0]
    where = next((str(one) for one in fault["loc"] if one in (*NAMES, "image", SEVERAL)), None)
    if fault["type"] == "json_invalid" or (where is None and fault["type"] != "extra_forbidden"):
        return MalformedRequest(_NO_OBJECT)
    if where is None:
        return InvalidOption(f"the JSON has an unknown field: use image, {SEVERAL} and {', '.join(NAMES)}")
    if where in NAMES:
        return InvalidOption(f"{where}: {fault['msg']}")
    return MalformedRequest(f"{where}: {fault['msg']}")


def _of_form(body: bytes, boundary: bytes) -> Parts:
    fields = _Fields.of(body, boundary)
    images: list[bytes] = []
    names: set[str] = set()
    options: dict[str, str] = {}
    for name, value in fields:
        if name in (*IMAGE_FIELDS, SEVERAL):
            images.append(value)
            names.add(name)
            continue
        if name not in NAMES:
            raise InvalidOption(
                f"a form field has an unknown name: use image, {SEVERAL} and {', '.join(NAMES)}"
            )
        if name in options:
            raise MalformedRequest(f"the form field {name} is there twice: send it once")
        options[name] = _text(name, value)
    several = names == {SEVERAL}
    if len(images) != 1 and not several:
        found = "none" if not images else "more than one"
        raise MalformedRequest(
            f"the form must carry exactly one image ({found} found): send its file as the field 'image', or "
            f"several, each as a field '{SEVERAL}'"
        )
    return Parts(images, several, options)


def _text(name: str, value: bytes) -> str:
    try:
        text = value.decode()
    except UnicodeDecodeError:
        text = None
    if text is None or len(text) > _MOST_TEXT:
        raise MalformedRequest(f"the form field {name} is not a short text")
    return text


class _Fields:
    """Name and bytes of each part of a form, as the parser calls them out."""

    def __init__(self) -> None:
        self.found: list[tuple[str, bytes]] = []
        self._headers: dict[bytes, bytes] = {}
        self._name = self._value = b""
        self._data: list[bytes] = []

    @classmethod
    def of(cls, body: bytes, boundary: bytes) -> list[tuple[str, bytes]]:
        """Raises MalformedRequest for what is no whole form."""
        fields = cls()
        ended = False

        def end() -> None:
            nonlocal ended
            ended = True

        try:
            parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": fields._begin,
                    "on_header_field": fields._header_name,
                    "on_header_value": fields._header_value,
                    "on_header_end": fields._header_end,
                    "on_part_data": lambda data, start, stop: fields._data.append(data[start:stop]),
                    "on_part_end": fields._end,
                    "on_end": end,
                },
            )
            parser.write(body)
            parser.finalize()
        except (FormParserError, ValueError):
            ended = False
        if not ended:
            raise MalformedRequest("the form is damaged or cut off: send it again, with its boundary")
        return fields.found

    def _begin(self) -> None:
        if len(self.found) >= _MOST_PARTS:
            raise MalformedRequest(f"the form has more than {_MOST_PARTS} parts")
        self._headers, self._data = {}, []

    def _header_name(self, data: bytes, start: int, stop: int) -> None:
        self._name += data[start:stop]

    def _header_value(self, data: bytes, start: int, stop: int) -> None:
        self._value += data[start:stop]

    def _header_end(self) -> None:
        name = self._name.lower()
        if name in self._headers:
            raise MalformedRequest("a part of the form has a header twice")
        self._headers[name] = self._value
        self._name = self._value = b""

    def _end(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        if b"name" not in options:
            raise MalformedRequest("a part of the form has no name: give each one, the image's is 'image'")
        name = options[b"name"].decode(errors="replace")
        self.found.append((name, b"".join(self._data)))
