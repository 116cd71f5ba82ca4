"""LSTM layers for PyTorch models, on the operator `lstm`: a function, and a module that takes the place of a trained
`torch.nn.LSTM`.

    from plugins_trt.lstm_torch import lstm_module
    model.lstm = lstm_module(model.lstm)       # before export

The input's part of the gates is one matrix product over all steps, and the operator does the recurrence.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from plugins_trt.errors import UnsupportedCallError
from plugins_trt.lstm import GATES

_ONNX_ORDER = (0, 3, 1, 2)
"""PyTorch has the gates as i, f, g, o; ONNX as i, o, f, g."""


def layer_of(node: Callable[..., Any]) -> Callable[..., Any]:
    """`plugins_trt.torch.lstm`, given the operator as a function."""

    def lstm(
        x: Any, weight_ih: Any, weight_hh: Any, bias: Any, h0: Any, c0: Any, *, direction: str = "forward"
    ) -> tuple[Any, Any, Any]:
        """One layer: y [steps, batch, directions * hidden], h and c [directions, batch, hidden].

        Tensors are PyTorch's, with the gates in its order (i, f, g, o), stacked over directions:

            x          [steps, batch, features]
            weight_ih  [directions, 4 * hidden, features]
            weight_hh  [directions, 4 * hidden, hidden]
            bias       [directions, 4 * hidden]: bias_ih + bias_hh, or zeros
            h0, c0     [directions, batch, hidden]

        `direction` is "forward", "reverse" or "bidirectional".

        Raises:
            UnsupportedCallError: ranks or sizes that do not fit each other.
        """
        ranks = (("x", x, 3), ("weight_ih", weight_ih, 3), ("weight_hh", weight_hh, 3), ("bias", bias, 2))
        for name, tensor, rank in ranks:
            if tensor.dim() != rank:
                raise UnsupportedCallError(f"lstm: '{name}' has shape {list(tensor.shape)}; it has {rank} dimensions.")
        if weight_ih.shape[-1] != x.shape[-1] or weight_ih.shape[:2] != weight_hh.shape[:2]:
            raise UnsupportedCallError(
                f"lstm: 'x' is {list(x.shape)}, 'weight_ih' {list(weight_ih.shape)} and 'weight_hh' "
                f"{list(weight_hh.shape)}; weight_ih is [directions, 4 * hidden, features], weight_hh [directions, "
                "4 * hidden, hidden]."
            )
        if bias.shape != weight_ih.shape[:2]:
            raise UnsupportedCallError(f"lstm: 'bias' is {list(bias.shape)}; it is {list(weight_ih.shape[:2])}.")
        matrix, weight_hh, bias = prepared(weight_ih, weight_hh, bias)
        hidden = weight_hh.shape[-1]
        y, h, c = node(x @ matrix + bias, weight_hh, h0, c0, hidden_size=hidden, direction=direction)
        return y, h, c

    return lstm


def prepared(weight_ih: Any, weight_hh: Any, bias: Any) -> tuple[Any, Any, Any]:
    """The parameters of `plugins_trt.torch.lstm` in ONNX's order of the gates, as they are used: the matrix that x is
    multiplied by, [features, directions * 4 * hidden], weight_hh, and the bias of that product."""
    import torch

    def reordered(tensor: Any) -> Any:
        parts = tensor.chunk(GATES, dim=1)
        return torch.cat([parts[gate] for gate in _ONNX_ORDER], dim=1)

    matrix = reordered(weight_ih).flatten(0, 1).transpose(0, 1).contiguous()
    return matrix, reordered(weight_hh), reordered(bias).flatten()


def lstm_module(trained: Any) -> Any:
    """A module that computes what the `torch.nn.LSTM` computes, layer by layer through the operator `lstm`.

    Called the same way, with a batch: `y, (h, c) = module(x)` or `module(x, (h0, c0))`; `batch_first` as it was.
    Weights are copied. There is no dropout between layers: it is for inference.

    Raises:
        UnsupportedCallError: not a torch.nn.LSTM, or one with a projection of its output (`proj_size`).
    """
    import torch

    from plugins_trt.torch import function

    if not isinstance(trained, torch.nn.LSTM):
        raise UnsupportedCallError(f"lstm_module takes a torch.nn.LSTM, and got a {type(trained).__name__}.")
    if trained.proj_size:
        raise UnsupportedCallError(
            f"lstm_module: this LSTM projects its output to {trained.proj_size} features (proj_size), which the "
            "operator cannot. Leave this layer as it is."
        )
    function("lstm")  # makes torch.ops.edgekit.lstm
    hidden, directions = trained.hidden_size, 2 if trained.bidirectional else 1
    way = "bidirectional" if trained.bidirectional else "forward"

    class Lstm(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.batch_first = trained.batch_first
            for index in range(trained.num_layers):
                tensors = prepared(*_parameters(trained, index, directions))
                for name, tensor in zip(_NAMES, tensors):  # here and not in the graph, which would do it in each call
                    self.register_buffer(f"{name}_{index}", tensor)

        def forward(self, x: Any, states: Any = None) -> Any:
            x = x.transpose(0, 1) if self.batch_first else x
            if states is None:
                zeros = x.new_zeros((trained.num_layers * directions, x.shape[1], hidden))
                states = (zeros, zeros)
            hs, cs = [], []
            for index in range(trained.num_layers):
                mine = slice(index * directions, (index + 1) * directions)
                matrix, weight_hh, bias = (getattr(self, f"{name}_{index}") for name in _NAMES)
                given = (x @ matrix + bias, weight_hh, states[0][mine], states[1][mine])
                x, h, c = torch.ops.edgekit.lstm(*given, hidden_size=hidden, direction=way)
                hs.append(h)
                cs.append(c)
            return x.transpose(0, 1) if self.batch_first else x, (torch.cat(hs), torch.cat(cs))

    return Lstm()


_NAMES = ("matrix", "weight_hh", "bias")


def _parameters(trained: Any, layer: int, directions: int) -> tuple[Any, Any, Any]:
    """The parameters of one layer, stacked over directions, with the sum of both biases (zeros without)."""
    import torch

    def stacked(name: str) -> Any:
        suffixes = [f"_l{layer}", f"_l{layer}_reverse"][:directions]
        return torch.stack([getattr(trained, name + suffix).detach() for suffix in suffixes])

    weight_ih, weight_hh = stacked("weight_ih"), stacked("weight_hh")
    bias = stacked("bias_ih") + stacked("bias_hh") if trained.bias else torch.zeros_like(weight_ih[..., 0])
    return weight_ih, weight_hh, bias
