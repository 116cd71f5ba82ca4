"""Check the operator without a GPU: its ONNX function by the reference, its place in a model, its kernel compiled."""

import numpy as np
import onnxruntime
from onnx import TensorProto, helper

from my_ops.bias_silu import bias_silu
from plugins_trt.body import model_of
from plugins_trt.fuse import fused
from plugins_trt.report import kernel_report

TARGETS = {"orin-nano": 87, "rtx-4090": 89, "thor": 110}


def main() -> None:
    for call in bias_silu.small_examples():
        x, bias = bias_silu.sample(call)
        (expected,) = bias_silu.reference(call, x, bias)
        session = onnxruntime.InferenceSession(model_of(bias_silu, call).SerializeToString())
        (got,) = session.run(None, {"x": x, "bias": bias})
        error = float(np.max(np.abs(got.astype(np.float64) - expected.astype(np.float64))))
        print(f"function, x {x.shape}: largest error {error:.1e}")
        if error > 2e-3 * max(1.0, float(np.max(np.abs(expected)))):  # twice the step of float16
            raise SystemExit("the ONNX function does not compute what the reference does")

    nodes = [("Add", ["x", "b"], "v"), ("Sigmoid", ["v"], "s"), ("Mul", ["v", "s"], "y")]
    shapes = {"x": [2, 5, 64], "b": [64], "y": [2, 5, 64]}
    info = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT16, shape) for name, shape in shapes.items()}
    made = [helper.make_node(kind, takes, [gives]) for kind, takes, gives in nodes]
    graph = helper.make_graph(made, "silu", [info["x"], info["b"]], [info["y"]])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    _, fusions = fused(model, (bias_silu,))
    print(f"in a model: {', '.join(kind for kind, _, _ in nodes)} became {fusions[0].operator}")

    for name, sm in TARGETS.items():
        report = kernel_report(bias_silu, bias_silu.examples()[0], sm=sm)
        used = report.resources
        spills = "spills to memory" if used.spills else "no spills"
        print(f"{name}: {used.registers} registers, {spills}, occupancy {report.occupancy.fraction:.0%}")


if __name__ == "__main__":
    main()
