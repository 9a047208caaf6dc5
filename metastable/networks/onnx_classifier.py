"""A classifier that is not one of ours: an ONNX graph, run by ONNX Runtime.

The graph is data.  Only operators of a closed list are let in (onnx_operators), none that holds other graphs
(loops and branches), none that draws random numbers, and no weights in other files; so a graph does one
bounded pass, the same each time.  What it can still do is ask for much memory: take graphs from people you
trust.
"""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metastable.errors import BundleError, NoGradient
from metastable.networks.onnx_operators import check_operators

NODES = 20_000
_FLOAT = 1  # onnx.TensorProto.FLOAT
_IMAGES = "metastable_images"  # what `whole_graph` calls its input and, with endings, its own values


class OnnxClassifier(nn.Module):
    """Images [B, C, H, W] in [0, 1] to logits [B, classes] of an ONNX graph.

    Images of another height or width are resized (bilinear, antialiased), then (x - mean) / std goes
    into the graph.  It runs in float32 on the CPU, whatever the device and the type of the images.

    CUDA graphs cannot hold it: `capturable` says so.

    Args:
        model: the graph, as `check_graph` passes it.
        size: (height, width) that the graph takes.
        mean, std: by channel.
        file: its name, for errors.

    Raises BundleError if the graph is refused, or if ONNX Runtime is not installed.
    """

    capturable = False

    def __init__(
        self,
        model: bytes,
        *,
        size: tuple[int, int],
        mean: tuple[float, ...],
        std: tuple[float, ...],
        file: str = "classifier.onnx",
    ) -> None:
        super().__init__()
        check_graph(model, channels=len(mean), size=size, file=file)
        self.model, self.size, self.file = model, size, file
        # No buffers: a cast of the module to bfloat16 must not round what the graph was trained with.
        self._mean, self._std = (torch.tensor(values).view(1, -1, 1, 1) for values in (mean, std))
        self._session = session(model, file)
        self._input = self._session.get_inputs()[0].name

    def forward(self, x: Tensor) -> Tensor:
        """Logits, float32, on the device of x.

        Raises NoGradient where x asks for one, BundleError if the graph fails or gives no numbers.
        """
        if torch.is_grad_enabled() and x.requires_grad:
            raise NoGradient(
                f"{self.file} is run by ONNX Runtime, which gives no gradients: differentiate its conversion "
                "(metastable.networks.onnx_gradient.Differentiable)"
            )
        images = self.prepared(x.detach().to("cpu", torch.float32), self._mean, self._std).contiguous()
        try:
            logits = torch.from_numpy(self._session.run(None, {self._input: images.numpy()})[0])
        except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
            raise BundleError(f"{self.file} failed on images {list(images.shape)}: {short(error)}") from None
        if logits.dtype != torch.float32 or logits.ndim != 2 or len(logits) != len(x):
            raise BundleError(f"{self.file} must make float32 [{len(x)}, classes], not {list(logits.shape)}")
        return logits.to(x.device)

    @property
    def normalization(self) -> tuple[Tensor, Tensor]:
        """mean and std, float32 [1, C, 1, 1]."""
        return self._mean, self._std

    def prepared(self, x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        """What the graph is given of float32 images [B, C, H, W]: resized and normalised, on their device.

        mean and std are those of `normalization`, on the same device.
        """
        if x.shape[-2:] != self.size:
            x = F.interpolate(x, self.size, mode="bilinear", antialias=True)
        return (x - mean) / std

    def whole_graph(self, image: tuple[int, int]) -> bytes:
        """The same as one ONNX graph, for runtimes that take nothing else: resizing and normalising included.

        Float32 images [batch, C, *image] in [0, 1] to logits, where `image` is (height, width).  Resizing is
        linear and separable, so it is a matrix to each side, which every version of ONNX has.
        """
        helper = imported("onnx.helper", self.file)
        numpy_helper = imported("onnx.numpy_helper", self.file)
        proto = parse_graph(self.model, self.file)
        graph, name = proto.graph, _IMAGES
        held: dict[str, Tensor] = {}
        for operator, operand, left in self._preparation(image):
            key, after = f"{_IMAGES}_{len(held)}", f"{_IMAGES}_after_{len(held)}"
            held[key] = operand
            inputs = [key, name] if left else [name, key]
            graph.node.insert(len(held) - 1, helper.make_node(operator, inputs, [after]))
            name = after
        graph.node[len(held) - 1].output[0] = self._input
        kept = [one for one in graph.input if one.name != self._input]
        shape = ["batch", self._mean.shape[1], *image]
        del graph.input[:]
        graph.input.extend([helper.make_tensor_value_info(_IMAGES, _FLOAT, shape), *kept])
        graph.initializer.extend(numpy_helper.from_array(v.numpy(), key) for key, v in held.items())
        whole: bytes = proto.SerializeToString(deterministic=True)
        check_graph(whole, channels=self._mean.shape[1], size=image, file=self.file)
        return whole

    def _preparation(self, image: tuple[int, int]) -> list[tuple[str, Tensor, bool]]:
        """ONNX operators that turn an image into what the graph takes, and their constants.

        The third value says whether the constant stands on the left, as a matrix of the height does.
        """
        steps = [("Sub", self._mean, False), ("Div", self._std, False)]
        if image == self.size:
            return steps
        rows, columns = (_resizing(*sides) for sides in zip(image, self.size, strict=True))
        return [("MatMul", columns.T.contiguous(), False), ("MatMul", rows, True), *steps]

    def __deepcopy__(self, memo: dict[int, Any]) -> OnnxClassifier:
        """Itself: nothing in it ever changes, and a session cannot be copied."""
        return self

    def __getstate__(self) -> dict[str, Any]:
        """All but the session, which cannot leave its process."""
        return {name: value for name, value in self.__dict__.items() if name != "_session"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._session = session(self.model, self.file)


def _resizing(have: int, want: int) -> Tensor:
    """The matrix [want, have] that resizes a column as `OnnxClassifier.prepared` does."""
    unit = torch.eye(have).view(1, 1, have, have)
    return F.interpolate(unit, (want, have), mode="bilinear", antialias=True)[0, 0].contiguous()


def check_graph(model: bytes, *, channels: int, size: tuple[int, int], file: str) -> None:
    """BundleError naming `file` unless this is an ONNX graph that does one pass over images.

    It must pass `check_body`, and have one input float32 [batch, channels, *size] and one output, with a
    batch of any size.
    """
    proto = parse_graph(model, file)
    check_body(proto, file)
    _check_ends(proto.graph, channels, size, file)


def check_body(proto: Any, file: str) -> None:
    """BundleError naming `file` unless this onnx.ModelProto may be run, whatever its input and output are.

    It must hold at most NODES nodes, all of operators that are let in (onnx_operators), pass onnx.checker,
    and need no other file.
    """
    graph = proto.graph
    if len(graph.node) > NODES:
        raise BundleError(f"{file} has more than {NODES} nodes")
    if proto.functions or proto.training_info or graph.sparse_initializer:
        raise BundleError(f"{file} must hold no functions, training or sparse tensors: bring it again")
    check_operators(graph, proto.opset_import, file)
    for tensor in tensors(graph):
        if tensor.data_location or tensor.external_data:
            raise BundleError(f"{file} keeps weights in another file: save it with its weights inside")
    onnx = imported("onnx", file)
    try:
        onnx.checker.check_model(proto)
    except Exception as error:  # ValidationError, and whatever C++ throws
        raise BundleError(f"{file} does not pass onnx.checker: {short(error)}") from None


def parse_graph(model: bytes, file: str) -> Any:
    """An onnx.ModelProto of these bytes; BundleError if they are none."""
    onnx = imported("onnx", file)
    try:
        return onnx.ModelProto.FromString(model)
    except Exception as error:  # protobuf's DecodeError
        raise BundleError(f"{file} is not an ONNX graph: {short(error)}") from None


def imported(name: str, file: str) -> Any:
    """A module of an optional package; BundleError saying what `file` needs if it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise BundleError(f"{file} needs the package {name}: install requirements.txt") from None


def _check_ends(graph: Any, channels: int, size: tuple[int, int], file: str) -> None:
    held = {one.name for one in graph.initializer}
    inputs = [one for one in graph.input if one.name not in held]
    if len(inputs) != 1 or len(graph.output) != 1:
        raise BundleError(f"{file} must have one input and one output")
    batch, *image = _dimensions(inputs[0], file)
    wanted = (channels, *size)
    if len(image) != 3 or any(have not in (None, want) for have, want in zip(image, wanted, strict=True)):
        raise BundleError(f"{file} takes [batch, {image}], not [batch, {', '.join(map(str, wanted))}]")
    if batch is not None:
        raise BundleError(f"{file} takes batches of {batch} only: export it with a dynamic batch axis")


def _dimensions(value: Any, file: str) -> list[int | None]:
    """The sizes of a float32 input, None where they are open."""
    kind = value.type.tensor_type
    if kind.elem_type != _FLOAT or not kind.HasField("shape") or not kind.shape.dim:
        raise BundleError(f"{file}: its input must be a float32 tensor with a declared shape")
    return [one.dim_value if one.HasField("dim_value") else None for one in kind.shape.dim]


def tensors(graph: Any) -> Iterator[Any]:
    """Every dense tensor of a graph: of its nodes' attributes and its initialisers."""
    for node in graph.node:
        for one in node.attribute:
            yield from itertools.chain([one.t] if one.HasField("t") else [], one.tensors)
    yield from graph.initializer


def session(model: bytes, file: str) -> Any:
    """ONNX Runtime's session of a checked graph, on the CPU; BundleError if it is refused."""
    runtime = imported("onnxruntime", file)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # errors come as exceptions
    # Threads that spin between two calls take the cores from PyTorch's.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Else bytes that look like ONNX Runtime's own format would be read as such, unchecked.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    try:
        return runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # see `forward`
        raise BundleError(f"{file} is refused by ONNX Runtime: {short(error)}") from None


def short(error: Exception) -> str:
    """An error of another library as one line."""
    plain = "".join(c if c.isprintable() else " " for c in str(error))
    line = " ".join(plain.split())
    return line if len(line) <= 300 else f"{line[:100]} ... {line[-195:]}"  # what is wrong stands last
