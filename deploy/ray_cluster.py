"""A cluster of Ray, and the application of deploy.ray_serve on it."""

from __future__ import annotations

import os
import sys
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.schema import ApplicationStatus

from deploy.ray_serve import NAME, Handles, Plan, replicas

PATIENCE = 30.0
"""Seconds that the board of an application that is there has to say whose it is."""
GONE = ApplicationStatus.NOT_STARTED, ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.DELETING


def connect(address: str | None, cpus: int | None = None) -> None:
    """Connect to the cluster at `address`, or start one on this machine, on loopback alone.

    Raises ConnectionError where there is none.
    """
    common: dict[str, Any] = {"log_to_driver": False, "logging_level": "warning", "namespace": NAME}
    if address is not None:
        ray.init(address=address, **common)
        if os.environ.get("RAY_AUTH_MODE", "").lower() != "token":  # Ray sets it where it finds a token
            print(
                "the cluster asks for no token: whoever reaches it runs code on it (RAY_AUTH_MODE=token)",
                file=sys.stderr,
            )
        return
    ray.init(
        address="local",
        num_cpus=cpus,
        include_dashboard=False,  # nobody asks it, and it takes jobs from whoever can reach it
        _node_ip_address="127.0.0.1",
        object_store_memory=200_000_000,
        **common,
    )


def check_gpus(plan: Plan) -> None:
    """Raises RuntimeError where a cluster of this machine alone cannot have the plan's GPUs."""
    there = ray.cluster_resources().get("GPU", 0.0)
    if plan.gpus * plan.least > there:
        raise RuntimeError(
            f"{plan.least * plan.gpus:g} GPUs are asked for, and this machine has {there:g}: choose fewer "
            "with --replica-gpus or --replicas"
        )


def deploy(plan: Plan) -> Handles:
    """Deploy engine and board without an ingress, or find them; returns before they are healthy (`trouble`).

    Ray must be connected to a cluster.  Raises RuntimeError where the application is there by another plan.
    """
    serve.start(proxy_location="Disabled")
    there = serve.status().applications.get(NAME)
    if there is None or there.status in GONE:
        engine, _ = replicas(plan)
        serve.run_many(
            [serve.RunTarget(engine, NAME, route_prefix=None)], wait_for_applications_running=False
        )
    elif _version() != plan.version:
        raise RuntimeError(
            "another bundle or other options are served on this cluster: start this door with those, or take "
            "that application away by `serve shutdown`"
        )
    return Handles(serve.get_deployment_handle("Engine", NAME), serve.get_deployment_handle("Board", NAME))


def _version() -> str:
    """Of the plan by which the application that is there was deployed."""
    try:
        board = serve.get_deployment_handle("Board", NAME)
        return str(board.version.remote().result(timeout_s=PATIENCE))
    except (TimeoutError, RayError):
        raise RuntimeError(
            f"the application on this cluster did not say within {PATIENCE:g} s what it serves: try again"
        ) from None


def trouble() -> tuple[bool, str]:
    """Whether the application has failed to start, and what there is to say of its start; "" for nothing."""
    there = serve.status().applications.get(NAME)
    if there is None:
        return False, ""
    said = [*(one.message for one in there.deployments.values()), there.message]
    first = next((one for one in said if one), "")
    # What remains of a trace of another machine is what it ended with.
    lines = [line for line in first.splitlines() if line.strip() and line[0] not in " \t"]
    short = " ".join(line for line in lines if "Traceback" not in line and "ray::" not in line)
    return there.status is ApplicationStatus.DEPLOY_FAILED, short


def remove() -> None:
    """Take the application away, and what Ray Serve needed for it; the cluster stays."""
    serve.shutdown()


def disconnect() -> None:
    """Leave the cluster; one that `connect` started ends."""
    ray.shutdown()
