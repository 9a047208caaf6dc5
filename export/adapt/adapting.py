"""`adapt`: from what people have to the one form of a classifier that the rest of the project takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import TensorProto

from export.adapt.batches import free_batch
from export.adapt.editor import Editor
from export.adapt.endings import training, unwrap_maps
from export.adapt.inputs import Taken, adapt_input, allowed_forms
from export.adapt.outputs import PROBES, adapt_output, wanted_names
from export.adapt.reading import read
from export.adapt.running import Failed, Running
from export.adapt.values import Adapted, Wishes
from export.tidy import encode
from metastable.errors import BundleError
from metastable.networks import onnx_classifier
from metastable.networks.onnx_operators import CLASSIC, RUNTIME

NO_GRADIENTS = {CLASSIC, RUNTIME}
EIGHT_BITS = {"QuantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger"}


def adapt(source: Path | bytes, wishes: Wishes | None = None) -> Adapted:
    """The classifier in a graph in canonical form, and in sentences what was changed.

    Nothing but ONNX Runtime runs it, on the CPU, on a few images of noise.

    Args:
        source: an ONNX file (its external data beside it), or the bytes of one.
        wishes: what is known of it.

    Raises BundleError, with what to do, for anything that cannot be adapted.

        >>> adapted = adapt(Path("model.onnx"), Wishes(order="bgr"))
        >>> print(*adapted.changes, sep="\\n")
    """
    try:
        # Values without bounds are found where the logits are judged.
        with np.errstate(all="ignore"):
            return _adapt(source, wishes or Wishes())
    except UnicodeDecodeError:
        raise BundleError("the graph has names that are no text: it is damaged, copy it again") from None


def _adapt(source: Path | bytes, wishes: Wishes) -> Adapted:
    proto, file, done = read(source)
    editor = Editor(proto, file, done)
    unwrap_maps(editor)
    names = list(dict.fromkeys(wanted_names(editor, wishes.output)))
    editor.prune()
    if mode := training(editor):
        raise BundleError(f"{file} has {mode}: export it after model.eval()")
    allowed = allowed_forms(editor, wishes)
    _check(editor, names)
    try:
        editor, taken = adapt_input(editor, wishes, allowed)
        editor = free_batch(editor, taken, names)
        classes = adapt_output(editor, taken, names, wishes.output)
        _judge(editor, taken, classes)
    except Failed as error:
        raise BundleError(_explained(editor, error)) from None
    _say_gradients(editor)
    form = taken.form
    return Adapted(
        graph=encode(editor.proto),
        channels=form.channels,
        height=form.height,
        width=form.width,
        classes=classes,
        mean=taken.mean,
        std=taken.std,
        changes=tuple(editor.changes),
        undecided=taken.undecided,
    )


def _check(editor: Editor, names: list[str]) -> None:
    """Load the graph as it came, so that what is wrong with it is said before anything is changed."""
    try:
        types = Running(editor, names).types()
    except Failed as error:
        raise BundleError(_explained(editor, error)) from None
    if not any(one.startswith("tensor(") for one in types.values()):
        raise BundleError(
            f"{editor.file} makes {', '.join(types.values())}, and a tensor of logits is needed"
        )


def _judge(editor: Editor, taken: Taken, classes: int) -> None:
    """BundleError unless what was made is logits, and the graph passes as one of a bundle."""
    name = editor.graph.output[0].name
    running, images = Running(editor, [name]), taken.noise(PROBES)
    for n in (1, PROBES):
        logits = running(images[:n])[name]
        if logits.shape != (n, classes) or logits.dtype != np.float32:
            raise Failed(f"it makes {logits.dtype} {list(logits.shape)} of {n} images")
        if not bool(np.isfinite(logits).all()):
            raise BundleError(f"{editor.file} gives logits that are not finite numbers, on images of noise")
    onnx_classifier.check_body(editor.proto, editor.file)


def _explained(editor: Editor, error: Failed) -> str:
    """What ONNX Runtime said, or a better reason where there is one."""
    kinds = {tensor.data_type for tensor in onnx_classifier.tensors(editor.graph)}
    if TensorProto.BFLOAT16 in kinds:
        return (
            f"{editor.file} has bfloat16 weights, which ONNX Runtime does not run on a CPU: export it in "
            "float32 (model.float())"
        )
    return f"{editor.file} does not run in ONNX Runtime: {error}"


def _say_gradients(editor: Editor) -> None:
    nodes = editor.graph.node
    if lent := sorted({node.domain for node in nodes} & NO_GRADIENTS):
        editor.say(f"it has operators of {' and '.join(lent)}, so there are no gradients of it")
    elif any(node.op_type in EIGHT_BITS for node in nodes):
        editor.say("it computes in 8 bits, so there are no gradients of it")
