"""Every exception this project raises on purpose, and the HTTP status of each.

    MetastableError
    ├── RequestError                 the client sent something that cannot be answered
    │   ├── MalformedRequest    400  no image, two images, a header that is not text
    │   ├── TooLarge            413  more bytes or more pixels than the limits allow
    │   ├── UnsupportedImage    415  not PNG, JPEG, WebP or .npy
    │   ├── InvalidImage        400  the right format, but damaged or with impossible values
    │   ├── InvalidOption       422  an unknown option, or a value outside its range
    │   ├── Flagged             422  the image looks anomalous, and the operator refuses such images
    │   ├── DeadlineExceeded    504  the deadline passed before there was an answer
    │   ├── Overloaded          503  more work is waiting than the server takes on
    │   ├── Draining            503  the server is stopping and takes no new work
    │   ├── Unavailable         503  what answers behind the door is being started
    │   ├── TooMany             429  this client has too much under way
    │   ├── TooSlow             408  the client took too long to send its request
    │   ├── NotAuthorized       401  the token is missing or wrong
    │   └── Cancelled           499  the client gave the request up
    ├── EngineFailure                a step or a classification failed; the engine lives on
    ├── BundleError                  a bundle is damaged, of an unknown version, or does not match
    ├── NoGradient                   a classifier cannot be differentiated, so not attacked directly
    ├── DataError                    a data set is missing or damaged
    ├── SettingsError                a settings file is wrong
    └── MissingPackage               an optional package is needed and not installed

Messages of a RequestError are shown to clients: they say what was wrong and what to do, and
repeat nothing of the request but names and numbers.
"""

from __future__ import annotations


class MetastableError(Exception):
    """Base class; `code` is stable and meant for programs, the message for people."""

    code: str = "internal"
    status: int = 500


class RequestError(MetastableError):
    """A request that cannot be answered as it is; the message tells the client what to do.

    `retry_after`: seconds after which to send it again; None where that would not help.
    """

    code = "bad_request"
    status = 400
    retry_after: float | None = None

    def __init__(self, message: str = "", retry_after: float | None = None) -> None:
        super().__init__(message)
        if retry_after is not None:  # else that of the class
            self.retry_after = retry_after


class MalformedRequest(RequestError):
    code = "malformed_request"
    status = 400


class TooLarge(RequestError):
    code = "too_large"
    status = 413


class UnsupportedImage(RequestError):
    code = "unsupported_image"
    status = 415


class InvalidImage(RequestError):
    code = "invalid_image"
    status = 400


class InvalidOption(RequestError):
    code = "invalid_option"
    status = 422


class Flagged(RequestError):
    code = "flagged"
    status = 422


class DeadlineExceeded(RequestError):
    code = "deadline_exceeded"
    status = 504


class Overloaded(RequestError):
    """`retry_after`: seconds until a request of this price would be taken."""

    code = "overloaded"
    status = 503
    retry_after = 1.0


class Draining(RequestError):
    code = "draining"
    status = 503
    retry_after = 5.0


class Unavailable(RequestError):
    """`retry_after`: seconds until it will probably answer."""

    code = "unavailable"
    status = 503
    retry_after = 3.0


class TooMany(RequestError):
    """`retry_after`: seconds after which to try again."""

    code = "too_many"
    status = 429
    retry_after = 1.0


class TooSlow(RequestError):
    code = "too_slow"
    status = 408


class NotAuthorized(RequestError):
    code = "not_authorized"
    status = 401


class Cancelled(RequestError):
    code = "cancelled"
    status = 499


class EngineFailure(MetastableError):
    code = "engine_failure"


class BundleError(MetastableError):
    code = "bad_bundle"


class NoGradient(MetastableError):
    code = "no_gradient"


class DataError(MetastableError):
    code = "bad_data"


class SettingsError(MetastableError):
    code = "bad_settings"


class MissingPackage(MetastableError):
    code = "missing_package"


#: Reason phrases for the statuses above (ASCII only: TorchServe breaks on anything else).
PHRASES: dict[int, str] = {
    200: "OK",
    400: "Bad Request",
    401: "Unauthorized",
    408: "Request Timeout",
    413: "Content Too Large",
    415: "Unsupported Media Type",
    422: "Unprocessable Content",
    429: "Too Many Requests",
    499: "Client Closed Request",
    500: "Internal Server Error",
    503: "Service Unavailable",
    504: "Gateway Timeout",
}
