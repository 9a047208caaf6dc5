"""Build a bundle from a run of `metastable train harden`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from metastable import __version__, bundle
from metastable.bundle import checks, files
from metastable.bundle.architectures import check_arguments
from metastable.errors import BundleError

PURIFIER = "purifier"
PARTS = {"classifier", PURIFIER}
DESCRIPTION = "parts.json"


def build(run: Path, base: Path, settings: Path, name: str, out: Path) -> dict[str, Any]:
    """Write bundle `out`: the run's networks in float16, and the detector of `base` with its calibration.

    A classifier that came to the run as an ONNX graph goes into the bundle to the byte; `base` must then be
    the bundle that was hardened, which knows what its classes are called.

    The detector is the network that the base's anomaly flag was calibrated for, byte for byte; its other
    purifying networks stay behind.

    Args:
        run: a folder with parts.json and `<part>.fp16.safetensors`, or `classifier.onnx`: of the run, or of
            its copies.
        settings: a settings file; with the names of the classes it is all that is not trained.

    Returns: the bytes of each part.

    Raises BundleError for a folder without such a run, a damaged base, or `out` in place of it, and what
    `metastable.bundle.load` raises of the bundle that came out.
    """
    if base.resolve() == out.resolve():
        raise BundleError("the new bundle needs a folder of its own, not that of its base")
    old = bundle.load(base)
    parts = stored(run, old.shape)
    whose = parts["classifier"].part
    if isinstance(whose, bundle.OnnxPart) and whose.sha256 != old.parts["classifier"]:
        raise BundleError(
            f"the run has a classifier that was brought, and {base} has another: --base must be the bundle "
            "that was hardened, which knows the names of its classes"
        )
    if old.anomaly is not None:
        parts[old.anomaly.network] = bundle.stored_part(base, old.anomaly.network)
    try:
        text = settings.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"{settings} cannot be read: {error}") from None
    given = f"--run {run.name} --base {base.name} --settings {settings.name} --name {name}"
    bundle.write_stored(
        out,
        parts,
        name=name,
        version=__version__,
        classes=old.classes,
        shape=old.shape,
        fit=old.fit,
        settings=text,
        anomaly=old.anomaly,
        provenance=bundle.Provenance(
            command=f"export harden {given}",
            inputs={"base": old.digest, **{part: one.part.sha256 for part, one in parts.items()}},
            checks=old.provenance.checks,
        ),
    )
    bundle.load(out)
    return {part: len(one.data) for part, one in parts.items()}


def stored(run: Path, shape: tuple[int, int, int]) -> dict[str, bundle.Stored]:
    """The parts that a run on images of `shape` left, by name.

    Raises BundleError if there are none, others than a run can have, or another graph than is described.
    """
    raw = checks.strict_json(files.read(run, DESCRIPTION, files.MANIFEST_BYTES), DESCRIPTION)
    if "classifier" not in raw or not set(raw) <= PARTS:
        raise BundleError(f"{run / DESCRIPTION} must describe a classifier, and at most a purifier beside it")
    found = {}
    for part, fields in raw.items():
        if isinstance(fields, dict) and fields.get("kind") == bundle.OnnxPart.kind:
            graph = bundle.parsed_part(part, fields, shape)
            data = files.read_checked(run, f"{part}.onnx", files.PART_BYTES, graph.sha256)
            found[part] = bundle.Stored(graph, data)
            continue
        described = checks.mapping(fields, part, {"architecture", "arguments"})
        architecture, arguments = check_arguments(described["architecture"], described["arguments"], part)
        data = files.read(run, f"{part}.fp16.safetensors", files.PART_BYTES)
        found[part] = bundle.Stored(bundle.NetworkPart(architecture, arguments, files.digest(data)), data)
    return found
