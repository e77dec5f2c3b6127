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


def made(count: int, low: int = 1, high: int = 10, stream: int = 0, task: str = "temporal-order") -> Sequences:
    """`count` sequences; some of length 1, which no task has."""
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


def weights_of(cell: str, hidden: int, inputs: int = 6, scale: float = 1.0) -> Parameters:
    """Initial weights, larger by `scale`."""
    return {n: np.float32(scale) * a for n, a in draw_parameters(CELLS[cell], inputs, hidden, 0.5, seed=0).items()}


def network64(cell: str, weights: Parameters) -> Recurrent:
    """torch's own in float64."""
    module = Recurrent(CELLS[cell], weights["rnn.weight_ih_l0"].shape[1], weights["head.weight"].shape[1]).double()
    module.load_state_dict({name: torch.from_numpy(array.astype(np.float64)) for name, array in weights.items()})
    return module


def gradients64(cell: str, weights: Parameters, data: Sequences, some: list[int]) -> dict[str, NDArray[np.float64]]:
    """torch's, of the mean squared error over those sequences, in float64."""
    module = network64(cell, weights)
    xs = np.split(data.inputs.astype(np.float64), np.cumsum(data.lengths)[:-1])
    losses = [(module(torch.from_numpy(xs[i])[None]) - float(data.targets[i])).square() for i in some]
    torch.cat(losses).mean().backward()
    return {name: p.grad.numpy() for name, p in module.named_parameters()}


