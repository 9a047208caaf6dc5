"""Whatever happens to a bundle, loading it ends in BundleError naming a part, or in an equal bundle."""

import copy
import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metastable import bundle
from metastable.bundle import checks, files, manifest
from metastable.errors import BundleError

FILES = ["bundle.json", "settings.yaml", "classifier.safetensors", "score.safetensors", "energy.safetensors"]
NAMES = (*FILES, "anomaly flag")  # the last is of a flag that needs a network which is gone
T = TypeVar("T")
SCHEMA = f"schema version {manifest.SCHEMA}"


def same(one: bundle.Bundle, other: bundle.Bundle) -> bool:
    """Whether two bundles say and compute the same."""
    weights = [
        {name: m.state_dict() for name, m in (("classifier", b.classifier), *b.networks.items())}
        for b in (one, other)
    ]
    fields = [f.name for f in dataclasses.fields(one) if f.name not in ("classifier", "networks", "digest")]
    return all(getattr(one, f) == getattr(other, f) for f in fields) and all(
        weights[0][name].keys() == state.keys()
        and all(torch.equal(weights[0][name][key], value) for key, value in state.items())
        for name, state in weights[1].items()
    )


def refused(call: Callable[[], T]) -> T | None:
    """What the call returns; None if it raised a BundleError that names a part.  Nothing else may happen."""
    try:
        return call()
    except BundleError as error:
        message = str(error)
    assert any(name in message for name in NAMES), message
    assert len(message) < 1000
    return None


def refused_or_same(folder: Path, tiny: bundle.Bundle) -> None:
    loaded = refused(lambda: bundle.load(folder))
    assert loaded is None or same(loaded, tiny)


