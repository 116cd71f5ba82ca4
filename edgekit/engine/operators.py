"""Which ONNX operators TensorRT's parser takes, by release, and what it demands of them.

Sources: the operator lists and change log of NVIDIA's onnx-tensorrt for 8.5, 9.2, 10.0 to 10.15, and, for TensorRT-RTX
1.7, its own parser asked operator by operator, and its builder where the parser promises too much (tests ask both
again). Two operators appeared between two lists that
were read: for releases in between the answer is "unsure".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import onnx

Answer = Literal["yes", "no", "unsure"]

_FROM_8_5 = """
Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization Cast Ceil Celu Clip Concat
Constant ConstantOfShape Conv ConvTranspose Cos Cosh CumSum DepthToSpace DequantizeLinear Div Dropout Einsum Elu Equal
Erf Exp Expand EyeLike Flatten Floor GRU Gather GatherElements GatherND Gemm GlobalAveragePool GlobalLpPool
GlobalMaxPool Greater GreaterOrEqual GridSample HardSigmoid HardSwish Identity If InstanceNormalization IsNaN LRN LSTM
LeakyRelu Less LessOrEqual Log LogSoftmax Loop LpNormalization LpPool MatMul Max MaxPool Mean MeanVarianceNormalization
Min Mod Mul Neg NonMaxSuppression NonZero Not OneHot Or PRelu Pad Pow QuantizeLinear RNN RandomNormal RandomNormalLike
RandomUniform RandomUniformLike Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean
ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize ReverseSequence RoiAlign Round Scan Scatter
ScatterElements ScatterND Selu Shape Shrink Sigmoid Sign Sin Sinh Size Slice Softmax Softplus Softsign SpaceToDepth
Split Sqrt Squeeze Sub Sum Tan Tanh ThresholdedRelu Tile TopK Transpose Trilu Unsqueeze Upsample Where Xor
""".split()  # noqa: SIM905

_LATER = {
    "GroupNormalization": "8.6", "LayerNormalization": "8.6", "IsInf": "8.6", "CastLike": "10.0", "Hardmax": "10.0",
    "DeformConv": "10.1", "BlackmanWindow": "10.4", "HammingWindow": "10.4", "HannWindow": "10.4", "STFT": "10.5",
    "Attention": "10.14", "RotaryEmbedding": "10.15", "RMSNormalization": "10.15", "TensorScatter": "10.15",
}  # fmt: skip

_BETWEEN = {"Gelu": ("10.0", "10.15"), "Mish": ("10.0", "10.15")}
"""Operator -> the first release that may have it, and the first that is known to."""

_ONLY_RTX = ("Swish",)
_NO_PLUGIN = "its parser knows it and the plugin that would do it is not there"
_NOT_RTX = {
    "CausalConvWithState": _NO_PLUGIN,
    "DeformConv": "only TensorRT has it",
    "LinearAttention": _NO_PLUGIN,
    "NonMaxSuppression": "its parser takes it and its builder has no kernel for it. End the model in "
    "plugins_trt.torch.decode_nms, whose function it builds",
    "NonZero": _NO_PLUGIN,
    "RoiAlign": f"{_NO_PLUGIN}. With a sampling_ratio above 0, mode avg and operator set 18 the function of "
    "plugins_trt.torch.roi_align takes its place",
}
"""Operators of TensorRT that TensorRT-RTX does not build, and why, as a sentence without a full stop."""

FUNCTIONS = "10.0"
"""The first release that expands functions of the model in place of operators it does not know."""

STRONGLY_TYPED = "10.0"
"""The first release that takes every precision from the graph."""

AOT_PLUGINS = "10.9"
"""The first release that embeds plugins compiled ahead of time."""


def at_least(release: str, other: str) -> bool:
    """Whether `release` is `other` or later."""
    return tuple(map(int, release.split("."))) >= tuple(map(int, other.split(".")))


def operator_support(operator: str, release: str, *, rtx: bool = False) -> Answer:
    """Whether the parser of TensorRT `release` ("10.3"), or TensorRT-RTX, takes a standard operator."""
    if rtx:
        if operator in _NOT_RTX:
            return "no"
        known = operator in _FROM_8_5 or operator in _LATER or operator in _BETWEEN or operator in _ONLY_RTX
        return "yes" if known else "no"
    if operator in _FROM_8_5:
        return "yes"
    if operator in _LATER:
        return "yes" if at_least(release, _LATER[operator]) else "no"
    if operator in _BETWEEN:
        first, sure = _BETWEEN[operator]
        return "yes" if at_least(release, sure) else "unsure" if at_least(release, first) else "no"
    return "no"


def missing_reason(operator: str, *, rtx: bool = False) -> str:
    """Why a release lacks a standard operator, as a sentence without a full stop."""
    first = first_release(operator)
    if rtx:
        return _NOT_RTX.get(operator, "no release of it does")
    return f"TensorRT has it from {first} on" if first else "no release of TensorRT has it"


def first_release(operator: str) -> str:
    """The first TensorRT release that is known to take a standard operator, or an empty string."""
    if operator in _FROM_8_5:
        return "8.5"
    return _LATER.get(operator) or (_BETWEEN[operator][1] if operator in _BETWEEN else "")


def restriction(node: onnx.NodeProto, constants: Mapping[str, Any]) -> str:
    """What of this node no release takes, as a sentence without a full stop; empty if nothing is wrong.

    `constants` are the values of initializers as numpy arrays.
    """
    check = _CHECKS.get(node.op_type)
    if check is None:
        return ""
    attributes = {a.name: a for a in node.attribute}
    return check(node, attributes, constants)


_Check = Callable[[Any, Mapping[str, Any], Mapping[str, Any]], str]


def _quantize(node: Any, _attributes: Mapping[str, Any], constants: Mapping[str, Any]) -> str:
    if len(node.input) < 3 or not node.input[2]:
        return "it has no zero point, which makes it unsigned; give one of int8 zeros" if _unsigned(node) else ""
    zero = constants.get(node.input[2])
    if zero is None:
        return "its zero point is computed; it must be a constant of zeros"
    if str(zero.dtype) == "uint8":
        return "it is unsigned (uint8); TensorRT takes int8"
    return "its zero point is not zero: only symmetric quantization runs" if zero.any() else ""


def _unsigned(node: Any) -> bool:
    return bool(node.op_type == "QuantizeLinear")


def _pool(node: Any, attributes: Mapping[str, Any], _constants: Mapping[str, Any]) -> str:
    if "dilations" in attributes and any(d != 1 for d in attributes["dilations"].ints):
        return "its dilations are not 1"
    if node.op_type == "MaxPool" and len(node.output) > 1 and node.output[1]:
        return "its second output (indices) is used"
    return ""


def _recurrent(_node: Any, attributes: Mapping[str, Any], _constants: Mapping[str, Any]) -> str:
    if "layout" in attributes and attributes["layout"].i:
        return "its layout is batch first (layout=1)"
    if "input_forget" in attributes and attributes["input_forget"].i:
        return "it couples the input and forget gates"
    return ""


def _resize(_node: Any, attributes: Mapping[str, Any], _constants: Mapping[str, Any]) -> str:
    text = {k: a.s.decode() for k, a in attributes.items() if a.s}
    if text.get("mode", "nearest") not in ("nearest", "linear"):
        return f"its mode is {text['mode']}; nearest and linear run"
    if text.get("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
        return "it crops while it resizes"
    if "antialias" in attributes and attributes["antialias"].i:
        return "it smooths (antialias=1)"
    if text.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        return "it keeps the aspect ratio"
    return ""


def _scatter(_node: Any, attributes: Mapping[str, Any], _constants: Mapping[str, Any]) -> str:
    reduction = attributes["reduction"].s.decode() if "reduction" in attributes else "none"
    return f"its reduction is {reduction}" if reduction != "none" else ""


def _top(node: Any, attributes: Mapping[str, Any], constants: Mapping[str, Any]) -> str:
    if "sorted" in attributes and not attributes["sorted"].i:
        return "its result is not sorted"
    k = constants.get(node.input[1]) if len(node.input) > 1 else None
    return f"it asks for {int(k.max())} values; fewer than 3840 run" if k is not None and k.max() >= 3840 else ""


_CHECKS: dict[str, _Check] = {
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _quantize,
    "MaxPool": _pool,
    "AveragePool": _pool,
    "LpPool": _pool,
    "LSTM": _recurrent,
    "GRU": _recurrent,
    "RNN": _recurrent,
    "Resize": _resize,
    "ScatterND": _scatter,
    "TopK": _top,
}
