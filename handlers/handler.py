"""TorchServe's entry point: context and rows in, one JSON string a request out.

TorchServe fails a whole batch, or stops answering for seconds, on an exception, a header value
that is not a string or a reason phrase that is not ASCII.  So everything is caught a request at a
time, and statuses and phrases come from fixed tables.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from handlers.metrics import Metrics
from handlers.service import Request, Response, Service
from metastable import bundle
from metastable.errors import PHRASES
from metastable.images import Limits

log = logging.getLogger(__name__)


class MetastableHandler:
    """Loads the archive's bundle once and answers batches."""

    def __init__(self) -> None:
        self._service: Service | None = None

    def initialize(self, context: Any) -> None:
        """Load the bundle, open the metrics address, and answer one image to warm up."""
        options = dict((context.model_yaml_config or {}).get("handler") or {})
        torch.set_num_threads(int(options.get("threads") or os.cpu_count() or 1))
        loaded = bundle.load(Path(context.system_properties["model_dir"]) / bundle.ARCHIVE_FOLDER)
        metrics = Metrics(settings=loaded.settings.names)
        self._service = Service(
            loaded,
            metrics,
            allow_seed=options.get("allow_seed", False) is True,
            limits=Limits(
                int(options.get("max_bytes", 2_000_000)), int(options.get("max_pixels", 16_000_000))
            ),
        )
        if port := os.environ.get("METASTABLE_METRICS_PORT"):
            metrics.serve(int(port))

    def handle(self, rows: list[Mapping[str, object]], context: Any) -> list[str]:
        """One JSON body a row, with its own HTTP status."""
        assert self._service is not None, "initialize comes first"
        requests = [
            Request(str(context.get_request_id(i)), _headers(context, i), row) for i, row in enumerate(rows)
        ]
        responses = self._service.answer(requests)
        return [_send(context, i, response) for i, response in enumerate(responses)]


def _headers(context: Any, index: int) -> dict[str, str]:
    headers = context.get_all_request_header(index) or {}
    return {str(k): str(v) for k, v in headers.items()}


def _send(context: Any, index: int, response: Response) -> str:
    phrase = PHRASES.get(response.status, "Error")
    context.set_response_status(code=response.status, phrase=phrase, idx=index)
    context.set_response_content_type(index, "application/json")
    return response.body
