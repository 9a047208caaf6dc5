"""Asking for one prediction until there is one.

TorchServe's `/ping` is healthy before the model is loaded, and for minutes after loading it
failed, so nothing less than a prediction counts as ready.
"""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import httpx

#: The model is there and says that the request is at fault: asking again will not help.
_REFUSALS = frozenset({400, 401, 413, 415, 422})
_ONE_ATTEMPT_SECONDS = 60.0


class Failed(Exception):
    """The server was started and then failed; the message says how."""


class Prober:
    """Starts asking in a thread of its own at once, because a prediction may hang for long.

    `answer` and `refusal` are None until there is one.
    """

    def __init__(self, url: str, body: bytes, key_file: Path) -> None:
        self._url, self._body, self._key_file = url, body, key_file
        self._last = "nobody listens yet"
        self._asked = time.monotonic()
        self.answer: str | None = None
        self.refusal: str | None = None
        threading.Thread(target=self._ask, daemon=True).start()

    def predict(self) -> str:
        """One prediction: the body of the answer; Failed if there is none."""
        try:
            response = self._post()
            response.raise_for_status()
        except httpx.HTTPError as error:
            raise Failed(f"the server was ready, but the next prediction failed: {error}") from error
        return _one_line(response.text)

    def state(self) -> str:
        """How it stands, for people."""
        waiting = time.monotonic() - self._asked
        return f"a request has had no answer for {waiting:.0f} s" if waiting > 2 else self._last

    def _ask(self) -> None:
        while self.answer is None and self.refusal is None:
            self._asked = time.monotonic()
            try:
                response = self._post()
            except httpx.ConnectError:
                self._last = "nobody listens yet"
            except httpx.HTTPError as error:
                self._last = f"no answer: {type(error).__name__}"
            else:
                self._judge(response)
            time.sleep(0.2)

    def _judge(self, response: httpx.Response) -> None:
        self._last = f"last answer: HTTP {response.status_code}"
        if response.status_code == 200:
            self.answer = response.text
        elif response.status_code in _REFUSALS:
            self.refusal = f"HTTP {response.status_code}: {_one_line(response.text)[:300]}"

    def _post(self) -> httpx.Response:
        headers = {"Content-Type": "application/octet-stream"}
        if self._key_file.exists():  # token authorization is on
            keys = json.loads(self._key_file.read_text(encoding="utf-8"))
            headers["Authorization"] = f"Bearer {keys['inference']['key']}"
        # A proxy of the environment could not reach a loopback address.
        with httpx.Client(trust_env=False, timeout=_ONE_ATTEMPT_SECONDS) as client:
            return client.post(self._url, content=self._body, headers=headers)


def _one_line(text: str) -> str:
    return " ".join(text.split())
