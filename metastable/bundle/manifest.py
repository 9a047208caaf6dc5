"""bundle.json, schema 2: every field checked by type and range on the way in.

    schema            2
    name, version     plain names
    classes           class names in the order of the logits, all different; [] without a classifier
    shape             [channels, height, width] of an image; channels 1 or 3; [channels] without a
                      classifier, where images have any height and width
    fit               {mode, share, interpolation} of metastable.images.Fit: how pictures become such images;
                      left out where they are stretched (bicubic), and without a classifier
    range             [0.0, 1.0]: what the values of an image span
    conventions       CONVENTIONS: what score, steps and noise mean, so that no release reads them otherwise
    parts             {classifier, or a name of NETWORKS: a part}; without a classifier the bundle purifies
                      only, and is a base for classifiers that are brought
    settings_sha256   of settings.yaml
    anomaly           metastable.anomaly.Calibration, or null; `changes` only where images were changed
    shifts            {setting: metastable.anomaly.Threshold of its prediction shift}; left out if empty
    provenance        how the bundle was made (Provenance); no dates, so that equal builds are equal bytes
    manifest_sha256   over all the rest, as compact JSON with sorted keys

A part is of one of two kinds, and its file is `<part>.safetensors` or `<part>.onnx`:

    {"kind": "network", "architecture": ..., "arguments": {...}, "sha256": ...}
    {"kind": "onnx", "size": [height, width], "mean": [...], "std": [...], "resize": ..., "sha256": ...}

`size` may be one number for both, as earlier releases wrote it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from metastable.anomaly import Calibration, Threshold
from metastable.bundle import architectures, checks, files, thresholds
from metastable.bundle.checks import MANIFEST
from metastable.dynamics.base import NETWORKS
from metastable.errors import BundleError
from metastable.images import INTERPOLATIONS, LEAST_SHARE, MODES, STRETCH, Fit
from metastable.version import __version__

SCHEMA = 2
RANGE = [0.0, 1.0]
CONVENTIONS = {
    "images": "float32 [batch, channels, height, width] in [0, 1]",
    "score": "grad log p at images in [0, 1]; a network of kind ScoreNetwork gives sigma^2 times that",
    "langevin": "x + tau^2/2 score(x) + tau z, not clipped; the density is exp(-U)",
    "adp": "clip(x + sigma z) once, then clip(x + alpha score(x)); alpha adapts (eq. 18) within step_bounds",
    "lengths": "tau and sigma are in units of [0, 1]",
    "noise": "z is standard normal, a function of the chain's key and the step",
}
RESIZE = "bilinear, antialiased"
SIDE, NAME = 1024, 200
"""The largest height or width, and the longest name of a class."""
PARTS = ("classifier", *NETWORKS)
_KEYS = {
    *("schema", "name", "version", "classes", "shape", "range", "conventions", "parts"),
    *("settings_sha256", "anomaly", "provenance", "manifest_sha256"),
}


@dataclass(frozen=True)
class NetworkPart:
    """One of our networks: its name in ARCHITECTURES, constructor arguments, SHA-256 of its weights."""

    kind: ClassVar[str] = "network"
    suffix: ClassVar[str] = ".safetensors"
    architecture: str
    arguments: dict[str, Any]
    sha256: str


@dataclass(frozen=True)
class OnnxPart:
    """A classifier of the user's own as an ONNX graph.

    Attributes:
        size: (height, width) of its images.
        mean, std: by channel; the graph is given (x - mean) / std of images x in [0, 1].
        resize: how images of the bundle's size become `size`: RESIZE, or None where they have it.
        sha256: of the graph's file.
    """

    kind: ClassVar[str] = "onnx"
    suffix: ClassVar[str] = ".onnx"
    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: str | None
    sha256: str


Part = NetworkPart | OnnxPart


@dataclass(frozen=True)
class Provenance:
    """How a bundle was made.

    Attributes:
        project: version of this project.
        command: what was run, paths shortened to their last names.
        inputs: SHA-256 of what went in, by name.
        checks: what was found to be so while it was made.
    """

    project: str = __version__
    command: str = "metastable.bundle.write"
    inputs: Mapping[str, str] = field(default_factory=dict)
    checks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Manifest:
    """What bundle.json says, each field as the module's docstring has it."""

    name: str
    version: str
    classes: list[str]
    shape: tuple[int, ...]
    parts: dict[str, Part]
    settings_sha256: str
    anomaly: Calibration | None
    provenance: Provenance
    shifts: dict[str, Threshold] = field(default_factory=dict)
    fit: Fit = STRETCH

    @property
    def classifies(self) -> bool:
        """Whether there is a classifier; where not, images have any height and width."""
        return "classifier" in self.parts

    def files(self) -> dict[str, str]:
        """The file of every part, by part."""
        return {name: name + part.suffix for name, part in self.parts.items()}


