"""A graph while it is rewritten: what makes a value, what is constant, nodes put before and after."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

IMAGES, BATCH = "images", "batch"
FLOAT = onnx.TensorProto.FLOAT
SENTENCE = 200


class Editor:
    """An onnx.ModelProto, changed in place, and the sentences that say how.

    Args:
        proto: as `reading.read` gives it.
        file: its name for messages.
    """

    def __init__(self, proto: onnx.ModelProto, file: str, changes: list[str]) -> None:
        self.proto, self.file, self.changes = proto, file, changes
        self.graph = proto.graph
        self._taken = {name for node in self.graph.node for name in (*node.input, *node.output)}
        self._taken |= {one.name for one in (*self.graph.input, *self.graph.output, *self.graph.initializer)}

    def copy(self) -> Editor:
        """The same, to be changed by itself."""
        proto = onnx.ModelProto()
        proto.CopyFrom(self.proto)
        return Editor(proto, self.file, list(self.changes))

    def say(self, sentence: str) -> None:
        """Record a sentence, as long as a bundle's provenance takes it."""
        self.changes.append(sentence if len(sentence) <= SENTENCE else sentence[: SENTENCE - 3] + "...")

    def fresh(self, stem: str) -> str:
        """A name that no value has."""
        name, number = f"adapted_{stem}", 0
        while name in self._taken:
            number += 1
            name = f"adapted_{stem}_{number}"
        self._taken.add(name)
        return name

    def maker(self, name: str) -> Any:
        """The node that makes a value, or None."""
        return next((node for node in self.graph.node if name and name in node.output), None)

    def users(self, name: str) -> list[Any]:
        return [node for node in self.graph.node if name in node.input]

    def constant(self, name: str) -> NDArray[Any] | None:
        """The value of an initialiser or of a Constant node; None for anything else."""
        for tensor in self.graph.initializer:
            if tensor.name == name:
                return np.asarray(numpy_helper.to_array(tensor))
        node = self.maker(name)
        if node is None or node.op_type != "Constant" or node.domain:
            return None
        for one in node.attribute:
            if one.name == "value":
                return np.asarray(numpy_helper.to_array(one.t))
            if one.name in ("value_float", "value_int", "value_floats", "value_ints"):
                return np.asarray(helper.get_attribute_value(one))
        return None

    def hold(self, value: NDArray[Any]) -> str:
        """The name of a new initialiser."""
        name = self.fresh("constant")
        self.graph.initializer.append(numpy_helper.from_array(value, name))
        return name

    def after(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """The output of a new last node."""
        output = self.fresh(operator.lower())
        self.graph.node.append(helper.make_node(operator, list(inputs), [output], **attributes))
        return output

    def before(self, nodes: list[Any]) -> None:
        """Put nodes in front of all others, in this order."""
        for node in reversed(nodes):
            self.graph.node.insert(0, node)

    def set_output(self, name: str) -> None:
        """Make this value the one output, of a type that the runtime finds out."""
        del self.graph.output[:]
        self.graph.output.append(onnx.ValueInfoProto(name=name))

    def prune(self) -> None:
        """Drop nodes and initialisers that no output needs."""
        makers = {name: node for node in self.graph.node for name in node.output if name}
        wanted, stack = set[str](), [one.name for one in self.graph.output]
        while stack:
            name = stack.pop()
            if name in wanted:
                continue
            wanted.add(name)
            if name in makers:
                stack.extend(makers[name].input)
                # A graph that a node holds may use values from outside.
                stack.extend(_outer(makers[name]))
        kept = [node for node in self.graph.node if wanted.intersection(node.output)]
        weights = [one for one in self.graph.initializer if one.name in wanted]
        del self.graph.node[:], self.graph.initializer[:]
        self.graph.node.extend(kept)
        self.graph.initializer.extend(weights)

    def depending(self, name: str) -> set[str]:
        """The values that depend on this one."""
        found = {name}
        for node in self.graph.node:
            if found.intersection(node.input):
                found.update(one for one in node.output if one)
        return found


def attribute(node: Any, name: str, default: Any) -> Any:
    """The value of a node's attribute."""
    for one in node.attribute:
        if one.name == name:
            return helper.get_attribute_value(one)
    return default


def _outer(node: Any) -> list[str]:
    return [
        name for one in node.attribute if one.HasField("g") for inner in one.g.node for name in inner.input
    ]
