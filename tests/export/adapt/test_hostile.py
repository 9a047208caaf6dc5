"""Whatever the bytes are, the answer is an adapted graph or one sentence."""

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from export.adapt import Adapted, Wishes, adapt
from metastable.errors import BundleError
from tests.export.adapt.graphs import classifier, node, noise, run
from tests.export.adapt.test_batches import TokensFirst, fixed

BASES = [
    classifier(),
    classifier(node("Softmax", "z", "y", axis=1), shape=(1, 3, 8, 8)),
    classifier(
        node("Reshape", "z to", "four"),
        node("Sigmoid", "four", "y"),
        front=[node("Transpose", "x", "t", perm=[0, 3, 1, 2]), node("Cast", "t", "p", to=1)],
        shape=("n", 8, 8, 3),
        kind=TensorProto.UINT8,
        held={"to": np.array([-1, 10, 1, 1])},
        pixels="p",
    ),
]
BASES.append(fixed(TokensFirst(), 16))
RAW = [one.SerializeToString() for one in BASES]


def outcome(data: bytes, wishes: Wishes | None = None) -> Adapted | None:
    """The adapted graph, which then runs, or None where it was refused in one line."""
    said = ""
    try:
        found = adapt(data, wishes)
    except BundleError as error:
        said = str(error)
        found = None
    if found is None:
        assert 0 < len(said) < 3000
        assert "\n" not in said
        return None
    logits = run(found.graph, noise(found, 2))
    assert logits.shape == (2, found.classes)
    return found


def test_the_bases_themselves_are_taken_or_refused_for_their_labels() -> None:
    assert [outcome(one) is not None for one in RAW] == [True, True, False, True]


ANY = settings(max_examples=150, deadline=None, derandomize=True)


CHANGES = st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=4)


@ANY
@given(st.sampled_from(RAW), CHANGES)
def test_flipped_bytes(raw: bytes, changes: list[tuple[int, int]]) -> None:
    data = bytearray(raw)
    for at, value in changes:
        data[at % len(data)] = value
    outcome(bytes(data))


@ANY
@given(st.sampled_from(RAW), st.integers(0, 10**6), st.integers(1, 40), st.binary(max_size=12))
def test_pieces_cut_and_put_in(raw: bytes, at: int, length: int, piece: bytes) -> None:
    at %= len(raw)
    outcome(raw[:at] + piece + raw[at + length :])


@ANY
@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    outcome(data)


def names(model: onnx.ModelProto) -> list[str]:
    found = {name for one in model.graph.node for name in (*one.input, *one.output)}
    return [*sorted(found), "", "absent", "\x7f"]


OPERATORS = ["Reshape", "Softmax", "Transpose", "Gather", "Concat", "Div", "Exp", "ArgMax", "Cast", "Expand"]


@ANY
@given(st.sampled_from(BASES), st.data())
def test_graphs_that_are_wired_wrongly(base: onnx.ModelProto, data: st.DataObject) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(base)
    for _ in range(data.draw(st.integers(1, 3))):
        one = data.draw(st.sampled_from(list(model.graph.node)))
        kind = data.draw(st.sampled_from(["operator", "input", "output", "end", "shape", "drop", "twice"]))
        name = data.draw(st.sampled_from(names(base)))
        if kind == "operator":
            one.op_type = data.draw(st.sampled_from(OPERATORS))
        elif kind == "input" and one.input:
            one.input[data.draw(st.integers(0, len(one.input) - 1))] = name
        elif kind == "output":
            one.output[0] = name
        elif kind == "end":
            model.graph.output[0].name = name
        elif kind == "shape":
            dims = model.graph.input[0].type.tensor_type.shape.dim
            dims[data.draw(st.integers(0, 3))].dim_value = data.draw(
                st.sampled_from([-5, 0, 1, 3, 4, 9, 2**62])
            )
        elif kind == "twice":
            model.graph.node.append(one)
        elif len(model.graph.node) > 2:
            model.graph.node.remove(one)
    wished = data.draw(st.sampled_from([None, *names(base)]))
    outcome(model.SerializeToString(), Wishes(output=wished))


def test_names_that_are_no_text_are_said() -> None:
    raw = RAW[0].replace(b"pooled", b"p\xff\xfeled")
    with pytest.raises(BundleError, match="names that are no text"):
        adapt(raw)
