"""ONNX graphs of image networks: preprocessing from uint8 pixels, written as in transforms.resize, and the network.

Letters: N images, H and W pixels, S pixels a side of what the network sees, K classes.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, compose, helper, numpy_helper

from dlcv_cli.vision.models import Classifier
from dlcv_cli.vision.preprocessing import Preprocessing
from dlcv_cli.vision.transforms import MAX_RATIO, mean_colour

OPSET, IR_VERSION = 18, 10  # of antialiased Resize; what runtimes of 2024 read


class _Graph:
    """Nodes and constants of a graph, added one by one; each is known by the name of its output."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def add(self, operation: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        name = output or f"prepare_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operation, [*inputs], [name], **attributes))
        return name

    def constant(self, values: Any, dtype: type[np.generic] = np.int64) -> str:
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.array(values, dtype), name))
        return name

    def resize(self, x: str, size: str, preprocessing: Preprocessing) -> str:
        mode = {"bilinear": "linear", "bicubic": "cubic"}[preprocessing.interpolation]
        # as torch and Pillow: weights of pixels outside the image count as 0, and cubic ones have a = -0.5
        rules: dict[str, Any] = {"antialias": 1, "exclude_outside": 1, "cubic_coeff_a": -0.5}
        sizes = self.add("Concat", self.add("Shape", x, end=2), size, axis=0)
        return self.add("Resize", x, "", "", sizes, mode=mode, **rules)

    def halve(self, size: str) -> str:
        """Half of each number, rounded to even."""
        half = self.add("Div", self.add("Cast", size, to=TensorProto.DOUBLE), self.constant(2, np.float64))
        return self.add("Cast", self.add("Round", half), to=TensorProto.INT64)

    def crop_middle(self, x: str, size: str, middle: str) -> str:
        start = self.halve(self.add("Sub", size, middle))
        return self.add("Slice", x, start, self.add("Add", start, middle), self.constant([2, 3]))


def build_preprocessing(preprocessing: Preprocessing) -> onnx.ModelProto:
    """Return the graph from `images` (N, H, W, 3) uint8 to `pixels` (N, 3, S, S) float32, normalised."""
    graph, side = _Graph(), preprocessing.crop
    x = graph.add("Transpose", "images", perm=[0, 3, 1, 2])
    padding = ""
    if preprocessing.fit == "squash":
        x = graph.resize(x, graph.constant([side, side]), preprocessing)
    elif preprocessing.fit == "pad":
        x, padding = _resize_long_side(graph, x, preprocessing)
    else:
        size = graph.add("Shape", x, start=2, end=4)
        short = graph.add("ReduceMin", size, keepdims=0)
        middle = graph.add("Min", size, graph.add("Mul", short, graph.constant(MAX_RATIO)))
        x = graph.crop_middle(x, size, middle)
        scaled = graph.add("Div", graph.add("Mul", middle, graph.constant(preprocessing.resize)), short)
        x = graph.crop_middle(graph.resize(x, scaled, preprocessing), scaled, graph.constant([side, side]))
    _normalise(graph, x, padding, preprocessing)
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["n", "height", "width", 3])
    pixels = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["n", 3, side, side])
    made = helper.make_graph(graph.nodes, "preprocessing", [images], [pixels], graph.constants)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)


def _resize_long_side(graph: _Graph, x: str, preprocessing: Preprocessing) -> tuple[str, str]:
    """Return the image with its long side resized to S, and the pads that make it square."""
    side = preprocessing.crop
    size = graph.add("Shape", x, start=2, end=4)
    exact = graph.add("Cast", graph.add("Mul", size, graph.constant(side)), to=TensorProto.DOUBLE)
    longest = graph.add("Cast", graph.add("ReduceMax", size, keepdims=0), to=TensorProto.DOUBLE)
    rounded = graph.add("Cast", graph.add("Round", graph.add("Div", exact, longest)), to=TensorProto.INT64)
    scaled = graph.add("Max", rounded, graph.constant(1))
    missing = graph.add("Sub", graph.constant([side, side]), scaled)
    before = graph.add("Div", missing, graph.constant(2))
    none = graph.constant([0, 0])
    pads = graph.add("Concat", none, before, none, graph.add("Sub", missing, before), axis=0)
    return graph.resize(x, scaled, preprocessing), pads


def _normalise(graph: _Graph, x: str, padding: str, preprocessing: Preprocessing) -> None:
    """Add the steps from bytes to `pixels`; where there is padding, it has the mean colour."""

    def triple(values: Any) -> NDArray[np.float32]:
        return np.array(values, np.float32).reshape(1, 3, 1, 1)

    mean, std = triple(preprocessing.mean), triple(preprocessing.std)
    x = graph.add("Cast", x, to=TensorProto.FLOAT)
    if padding:
        colour = graph.constant(triple(mean_colour(preprocessing).tolist()), np.float32)
        x = graph.add("Add", graph.add("Pad", graph.add("Sub", x, colour), padding), colour)
    x = graph.add("Div", x, graph.constant(255, np.float32))
    x = graph.add("Sub", x, graph.constant(mean, np.float32))
    graph.add("Div", x, graph.constant(std, np.float32), output="pixels")


def build_classifier(classifier: Classifier, side: int) -> onnx.ModelProto:
    """Return the graph from `pixels` (N, 3, S, S) to `probabilities` and `logits` (N, K)."""
    example = torch.zeros(2, 3, side, side)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    # the exporter speaks of itself: in warnings, and with older releases of onnxscript on stdout
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            classifier,
            (example,),
            input_names=["pixels"],
            output_names=["probabilities", "logits"],
            dynamic_shapes=({0: torch.export.Dim("n")},),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    model.ir_version = IR_VERSION
    for entry in (
        *model.graph.node,
        *model.graph.value_info,
        *model.graph.initializer,
        *model.graph.input,
        *model.graph.output,
    ):
        del entry.metadata_props[:]  # the exporter's notes, among them files of this machine
    return model


def join(first: onnx.ModelProto, second: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph that takes `images`, and gives what the second one gives of their pixels."""
    return compose.merge_models(first, second, io_map=[("pixels", "pixels")])
