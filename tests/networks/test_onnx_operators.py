import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from metastable.errors import BundleError
from metastable.networks.onnx_classifier import check_body
from metastable.networks.onnx_operators import CLASSIC, LENT, ONE_MACHINE, RUNTIME


def model(operator: str, domain: str, opset: int = 1) -> onnx.ModelProto:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])
    made = helper.make_graph([helper.make_node(operator, ["x"], ["y"], domain=domain)], "g", [x], [y])
    imports = [helper.make_opsetid("", 18), helper.make_opsetid(domain, opset)]
    return helper.make_model(made, opset_imports=imports, ir_version=10)


@pytest.mark.parametrize(
    ("operator", "domain", "opset"),
    [("Gelu", RUNTIME, 1), ("QuickGelu", RUNTIME, 1), ("Normalizer", CLASSIC, 3)],
)
def test_operators_on_the_list_pass_and_run(operator: str, domain: str, opset: int) -> None:
    proto = model(operator, domain, opset)
    check_body(proto, "it.onnx")
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    assert session.run(None, {"x": np.ones((2, 4), np.float32)})[0].shape == (2, 4)


@pytest.mark.parametrize(
    ("operator", "domain", "message"),
    [
        ("EPContext", RUNTIME, "EPContext of com.microsoft, which is not on the list"),
        ("Sampling", RUNTIME, "not on the list"),
        ("ZipMap", CLASSIC, "not on the list"),
        ("Conv", ONE_MACHINE, "one kind of processor.*ORT_ENABLE_EXTENDED"),
        ("Own", "my.domain", r"operators of \['my.domain'\]"),
        ("ATen", "org.pytorch.aten", "only ONNX's own"),
    ],
)
def test_others_are_refused(operator: str, domain: str, message: str) -> None:
    with pytest.raises(BundleError, match=r"it\.onnx.*" + message):
        check_body(model(operator, domain), "it.onnx")


def test_no_operator_on_the_list_makes_text_samples_or_reads_files() -> None:
    named = {name for names in LENT.values() for name in names}
    assert not named & {"EPContext", "Sampling", "BeamSearch", "GreedySearch", "Tokenizer", "RandomNormal"}
