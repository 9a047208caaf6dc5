"""The one exception of this client, and what an error reply says."""

from __future__ import annotations

import json
import re
from typing import Any

from metastable.errors import MetastableError

REFUSED, DISCONNECTED, TIMEOUT, GARBAGE = "refused", "disconnected", "timeout", "garbage"
UNREADABLE = "unreadable_file"
_OWN = frozenset({REFUSED, DISCONNECTED, TIMEOUT, GARBAGE, UNREADABLE})
_CODE = re.compile(r"[a-z][a-z_]{0,39}")
_MOST_TEXT = 500  # characters that are repeated of a message


class ServerError(MetastableError):
    """No answer to one request; `str` is a sentence for people.

    Attributes:
        code: stable, for programs: the server's own, such as `overloaded` (docs/http-api.md), or

            refused          no connection
            disconnected     the connection broke off
            timeout          no whole answer in time
            garbage          a reply that is not HTTP, too long, or no verdict
            status 404       another status, without an error that can be read
            unreadable_file  the image could not be read, so nothing was sent

        status: of HTTP; 0 where no reply began.
        message: the server's own words; empty where it said none.
        request_id: by which the server's operator finds the request; empty where none is known.
        retry_after: seconds after which the server asks to be tried again; None where it said nothing.
    """

    def __init__(
        self,
        sentence: str,
        code: str,
        status: int = 0,
        message: str = "",
        request_id: str = "",
        retry_after: float | None = None,
    ) -> None:
        # All of them, so that it can be pickled.
        super().__init__(sentence, code, status, message, request_id, retry_after)
        self.sentence, self.code, self.status = sentence, code, status
        self.message, self.request_id, self.retry_after = message, request_id, retry_after

    def __str__(self) -> str:
        return self.sentence


def loaded(body: bytes) -> Any:
    """What JSON says; None for what is none."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def refusal(
    server: str,
    status: int,
    body: bytes,
    *,
    request_id: str = "",
    retry_after: float | None = None,
    key: str | None = None,
) -> ServerError:
    """The error that a reply with another status than 200 is.  Never raises.

    Args:
        server: what the sentence calls it.
        request_id: from the reply's headers, where the body has none.
        key: that is not repeated.
    """
    found = loaded(body)
    found = found if isinstance(found, dict) else {}
    error = found.get("error")
    error = error if isinstance(error, dict) else {}
    code, message = error.get("code"), error.get("message", found.get("message"))  # TorchServe's own
    if not isinstance(code, str) or not _CODE.fullmatch(code) or code in _OWN:
        code = f"status {status}"
    if not isinstance(message, str):
        message = "" if found else body.decode("utf-8", "replace").strip().partition("\n")[0]
    named = found.get("request_id")
    message, request_id = (
        shown(text, key) for text in (message, named if isinstance(named, str) else request_id)
    )
    sentence = f"the server at {server} answered {status}: {message or 'nothing'}"
    return ServerError(sentence, code, status, message, request_id, retry_after)


def shown(text: str, key: str | None = None) -> str:
    """In one line, without the key and what would steer a terminal, and not too long."""
    line = " ".join(text.split())
    line = "".join(letter for letter in line if letter.isprintable())
    return (line.replace(key, "[key]") if key else line)[:_MOST_TEXT]
