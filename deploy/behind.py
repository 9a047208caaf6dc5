"""TorchServe behind the door: what `make serve` starts.

    metastable serve

The door answers from the beginning, and is ready once a worker has made a prediction.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

from deploy import archive, observing, policies
from deploy.front import PHOTOGRAPH, Behind, Front
from deploy.java import Java
from deploy.run_folder import Refused, RunFolder
from deploy.torchserve import Supervised
from metastable import bundle as bundles
from metastable.bundle import Bundle
from metastable.errors import SettingsError
from metastable.images import ImageLimits
from metastable.serving import judging
from metastable.serving.configuration import Configuration
from metastable.serving.door.stopping import Stop
from metastable.serving.metrics import Metrics

MOST_BYTES = 65_536
HEADERS = 16_384
"""Bytes of a request to TorchServe: exact pixels of at most four bytes each, and what is around them."""


def serve(chosen: argparse.Namespace, sample: Path, stop: Stop, run: RunFolder, java: Java) -> int:
    """The whole life of one server; the exit status.

    Args:
        sample, stop: as of `Front`.
        run: the folder, which whoever made it closes.

    Raises Refused, and MetastableError for an archive that cannot be served.
    """
    with observing.opened(chosen) as observer:
        return _serve(Front(chosen, sample, stop, observer), chosen, run, java)


def _serve(front: Front, chosen: argparse.Namespace, run: RunFolder, java: Java) -> int:
    limits, served = _limits(chosen), _served(chosen.archive)
    metrics = Metrics(settings=served.settings.names)
    supervised = Supervised(
        run,
        chosen.archive,
        java.home,
        torchserve_metrics_port=chosen.torchserve_metrics_port,
        most_bytes=max(MOST_BYTES, 4 * math.prod(served.shape) + HEADERS),
        at_once=lambda: front.stop.at_once,
        restarted=metrics.restarted,
    )
    known = judging.served_of(served, allow_seed=False, runner="")  # the worker says more, once it is there
    keeper = policies.keeper_for(chosen.policy, {served.version: known}, proxies=bool(chosen.proxy))
    behind = Behind(
        supervised.backend,
        limits,
        keeper=keeper,
        on_hangup=policies.on_hangup(chosen.policy, keeper),
        life=supervised,
        until_ready=lambda: supervised.until_ready(chosen.ready_timeout),
        opening=f"starting TorchServe with Java {java.version} ({java.source})",
        notes=(f"  logs:     {run.logs}", *policies.notes(chosen.policy)),
        trouble=run.log_tail,
    )
    status = front.serve(behind, metrics)
    if supervised.left:
        raise Refused(f"these processes could not be killed: {', '.join(map(str, supervised.left))}")
    since = 0.0 if front.stop.since is None else time.monotonic() - front.stop.since
    print(f"stopped after {since:.1f} s, nothing is left running", flush=True)
    return status


def _limits(chosen: argparse.Namespace) -> ImageLimits:
    """Of an image: the worker gets its exact pixels, so the archive's limits have no say."""
    given = {name: getattr(chosen, name) for name in ("max_bytes", "max_pixels")}
    named = PHOTOGRAPH | {name: value for name, value in given.items() if value is not None}
    return Configuration.of(named).image_limits


def _served(path: Path) -> Bundle:
    """The archive's bundle; refuses an archive whose worker could not start."""
    with archive.unpacked(path) as folder:
        found = archive.configuration(folder)
        Configuration.of(found.get("handler"))
        if found.get("maxWorkers", 1) != 1 or found.get("minWorkers", 1) != 1:
            raise SettingsError(
                f"{archive.CONFIG} in {path} wants several workers: make minWorkers and maxWorkers 1, which "
                "uses all cores, or start another server on a port of its own"
            )
        return bundles.load(archive.bundle_folder(folder))
