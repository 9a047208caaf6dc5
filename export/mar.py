"""Build the TorchServe archive: bundle, library and handler in one file.

The archive holds everything that the worker imports of this project, so that the file alone is
the release and nothing of the working directory is on its path.
"""

from __future__ import annotations

import hashlib
import math
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from export import graphs
from metastable import bundle, yaml_text
from metastable.engine.runners import cards, choose
from metastable.engine.runners.artifacts import GRAPHS
from metastable.errors import BundleError, SettingsError
from metastable.serving.configuration import Configuration

ROOT = Path(__file__).resolve().parent.parent
MODEL_NAME = "metastable"
NPY_HEADER = 128  # bytes
LIBRARY_LEFT_OUT = {"training", "evaluation", "attacks", "cli"}


def build(folder: Path, config: Path, archive: Path, artifacts: Path | None = None) -> str:
    """Write `archive` from a bundle folder and a model-config YAML; returns its SHA-256.

    It holds what the runner of the configuration reads, and nothing for others.

    Args:
        artifacts: folder of artifacts of this bundle (`export.artifacts`), for runners that need them.

    Raises BundleError for a damaged bundle, artifacts that are missing or of other weights, or a failing
    archiver; SettingsError for an option of the handler that is unknown or wrong.
    """
    runner = configuration_of(config).runner
    loaded = bundle.load(folder)
    with tempfile.TemporaryDirectory(prefix="metastable-mar-") as scratch:
        stage, store = Path(scratch) / "stage", Path(scratch) / "store"
        store.mkdir()
        # Only what the bundle names: a link beside it could bring in any file of this machine.
        (stage / bundle.ARCHIVE_FOLDER).mkdir(parents=True)
        for name in bundle.file_names(folder):
            shutil.copyfile(folder / name, stage / bundle.ARCHIVE_FOLDER / name)
        if kind := choose.artifact_of(runner):
            (stage / bundle.ARTIFACTS_FOLDER / kind).mkdir(parents=True)
            for name, data in _files_of(kind, loaded, artifacts).items():
                (stage / bundle.ARTIFACTS_FOLDER / kind / name).write_bytes(data)
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


def notes(folder: Path, config: Path) -> list[str]:
    """What whoever serves a bundle with a configuration should know; no sentence where there is nothing.

    Raises what `build` raises of a bundle or a configuration.
    """
    shape, most = bundle.load(folder).shape, configuration_of(config).max_bytes
    exact = math.prod(shape) * 4 + NPY_HEADER
    if exact <= most:
        return []
    return [
        f"a .npy file of float32 {shape}, which load tests send, has {exact} bytes, above max_bytes {most}: "
        f"raise that in {config.name}, and max_request_size in config.properties to a little more"
    ]


def configuration_of(config: Path) -> Configuration:
    """The handler's options in a model-config YAML; SettingsError if the file or one of them is wrong."""
    try:
        found = yaml_text.read(config.read_text(encoding="utf-8")) or {}
    except (OSError, ValueError) as error:
        raise SettingsError(f"{config} cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise SettingsError(f"{config} must be a mapping of names to values")
    try:
        return Configuration.of(found.get("handler"))
    except SettingsError as error:
        raise SettingsError(f"{config}: {error}") from None


def _files_of(kind: str, loaded: bundle.Bundle, folder: Path | None) -> dict[str, bytes]:
    """A kind of artifact by file name; ONNX graphs in float32 are made here, the rest is in `folder`."""
    if kind == GRAPHS:
        return {f"{name}.onnx": graph for name, graph in graphs.build(loaded).items()}
    if folder is None:
        raise BundleError(f"the runner needs artifact {kind}: pass the folder of `export all` as --artifacts")
    return cards.packed(folder / kind, kind, loaded.parts, cards.versions_here(kind))
