"""What a file is that is no ONNX graph, by its first bytes, and how one is made of it."""

from __future__ import annotations

from pathlib import Path

TORCH = (
    "load it in Python, and export the module with "
    "torch.onnx.export(model.eval(), images, 'model.onnx', external_data=False)"
)
TENSORFLOW = "python -m tf2onnx.convert"
_SAVED_MODEL = "a TensorFlow SavedModel: convert it with {} --saved-model FOLDER --output model.onnx"
_ZIPPED = (
    (b"constants.pkl", f"a TorchScript archive: {TORCH}, from the module that it was scripted of"),
    (b"data.pkl", f"weights or a module saved by torch.save, a pickle that could run anything: {TORCH}"),
    (b"archive_format", f"a program of torch.export, which could run anything when it is loaded: {TORCH}"),
    (b"model.weights.h5", "a Keras model: convert it with model.export('model.onnx', format='onnx')"),
    (b"MAR-INF", "an archive of TorchServe: take the model out of it (unzip), and bring that"),
)
_STARTS = (
    (
        b"\x89HDF\r\n\x1a\n",
        "a Keras or HDF5 file: load it, then model.export('model.onnx', format='onnx')",
    ),
    (b"version https://git-lfs", "a pointer of Git LFS and not the file itself: fetch it with git lfs pull"),
    (b"\x1f\x8b", "compressed by gzip: unpack it, and bring the .onnx file in it"),
    (b"\x93NUMPY", "an array of numpy: bring the graph of the network"),
    (b"<!DOCTYPE", "a web page: download the file that it links to"),
    (b"<html", "a web page: download the file that it links to"),
    (b"<?xml", "XML, as OpenVINO's models are: bring the ONNX graph that it was made of"),
)


def recognised(data: bytes) -> str | None:
    """What these bytes are and what to do, as the end of a sentence; None if they may be an ONNX graph."""
    if data.startswith(b"PK\x03\x04"):
        for mark, said in _ZIPPED:
            if mark in data:
                return said
        return "a zip archive: unpack it, and bring the .onnx file in it"
    for mark, said in _STARTS:
        if data.startswith(mark):
            return said
    if data[:1] == b"\x80" and data[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return f"a pickle, which could run anything: {TORCH}"
    if data[4:8] == b"TFL3":
        return f"a TFLite model: convert it with {TENSORFLOW} --tflite MODEL --output model.onnx"
    if data[4:8] == b"ORTM":
        return "in ONNX Runtime's own format: bring the .onnx file that it was made of"
    if data[257:262] == b"ustar":
        return "a tar archive: unpack it, and bring the .onnx file in it"
    if data[8:9] == b"{" and data[7:8] == b"\0":
        return (
            "a safetensors file, which holds weights and no network: load them into the module and "
            "export that (export.adapt.from_module), or bring a state dict of a network that this project has"
        )
    if data.startswith((b"\x08\x01\x12", b"\x0a")) and (b"saver" in data or b"tensorflow" in data):
        return _SAVED_MODEL.format(TENSORFLOW)
    return None


def recognised_folder(path: Path) -> str:
    """What a folder is that was given in place of a file."""
    if (path / "saved_model.pb").exists():
        return _SAVED_MODEL.format(TENSORFLOW)
    return "a folder: name the .onnx file in it"
