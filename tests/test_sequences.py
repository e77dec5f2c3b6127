"""Sequence tasks, cells and their training against the definitions, written out in numpy and plain torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dlcv_cli.config import GenConfig, SeqTrainConfig
from dlcv_cli.sequences import training
from dlcv_cli.sequences.cells import CELLS, Parameters, check_parameters, draw_parameters
from dlcv_cli.sequences.engines import build_engine, reference
from dlcv_cli.sequences.engines.base import Constant, Engine
from dlcv_cli.sequences.tasks import TASKS, Sequences, generate
from dlcv_cli.sequences.training import DivergedAtError, Record, Training, measure_loss

Floats = NDArray[np.float64]
RECURRENT = ("elman", "lstm", "gru")
every_engine = pytest.mark.parametrize("engine", ["compiled", "torch"])


def list_sequences(data: Sequences) -> list[tuple[NDArray[np.float32], np.float32]]:
    """Return (inputs (T, F), target) of every sequence."""
    return list(zip(np.split(data.inputs, np.cumsum(data.lengths)[:-1]), data.targets, strict=True))


def draw(task: str = "adding", count: int = 200, stream: int = 0, **settings: int) -> Sequences:
    """Return `count` sequences of a task."""
    return generate(GenConfig(task=task, **settings), count, stream)


def draw_weights(cell: str, hidden: int, seed: int = 0) -> Parameters:
    """Return initial weights for two inputs a step."""
    return draw_parameters(CELLS[cell], 2, hidden, 1.0, seed)


def compute_predictions(cell: str, weights: Parameters, engine: str, data: Sequences) -> NDArray[np.float32]:
    """Return the predictions of a network."""
    settings: Any = {"engine": engine}
    return build_engine(CELLS[cell], weights, SeqTrainConfig(**settings)).predict(data)


def train_fully(
    cell: str, hidden: int, train: Sequences, val: Sequences, seed: int = 0, **settings: Any
) -> tuple[list[Record], Parameters, Engine]:
    """Train to the end. Return the records, the best weights, and the engine."""
    config = SeqTrainConfig(cell=cell, **settings)
    engine = build_engine(CELLS[cell], draw_weights(cell, hidden), config, train)
    trained = Training(engine, len(train.lengths), val, config, seed)
    return [record for record in trained if record], trained.best, engine


# ------------------------------------------------------------------------------------------------------------- tasks


@pytest.mark.parametrize("task", ["adding", "multiplication"])
def test_marked_values_give_the_target(task: str) -> None:
    """Two markers are 1, values are in [0, 1), and the target is the sum or product."""
    for inputs, target in list_sequences(draw(task, 500)):
        values, markers = inputs.T.astype(np.float64)
        assert values.min() >= 0
        assert values.max() < 1
        assert sorted(markers)[-2:] == [1, 1]
        assert markers.sum() == 2
        first, second = (values[t] for t in range(len(values)) if markers[t] == 1)
        assert target == np.float32(first + second if task == "adding" else first * second)


def test_temporal_order() -> None:
    """Six symbols are one-hot, two of them X or Y, and the target gives their order: XX, XY, YX, YY."""
    data = draw("temporal-order", 500)
    seen = set()
    for inputs, target in list_sequences(data):
        assert set(np.unique(inputs)) <= {0, 1}
        assert (inputs.sum(1) == 1).all()
        word = "".join("XYabcd"[i] for i in inputs.argmax(1))
        first, second = (letter for letter in word if letter in "XY")
        assert target == pytest.approx({"XX": 0, "XY": 1 / 3, "YX": 2 / 3, "YY": 1}[first + second])
        seen.add(first + second)
    assert seen == {"XX", "XY", "YX", "YY"}
    assert (data.inputs.sum(0) > 0).all(), "every symbol occurs"


@pytest.mark.parametrize(("low", "high"), [(2, 10), (5, 5), (30, 40)])
@pytest.mark.parametrize("task", sorted(set(TASKS) - {"adding-1997"}))
def test_lengths_are_uniform(task: str, low: int, high: int) -> None:
    """Lengths are uniform, both ends included; the steps add up; dtypes are as documented."""
    count = 2000
    data = draw(task, count, min_length=low, max_length=high)
    values, counts = np.unique(data.lengths, return_counts=True)
    assert values.tolist() == list(range(low, high + 1))
    share = count / len(values)
    assert (abs(counts - share) < 5 * np.sqrt(share)).all()
    assert data.inputs.shape == (data.lengths.sum(), TASKS[task].inputs)
    assert data.targets.shape == (count,)
    assert (data.inputs.dtype, data.lengths.dtype, data.targets.dtype) == (np.float32, np.int64, np.float32)


def test_any_two_steps_are_marked() -> None:
    """Every pair of steps is marked about equally often."""
    counts = np.zeros((5, 5))
    for inputs, _ in list_sequences(draw(count=2000, min_length=5, max_length=5)):
        counts[tuple(np.flatnonzero(inputs[:, 1]))] += 1
    pairs = counts[np.triu_indices(5, 1)]
    assert pairs.sum() == 2000
    assert (abs(pairs - 200) < 70).all()  # five standard deviations


def test_adding_statistics() -> None:
    """The constant 1 has MSE 1/6 and MAE 1/3 within 0.006, four standard errors at 20,000 sequences."""
    errors = draw(count=20_000, min_length=2, max_length=3).targets.astype(np.float64) - TASKS["adding"].constant
    assert np.mean(errors**2) == pytest.approx(1 / 6, abs=0.006)
    assert np.mean(abs(errors)) == pytest.approx(1 / 3, abs=0.006)


@pytest.mark.parametrize("task", sorted(TASKS))
def test_constant_is_the_mean_target(task: str) -> None:
    """The baseline's constant is the mean target within 0.02, three standard errors or more."""
    assert draw(task, 5000, min_length=20, max_length=22).targets.mean() == pytest.approx(
        TASKS[task].constant, abs=0.02
    )


