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
import shlex
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import torch
import yaml

from deploy.policies import keeper_for, reloader, versions
from deploy.run_folder import Refused
from metastable import bundle as bundles
from metastable.bundle import Bundle, shipped
from metastable.engine import assembly
from metastable.engine.runners import artifacts
from metastable.engine.runners.artifacts import Artifacts
from metastable.errors import MetastableError
from metastable.serving.backends.local import Local
from metastable.serving.configuration import Configuration
from metastable.serving.door import server
from metastable.serving.door.access import Keys, needs_key
from metastable.serving.door.app import build
from metastable.serving.door.clients import Proxies
from metastable.serving.door.intake import Intake
from metastable.serving.door.models import Models
from metastable.serving.door.stopping import Stop
from metastable.serving.metrics import Metrics

CONFIG = "model-config.yaml"
DRAIN_SECONDS = 30.0
PHOTOGRAPH: dict[str, Any] = {"max_bytes": 16_000_000, "max_pixels": 50_000_000}
"""Limits of an image: a phone's photographs."""
_MOST_CONFIG = 100_000


def serve(chosen: argparse.Namespace, sample: Path) -> int:
    """The whole life of one server; the exit status.

    Args:
        sample: an image, for `--check` and the line that says how to ask.

    Raises Refused, and MetastableError for a bundle or a configuration that cannot be served.
    """
    keys = None if chosen.keys is None else Keys.read(chosen.keys)
    if keys is None and needs_key(chosen.host):
        raise Refused(f"--host {chosen.host} lets other machines in: name a file of keys with --keys")
    begun = time.monotonic()
    with _opened(chosen) as (loaded, exported, configuration):
        threads = configuration.threads or os.cpu_count() or 1
        torch.set_num_threads(threads)
        offered = versions(loaded, chosen.also or ())
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
    keeper = keeper_for(chosen.policy, models, proxies=bool(chosen.proxy))
    metrics.serve(chosen.metrics_port)
    stop, checked = Stop(), _Checked()
    body = configuration.max_bytes * 3 // 2  # in base64, and some room
    intake = Intake(
        body=body,
        bodies=max(Intake.bodies, 4 * body),
        image=configuration.image_limits,
        threads=os.cpu_count() or 1,
    )

    def ready(url: str) -> None:
        print(f"ready after {time.monotonic() - begun:.1f} s: {url}/classify", flush=True)
        print(f"  try it:   curl -s --data-binary @{shlex.quote(str(sample))} {url}/classify", flush=True)
        print(f"  metrics:  http://127.0.0.1:{chosen.metrics_port}/metrics", flush=True)
        if chosen.policy is not None:
            print(f"  policy:   {chosen.policy}, read again at kill -HUP {os.getpid()}", flush=True)
        print(f"  stop:     Ctrl-C here, or kill {os.getpid()}", flush=True)
        if chosen.check:
            threading.Thread(
                target=checked.ask, args=(url, sample.read_bytes(), keys is not None, stop)
            ).start()

    status = server.run(
        build(models, intake, stop, metrics, keeper=keeper, drain_seconds=DRAIN_SECONDS),
        stop=stop,
        host=chosen.host,
        port=chosen.port,
        keys=keys,
        proxies=Proxies(chosen.proxy or ()),
        origins=chosen.origin or (),
        on_ready=ready,
        on_hangup=None if chosen.policy is None else reloader(keeper),
        drain_seconds=DRAIN_SECONDS,
    )
    print("stopped", flush=True)
    return status if not chosen.check or checked.fine else 1


class _Checked:
    """One prediction by a client, and the end."""

    def __init__(self) -> None:
        self.fine = False

    def ask(self, url: str, sample: bytes, locked: bool, stop: Stop) -> None:
        try:
            if locked:
                answer = httpx.get(f"{url}/readyz", timeout=60, trust_env=False)
            else:
                answer = httpx.post(f"{url}/classify", content=sample, timeout=60, trust_env=False)
            self.fine = answer.status_code == 200
            print(f"check: {answer.status_code} {' '.join(answer.text.split())}", flush=True)
        except httpx.HTTPError as error:
            print(f"check: no answer: {type(error).__name__}", flush=True)
        finally:
            stop.ask(grace=False)


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
    with tempfile.TemporaryDirectory(prefix="metastable-") as place:
        folder = Path(place)
        try:
            with zipfile.ZipFile(chosen.archive) as archive:
                archive.extractall(folder)
        except (OSError, zipfile.BadZipFile, EOFError) as error:
            raise Refused(f"{chosen.archive} is no archive: {error}") from None
        configuration = Configuration.of(_handler(folder / CONFIG))
        loaded = bundles.load(folder / bundles.ARCHIVE_FOLDER)
        exported = artifacts.read(folder / bundles.ARTIFACTS_FOLDER)
        yield loaded, exported, dataclasses.replace(configuration, **given)


def _handler(path: Path) -> Any:
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8")[:_MOST_CONFIG])
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise MetastableError(f"the archive's {CONFIG} cannot be read: {error}") from None
    return found.get("handler") if isinstance(found, dict) else None
