"""ONNX graphs of cells. Letters: N sequences, T steps, F inputs a step, D hidden size, G gates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, checker, helper, numpy_helper

from dlcv_cli.sequences.cells import Cell, Parameters

OPSET, IR_VERSION = 18, 10
# torch.nn's layer -> ONNX's operation, the place of each of its gates among torch's, and its attributes
OPERATIONS: dict[str, tuple[str, tuple[int, ...], dict[str, int]]] = {
    "RNN": ("RNN", (0,), {}),
    "LSTM": ("LSTM", (0, 3, 1, 2), {}),
    "GRU": ("GRU", (1, 0, 2), {"linear_before_reset": 1}),
}


class _Graph:
    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def add(self, operation: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> str:
        self.nodes.append(helper.make_node(operation, inputs, outputs, **attributes))
        return outputs[-1]

    def constant(self, values: NDArray[Any]) -> str:
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(values, name))
        return name


def has_operation(cell: Cell) -> bool:
    """Return whether ONNX has an operation for the cell."""
    return cell.module is None or (cell.module in OPERATIONS and not cell.options)


def build_graph(cell: Cell, parameters: Parameters, inputs: int, texts: Mapping[str, str]) -> bytes:
    """Return the ONNX file from `sequences` (N, T, F) to `predictions` (N,).

    Args:
        texts: metadata of the file.
    """
    graph, value = _Graph(), helper.make_tensor_value_info
    add = _add_constant if cell.module is None else _add_network
    graph.add("Transpose", ["sequences"], ["steps"], perm=[1, 0, 2])
    column = add(graph, cell, parameters, "prediction")
    graph.add("Squeeze", [column, graph.constant(np.array([1]))], ["predictions"])
    made = helper.make_graph(
        graph.nodes,
        "cell",
        [value("sequences", TensorProto.FLOAT, ["n", "steps", inputs])],
        [value("predictions", TensorProto.FLOAT, ["n"])],
        graph.constants,
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    helper.set_model_props(model, dict(texts))
    checker.check_model(model)
    data: bytes = model.SerializeToString()
    return data


def _add_constant(graph: _Graph, cell: Cell, parameters: Parameters, name: str) -> str:
    """Add the baseline, which predicts its constant (1,) for each sequence; return the name of (N, 1)."""
    count = graph.add("Shape", ["sequences"], [f"{name}_count"], end=1)
    shape = graph.add("Concat", [count, graph.constant(np.array([1]))], [f"{name}_shape"], axis=0)
    return graph.add("Expand", [graph.constant(parameters["constant"]), shape], [name])


def _add_network(graph: _Graph, cell: Cell, parameters: Parameters, name: str) -> str:
    """Add the network on `steps` (T, N, F); return the name of its predictions (N, 1)."""
    operation, order, attributes = OPERATIONS[str(cell.module)]
    hidden = parameters["head.weight"].shape[1]

    def arrange(weight: str) -> NDArray[np.float32]:  # the gates (G*D, ...), in ONNX's order
        gates = np.split(parameters[f"rnn.{weight}_l0"], cell.gates)
        return np.concatenate([gates[gate] for gate in order])

    biases = np.concatenate([arrange("bias_ih"), arrange("bias_hh")])
    weights = [graph.constant(own[None]) for own in (arrange("weight_ih"), arrange("weight_hh"), biases)]
    last = graph.add(operation, ["steps", *weights], ["", f"{name}_last"], hidden_size=hidden, **attributes)
    state = graph.add("Squeeze", [last, graph.constant(np.array([0]))], [f"{name}_state"])  # (N, D)
    head = [graph.constant(parameters["head.weight"]), graph.constant(parameters["head.bias"])]
    return graph.add("Gemm", [state, *head], [name], transB=1)
