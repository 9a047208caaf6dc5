"""TorchServe's entry point: context and rows in, one JSON string a request out.

TorchServe fails a whole batch, or stops answering for seconds, on an exception, a header value
that is not a string or a reason phrase that is not ASCII.  So everything is caught a request at a
time, and statuses and phrases come from fixed tables.

In its continuous-batching mode TorchServe calls `handle` again and again with every request that
has not been answered (see handlers.continuous).
"""

from __future__ import annotations

import dataclasses
import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from handlers import continuous
from handlers.control import Control
from handlers.requests import Request, Response
from handlers.runner import runner_for
from handlers.service import Service
from metastable import bundle
from metastable.engine.runners import artifacts
from metastable.errors import PHRASES
from metastable.images import ImageLimits
from metastable.serving import control
from metastable.serving.configuration import Configuration
from metastable.serving.metrics import Metrics

log = logging.getLogger(__name__)

QUEUE = 64  # job_queue_size of config.properties, which holds where the archive names none
EXACT_HEADER = 256  # bytes of a .npy file before its samples, and more


class MetastableHandler:
    """Loads the archive's bundle once and answers batches."""

    def __init__(self) -> None:
        self._service: Service | None = None
        self._control: Control | None = None
        self._continuous = False

    def initialize(self, context: Any) -> None:
        """Load the bundle, and open the metrics address.

        Raises SettingsError for a wrong option, BundleError for a damaged bundle, and what `runner_for` does.
        """
        config = context.model_yaml_config or {}
        chosen = Configuration.of(config.get("handler"))
        self._continuous = config.get("continuousBatching", False) is True
        threads = chosen.threads or os.cpu_count() or 1
        torch.set_num_threads(threads)
        folder = Path(context.system_properties["model_dir"])
        loaded = bundle.load(folder / bundle.ARCHIVE_FOLDER)
        exported = artifacts.read(folder / bundle.ARTIFACTS_FOLDER)
        metrics = Metrics(settings=loaded.settings.names)
        self._service = Service(
            loaded,
            metrics,
            runner_for(loaded, exported, chosen.runner, threads),
            allow_seed=chosen.allow_seed,
            limits=_limits(chosen.image_limits, loaded.shape),
            engine_limits=chosen.engine_limits,
        )
        if self._continuous:
            continuous.install()
        if sockets := os.environ.get(control.FOLDER):
            self._control = Control(Path(sockets), self._service.open(int(config.get("jobQueueSize", QUEUE))))
        if port := os.environ.get("METASTABLE_METRICS_PORT"):
            metrics.serve(int(port))

    def handle(self, rows: list[Mapping[str, object]], context: Any) -> list[str | None]:
        """A JSON body for each row; under continuous batching None for those that have not ended."""
        assert self._service is not None, "initialize comes first"
        requests = [
            Request(str(context.get_request_id(i)), _headers(context, i), row) for i, row in enumerate(rows)
        ]
        responses = (self._service.step if self._continuous else self._service.answer)(requests)
        return [None if r is None else _send(context, i, r) for i, r in enumerate(responses)]


def _limits(limits: ImageLimits, shape: tuple[int, int, int]) -> ImageLimits:
    """Behind the door, which has decoded the image, its exact pixels are never too many."""
    if control.FOLDER not in os.environ:
        return limits
    return dataclasses.replace(
        limits,
        max_bytes=max(limits.max_bytes, EXACT_HEADER + 4 * math.prod(shape)),
        max_pixels=max(limits.max_pixels, math.prod(shape[1:])),
    )


def _headers(context: Any, index: int) -> dict[str, str]:
    headers = context.get_all_request_header(index) or {}
    return {str(k): str(v) for k, v in headers.items()}


def _send(context: Any, index: int, response: Response) -> str:
    phrase = PHRASES.get(response.status, "Error")
    context.set_response_status(code=response.status, phrase=phrase, idx=index)
    context.set_response_content_type(index, "application/json")
    for name, value in response.headers.items():
        context.set_response_header(index, name, value)
    return response.body
