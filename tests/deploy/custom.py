"""The manifests of KubeRay and KServe, and the pods in them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.launched import REPOSITORY

FOLDER = REPOSITORY / "deploy" / "kubernetes"
KINDS = ("RayService", "InferenceService")
EXTENSIONS = ("minReplicas", "maxReplicas", "scaleMetric", "scaleTarget", "timeout", "labels", "annotations")
"""What KServe has beside the fields of a pod."""


def documents(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = list(yaml.safe_load_all(path.read_text()))
    return found


def custom(kind: str) -> dict[str, Any]:
    """The one document of this kind; a new copy."""
    [found] = [
        one for path in sorted(FOLDER.glob("*.yaml")) for one in documents(path) if one["kind"] == kind
    ]
    return copy.deepcopy(found)


def pods(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The specs of pods that one of KINDS describes."""
    spec = document["spec"]
    if document["kind"] == "InferenceService":
        yield {key: value for key, value in spec["predictor"].items() if key not in EXTENSIONS}
        return
    cluster = spec["rayClusterConfig"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        yield group["template"]["spec"]


def plain(path: Path) -> list[dict[str, Any]]:
    """The documents of a file as Kubernetes itself knows them: for a custom one, its pods."""
    found = []
    for one in documents(path):
        if one["kind"] not in KINDS:
            found.append(one)
            continue
        for number, spec in enumerate(pods(one)):
            metadata = {"name": f"{one['metadata']['name']}-{number}"}
            found.append({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
    return found