def first_means(engine: Compiled) -> Parameters:
    """Adam's means, in the layout of the weights."""
    engine.weights, kept = engine.means, engine.weights
    actual = engine.copy_parameters()
    engine.weights = kept
    return actual


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("hidden", [1, 3, 8, 17, 32])
@pytest.mark.parametrize("cell", RECURRENT)
def test_gradients_are_autograds(cell: str, hidden: int, batch: int) -> None:
    """In float64, gradients of batches of mixed lengths from 1 to 50 agree with torch's autograd to 1e-9."""
    data = made(10, 1, 50)
    assert {1} < set(data.lengths.tolist())
    weights = weights_of(cell, hidden, scale=2)
    for first in range(0, 10, batch):
        some = list(range(first, first + batch))
        engine = Compiled(CELLS[cell], weights, SeqTrainConfig(batch_size=batch), data, np.float64)
        _, steps = engine.advance(np.array(some))
        assert steps == 1
        actual = first_means(engine)
        for name, expected in gradients64(cell, weights, data, some).items():
            np.testing.assert_allclose(actual[name] / (1 - B1), expected, rtol=1e-9, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize(("hidden", "batch"), [(2, 1), (16, 1), (33, 1), (16, 4)])
@pytest.mark.parametrize("cell", RECURRENT)
def test_a_hundred_steps_are_torchs(cell: str, hidden: int, batch: int, clip: float | None) -> None:
    """After 100 steps in float32, losses and weights are those of torch.nn, autograd and torch.optim.Adam, to 1e-4."""
    data = made(50, 1, 12)
    config = SeqTrainConfig(batch_size=batch, clip_norm=clip, lr=0.003)
    order = np.random.default_rng(0).permutation(np.tile(np.arange(50), 2 * batch))
    weights = weights_of(cell, hidden)
    engines = [kind(CELLS[cell], weights, config, data) for kind in (Compiled, Reference)]
    (loss, steps), (expected_loss, expected_steps) = (engine.advance(order) for engine in engines)
    assert steps == expected_steps == 100
    assert loss == pytest.approx(expected_loss, rel=1e-4)
    ours, theirs = (engine.copy_parameters() for engine in engines)
    for name, expected in theirs.items():
        assert np.abs(ours[name] - expected).max() <= 1e-4 * np.abs(expected).max(), name
        assert np.abs(expected - weights[name]).max() > 1e-3, "the weights have moved"


@pytest.mark.parametrize("cell", RECURRENT)
def test_clipping_matters_in_the_case(cell: str) -> None:
    """The clipped case above differs from the unclipped one, or it would show nothing."""
    data, order = made(50, 1, 12), np.arange(50)
    actual = []
    for clip in (None, 0.05):
        engine = Compiled(CELLS[cell], weights_of(cell, 16), SeqTrainConfig(clip_norm=clip), data)
        engine.advance(order)
        actual.append(engine.copy_parameters()["head.weight"])
    assert np.abs(actual[0] - actual[1]).max() > 1e-4


@pytest.mark.parametrize("cell", RECURRENT)
def test_saturated_gates(cell: str) -> None:
    """Weights so large that every gate is shut or open give torch's answers, and nothing that is not finite."""
    data = made(20, 1, 12)
    weights = weights_of(cell, 8, scale=1e4)
    engines = [kind(CELLS[cell], weights, SeqTrainConfig()) for kind in (Compiled, Reference)]
    ours, theirs = (engine.predict(data) for engine in engines)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("cell", RECURRENT)
def test_a_whole_run_follows_torchs(cell: str) -> None:
    """Training losses of a full default run lie on torch's within 2 %, look by look."""
    train, val = made(6400, 2, 10, 0, "adding"), made(1600, 2, 10, 1, "adding")
    curves = []
    for kind in (Compiled, Reference):
        config = SeqTrainConfig()
        engine = kind(CELLS[cell], weights_of(cell, 32, 2), config, train)
        curves.append([record.train_loss for record in Training(engine, 6400, val, config, 0) if record])
    np.testing.assert_allclose(*curves, rtol=0.02)


def test_long_sequences(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Sequences of 1,000 steps give torch's answers and gradients."""
    data = made(2, 1000, 1001)
    weights = weights_of("gru", 16)
    engine = Compiled(CELLS["gru"], weights, SeqTrainConfig(), data, np.float64)
    np.testing.assert_allclose(
        engine.predict(data), Reference(CELLS["gru"], weights, SeqTrainConfig()).predict(data), atol=1e-5
    )
    engine.advance(np.array([1]))
    expected = gradients64("gru", weights, data, [1])
    for name, actual in first_means(engine).items():
        np.testing.assert_allclose(actual / (1 - B1), expected[name], rtol=1e-8, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("cell", RECURRENT)
def test_a_loss_that_is_not_finite_changes_nothing(cell: str) -> None:
    """Training stops before the step whose loss is not finite, says how many were taken, and keeps the weights."""
    data = made(20, 2, 5)
    data.targets[7] = np.inf
    engine = Compiled(CELLS[cell], weights_of(cell, 4), SeqTrainConfig(), data)
    engine.advance(np.arange(7))
    before = engine.copy_parameters()
    assert engine.advance(np.arange(7, 20)) == (0.0, 0)
    assert all(np.array_equal(a, before[name]) for name, a in engine.copy_parameters().items())


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_arrays_keep_their_distances(batch: int) -> None:
    """Wherever memory is free, the arrays of equal engines lie at equal distances: the last bits depend on them."""
    data, distances, blocks = made(20, 2, 5), set(), []
    for number in range(8):
        engine = Compiled(CELLS["gru"], weights_of("gru", 16), SeqTrainConfig(batch_size=batch), data)
        arrays = [*engine.weights, *engine.means, *engine.squares, *engine.workspace]
        distances.add(tuple(array.ctypes.data - arrays[0].ctypes.data for array in arrays))
        for index in range(3):  # whole epochs, with a batch over the end of one
            engine.advance(np.arange(index, 20 + index) % 20)
        assert all(any(array is one for array in arrays) for one in (*engine.weights, *engine.workspace))
        blocks.append(bytearray(1000 * number))  # takes memory between the engines
    assert len(distances) == 1


def test_parameters_are_a_copy() -> None:
    """What an engine gives out does not change when it goes on."""
    data = made(20, 2, 5)
    for kind in (Compiled, Reference):
        engine = kind(CELLS["lstm"], weights_of("lstm", 4), SeqTrainConfig(), data)
        before = engine.copy_parameters()
        kept = {name: array.copy() for name, array in before.items()}
        assert all(np.array_equal(before[name], weights_of("lstm", 4)[name]) for name in before)
        engine.advance(np.arange(20))
        assert all(np.array_equal(before[name], kept[name]) for name in before)


def test_head_is_linear() -> None:
    """torch.nn's class and the kernels' layout agree on a layer that is not square (6 inputs, 5 states)."""
    weights = weights_of("gru", 5)
    rnn = nn.GRU(6, 5, batch_first=True)
    rnn.load_state_dict({n.removeprefix("rnn."): torch.from_numpy(a) for n, a in weights.items() if "rnn" in n})
    data = made(4, 3, 3)
    with torch.no_grad():
        states, _ = rnn(torch.from_numpy(data.inputs.reshape(4, 3, 6)))
        expected = states[:, -1] @ torch.from_numpy(weights["head.weight"][0]) + float(weights["head.bias"][0])
    answers = Compiled(CELLS["gru"], weights, SeqTrainConfig()).predict(data)
    np.testing.assert_allclose(answers, expected, atol=1e-6)