@pytest.mark.parametrize("task", sorted(TASKS))
def test_generation_follows_its_seed(task: str) -> None:
    """The same seed and stream give the same sequences; another seed or stream gives others."""
    long = {"min_length": 20, "max_length": 30}
    one, same = draw(task, **long), draw(task, **long)
    assert all(np.array_equal(a, b) for a, b in zip(vars(one).values(), vars(same).values(), strict=True))
    for other in (draw(task, seed=1, **long), draw(task, stream=1, **long)):
        assert not np.array_equal(one.lengths, other.lengths)
        assert not np.array_equal(one.targets, other.targets)


# ------------------------------------------------------------------------------------------------------------- cells


def sigmoid(x: Floats) -> Floats:
    """Return 1 / (1 + exp(-x))."""
    return 1 / (1 + np.exp(-x))


def elman_step(x: Floats, h: Floats, c: Floats, w: dict[str, Floats]) -> tuple[Floats, Floats]:
    """h' = tanh(W_ih x + b_ih + W_hh h + b_hh). Source: torch.nn.RNN's documentation."""
    return np.tanh(w["weight_ih"] @ x + w["bias_ih"] + w["weight_hh"] @ h + w["bias_hh"]), c


def lstm_step(x: Floats, h: Floats, c: Floats, w: dict[str, Floats]) -> tuple[Floats, Floats]:
    """c' = f * c + i * g, h' = o * tanh(c'); gates in the order i, f, g, o. Source: torch.nn.LSTM's documentation."""
    i, f, g, o = np.split(w["weight_ih"] @ x + w["bias_ih"] + w["weight_hh"] @ h + w["bias_hh"], 4)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


def gru_step(x: Floats, h: Floats, c: Floats, w: dict[str, Floats]) -> tuple[Floats, Floats]:
    """n = tanh(W_in x + b_in + r * (W_hn h + b_hn)), h' = (1 - z) * n + z * h. Source: torch.nn.GRU's documentation."""
    xr, xz, xn = np.split(w["weight_ih"] @ x + w["bias_ih"], 3)
    hr, hz, hn = np.split(w["weight_hh"] @ h + w["bias_hh"], 3)
    r, z = sigmoid(xr + hr), sigmoid(xz + hz)
    return (1 - z) * np.tanh(xn + r * hn) + z * h, c


STEPS = {"elman": elman_step, "lstm": lstm_step, "gru": gru_step}


