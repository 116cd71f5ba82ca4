from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.runtime.ort import OrtSession
from plugins_trt.body import model_of
from plugins_trt.dims import Size
from plugins_trt.errors import UnsupportedCallError
from plugins_trt.lstm import Lstm
from plugins_trt.operator import TensorType
from tests.cuda_on_host.host import KernelError, host_kernel, run_operator
from tests.plugins_trt.checks import assert_close

OP = Lstm()
WAYS = ("forward", "reverse", "bidirectional")


def assert_agrees(
    steps: int, batch: int, hidden: int, dtype: str, way: str = "forward", *, tactic: int | None = None, seed: int = 1
) -> None:
    """The kernel against the reference on ordinary inputs."""
    call = OP.example(steps, batch, hidden, dtype, way)
    arrays = OP.sample(call, seed)
    assert_close(run_operator(OP, call, *arrays, tactic=tactic, seed=seed), OP.reference(call, *arrays))


@pytest.mark.parametrize("way", ["forward", "bidirectional"])
def test_the_reference_is_pytorchs_lstm(way: str) -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    layer = torch.nn.LSTM(6, 5, bidirectional=way == "bidirectional").double()
    x = torch.randn(7, 3, 6).double()
    h0, c0 = torch.randn(2, 2 if layer.bidirectional else 1, 3, 5).double()
    y, (h, c) = layer(x, (h0, c0))
    gates, weights = [], []
    for suffix in ("", "_reverse")[: h0.shape[0]]:
        weight_ih, weight_hh, bias_ih, bias_hh = (getattr(layer, f"{name}_l0{suffix}") for name in PARAMETERS)
        order = torch.cat([torch.arange(5) + 5 * gate for gate in (0, 3, 1, 2)])  # from i, f, g, o to i, o, f, g
        gates.append((x @ weight_ih.T + bias_ih + bias_hh)[..., order])
        weights.append(weight_hh[order])
    arrays = [t.detach().float().numpy() for t in (torch.cat(gates, -1), torch.stack(weights), h0, c0)]
    got = OP.run_reference(*arrays, hidden_size=5, direction=way)
    assert_close(got, [t.detach().float().numpy() for t in (y, h, c)])


PARAMETERS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize(("batch", "hidden"), [(9, 32), (3, 66)])
def test_every_tactic_gives_the_same_layer(batch: int, hidden: int, dtype: str) -> None:
    tactics = OP.tactics(OP.example(3, batch, hidden, dtype), 87)
    assert len({tactic % 16 for tactic in tactics}) == 2
    for tactic in tactics:
        assert_agrees(3, batch, hidden, dtype, "bidirectional", tactic=tactic, seed=tactic)


@pytest.mark.parametrize("hidden", [1, 7, 8, 9, 17, 31, 33, 63])
@pytest.mark.parametrize("batch", [1, 3, 7])
def test_hidden_sizes_around_a_group_and_a_tile(hidden: int, batch: int) -> None:
    assert_agrees(2, batch, hidden, "float16", "bidirectional", seed=hidden)