def purifies_only(name: str) -> str:
    """What is said where a bundle without a classifier is asked for one."""
    return (
        f"the bundle {name} has no classifier: it purifies images (`metastable purify --bundle {name}`), and "
        "is a base for a classifier of yours (`metastable bring`)"
    )


def render(manifest: Manifest) -> bytes:
    """bundle.json: equal manifests give equal bytes."""
    raw: dict[str, Any] = {
        "schema": SCHEMA,
        "name": manifest.name,
        "version": manifest.version,
        "classes": manifest.classes,
        "shape": list(manifest.shape),
        "range": RANGE,
        "conventions": CONVENTIONS,
        "parts": {k: {"kind": v.kind, **dataclasses.asdict(v)} for k, v in manifest.parts.items()},
        "settings_sha256": manifest.settings_sha256,
        "anomaly": None if manifest.anomaly is None else thresholds.rendered(manifest.anomaly),
        "provenance": dataclasses.asdict(manifest.provenance),
    }
    if manifest.shifts:
        raw["shifts"] = {name: thresholds.rendered(shift) for name, shift in sorted(manifest.shifts.items())}
    if manifest.fit != STRETCH:
        raw["fit"] = dataclasses.asdict(manifest.fit)
    text = json.dumps({**raw, "manifest_sha256": _own_digest(raw)}, indent=2, allow_nan=False)
    return (text + "\n").encode()


def parse(raw: bytes) -> Manifest:
    """A manifest from the bytes of bundle.json; BundleError naming the field that is wrong."""
    found = checks.strict_json(raw, MANIFEST)
    if found.get("schema") != SCHEMA or isinstance(found["schema"], bool | float):
        raise BundleError(f"{MANIFEST} is not of schema version {SCHEMA}: export it with this release")
    if set(found) - {"shifts", "fit"} != _KEYS:
        raise BundleError(f"{MANIFEST} must have exactly the keys {sorted(_KEYS)}")
    parts = found["parts"]
    if not isinstance(parts, dict) or not parts or not set(parts) <= set(PARTS):
        checks.fail("parts", f"a mapping with classifier and any of {', '.join(NETWORKS)}")
    classifies = "classifier" in parts
    many = (2, architectures.CLASSES) if classifies else (0, 0)
    classes = checks.listing(found["classes"], "classes", *many)
    classes = [checks.text(name, f"classes[{i}]", NAME) for i, name in enumerate(classes)]
    if len(set(classes)) != len(classes):
        checks.fail("classes", "all different")
    sides = 3 if classifies else 1
    listed = checks.listing(found["shape"], "shape", sides, sides)
    shape = tuple(checks.whole(v, f"shape[{i}]", 1, SIDE) for i, v in enumerate(listed))
    if shape[0] not in (1, 3):
        checks.fail("shape", "[1 or 3, height, width], or [1 or 3] without a classifier")
    if found["range"] != RANGE or found["conventions"] != CONVENTIONS:
        checks.fail("range and conventions", "those of this release: export the bundle again")
    manifest = Manifest(
        name=checks.plain_name(found["name"], "name"),
        version=checks.plain_name(found["version"], "version"),
        classes=classes,
        shape=shape,
        parts={name: parsed_part(name, value, shape) for name, value in parts.items()},
        settings_sha256=checks.sha256(found["settings_sha256"], "settings_sha256"),
        anomaly=None if found["anomaly"] is None else thresholds.calibration(found["anomaly"]),
        provenance=_provenance(found["provenance"]),
        shifts={
            checks.plain_name(name, "a key of shifts"): thresholds.threshold(value, f"shifts.{name}", 1)
            for name, value in checks.table(found.get("shifts", {}), "shifts", 64).items()
        },
        fit=_fit(found["fit"], classifies) if "fit" in found else STRETCH,
    )
    # Last: a wrong field deserves its own message.
    own = checks.sha256(found.pop("manifest_sha256"), "manifest_sha256")
    if _own_digest(found) != own:
        raise BundleError(
            f"{MANIFEST} does not match its own manifest_sha256: it is damaged or was edited by hand"
        )
    return manifest


