"""The door before an engine in this process: no Java, ready in seconds.

    metastable serve --engine local                     # what the archive holds
    metastable serve --engine local --bundle cifar10    # or a bundle, and no archive
    metastable serve --engine local --bundle cifar10 --also 0.2.0=mine/next --policy policy.yaml

It takes any form of request of docs/http-api.md, and stops in order.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

import torch

from deploy import archive, observing, policies
from deploy.front import PHOTOGRAPH, Behind, Front
from metastable import bundle as bundles
from metastable.bundle import Bundle, shipped
from metastable.engine import assembly
from metastable.engine.runners import artifacts
from metastable.engine.runners.artifacts import Artifacts
from metastable.serving.backends.local import Local
from metastable.serving.configuration import Configuration
from metastable.serving.door.models import Models
from metastable.serving.door.stopping import Stop
from metastable.serving.metrics import Metrics


def serve(chosen: argparse.Namespace, sample: Path, stop: Stop) -> int:
    """The whole life of one server; the exit status.

    Args:
        sample, stop: as of `Front`.

    Raises Refused, and MetastableError for a bundle or a configuration that cannot be served.
    """
    with observing.opened(chosen) as observer:
        return _serve(Front(chosen, sample, stop, observer), chosen)


def _serve(front: Front, chosen: argparse.Namespace) -> int:
    with _opened(chosen) as (loaded, exported, configuration):
        threads = configuration.threads or os.cpu_count() or 1
        torch.set_num_threads(threads)
        offered = policies.versions(loaded, chosen.also or ())
        parts = [exported, *[{} for _ in offered[1:]]]
        runners = [
            assembly.runner_for(one, configuration.runner, artifacts=part, threads=threads)
            for one, part in zip(offered, parts, strict=True)
        ]
    metrics = Metrics(settings=sorted({name for one in offered for name in one.settings.names}))
    backends = [
        Local(one, runner, metrics, allow_seed=configuration.allow_seed, limits=configuration.engine_limits)
        for one, runner in zip(offered, runners, strict=True)
    ]
    metrics.follow(lambda: sum(one.backlog for one in backends), lambda: sum(one.chains for one in backends))
    models = Models(backends)
    keeper = policies.keeper_for(chosen.policy, models.served, proxies=bool(chosen.proxy))
    behind = Behind(
        models,
        configuration.image_limits,
        keeper=keeper,
        on_hangup=policies.on_hangup(chosen.policy, keeper),
        notes=policies.notes(chosen.policy),
    )
    status = front.serve(behind, metrics)
    print("stopped", flush=True)
    return status


@contextlib.contextmanager
def _opened(chosen: argparse.Namespace) -> Iterator[tuple[Bundle, Artifacts, Configuration]]:
    """The bundle, what was exported of it, and how it is to run."""
    named = {"runner": chosen.runner, "threads": chosen.threads, "allow_seed": chosen.allow_seeds}
    # An archive's limits of an image are what TorchServe's HTTP side can bear.
    limits = {name: getattr(chosen, name) for name in ("max_bytes", "max_pixels")}
    given = PHOTOGRAPH | {name: value for name, value in (named | limits).items() if value is not None}
    if chosen.bundle is not None:
        yield bundles.load(shipped.folder(chosen.bundle)), {}, Configuration.of(given)
        return
    with archive.unpacked(chosen.archive) as folder:
        configuration = Configuration.of(archive.configuration(folder).get("handler"))
        loaded = bundles.load(archive.bundle_folder(folder))
        exported = artifacts.read(folder / bundles.ARTIFACTS_FOLDER)
        yield loaded, exported, dataclasses.replace(configuration, **given)
