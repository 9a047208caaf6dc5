"""Which operators a graph of somebody else may hold: a closed list, and nothing but one bounded pass.

Of ONNX's own domain everything is let in that holds no other graph and draws no random number.  Of the two
domains beyond it that ONNX Runtime has built in, only the operators named here: no custom ones, and none
that reads files, calls other programs or samples.
"""

from __future__ import annotations

from typing import Any

from metastable.errors import BundleError

DOMAINS = ("", "ai.onnx")
"""Two names of ONNX's own domain."""
RANDOM = {
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
    "Multinomial",
    "Bernoulli",
}
RUNTIME = "com.microsoft"
CLASSIC = "ai.onnx.ml"
LENT = {
    # What ONNX Runtime's optimiser and its quantiser write for images.
    RUNTIME: frozenset(
        {
            *("FusedConv", "FusedGemm", "FusedMatMul", "TransposeMatMul", "NhwcFusedConv", "NhwcMaxPool"),
            *("Gelu", "FastGelu", "BiasGelu", "QuickGelu", "BiasAdd", "BiasSoftmax"),
            *("SkipLayerNormalization", "SkipSimplifiedLayerNormalization", "GroupNorm", "SkipGroupNorm"),
            *("Attention", "MultiHeadAttention", "QAttention"),
            *("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeMatMul", "MatMulIntegerToFloat"),
            *("MatMulInteger16", "MatMulNBits", "QGemm", "QLinearConv", "QLinearAdd", "QLinearMul"),
            *("QLinearAveragePool", "QLinearGlobalAveragePool", "QLinearConcat", "QLinearLeakyRelu"),
            *("QLinearSigmoid", "QLinearSoftmax", "QLinearReduceMean", "QLinearWhere"),
        }
    ),
    # What skl2onnx and its kin write; those that make maps and sequences are left out.
    CLASSIC: frozenset(
        {
            *("ArrayFeatureExtractor", "Binarizer", "FeatureVectorizer", "Imputer", "LabelEncoder"),
            *("LinearClassifier", "LinearRegressor", "Normalizer", "OneHotEncoder", "Scaler"),
            *("SVMClassifier", "SVMRegressor"),
            *("TreeEnsemble", "TreeEnsembleClassifier", "TreeEnsembleRegressor"),
        }
    ),
}
ONE_MACHINE = "com.microsoft.nchwc"
BRANCHES = (
    "loops and branches are not run. Export the module itself and not torch.jit.script of it "
    "(torch.onnx.export(model.eval(), images, file, dynamo=True)), or fold them away with constant shapes"
)


def check_operators(graph: Any, imports: Any, file: str) -> None:
    """BundleError naming `file` unless every node of an onnx.GraphProto is of an operator that is let in.

    `imports` are the model's opset_import.
    """
    domains = {one.domain for one in (*graph.node, *imports)}
    if ONE_MACHINE in domains:
        raise BundleError(
            f"{file} was optimised by ONNX Runtime for one kind of processor ({ONE_MACHINE}): save it with "
            "ORT_ENABLE_EXTENDED at most, or bring the graph that it was made of"
        )
    if others := sorted(domains - {*DOMAINS, *LENT}):
        raise BundleError(
            f"{file} uses operators of {others}: only ONNX's own, and some of {' and '.join(LENT)}, are run"
        )
    for node in graph.node:
        if node.domain not in DOMAINS and node.op_type not in LENT[node.domain]:
            raise BundleError(
                f"{file} uses {node.op_type} of {node.domain}, which is not on the list of operators that "
                "are run: bring the graph as it was before ONNX Runtime or a pipeline added it"
            )
        if node.op_type in RANDOM:
            raise BundleError(f"{file} draws random numbers with {node.op_type}")
        for one in node.attribute:
            if one.HasField("g") or one.graphs:
                raise BundleError(f"{file}: {node.op_type} holds a graph: {BRANCHES}")
            if one.HasField("sparse_tensor") or one.sparse_tensors:
                raise BundleError(f"{file}: {node.op_type} holds a sparse tensor: save it as a dense one")