@settings(max_examples=25, deadline=None)
@given(
    steps=st.integers(1, 7),
    batch=st.integers(1, 11),
    size=st.sampled_from([("float16", 20), ("float16", 13), ("float32", 20), ("bfloat16", 13)]),
    way=st.sampled_from(WAYS),
    one=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_any_number_of_steps_and_sequences(
    steps: int, batch: int, size: tuple[str, int], way: str, one: bool, seed: int
) -> None:
    dtype, hidden = size
    most = 4 if dtype == "float32" else 8
    assert_agrees(steps, batch, hidden, dtype, way, tactic=17 if one or batch <= most // 2 else 16 + most, seed=seed)


@pytest.mark.parametrize(("dtype", "hidden"), [("float16", 150), ("float16", 133), ("float32", 116)])
def test_weights_that_registers_do_not_hold_are_read_in_each_step(dtype: str, hidden: int) -> None:
    call = OP.example(3, 2, hidden, dtype)
    plan = OP.plan(call, tactic=OP.tactics(call, 87)[0], sm=87)
    assert int(plan.constants["RESIDENT"]) < -(-hidden // 16)
    assert_agrees(3, 2, hidden, dtype)


@pytest.mark.parametrize("hidden", [16, 64, 100, 128])
def test_fp16_weights_are_held_whole_up_to_128(hidden: int) -> None:
    call = OP.example(1, 1, hidden, "float16")
    for sm in (75, 87, 90, 120):
        for tactic in OP.tactics(call, sm):
            assert OP.plan(call, tactic=tactic, sm=sm).constants["RESIDENT"] == -(-hidden // 16)


def test_rounding_of_h_does_not_add_up_over_many_steps() -> None:
    assert_agrees(80, 1, 24, "float16", "bidirectional")


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_stream_cut_into_calls_gives_what_one_call_gives(dtype: str) -> None:
    call = OP.example(9, 2, 20, dtype)
    gates, weight, h0, c0 = OP.sample(call)
    whole = run_operator(OP, call, gates, weight, h0, c0)
    parts, h, c = [], h0, c0
    for begin, end in ((0, 4), (4, 5), (5, 9)):
        part = gates[begin:end]
        y, h, c = run_operator(OP, OP.example(end - begin, 2, 20, dtype), part, weight, h, c)
        parts.append(y)
    assert_close((np.concatenate(parts), h, c), whole)


def test_without_steps_the_states_stay_as_they_are() -> None:
    call = OP.example(0, 3, 12, "float16", "bidirectional")
    gates, weight, h0, c0 = OP.sample(call)
    y, h, c = run_operator(OP, call, gates, weight, h0, c0)
    assert y.shape == (0, 3, 24)
    np.testing.assert_array_equal(h, h0)
    np.testing.assert_array_equal(c, c0)


def test_without_sequences_nothing_is_touched() -> None:
    assert_agrees(2, 0, 12, "float32")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_nan_stays_in_its_sequence_and_infinity_saturates(dtype: str) -> None:
    call = OP.example(4, 5, 20, dtype)
    gates, weight, h0, c0 = OP.sample(call)
    gates[1, 3, 7] = np.nan
    gates[2, 0, 2], gates[2, 0, 25], gates[0, 1, 50], gates[3, 2, 61] = np.inf, -np.inf, np.inf, -np.inf
    h0[0, 4, 19] = np.nan
    want = OP.reference(call, gates, weight, h0, c0)
    for tactic in OP.tactics(call, 87):
        assert_close(run_operator(OP, call, gates, weight, h0, c0, tactic=tactic), want)
    lost = np.isnan(want[0].astype(np.float32)).any(axis=2)
    assert lost.any(axis=0).tolist() == [False, False, False, True, True]
    assert lost[:, 3].tolist() == [False, True, True, True]


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_the_function_body_takes_infinite_gates_as_the_kernel_does(dtype: str) -> None:
    call = OP.example(3, 2, 8, dtype, "bidirectional")
    gates, weight, h0, c0 = OP.sample(call)
    gates[1, 0, 3], gates[1, 1, 40] = np.inf, -np.inf
    with OrtSession(model_of(OP, call).SerializeToString()) as session:
        out = session.run(dict(zip((port.name for port in OP.inputs), (gates, weight, h0, c0))))
    assert_close([out[name] for name in OP.outputs], OP.reference(call, gates, weight, h0, c0))


@pytest.mark.parametrize(
    ("correct", "planted", "kind"),
    [
        ("__syncthreads();  // h of", "// h of", "race"),
        ("    __syncthreads();\n\n    for (i32 step", "\n    for (i32 step", "race or uninitialised"),
        ("state[(step + 1) % 2] + column", "state[step % 2] + column", "race"),
        ("state[1][i] = from_float<T>(0.0f);", "", "uninitialised"),
        (" && first + column + s < batch", "", "out of bounds"),
        ("unit && column + s < SEQUENCES", "column + s < SEQUENCES", "out of bounds"),
        ("if (step + 1 < steps) load_gates", "load_gates", "out of bounds"),
    ],
)
def test_a_bug_that_is_planted_in_the_kernel_is_caught(correct: str, planted: str, kind: str) -> None:
    call = OP.example(3, 5, 20, "float16")
    arrays = OP.sample(call)
    plan = OP.plan(call, tactic=24, sm=87)
    assert OP.source().count(correct) == 1
    inputs = {port.name: array for port, array in zip(OP.inputs, arrays)}
    outputs = {name: np.zeros(t.sizes, t.dtype) for name, t in zip(OP.outputs, OP.output_types(call))}
    kernel = host_kernel(OP.source().replace(correct, planted), plan.entry, plan.constants)
    with pytest.raises(KernelError) as caught:
        kernel.run(inputs, outputs, scalars=(3, 5), grid=(1, 1, 1), block=plan.block)
    assert caught.value.kind in kind.split(" or ")


def types(gates: tuple[int, ...], weight: tuple[int, ...], state: tuple[int, ...], dtype: str = "float16") -> Any:
    return [TensorType(dtype, shape) for shape in (gates, weight, state, state)]


@pytest.mark.parametrize(
    ("given_types", "attributes", "said"),
    [
        (types((5, 2, 32), (1, 32, 8), (1, 2, 8)), {}, "attribute 'hidden_size' is missing"),
        (types((5, 2, 32), (1, 32, 8), (1, 2, 8)), {"hidden_size": 0}, "'hidden_size' is 0; it must be at least 1"),
        (types((5, 2, 32), (1, 32, 8), (1, 2, 8)), {"hidden_size": 8, "direction": "both"}, "'direction' is 'both'"),
        (types((5, 2, 32), (1, 32, 8), (1, 2, 8)), {"hidden_size": 9}, r"'gates' is .*; .* it is \[5, 2, 36\]"),
        (types((5, 2, 32), (1, 32, 9), (1, 2, 8)), {"hidden_size": 8}, r"'weight_hh' is .* it is \[1, 32, 8\]"),
        (types((5, 2, 32), (1, 32, 8), (1, 3, 8)), {"hidden_size": 8}, r"'h0' is .* it is \[1, 2, 8\]"),
        (types((5, 2, 64), (1, 32, 8), (1, 2, 8)), {"hidden_size": 8, "direction": "bidirectional"}, r"\[2, 32, 8\]"),
        (types((2, 32), (1, 32, 8), (1, 2, 8)), {"hidden_size": 8}, "'gates' has 2 dimensions"),
        (types((5, 2, 32), (1, 32, 8), (1, 2, 8), "int8"), {"hidden_size": 8}, "'gates' is int8"),
        (types((5, -2, 32), (1, 32, 8), (1, 2, 8)), {"hidden_size": 8}, "negative size"),
    ],
)
def test_calls_that_do_not_fit_are_refused(given_types: Any, attributes: dict[str, Any], said: str) -> None:
    with pytest.raises(UnsupportedCallError, match=f"lstm: .*{said}"):
        OP.call(*given_types, **attributes)


@pytest.mark.parametrize(
    ("dtype", "hidden", "most"), [("float16", 257, 256), ("bfloat16", 300, 256), ("float32", 129, 128)]
)
def test_hidden_sizes_too_large_for_the_registers_are_left_to_the_function_body(
    dtype: str, hidden: int, most: int
) -> None:
    with pytest.raises(UnsupportedCallError, match=f"sm_87.* up to {most}, and this is {hidden}. The node"):
        OP.tactics(OP.example(1, 1, hidden, dtype), 87)
    assert OP.tactics(OP.example(1, 1, most, dtype), 87)


def test_what_a_target_or_a_call_does_not_have_is_refused() -> None:
    with pytest.raises(UnsupportedCallError, match="sm_75 know no bfloat16"):
        OP.tactics(OP.example(1, 1, 8, "bfloat16"), 75)
    with pytest.raises(UnsupportedCallError, match=r"no tactic 40 for this call; there are 17\."):
        OP.plan(OP.example(1, 1, 8, "float16"), tactic=40, sm=87)


def test_steps_and_batch_may_be_free() -> None:
    steps, batch = Size(index=0, axis=0), Size(index=0, axis=1)
    state = TensorType("float16", (2, Size(index=2, axis=1), 64))
    call = OP.call(
        TensorType("float16", (steps, batch, 512)), TensorType("float16", (2, 256, 64)), state, state,
        hidden_size=64, direction="bidirectional",
    )  # fmt: skip
    assert OP.tactics(call, 87) == (24, 40, 17, 33)
    plan = OP.plan(call, tactic=24, sm=87)
    shapes = [(30, 19, 512), (2, 256, 64), (2, 19, 64), (2, 19, 64)]
    assert plan.scalars_for(shapes) == (30, 19)
    assert plan.grid_for(shapes) == (3, 2, 1)


def test_cost_by_hand() -> None:
    cost = OP.cost(OP.example(10, 3, 4, "float16", "bidirectional"))
    assert cost.bytes_read == 2 * (10 * 3 * 32 + 2 * 16 * 4 + 2 * 2 * 3 * 4)
    assert cost.bytes_written == 2 * (10 * 3 * 8 + 2 * 2 * 3 * 4)
    assert cost.flops == 10 * 3 * 2 * 4 * (8 * 4 + 13)
