import numpy as np
import pytest
from numpy.testing import assert_allclose
from onnx import TensorProto

from export.adapt import Adapted, alternatives, one_class_warning
from tests.export.adapt.graphs import Array, adapted, classifier, expected, logits, node, noise

IMAGENET = np.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]], np.float32).reshape(2, 1, 3, 1, 1)


def best(found: Adapted, labels: Array, x: Array) -> tuple[str, Adapted]:
    """The variant that agrees most with the labels."""
    right = {
        name: (float((logits(one, x).argmax(1) == labels).mean()), one) for name, one in alternatives(found)
    }
    name = max(right, key=lambda key: right[key][0])
    return name, right[name][1]


def test_labelled_images_decide_order_and_normalisation() -> None:
    found = adapted(classifier())
    assert set(found.undecided) == {"order", "range", "normalization"}
    tried = list(alternatives(found))
    assert len(tried) == 12
    assert len({name for name, _ in tried}) == 12
    assert {one.graph for _, one in tried} == {tried[0][1].graph, tried[-1][1].graph}
    x = np.random.default_rng(3).random((400, 3, 1, 1), np.float32) * np.ones((1, 1, 8, 8), np.float32)
    truth = expected(((x - IMAGENET[0]) / IMAGENET[1])[:, ::-1])
    name, one = best(found, truth.argmax(1), x)
    assert name == "BGR, ImageNet's mean and std"
    assert_allclose(logits(one, x), truth, rtol=1e-4, atol=1e-3)
    assert one.undecided == ()
    assert one.changes[-1] == f"by labelled images: {name}"


@pytest.mark.parametrize(
    ("wishes", "number"),
    [
        ({"order": "rgb"}, 6),
        ({"order": "rgb", "range": (0.0, 255.0)}, 2),
        ({"range": (0.0, 1.0)}, 8),
    ],
)
def test_what_is_wished_is_not_tried(wishes: dict[str, object], number: int) -> None:
    found = adapted(classifier(), **wishes)
    tried = list(alternatives(found))
    assert len(tried) == number
    assert any((one.mean, one.std) == (found.mean, found.std) for _, one in tried)
    if "range" in wishes:
        assert {one.std[0] < 0.05 for _, one in tried} == {found.std[0] < 0.05}


def test_where_nothing_is_undecided_there_is_one() -> None:
    front = [node("Cast", "x", "f", to=TensorProto.FLOAT), node("Div", "f full", "p")]
    held = {"full": np.float32(255)}
    model = classifier(front=front, kind=TensorProto.UINT8, held=held, pixels="p")
    found = adapted(model, order="rgb")
    assert list(alternatives(found)) == [("as it is", found)]


def test_gray_networks_have_their_own() -> None:
    front = [node("Concat", "x x x", "p", axis=1)]
    found = adapted(classifier(front=front, shape=("n", 1, 8, 8), pixels="p"))
    names = [name for name, _ in alternatives(found)]
    assert "MNIST's mean and std" in names
    assert not any("BGR" in name or "ImageNet" in name for name in names)
    x = noise(found)
    for _, one in alternatives(found):
        assert logits(one, x).shape == (5, 10)


def test_sizes_stay_undecided() -> None:
    found = adapted(classifier(shape=("n", 3, None, None)), order="rgb")
    assert {one.undecided for _, one in alternatives(found)} == {("size",)}


@pytest.mark.parametrize(
    ("predictions", "warned"),
    [
        ([3] * 100, True),
        ([3] * 91 + [1] * 9, True),
        ([3] * 90 + [1] * 10, False),
        ([3] * 9, False),
        ([0, 1] * 50, False),
        ([], False),
    ],
)
def test_one_class_for_nearly_all(predictions: list[int], warned: bool) -> None:
    said = one_class_warning(np.array(predictions))
    assert (said is not None) == warned
    if said:
        assert f"of {len(predictions)} images get class 3" in said
        assert "mean and std" in said