def _own_digest(raw: dict[str, Any]) -> str:
    return files.digest(json.dumps(raw, sort_keys=True, separators=(",", ":")).encode())


def parsed_part(name: str, value: Any, shape: tuple[int, ...]) -> Part:
    """A part of a bundle for images of `shape`, as bundle.json has it; BundleError for a wrong field."""
    where = f"parts.{name}"
    kind = value.get("kind") if isinstance(value, dict) else None
    if kind == NetworkPart.kind:
        fields = checks.mapping(value, where, {"kind", "architecture", "arguments", "sha256"})
        chosen = architectures.check_arguments(fields["architecture"], fields["arguments"], where)
        return NetworkPart(*chosen, checks.sha256(fields["sha256"], f"{where}.sha256"))
    if kind != OnnxPart.kind or name != "classifier":
        checks.fail(f"{where}.kind", "network, or onnx of the classifier")
    fields = checks.mapping(value, where, {"kind", "size", "mean", "std", "resize", "sha256"})
    size = _size(fields["size"], f"{where}.size")
    resize = resizes(size, shape[1:])
    if fields["resize"] != resize:
        checks.fail(f"{where}.resize", f"{json.dumps(resize)} for images {shape[1:]} and size {size}")
    mean, std = (
        tuple(
            checks.real(v, f"{where}.{key}[{i}]", low, 1e6)
            for i, v in enumerate(checks.listing(fields[key], f"{where}.{key}", shape[0], shape[0]))
        )
        for key, low in (("mean", -1e6), ("std", 1e-6))
    )
    return OnnxPart(size, mean, std, resize, checks.sha256(fields["sha256"], f"{where}.sha256"))


def resizes(size: tuple[int, ...], image: tuple[int, ...]) -> str | None:
    """`resize` of a graph of `size` behind images of that height and width."""
    return None if size == image else RESIZE


def _size(value: Any, where: str) -> tuple[int, int]:
    height, width = checks.listing(value, where, 2, 2) if isinstance(value, list) else (value, value)
    return checks.whole(height, where, 1, SIDE), checks.whole(width, where, 1, SIDE)


def _fit(value: Any, classifies: bool) -> Fit:
    if not classifies:
        checks.fail("fit", "left out without a classifier")
    fields = checks.mapping(value, "fit", {"mode", "share", "interpolation"})
    return Fit(
        mode=checks.choice(fields["mode"], "fit.mode", MODES),
        share=checks.real(fields["share"], "fit.share", LEAST_SHARE, 1),
        interpolation=checks.choice(fields["interpolation"], "fit.interpolation", INTERPOLATIONS),
    )


def _provenance(value: Any) -> Provenance:
    fields = checks.mapping(value, "provenance", {"project", "command", "inputs", "checks"})
    inputs = checks.table(fields["inputs"], "provenance.inputs", 16)
    done = checks.listing(fields["checks"], "provenance.checks", 0, 32)
    return Provenance(
        project=checks.plain_name(fields["project"], "provenance.project"),
        command=checks.text(fields["command"], "provenance.command", 1000),
        inputs={k: checks.sha256(v, f"provenance.inputs.{k}") for k, v in inputs.items()},
        checks=tuple(checks.text(v, f"provenance.checks[{i}]") for i, v in enumerate(done)),
    )