@pytest.fixture(scope="session")
def scratch(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """Makes the one folder of a copy whole again, which is faster than a new one an example."""
    folder = tmp_path_factory.mktemp("corrupt") / "b"

    def fresh() -> Path:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(tiny_folder, folder)
        return folder

    return fresh


@pytest.mark.slow
@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_flipped_bytes(scratch: Callable[[], Path], tiny: bundle.Bundle, data: Any) -> None:
    path = scratch() / data.draw(st.sampled_from(FILES))
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(raw)
    refused_or_same(path.parent, tiny)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_truncated_and_lengthened_files(scratch: Callable[[], Path], tiny: bundle.Bundle, data: Any) -> None:
    path = scratch() / data.draw(st.sampled_from(FILES))
    raw = path.read_bytes()
    cut = raw[: data.draw(st.integers(0, len(raw) - 1))]
    path.write_bytes(data.draw(st.sampled_from([cut, raw + b"\0", raw + raw, raw + b" "])))
    refused_or_same(path.parent, tiny)


@pytest.mark.parametrize("first", FILES)
@pytest.mark.parametrize("second", FILES)
def test_swapped_files(scratch: Callable[[], Path], tiny: bundle.Bundle, first: str, second: str) -> None:
    folder = scratch()
    one, other = (folder / first).read_bytes(), (folder / second).read_bytes()
    (folder / first).write_bytes(other)
    (folder / second).write_bytes(one)
    if first == second:
        assert same(bundle.load(folder), tiny)
    else:
        with pytest.raises(BundleError, match=rf"bundle\.json|{first}|{second}"):
            bundle.load(folder)


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths to every value in a JSON document."""
    if at:
        yield at
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*at, key))


def nested(depth: int) -> Any:
    inner: Any = 1
    for index in range(depth):
        inner = [inner] if index % 2 else {"a": inner}
    return inner


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([10**9, 10**18, 2**63, -(2**64), 10**400, 1e300, -1e-300, 0.5]),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=8),
    st.sampled_from(["", "../../etc/passwd", "/etc/passwd", "a\nb", "\ud800", "x" * 5000, "os.system"]),
    st.sampled_from([[], {}, [[]], {"a": {}}]),
    st.integers(1, 300).map(nested),
    st.lists(st.integers(), max_size=5),
)


def mutate(raw: dict[str, Any], data: Any) -> dict[str, Any]:
    """The document with one value replaced or deleted, or one key added."""
    raw = copy.deepcopy(raw)
    *way, last = data.draw(st.sampled_from(list(places(raw))))
    holder: Any = raw
    for key in way:
        holder = holder[key]
    kind = data.draw(st.sampled_from(["replace", "replace", "replace", "delete", "add"]))
    if kind == "delete":
        del holder[last]
    elif kind == "add" and isinstance(holder, dict):
        holder[data.draw(st.text(max_size=5))] = data.draw(JUNK)
    else:
        holder[last] = data.draw(JUNK)
    return raw


def sealed(raw: dict[str, Any]) -> dict[str, Any]:
    """With the digest that an author would give it, so that the fields are what is judged."""
    rest = {k: v for k, v in raw.items() if k != "manifest_sha256"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    return {**raw, "manifest_sha256": files.digest(text.encode("utf-8", "surrogatepass"))}


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_changed_manifest(tiny_folder: Path, data: Any) -> None:
    raw = mutate(json.loads((tiny_folder / "bundle.json").read_text()), data)
    before = manifest.parse((tiny_folder / "bundle.json").read_bytes())
    after = refused(lambda: manifest.parse(json.dumps(raw).encode("utf-8", "surrogatepass")))
    assert after is None or after == before


ONNX = {
    "kind": "onnx",
    "size": 16,
    "mean": [0.5] * 3,
    "std": [0.2] * 3,
    "resize": manifest.RESIZE,
    "sha256": "0" * 64,
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "classifier", [{}, ONNX, ONNX | {"size": [16, 24]}], ids=["network", "onnx", "sides"]
)
@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_changed_manifest_with_the_right_digest(
    tiny_folder: Path, classifier: dict[str, Any], data: Any
) -> None:
    raw = json.loads((tiny_folder / "bundle.json").read_text())
    raw["parts"]["classifier"] = classifier or raw["parts"]["classifier"]
    raw["fit"] = {"mode": "crop", "share": 0.875, "interpolation": "bilinear"}
    manifest.parse(json.dumps(sealed(raw)).encode())
    raw = sealed(mutate(raw, data))
    after = refused(lambda: manifest.parse(json.dumps(raw).encode("utf-8", "surrogatepass")))
    # A bundle with another name, say, is a bundle: what was read is what it says.
    assert after is None or manifest.parse(manifest.render(after)) == after


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_bundle_behind_a_changed_manifest(
    scratch: Callable[[], Path], tiny: bundle.Bundle, data: Any
) -> None:
    path = scratch() / "bundle.json"
    raw = json.loads(path.read_text())
    at = data.draw(st.sampled_from(["parts", "shape", "classes", "anomaly"]))
    changed = mutate({at: raw[at]}, data)
    path.write_bytes(json.dumps(sealed({**raw, **changed})).encode("utf-8", "surrogatepass"))
    loaded = refused(lambda: bundle.load(path.parent))
    assert loaded is None or loaded.settings == tiny.settings


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(junk=st.binary(max_size=200))
def test_any_bytes_as_a_manifest(junk: bytes) -> None:
    with pytest.raises(BundleError, match=r"bundle\.json"):
        manifest.parse(junk)


@pytest.mark.parametrize(
    "raw",
    [
        b"[" * 200_000,
        b'{"a":' * 200_000,
        b'{"schema": ' + b"9" * 50_000 + b"}",
        b'{"schema": NaN}',
        b'{"schema": 2, "schema": 2}',
        b"\xff\xfe{}",
    ],
)
def test_json_that_is_meant_to_hurt(raw: bytes) -> None:
    with pytest.raises(BundleError, match=r"bundle\.json is not JSON|" + SCHEMA):
        manifest.parse(raw)


BOMB = "a: &a [x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [*{chr(97 + i)}, *{chr(97 + i)}]\n" for i in range(24)
)


@pytest.mark.parametrize(
    "text",
    [
        BOMB,
        "[" * 20_000,
        "default: [1]\ncaps: {chains: 1, steps: 1}\nsettings: {a: {dynamics: none}}",
        "default: a\ncaps: {chains: 1, steps: 1}\nsettings: {a: {dynamics: none, tau: 0x" + "f" * 9000 + "}}",
        "default: a\ncaps: {chains: 1, steps: 1}\nsettings: {0x" + "f" * 9000 + ": {dynamics: none}}",
        "default: a\ncaps: {chains: 1, steps: 1}\nsettings: {a: {dynamics: none, stop: .inf}}",
        "default: a\ncaps: {chains: 1, steps: 1}\nsettings: {a: {dynamics: none, 2001-99-99: 1}}",
        "!!python/object/apply:os.system [exit]",
    ],
)
def test_settings_that_are_meant_to_hurt(scratch: Callable[[], Path], text: str) -> None:
    folder = scratch()
    (folder / "settings.yaml").write_text(text)
    raw = json.loads((folder / "bundle.json").read_text())
    raw["settings_sha256"] = files.digest(text.encode())
    (folder / "bundle.json").write_text(json.dumps(sealed(raw)))
    with pytest.raises(BundleError, match=r"settings\.yaml") as caught:
        bundle.load(folder)
    assert len(str(caught.value)) < 1000


@settings(max_examples=60, deadline=None)
@given(value=JUNK)
def test_checks_take_what_they_name_or_raise(value: Any) -> None:
    for check in (
        lambda: checks.whole(value, "x", 0, 10),
        lambda: checks.real(value, "x", 0, 10),
        lambda: checks.text(value, "x"),
        lambda: checks.plain_name(value, "x"),
        lambda: checks.sha256(value, "x"),
        lambda: checks.listing(value, "x", 1, 2),
        lambda: checks.mapping(value, "x", {"a"}),
        lambda: checks.table(value, "x", 3),
    ):
        refused(check)