def compute_by_hand(cell: str, weights: Parameters, inputs: NDArray[np.float32]) -> float:
    """Return the cell's prediction for one sequence (T, F), in float64."""
    exact = {name: array.astype(np.float64) for name, array in weights.items()}
    recurrent = {n.removeprefix("rnn.").removesuffix("_l0"): a for n, a in exact.items() if n.startswith("rnn.")}
    h = c = np.zeros(exact["head.weight"].shape[1])
    for x in inputs.astype(np.float64):
        h, c = STEPS[cell](x, h, c, recurrent)
    return float((exact["head.weight"] @ h + exact["head.bias"])[0])


@pytest.mark.parametrize(("low", "high"), [(2, 9), (60, 61)])
@pytest.mark.parametrize("cell", RECURRENT)
@every_engine
def test_cells_match_their_equations(engine: str, cell: str, low: int, high: int) -> None:
    """Predictions match the cell's equations from a zero state, for several lengths."""
    data = draw(count=40, min_length=low, max_length=high)
    weights = {
        name: 2 * array for name, array in draw_weights(cell, 5).items()
    }  # far enough from linear to tell gates apart
    expected = [compute_by_hand(cell, weights, inputs) for inputs, _ in list_sequences(data)]
    assert np.std(expected) > 1e-3, "the case can tell sequences apart"
    np.testing.assert_allclose(compute_predictions(cell, weights, engine, data), expected, rtol=0, atol=2e-6)


def test_baseline_predicts_its_constant() -> None:
    """The baseline predicts the task's constant for every input."""
    weights = draw_parameters(CELLS["baseline"], 2, 5, 0.25, seed=0)
    for engine in ("compiled", "torch"):
        assert compute_predictions("baseline", weights, engine, draw(count=7)).tolist() == [0.25] * 7


