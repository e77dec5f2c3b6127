"""The compiled cells against torch: autograd's gradients, torch.optim.Adam's steps, whole runs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from dlcv_cli.config import GenConfig, SeqTrainConfig
from dlcv_cli.sequences.cells import CELLS, Parameters, draw_parameters
from dlcv_cli.sequences.engines.compiled import Compiled
from dlcv_cli.sequences.engines.reference import Recurrent, Reference
from dlcv_cli.sequences.tasks import Sequences, generate
from dlcv_cli.sequences.training import Training

RECURRENT = ("elman", "lstm", "gru")
B1 = 0.9  # Adam's: its first mean is (1 - B1) times the gradient


def draw(count: int, low: int = 1, high: int = 10, stream: int = 0, task: str = "temporal-order") -> Sequences:
    """Return `count` sequences, some of length 1, which no task has."""
    data = generate(GenConfig(task=task, min_length=max(low, 2), max_length=max(high, 2)), count, stream)
    if low > 1:
        return data
    keep = np.ones(len(data.inputs), bool)
    lengths = data.lengths.copy()
    first = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    for n in range(0, count, 3):
        keep[first[n] + 1 : first[n] + lengths[n]] = False
        lengths[n] = 1
    return Sequences(data.inputs[keep], lengths, data.targets)


def draw_weights(cell: str, hidden: int, inputs: int = 6, scale: float = 1.0) -> Parameters:
    """Return initial weights, multiplied by `scale`."""
    return {n: np.float32(scale) * a for n, a in draw_parameters(CELLS[cell], inputs, hidden, 0.5, seed=0).items()}


def build_network64(cell: str, weights: Parameters) -> Recurrent:
    """Return torch's own network in float64."""
    module = Recurrent(CELLS[cell], weights["rnn.weight_ih_l0"].shape[1], weights["head.weight"].shape[1]).double()
    module.load_state_dict({name: torch.from_numpy(array.astype(np.float64)) for name, array in weights.items()})
    return module


def compute_gradients(
    cell: str, weights: Parameters, data: Sequences, indices: list[int]
) -> dict[str, NDArray[np.float64]]:
    """torch's, of the mean squared error over those sequences, in float64."""
    module = build_network64(cell, weights)
    xs = np.split(data.inputs.astype(np.float64), np.cumsum(data.lengths)[:-1])
    losses = [(module(torch.from_numpy(xs[i])[None]) - float(data.targets[i])).square() for i in indices]
    torch.cat(losses).mean().backward()
    return {name: p.grad.numpy() for name, p in module.named_parameters()}


