"""A running server, asked over HTTP."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

from metastable.errors import MetastableError

HERE = "http://127.0.0.1:8080"
PATH = "/predictions/metastable"


class Absent(MetastableError):
    """Nobody listens there."""


def ask(
    client: httpx.Client, url: str, body: bytes, options: Mapping[str, str], key: str | None = None
) -> dict[str, Any]:
    """The verdict on the bytes of an image.

    Args:
        url: where the server predicts, or its address alone.
        options: by name, as docs/http-api.md has them: `setting`, `top_k`, `deadline_ms`.
        key: of a server that asks for one.

    Raises Absent where nobody listens, MetastableError for every answer that is no verdict.
    """
    headers = {f"X-Metastable-{name.replace('_', '-').title()}": value for name, value in options.items()}
    headers |= {"Content-Type": "application/octet-stream"}
    if key is not None:
        headers["Authorization"] = f"Bearer {key}"
    try:
        address = httpx.URL(url)
        if address.path in ("", "/"):
            address = address.copy_with(path=PATH)
        answer = client.post(address, content=body, headers=headers)
    except httpx.ConnectError as error:
        raise Absent(f"no server answers at {url} ({error}): run `make serve` first") from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise MetastableError(f"no answer from {url}: {error}") from None
    if answer.status_code != 200:
        raise MetastableError(f"the server at {url} answered {answer.status_code}: {_said(answer)}")
    try:
        verdict = answer.json()
        verdict["class"], verdict["anomaly"]["flagged"]
    except (ValueError, KeyError, TypeError):
        raise MetastableError(f"what answers at {url} is no Metastable server") from None
    found: dict[str, Any] = verdict
    return found


def key_in(file: Path) -> str:
    """The inference key of a file that the server wrote; MetastableError if it holds none."""
    try:
        return str(json.loads(file.read_text(encoding="utf-8"))["inference"]["key"])
    except (ValueError, KeyError, TypeError):
        raise MetastableError(f"{file} is no key file of a server") from None


def line(path: Path, verdict: dict[str, Any]) -> str:
    """A verdict for people."""
    likeliest = verdict["top"][0]
    flag = "flagged" if verdict["anomaly"]["flagged"] else "not flagged"
    rest = f"{verdict['chains']} chains of {verdict['setting']}, {flag}"
    bare = verdict["unpurified"]["class"]
    told = f", unpurified {bare}" if bare != verdict["class"] else ""
    return f"{path}: {verdict['class']} ({likeliest['probability']:.1%}; {rest}{told})"


def _said(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return answer.text.strip().partition("\n")[0][:200] or "nothing"