@pytest.mark.parametrize("hidden", [1, 4, 64])
@pytest.mark.parametrize("cell", RECURRENT)
def test_draw_parameters(cell: str, hidden: int) -> None:
    """Shapes are torch's, and numbers are spread over +-1/sqrt(D) and follow from the seed."""
    one, same, other = draw_weights(cell, hidden), draw_weights(cell, hidden), draw_weights(cell, hidden, seed=1)
    module = reference.Recurrent(CELLS[cell], 2, hidden)
    assert {n: tuple(t.shape) for n, t in module.state_dict().items()} == {n: a.shape for n, a in one.items()}
    assert {array.dtype for array in one.values()} == {np.dtype(np.float32)}
    values, bound = np.concatenate([a.ravel() for a in one.values()]), hidden**-0.5
    assert abs(values).max() <= bound * (1 + 1e-7)
    if hidden == 64:
        assert abs(values).max() > 0.99 * bound
        assert values.std() == pytest.approx(bound / 3**0.5, rel=0.05)
    assert all(np.array_equal(one[name], same[name]) for name in one)
    assert not any(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("damage", ["missing", "extra", "shape", "cell", "flat", "scalar", "inputs", "double", "empty"])
def test_a_cell_takes_exactly_its_weights(damage: str) -> None:
    """Arrays that do not fit the cell are refused by commands and engines."""
    weights, inputs = draw_weights("gru", 4), 2
    if damage == "missing":
        del weights["rnn.weight_hh_l0"]
    elif damage == "extra":
        weights["rnn.weight_ih_l1"] = np.zeros((12, 4), np.float32)
    elif damage == "shape":
        weights["head.weight"] = np.zeros((1, 5), np.float32)
    elif damage == "cell":
        weights = draw_weights("lstm", 4)
    elif damage == "flat":
        weights["rnn.weight_ih_l0"] = np.zeros(24, np.float32)
    elif damage == "scalar":
        weights["head.weight"] = np.array(0, np.float32)
    elif damage == "inputs":
        inputs = 3
    elif damage == "double":
        weights["head.bias"] = weights["head.bias"].astype(np.float64)
    else:
        weights = {}
    with pytest.raises(ValueError, match=r"\w"):
        check_parameters(CELLS["gru"], weights, inputs)


@pytest.mark.parametrize("cell", RECURRENT)
@every_engine
def test_predictions_of_mixed_lengths(engine: str, cell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sequences of mixed lengths, even in small batches, get the predictions that each has alone."""
    data = draw(count=50)
    weights = draw_weights(cell, 8)
    module = reference.Recurrent(CELLS[cell], 2, 8)
    module.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
    with torch.no_grad():
        alone = [module(torch.from_numpy(inputs)[None]).item() for inputs, _ in list_sequences(data)]
    np.testing.assert_allclose(compute_predictions(cell, weights, engine, data), alone, rtol=0, atol=1e-6)
    monkeypatch.setattr(reference, "PREDICT_STEPS", 12)
    np.testing.assert_allclose(compute_predictions(cell, weights, engine, data), alone, rtol=0, atol=1e-6)
    expected = np.mean((np.array(alone) - data.targets) ** 2)
    settings: Any = {"engine": engine}
    actual = measure_loss(build_engine(CELLS[cell], weights, SeqTrainConfig(**settings)), data)
    assert actual == pytest.approx(expected, rel=1e-5)


# ---------------------------------------------------------------------------------------------------------- training


class Plain(torch.nn.Module):
    """A recurrent network as in a textbook."""

    def __init__(self, layer: type[torch.nn.RNNBase], hidden: int) -> None:
        super().__init__()
        self.rnn = layer(2, hidden)
        self.head = torch.nn.Linear(hidden, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return one prediction for a sequence (T, F)."""
        states, _ = self.rnn(x)
        return self.head(states[-1])[0]


@pytest.mark.parametrize(("batch", "clip"), [(1, None), (3, None), (3, 0.2)])
@pytest.mark.parametrize(("cell", "layer"), [("elman", torch.nn.RNN), ("lstm", torch.nn.LSTM), ("gru", torch.nn.GRU)])
@every_engine
def test_training_matches_a_plain_loop(
    engine: str, cell: str, layer: type[torch.nn.RNNBase], batch: int, clip: float | None
) -> None:
    """Losses and weights over two epochs match a plain torch loop with batches across epochs."""
    train, val = draw(count=40), draw(count=10, stream=1)
    settings: Any = {"engine": engine, "batch_size": batch, "clip_norm": clip}
    config = SeqTrainConfig(cell=cell, epochs=2, lr=0.003, record_every=15, **settings)
    ours = build_engine(CELLS[cell], draw_weights(cell, 6), config, train)
    theirs = Plain(layer, 6)
    theirs.load_state_dict({name: torch.from_numpy(array) for name, array in draw_weights(cell, 6).items()})
    optimizer = torch.optim.Adam(theirs.parameters(), lr=0.003)
    examples = list_sequences(train)
    order = np.concatenate([np.random.default_rng((4, epoch)).permutation(40) for epoch in range(2)]).tolist()
    batches = iter([order[first : first + batch] for first in range(0, 80, batch)])
    seen = 0
    for record in filter(None, Training(ours, 40, val, config, 4)):
        losses: list[float] = []
        while seen < record.iteration:
            indices = [examples[i] for i in next(batches)]
            errors = torch.stack([theirs(torch.from_numpy(inputs)) - float(target) for inputs, target in indices])
            optimizer.zero_grad()
            errors.square().mean().backward()
            if clip:
                torch.nn.utils.clip_grad_norm_(theirs.parameters(), clip)
            optimizer.step()
            losses += errors.detach().square().tolist()
            seen += 1
        assert record.train_loss == pytest.approx(np.mean(losses), rel=1e-3)
        assert record.val_loss == pytest.approx(measure_loss(ours, val))
        actual = ours.copy_parameters()
        for name, tensor in theirs.state_dict().items():
            np.testing.assert_allclose(actual[name], tensor.numpy(), rtol=0, atol=1e-4, err_msg=name)
    assert next(batches, None) is None


@every_engine
def test_record_interval(engine: str) -> None:
    """There is one record every record_every steps and one at the last step, never two."""
    train, val = draw(count=10), draw(count=5, stream=1)
    cases = [(4, 1, [4, 8, 12, 16, 20]), (7, 1, [7, 14, 20]), (100, 1, [20]), (2, 3, [2, 4, 6, 7]), (1, 50, [1])]
    for every, batch, expected in cases:
        records, *_ = train_fully("elman", 3, train, val, epochs=2, record_every=every, batch_size=batch, engine=engine)
        assert [r.iteration for r in records] == expected


@pytest.mark.parametrize("cell", RECURRENT)
def test_batches_larger_than_the_data(cell: str) -> None:
    """Batches larger than the data, and across epochs, match torch and overwrite nothing."""
    train, val = draw(count=7, max_length=40), draw(count=5, stream=1)
    for batch in (4, 100):
        (records, best, _), (expected, others, _) = (
            train_fully(cell, 5, train, val, epochs=30, batch_size=batch, record_every=9, engine=engine)
            for engine in ("compiled", "torch")
        )
        assert [r.val_loss for r in records] == pytest.approx([r.val_loss for r in expected], rel=1e-3)
        for name, array in best.items():
            np.testing.assert_allclose(array, others[name], rtol=0, atol=1e-4, err_msg=name)


@every_engine
def test_best_weights_are_kept(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights with the lowest validation loss are kept; of equal ones the earliest."""
    script = iter([0.5, 0.2, 0.2, 0.9])
    monkeypatch.setattr(training, "measure_loss", lambda *_: next(script))
    settings: Any = {"engine": engine}
    config = SeqTrainConfig(epochs=1, record_every=2, **settings)
    network = build_engine(CELLS["gru"], draw_weights("gru", 4), config, draw(count=8))
    states, records = [], []
    trained = Training(network, 8, draw(count=4), config, 0)
    for record in filter(None, trained):
        records.append(record)
        states.append({name: array.copy() for name, array in network.copy_parameters().items()})
    assert [r.best for r in records] == [True, True, False, False]
    best = trained.best
    assert list(best) == list(states[1])
    assert all(np.array_equal(best[name], array) for name, array in states[1].items())
    assert not np.array_equal(best["head.bias"], states[2]["head.bias"])


@every_engine
def test_best_weights_have_the_best_loss(engine: str) -> None:
    """The best weights give the lowest recorded validation loss, far below the baseline's."""
    train, val = draw(count=300), draw(count=60, stream=1)
    records, best, _ = train_fully("gru", 8, train, val, epochs=2, lr=0.02, record_every=50, engine=engine)
    lowest = min(r.val_loss for r in records)
    settings: Any = {"engine": engine}
    again = measure_loss(build_engine(CELLS["gru"], best, SeqTrainConfig(**settings)), val)
    assert again == pytest.approx(lowest, rel=1e-9)
    assert lowest < 0.1


def test_baseline_has_one_validation_pass() -> None:
    """The baseline has one record, at iteration 0, without a training loss."""
    val = draw(count=50)
    mse = float(np.mean((val.targets.astype(np.float64) - 1) ** 2))
    for settings in ({}, {"engine": "torch", "batch_size": 4}):
        records, best, engine = train_fully("baseline", 5, draw(count=9), val, **settings)
        assert records == [Record(0, None, pytest.approx(mse), True)]
        assert isinstance(engine, Constant)
        assert {name: array.tolist() for name, array in best.items()} == {"constant": [1.0]}


@every_engine
def test_training_follows_its_seed(engine: str) -> None:
    """From the same weights, a seed gives the same weights bit by bit, and another seed others."""
    one, same, other = (
        train_fully("lstm", 4, draw(count=20), draw(count=5), seed, epochs=1, record_every=20, engine=engine)[1]
        for seed in (0, 0, 1)
    )
    assert all(np.array_equal(one[name], same[name]) for name in one)
    assert not np.array_equal(one["head.weight"], other["head.weight"])


@every_engine
def test_divergence_is_an_error(engine: str) -> None:
    """A training that diverges ends with an error that names the iteration and gives advice."""
    network = ("elman", 4, draw(count=20), draw(count=5))
    with pytest.raises(DivergedAtError, match=r"a finite number at iteration 2: try a lower --lr than 1e\+38"):
        train_fully(*network, epochs=1, lr=1e38, record_every=10, engine=engine)
    with pytest.raises(DivergedAtError) as error:
        train_fully(*network, epochs=1, lr=1e38, batch_size=20, engine=engine)
    assert error.value.iteration == 1, "the step was taken, its validation loss was not finite"
