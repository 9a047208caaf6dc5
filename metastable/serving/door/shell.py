"""What stands around the application, in the order in which a request passes it."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from metastable.errors import Draining
from metastable.serving.door.access import FREE, Access, Keys
from metastable.serving.door.clients import Proxies
from metastable.serving.door.identity import Named
from metastable.serving.door.limits import Limits
from metastable.serving.door.observing import Observed, Observer
from metastable.serving.door.refusals import Refusal
from metastable.serving.door.stopping import Stop

_DRAINING = Refusal.of(Draining("the server is stopping: ask another one, or this one again later"))


class Drained:
    """Middleware: refuses what comes after a stop was asked for."""

    def __init__(self, app: ASGIApp, stop: Stop) -> None:
        self.app, self.stop = app, stop

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        late = scope["type"] == "http" and self.stop.draining and scope["path"] not in FREE
        await (_DRAINING if late else self.app)(scope, receive, send)


def wrap(
    app: ASGIApp,
    *,
    stop: Stop,
    limits: Limits,
    keys: Keys | None = None,
    proxies: Proxies | None = None,
    origins: Sequence[str] = (),
    observer: Observer | None = None,
) -> ASGIApp:
    """The application with all of it around.

    `origins`: of web pages whose scripts may ask, such as https://example.org; none without any.
    `observer`: is told of every request.
    """
    app = Access(app, keys=keys, most=limits.client_requests, proxies=proxies or Proxies())
    app = Drained(app, stop)
    if origins:
        app = CORSMiddleware(  # outside of Access: a browser sends no key with its question in advance
            app,
            allow_origins=list(origins),
            allow_methods=["GET", "HEAD", "POST"],
            allow_headers=["*"],
            expose_headers=["X-Request-Id", "Retry-After", "X-Metastable-Arm"],
        )
    app = Named(app)
    return app if observer is None else Observed(app, observer)
