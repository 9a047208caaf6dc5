"""The control channel of a worker: a unix socket beside TorchServe, for the door alone.

`metastable.serving.control` says what is asked and answered.  Each connection has a thread; those block on
the socket, and what they do for a request takes microseconds, so segments of work go on.
"""

from __future__ import annotations

import json
import logging
import os
import socketserver
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from handlers.door import Door
from metastable.errors import MalformedRequest, MetastableError
from metastable.serving.control import MOST_BYTES, refusal

log = logging.getLogger(__name__)


class Control:
    """Listens from now on, until `close`.

    Args:
        folder: of the sockets, which nobody else may enter.

    Raises OSError where the socket cannot be made.
    """

    def __init__(self, folder: Path, door: Door) -> None:
        self.path = folder / f"{os.getpid()}.sock"
        # Nobody finds it before it listens: one that refuses belongs to a worker that is dead.
        hidden = self.path.with_suffix(".new")
        hidden.unlink(missing_ok=True)
        self._server = _Server(str(hidden), _Connection)
        self._server.door = door
        hidden.rename(self.path)
        threading.Thread(target=self._server.serve_forever, name="metastable-control", daemon=True).start()

    def close(self) -> None:
        """Take no more connections."""
        self.path.unlink(missing_ok=True)
        self._server.shutdown()
        self._server.server_close()


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    block_on_close = False
    door: Door

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.exception("a control connection failed")


class _Connection(socketserver.StreamRequestHandler):
    server: _Server

    def handle(self) -> None:
        """Answer line by line until the other side leaves, or sends what is no request."""
        try:
            while line := self.rfile.readline(MOST_BYTES + 1):
                if len(line) > MOST_BYTES or not line.endswith(b"\n"):
                    return
                answer = _answered(line, self.server.door, self)
                if answer is None:
                    return
                self.wfile.write(json.dumps(answer, allow_nan=False).encode() + b"\n")
        except OSError:  # it has left
            return
        finally:
            self.server.door.disown(self)


def _answered(line: bytes, door: Door, owner: object) -> dict[str, Any] | None:
    """The answer to a line; None for one that is no request."""
    try:
        asked = json.loads(line)
        id, what = asked["id"], asked["ask"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    try:
        return {"id": id, "answer": _do(what, asked, door, owner)}
    except MetastableError as error:
        return {"id": id, "refused": refusal(error)}
    except Exception as error:
        log.error("a control request failed: %s", type(error).__name__, exc_info=error)
        return {"id": id, "refused": refusal(MetastableError("the worker failed at this: see its log"))}


def _do(what: object, asked: dict[str, Any], door: Door, owner: object) -> dict[str, Any] | None:
    def text(name: str) -> str:
        value = asked.get(name)
        if not isinstance(value, str):
            raise MalformedRequest(f"{what} needs a text {name}")
        return value

    verbs: dict[object, Callable[[], dict[str, Any] | None]] = {
        "describe": door.describe,
        "state": door.state,
        "admit": lambda: door.admit(text("setting"), owner),
        "release": lambda: door.release(text("token")),
        "cancel": lambda: door.cancel(text("job")),
    }
    if not isinstance(what, str) or what not in verbs:
        raise MalformedRequest(f"ask one of {', '.join(str(verb) for verb in verbs)}")
    return verbs[what]()
