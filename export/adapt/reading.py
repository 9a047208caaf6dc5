"""From a path to an onnx.ModelProto with everything inside: functions inlined, weights of other files read.

The file is hostile data.  Bytes are bounded by PART_BYTES, files beside it included; those are read only from
the same folder and through no link; nodes are bounded before functions are inlined.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any

import onnx

from export.adapt.formats import recognised, recognised_folder
from export.tidy import tidy
from metastable.bundle import files
from metastable.errors import BundleError
from metastable.networks.onnx_classifier import NODES, parse_graph, tensors

IR_VERSION = 10
"""Of a graph that is stored, at most: runtimes refuse newer ones than they know."""


def read(source: Path | bytes) -> tuple[onnx.ModelProto, str, list[str]]:
    """A model, its name for messages, and what was done to it in sentences.

    Args:
        source: a file, or the bytes of a graph that needs no other file.

    Raises BundleError that says what the file is where it is no ONNX graph, and for files outside the folder.
    """
    if isinstance(source, Path) and source.is_dir():
        raise BundleError(f"{source.name} is {recognised_folder(source)}")
    if isinstance(source, Path):
        folder, file = source.parent, source.name
        data = _bytes(source.resolve(), file, files.PART_BYTES)  # whoever names a link means what it leads to
    else:
        folder, file, data = None, "the graph", source
    if said := recognised(data):
        raise BundleError(f"{file} is {said}")
    proto: onnx.ModelProto = parse_graph(data, file)
    if not proto.graph.node:
        raise BundleError(f"{file} is not an ONNX graph: it has no nodes")
    if len(proto.graph.node) > NODES:
        raise BundleError(f"{file} has more than {NODES} nodes")
    if not all(isinstance(one, str) for one in _texts(proto)):  # protobuf gives bytes where they are no text
        raise BundleError(f"{file} has names that are no text: it is damaged, copy it again")
    done = []
    if _fetched(proto, folder, file, files.PART_BYTES - len(data)):
        done.append("its weights lay in other files beside it: they are inside now")
    return _plain(proto, file), file, done


def _texts(proto: onnx.ModelProto) -> Iterator[Any]:
    """Every name that is read of a model."""
    graph = proto.graph
    for node in itertools.chain(graph.node, *(one.node for one in proto.functions)):
        yield from (node.op_type, node.domain, *node.input, *node.output)
        yield from (one.name for one in node.attribute)
    for function in proto.functions:
        yield from (function.name, function.domain, *function.input, *function.output)
    yield from (one.name for one in (*graph.input, *graph.output, *graph.initializer))
    yield from (one.domain for one in proto.opset_import)
    for tensor in _all_tensors(proto):
        yield from (text for entry in tensor.external_data for text in (entry.key, entry.value))


def _fetched(proto: onnx.ModelProto, folder: Path | None, file: str, budget: int) -> bool:
    """Whether tensors lay outside; files of at most `budget` bytes together are read."""
    held: dict[str, bytes] = {}
    found, copied = False, 0
    for tensor in _all_tensors(proto):
        if not tensor.data_location and not tensor.external_data:
            continue
        found = True
        entries = {entry.key: entry.value for entry in tensor.external_data}
        name = entries.get("location", "")
        if folder is None:
            raise BundleError(f"{file} keeps weights in another file: save it with its weights inside")
        if PurePath(name).name != name or name in ("", "..") or "\\" in name or "\0" in name:
            raise BundleError(
                f"{file} keeps weights at {shown(name)}: only plain names in its own folder are read"
            )
        if name not in held:
            held[name] = _bytes(folder / name, name, max(budget, 0))
            budget -= len(held[name])  # what is held, however little of it is asked for
        offset = _number(entries.get("offset", "0"), file)
        length = _number(entries.get("length", str(max(0, len(held[name]) - offset))), file)
        if offset + length > len(held[name]):
            raise BundleError(f"{file} wants bytes that {shown(name)} does not have: copy it whole")
        copied += length
        if copied > files.PART_BYTES:  # tensors may ask for the same bytes again and again
            raise BundleError(f"{file} and the files of its weights are above {files.PART_BYTES} bytes")
        tensor.raw_data = held[name][offset : offset + length]
        del tensor.external_data[:]
        tensor.ClearField("data_location")
    return found


def _bytes(path: Path, name: str, limit: int) -> bytes:
    if path.is_symlink():
        raise BundleError(f"{name} is a link: copy what it leads to beside the graph (cp -L)")
    try:
        return files.read(path.parent, path.name, limit)
    except BundleError:
        raise BundleError(
            f"{name} is missing, no plain file, or above {limit} bytes (a graph and its weights may have "
            f"{files.PART_BYTES}): name a file that can be read"
        ) from None


def _number(text: str, file: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise BundleError(f"{file} has an offset or a length of weights that is no whole number")
    return int(text)


def _all_tensors(proto: onnx.ModelProto) -> Iterator[Any]:
    yield from tensors(proto.graph)
    for function in proto.functions:
        for node in function.node:
            for one in node.attribute:
                if one.HasField("t"):
                    yield one.t


def _plain(proto: onnx.ModelProto, file: str) -> onnx.ModelProto:
    """Without functions, without initialisers among the inputs, one name for ONNX's own domain."""
    if proto.functions:
        _bound_inlining(proto, file)
    try:
        proto = tidy(proto)
    except Exception as error:  # whatever the inliner raises
        raise BundleError(f"{file} has functions that cannot be inlined: {shown(str(error))}") from None
    graph = proto.graph
    for item in (*graph.node, *proto.opset_import):
        if item.domain == "ai.onnx":
            item.domain = ""
    if all(one.domain for one in proto.opset_import):
        proto.opset_import.add(domain="", version=17)
    held = {one.name for one in graph.initializer}
    kept = [one for one in graph.input if one.name not in held]
    del graph.input[:]
    graph.input.extend(kept)
    # Before 4 initialisers had to be inputs.  Exporters write the newest, which no runtime may know yet; what
    # is new in it are types and fields that a graph of floats does not use.
    proto.ir_version = min(max(proto.ir_version, 4), IR_VERSION)
    del graph.value_info[:]  # it holds sizes that change
    return proto


def _bound_inlining(proto: onnx.ModelProto, file: str) -> None:
    """BundleError if the inlined graph would have more than NODES nodes, or if functions call in circles."""
    calls = {(one.domain, one.name): list(_calls(one.node)) for one in proto.functions}
    sizes: dict[tuple[str, str], int] = {}
    for root in calls:
        stack, seen = [root], set[tuple[str, str]]()
        while stack:
            key = stack[-1]
            waiting = [one for one in set(calls[key]) if one in calls and one not in sizes]
            if waiting and key in seen:
                raise BundleError(f"{file} has functions that call each other in circles")
            seen.add(key)
            stack.extend(waiting)
            if not waiting:
                sizes[key] = min(NODES + 1, sum(sizes.get(one, 1) for one in calls[key]))
                stack.pop()
    if sum(sizes.get(one, 1) for one in _calls(proto.graph.node)) > NODES:
        raise BundleError(f"{file} has more than {NODES} nodes once its functions are written out")


def _calls(nodes: Any) -> Iterator[tuple[str, str]]:
    for node in nodes:
        yield node.domain, node.op_type
        for one in node.attribute:
            yield from _calls(one.g.node)


def shown(name: str) -> str:
    """A name of the graph for a message: one line, at most 80 characters, in quotes."""
    clean = "".join(c if c.isprintable() else "?" for c in name)
    return "'" + (clean if len(clean) <= 80 else clean[:77] + "...") + "'"
