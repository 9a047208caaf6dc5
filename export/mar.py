"""Build the TorchServe archive: bundle, library and handler in one file.

The archive holds everything that the worker imports of this project, so that the file alone is
the release and nothing of the working directory is on its path.
"""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from torch import nn

from export import graphs
from metastable import bundle
from metastable.engine.runners.exported import CLASSIFIER
from metastable.errors import BundleError
from metastable.networks.onnx_classifier import OnnxClassifier

ROOT = Path(__file__).resolve().parent.parent
MODEL_NAME = "metastable"
LIBRARY_LEFT_OUT = {"training", "evaluation", "attacks"}


def build(folder: Path, config: Path, archive: Path) -> str:
    """Write `archive` from a bundle folder and a model-config YAML; returns its SHA-256.

    Raises BundleError for a damaged bundle or a failing archiver.
    """
    loaded = bundle.load(folder)
    with tempfile.TemporaryDirectory(prefix="metastable-mar-") as scratch:
        stage, store = Path(scratch) / "stage", Path(scratch) / "store"
        store.mkdir()
        # Only what the bundle names: a link beside it could bring in any file of this machine.
        (stage / bundle.ARCHIVE_FOLDER).mkdir(parents=True)
        for name in bundle.file_names(folder):
            shutil.copyfile(folder / name, stage / bundle.ARCHIVE_FOLDER / name)
        (stage / bundle.GRAPHS_FOLDER).mkdir()
        for name, graph in _graphs(loaded).items():
            (stage / bundle.GRAPHS_FOLDER / f"{name}.onnx").write_bytes(graph)
        for package, skip in (("metastable", LIBRARY_LEFT_OUT), ("handlers", set())):
            shutil.copytree(
                ROOT / package, stage / package, ignore=shutil.ignore_patterns("__pycache__", *skip)
            )
        command = [
            # The interpreter's own archiver, whatever is on the PATH.
            *(sys.executable, "-m", "model_archiver.model_packaging"),
            *("--model-name", MODEL_NAME),
            *("--version", loaded.version),
            *("--handler", str(ROOT / "handlers" / "handler.py")),
            *("--config-file", str(config.resolve())),
            *("--extra-files", str(stage)),
            *("--export-path", str(store)),
        ]
        # The archiver deletes a folder of the model's name in its temporary folder: give it ours.
        environment = {"TMPDIR": scratch, "PATH": "", "PYTHONPATH": ""}
        done = subprocess.run(command, env=environment, cwd=scratch, capture_output=True, text=True)
        made = store / f"{MODEL_NAME}.mar"
        if done.returncode or not made.is_file():
            raise BundleError(f"torch-model-archiver failed: {done.stderr.strip()[-500:]}")
        archive.parent.mkdir(parents=True, exist_ok=True)
        part = archive.with_suffix(".part")
        shutil.copyfile(made, part)
        part.replace(archive)
    return hashlib.sha256(archive.read_bytes()).hexdigest()


def _graphs(loaded: bundle.Bundle) -> dict[str, bytes]:
    """The graphs for runners; that of a classifier which is one already is not exported again."""
    if not isinstance(loaded.classifier, OnnxClassifier):
        return graphs.build(loaded)
    purifying = graphs.build(dataclasses.replace(loaded, classifier=nn.Flatten()))
    return purifying | {CLASSIFIER: loaded.classifier.whole_graph(loaded.shape[1])}
