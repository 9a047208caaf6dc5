"""Which model and which setting a request gets: its own choice, or that of its arm."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fastapi import Request

from metastable.errors import InvalidOption
from metastable.serving import options
from metastable.serving.backends.base import Backend
from metastable.serving.door.models import Models
from metastable.serving.door.requests import headers_of
from metastable.serving.options import Allowed, RequestOptions
from metastable.serving.policy.values import Policy

ARM_HEADER = "X-Metastable-Arm"


@dataclass(frozen=True)
class Chosen:
    """What the images of one request are asked with.

    Attributes:
        backend: all of them are answered by this one.
        policy: in force when the request came.
        arm: its name; None for a request that named its setting or its model, or where there is no split.
    """

    backend: Backend
    options: RequestOptions
    policy: Policy
    arm: str | None

    @property
    def headers(self) -> dict[str, str]:
        """Of the answer."""
        return {} if self.arm is None else {ARM_HEADER: self.arm}


def client_key(request: Request, header: str | None) -> str:
    """What stays the same over the requests of one client, and what it cannot choose for itself.

    That is the value of `header`, where a trusted proxy sent it once; else the name of the client's key, or
    its address.
    """
    state = request.scope.get("state", {})
    given = request.headers.getlist(header) if header is not None and state.get("proxied") else []
    return f"{header} {given[0]}" if len(given) == 1 else f"client {state.get('client', '')}"


def choose(
    models: Models,
    policy: Policy,
    request: Request,
    fields: Mapping[str, str],
    named: Backend | None = None,
) -> Chosen:
    """The choice for a request.

    Args:
        fields: options of its body, as far as they are known.
        named: the model that its path names.

    Raises InvalidOption.
    """
    given = headers_of(request)
    backend = models.of(policy.version)
    if named is not None and policy.clients_may_name is not None:
        if named is not backend:
            raise InvalidOption(
                "which version answers is the operator's choice here: send the request without one"
            )
        named = None  # who names what it would get anyway stays in its arm
    backend = named or backend
    arm = None
    if policy.split is not None and named is None and not options.names_setting(given, fields):
        arm = policy.split.arm(client_key(request, policy.split.header))
        if arm.version is not None:
            backend = models.of(arm.version)
    served = backend.served
    nameable = served.settings if policy.clients_may_name is None else policy.clients_may_name
    allowed = Allowed(
        tuple(one for one in served.settings if one in nameable),
        served.default if arm is None else arm.setting,
        len(served.classes),
        served.allow_seed,
    )
    chosen = options.parse(given, fields, allowed)
    return Chosen(backend, chosen, policy, None if arm is None else arm.name)