def read_means(engine: Compiled) -> Parameters:
    """Return Adam's means, named and shaped as the weights."""
    engine.weights, copies = engine.means, engine.weights
    actual = engine.copy_parameters()
    engine.weights = copies
    return actual


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("hidden", [1, 3, 8, 17, 32])
@pytest.mark.parametrize("cell", RECURRENT)
def test_gradients_match_autograd(cell: str, hidden: int, batch: int) -> None:
    """In float64, gradients of batches of mixed lengths from 1 to 50 agree with torch's autograd to 1e-9."""
    data = draw(10, 1, 50)
    assert {1} < set(data.lengths.tolist())
    weights = draw_weights(cell, hidden, scale=2)
    for first in range(0, 10, batch):
        indices = list(range(first, first + batch))
        engine = Compiled(CELLS[cell], weights, SeqTrainConfig(batch_size=batch), data, np.float64)
        _, steps = engine.advance(np.array(indices))
        assert steps == 1
        actual = read_means(engine)
        for name, expected in compute_gradients(cell, weights, data, indices).items():
            np.testing.assert_allclose(actual[name] / (1 - B1), expected, rtol=1e-9, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize(("hidden", "batch"), [(2, 1), (16, 1), (33, 1), (16, 4)])
@pytest.mark.parametrize("cell", RECURRENT)
def test_hundred_steps_match_torch(cell: str, hidden: int, batch: int, clip: float | None) -> None:
    """After 100 steps in float32, losses and weights are torch's to 1e-4."""
    data = draw(50, 1, 12)
    config = SeqTrainConfig(batch_size=batch, clip_norm=clip, lr=0.003)
    order = np.random.default_rng(0).permutation(np.tile(np.arange(50), 2 * batch))
    weights = draw_weights(cell, hidden)
    engines = [kind(CELLS[cell], weights, config, data) for kind in (Compiled, Reference)]
    (loss, steps), (expected_loss, expected_steps) = (engine.advance(order) for engine in engines)
    assert steps == expected_steps == 100
    assert loss == pytest.approx(expected_loss, rel=1e-4)
    ours, theirs = (engine.copy_parameters() for engine in engines)
    for name, expected in theirs.items():
        assert np.abs(ours[name] - expected).max() <= 1e-4 * np.abs(expected).max(), name
        assert np.abs(expected - weights[name]).max() > 1e-3, "the weights have moved"


@pytest.mark.parametrize("cell", RECURRENT)
def test_clipping_changes_the_weights(cell: str) -> None:
    """The clipped case above differs from the unclipped one, so that the test has power."""
    data, order = draw(50, 1, 12), np.arange(50)
    actual = []
    for clip in (None, 0.05):
        engine = Compiled(CELLS[cell], draw_weights(cell, 16), SeqTrainConfig(clip_norm=clip), data)
        engine.advance(order)
        actual.append(engine.copy_parameters()["head.weight"])
    assert np.abs(actual[0] - actual[1]).max() > 1e-4


@pytest.mark.parametrize("cell", RECURRENT)
def test_saturated_gates_match_torch(cell: str) -> None:
    """Weights so large that every gate is saturated give torch's finite predictions."""
    data = draw(20, 1, 12)
    weights = draw_weights(cell, 8, scale=1e4)
    engines = [kind(CELLS[cell], weights, SeqTrainConfig()) for kind in (Compiled, Reference)]
    ours, theirs = (engine.predict(data) for engine in engines)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("cell", RECURRENT)
def test_full_run_matches_torch(cell: str) -> None:
    """Training losses of a full default run agree with torch's within 2 % at every record."""
    train, val = draw(6400, 2, 10, 0, "adding"), draw(1600, 2, 10, 1, "adding")
    curves = []
    for kind in (Compiled, Reference):
        config = SeqTrainConfig()
        engine = kind(CELLS[cell], draw_weights(cell, 32, 2), config, train)
        curves.append([record.train_loss for record in Training(engine, 6400, val, config, 0) if record])
    np.testing.assert_allclose(*curves, rtol=0.02)


def test_long_sequences_match_torch(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Sequences of 1,000 steps give torch's predictions and gradients."""
    data = draw(2, 1000, 1001)
    weights = draw_weights("gru", 16)
    engine = Compiled(CELLS["gru"], weights, SeqTrainConfig(), data, np.float64)
    np.testing.assert_allclose(
        engine.predict(data), Reference(CELLS["gru"], weights, SeqTrainConfig()).predict(data), atol=1e-5
    )
    engine.advance(np.array([1]))
    expected = compute_gradients("gru", weights, data, [1])
    for name, actual in read_means(engine).items():
        np.testing.assert_allclose(actual / (1 - B1), expected[name], rtol=1e-8, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("cell", RECURRENT)
def test_non_finite_loss_changes_nothing(cell: str) -> None:
    """Training stops before the step whose loss is not finite, and keeps the weights."""
    data = draw(20, 2, 5)
    data.targets[7] = np.inf
    engine = Compiled(CELLS[cell], draw_weights(cell, 4), SeqTrainConfig(), data)
    engine.advance(np.arange(7))
    before = engine.copy_parameters()
    assert engine.advance(np.arange(7, 20)) == (0.0, 0)
    assert all(np.array_equal(a, before[name]) for name, a in engine.copy_parameters().items())


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_array_distances_are_constant(batch: int) -> None:
    """Equal engines have equal distances between their arrays, because the last bits depend on them."""
    data, distances, blocks = draw(20, 2, 5), set(), []
    for number in range(8):
        engine = Compiled(CELLS["gru"], draw_weights("gru", 16), SeqTrainConfig(batch_size=batch), data)
        arrays = [*engine.weights, *engine.means, *engine.squares, *engine.workspace]
        distances.add(tuple(array.ctypes.data - arrays[0].ctypes.data for array in arrays))
        for index in range(3):  # whole epochs, with a batch over the end of one
            engine.advance(np.arange(index, 20 + index) % 20)
        assert all(any(array is one for array in arrays) for one in (*engine.weights, *engine.workspace))
        blocks.append(bytearray(1000 * number))  # takes memory between the engines
    assert len(distances) == 1


def test_parameters_are_a_copy() -> None:
    """Weights that an engine returned do not change when it trains on."""
    data = draw(20, 2, 5)
    for kind in (Compiled, Reference):
        engine = kind(CELLS["lstm"], draw_weights("lstm", 4), SeqTrainConfig(), data)
        before = engine.copy_parameters()
        copies = {name: array.copy() for name, array in before.items()}
        assert all(np.array_equal(before[name], draw_weights("lstm", 4)[name]) for name in before)
        engine.advance(np.arange(20))
        assert all(np.array_equal(before[name], copies[name]) for name in before)


def test_weights_load_into_torch() -> None:
    """torch.nn's class and the kernels agree on a layer that is not square (6 inputs, 5 states)."""
    weights = draw_weights("gru", 5)
    rnn = nn.GRU(6, 5, batch_first=True)
    rnn.load_state_dict({n.removeprefix("rnn."): torch.from_numpy(a) for n, a in weights.items() if "rnn" in n})
    data = draw(4, 3, 3)
    with torch.no_grad():
        states, _ = rnn(torch.from_numpy(data.inputs.reshape(4, 3, 6)))
        expected = states[:, -1] @ torch.from_numpy(weights["head.weight"][0]) + float(weights["head.bias"][0])
    predictions = Compiled(CELLS["gru"], weights, SeqTrainConfig()).predict(data)
    np.testing.assert_allclose(predictions, expected, atol=1e-6)
