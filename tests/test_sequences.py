"""Sequence tasks, cells and their training against the definitions, written out in numpy and plain torch."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dlcv_cli.config import GenConfig, SeqTrainConfig
from dlcv_cli.errors import DlcvError
from dlcv_cli.sequences import training
from dlcv_cli.sequences.cells import CELLS, Parameters, initial_parameters
from dlcv_cli.sequences.networks import network, parameters
from dlcv_cli.sequences.tasks import TASKS, Sequences, generate
from dlcv_cli.sequences.training import Record, fit, mean_squared_error, predict

Floats = NDArray[np.float64]
RECURRENT = ("elman", "lstm", "gru")


def each(data: Sequences) -> list[tuple[NDArray[np.float32], np.float32]]:
    """(inputs (T, F), target) of every sequence."""
    return list(zip(np.split(data.inputs, np.cumsum(data.lengths)[:-1]), data.targets, strict=True))


def made(task: str = "adding", count: int = 200, stream: int = 0, **settings: int) -> Sequences:
    """`count` sequences of a task."""
    return generate(GenConfig(task=task, **settings), count, stream)


# ------------------------------------------------------------------------------------------------------------- tasks


@pytest.mark.parametrize("task", ["adding", "multiplication"])
def test_marked_values(task: str) -> None:
    """Two markers of 1 in each sequence, values in [0, 1), and the target is the two values' sum or product."""
    for inputs, target in each(made(task, 500)):
        values, markers = inputs.T.astype(np.float64)
        assert values.min() >= 0
        assert values.max() < 1
        assert sorted(markers)[-2:] == [1, 1]
        assert markers.sum() == 2
        first, second = (values[t] for t in range(len(values)) if markers[t] == 1)
        assert target == np.float32(first + second if task == "adding" else first * second)


def test_temporal_order() -> None:
    """Six symbols one-hot, two of them X or Y; the target says which came first and which second: XX, XY, YX, YY."""
    data = made("temporal-order", 500)
    seen = set()
    for inputs, target in each(data):
        assert set(np.unique(inputs)) <= {0, 1}
        assert (inputs.sum(1) == 1).all()
        word = "".join("XYabcd"[i] for i in inputs.argmax(1))
        first, second = (letter for letter in word if letter in "XY")
        assert target == pytest.approx({"XX": 0, "XY": 1 / 3, "YX": 2 / 3, "YY": 1}[first + second])
        seen.add(first + second)
    assert seen == {"XX", "XY", "YX", "YY"}
    assert (data.inputs.sum(0) > 0).all(), "every symbol occurs"


@pytest.mark.parametrize(("low", "high"), [(2, 10), (5, 5), (30, 40)])
@pytest.mark.parametrize("task", sorted(TASKS))
def test_lengths(task: str, low: int, high: int) -> None:
    """Lengths run over the whole range, both ends included, uniformly; the steps add up; types are as stated."""
    count = 2000
    data = made(task, count, min_length=low, max_length=high)
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
    for inputs, _ in each(made(count=2000, min_length=5, max_length=5)):
        counts[tuple(np.flatnonzero(inputs[:, 1]))] += 1
    pairs = counts[np.triu_indices(5, 1)]
    assert pairs.sum() == 2000
    assert (abs(pairs - 200) < 70).all()  # five standard deviations


def test_adding_statistics() -> None:
    """The answer 1 has MSE 1/6 and MAE 1/3: within 0.006, four standard errors at 20,000 sequences."""
    errors = made(count=20_000, min_length=2, max_length=3).targets.astype(np.float64) - TASKS["adding"].constant
    assert np.mean(errors**2) == pytest.approx(1 / 6, abs=0.006)
    assert np.mean(abs(errors)) == pytest.approx(1 / 3, abs=0.006)


@pytest.mark.parametrize("task", sorted(TASKS))
def test_constant_is_the_mean_target(task: str) -> None:
    """The baseline's constant is the mean target: within 0.02, three standard errors and more at 5,000 sequences."""
    assert made(task, 5000).targets.mean() == pytest.approx(TASKS[task].constant, abs=0.02)


@pytest.mark.parametrize("task", sorted(TASKS))
def test_generation_follows_its_seed(task: str) -> None:
    """Same seed and stream: the same sequences. Another seed, or another part's stream: others."""
    one = made(task)
    assert all(np.array_equal(a, b) for a, b in zip(vars(one).values(), vars(made(task)).values(), strict=True))
    for other in (made(task, seed=1), made(task, stream=1)):
        assert not np.array_equal(one.lengths, other.lengths)
        assert not np.array_equal(one.targets, other.targets)


# ------------------------------------------------------------------------------------------------------------- cells


def sigmoid(x: Floats) -> Floats:
    """1 / (1 + exp(-x))."""
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


def written_out(cell: str, weights: Parameters, inputs: NDArray[np.float32]) -> float:
    """The cell's answer to one sequence (T, F), in float64."""
    exact = {name: array.astype(np.float64) for name, array in weights.items()}
    recurrent = {n.removeprefix("rnn.").removesuffix("_l0"): a for n, a in exact.items() if n.startswith("rnn.")}
    h = c = np.zeros(exact["head.weight"].shape[1])
    for x in inputs.astype(np.float64):
        h, c = STEPS[cell](x, h, c, recurrent)
    return float((exact["head.weight"] @ h + exact["head.bias"])[0])


@pytest.mark.parametrize(("low", "high"), [(2, 9), (60, 61)])
@pytest.mark.parametrize("cell", RECURRENT)
def test_cells_follow_their_equations(cell: str, low: int, high: int) -> None:
    """Predictions are those of the cell's equations from a zero state, for sequences of several lengths."""
    data = made(count=40, min_length=low, max_length=high)
    weights = initial_parameters(CELLS[cell], 2, 5, 1.0, seed=0)
    weights = {name: 2 * array for name, array in weights.items()}  # far enough from linear to tell gates apart
    expected = [written_out(cell, weights, inputs) for inputs, _ in each(data)]
    assert np.std(expected) > 1e-3, "the case can tell sequences apart"
    np.testing.assert_allclose(predict(network(CELLS[cell], weights), data), expected, rtol=0, atol=2e-6)


def test_baseline_answers_its_constant() -> None:
    """The baseline answers the task's constant whatever it sees."""
    module = network(CELLS["baseline"], initial_parameters(CELLS["baseline"], 2, 5, 0.25, seed=0))
    assert predict(module, made(count=7)).tolist() == [0.25] * 7


@pytest.mark.parametrize("hidden", [1, 4, 64])
@pytest.mark.parametrize("cell", RECURRENT)
def test_initial_parameters(cell: str, hidden: int) -> None:
    """Shapes are torch's, all numbers within +-1/sqrt(D) and spread over it; the seed decides them."""
    start = initial_parameters(CELLS[cell], 2, hidden, 1.0, seed=0)
    module = network(CELLS[cell], start)
    assert {n: t.shape for n, t in module.state_dict().items()} == {n: a.shape for n, a in start.items()}
    assert {array.dtype for array in start.values()} == {np.dtype(np.float32)}
    values, bound = np.concatenate([a.ravel() for a in start.values()]), hidden**-0.5
    assert abs(values).max() <= bound * (1 + 1e-7)
    if hidden == 64:
        assert abs(values).max() > 0.99 * bound
        assert values.std() == pytest.approx(bound / 3**0.5, rel=0.05)
    same = initial_parameters(CELLS[cell], 2, hidden, 1.0, seed=0)
    other = initial_parameters(CELLS[cell], 2, hidden, 1.0, seed=1)
    assert all(np.array_equal(start[name], same[name]) for name in start)
    assert not any(np.array_equal(start[name], other[name]) for name in start)


@pytest.mark.parametrize("damage", ["missing", "extra", "shape", "cell", "flat"])
def test_network_takes_exactly_its_weights(damage: str) -> None:
    """Arrays that are not the cell's are refused."""
    weights = initial_parameters(CELLS["gru"], 2, 4, 1.0, seed=0)
    if damage == "missing":
        del weights["rnn.weight_hh_l0"]
    elif damage == "extra":
        weights["rnn.weight_ih_l1"] = np.zeros((12, 4), np.float32)
    elif damage == "shape":
        weights["head.weight"] = np.zeros((1, 5), np.float32)
    elif damage == "cell":
        weights = initial_parameters(CELLS["lstm"], 2, 4, 1.0, seed=0)
    else:
        weights["rnn.weight_ih_l0"] = np.zeros(24, np.float32)
    with pytest.raises(ValueError, match=r"\w"):
        network(CELLS["gru"], weights)


def test_parameters_round_trip() -> None:
    """A network's weights as arrays are those it was made from, and no view of them."""
    weights = initial_parameters(CELLS["lstm"], 2, 4, 1.0, seed=0)
    module = network(CELLS["lstm"], weights)
    taken = parameters(module)
    assert {name: array.tolist() for name, array in taken.items()} == {n: a.tolist() for n, a in weights.items()}
    taken["head.bias"][:] = 9
    assert parameters(module)["head.bias"].tolist() == weights["head.bias"].tolist()


@pytest.mark.parametrize("cell", RECURRENT)
def test_prediction_of_mixed_lengths(cell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mixed lengths in one go, even in small batches, answer as each sequence alone does, in the data's order."""
    data = made(count=50)
    module = network(CELLS[cell], initial_parameters(CELLS[cell], 2, 8, 1.0, seed=0))
    with torch.no_grad():
        alone = [module(torch.from_numpy(inputs)[None]).item() for inputs, _ in each(data)]
    np.testing.assert_allclose(predict(module, data), alone, rtol=0, atol=1e-6)
    monkeypatch.setattr(training, "EVALUATION_STEPS", 12)
    np.testing.assert_allclose(predict(module, data), alone, rtol=0, atol=1e-6)
    expected = np.mean((np.array(alone) - data.targets) ** 2)
    assert mean_squared_error(module, data) == pytest.approx(expected, rel=1e-5)


# ---------------------------------------------------------------------------------------------------------- training


class Plain(torch.nn.Module):
    """A recurrent network as a textbook has it."""

    def __init__(self, layer: type[torch.nn.RNNBase], hidden: int) -> None:
        super().__init__()
        self.rnn = layer(2, hidden)
        self.head = torch.nn.Linear(hidden, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(T, F) -> one number."""
        states, _ = self.rnn(x)
        return self.head(states[-1])[0]


@pytest.mark.parametrize(("cell", "layer"), [("elman", torch.nn.RNN), ("lstm", torch.nn.LSTM), ("gru", torch.nn.GRU)])
def test_training_is_a_plain_loop(cell: str, layer: type[torch.nn.RNNBase]) -> None:
    """Losses and weights of the first 60 steps, over two epochs, are those of a plain torch loop of batch size 1."""
    train, val = made(count=40), made(count=10, stream=1)
    config = SeqTrainConfig(cell=cell, epochs=2, lr=0.003, record_every=15, seed=4)
    start = initial_parameters(CELLS[cell], 2, 6, 1.0, seed=0)
    ours = network(CELLS[cell], start)
    theirs = Plain(layer, 6)
    theirs.load_state_dict({name: torch.from_numpy(array) for name, array in start.items()})
    optimizer = torch.optim.Adam(theirs.parameters(), lr=0.003)
    examples = each(train)
    orders = [np.random.default_rng((4, epoch)).permutation(40) for epoch in range(2)]
    steps = iter(np.concatenate(orders).tolist())
    seen = 0
    for record in fit(ours, train, val, config):
        losses = []
        while seen < record.iteration:
            inputs, target = examples[next(steps)]
            loss = (theirs(torch.from_numpy(inputs)) - float(target)) ** 2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            seen += 1
        if seen > 60:
            break
        assert record.train_loss == pytest.approx(np.mean(losses), rel=1e-3)
        assert record.val_loss == pytest.approx(mean_squared_error(ours, val))
        for name, tensor in theirs.state_dict().items():
            torch.testing.assert_close(ours.state_dict()[name], tensor, rtol=0, atol=1e-4, msg=name)
    assert seen == 75


def test_records_come_regularly_and_at_the_end() -> None:
    """One look at the losses every record_every steps, and one at the last step; never two."""
    train, val = made(count=10), made(count=5, stream=1)
    for every, expected in ((4, [4, 8, 12, 16, 20]), (7, [7, 14, 20]), (100, [20])):
        module = network(CELLS["elman"], initial_parameters(CELLS["elman"], 2, 3, 1.0, seed=0))
        records = list(fit(module, train, val, SeqTrainConfig(epochs=2, record_every=every)))
        assert [r.iteration for r in records] == expected


def test_best_weights_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The network ends with the weights of the lowest validation loss, the earliest of equal ones."""
    script = iter([0.5, 0.2, 0.2, 0.9])
    monkeypatch.setattr(training, "mean_squared_error", lambda *_: next(script))
    module = network(CELLS["gru"], initial_parameters(CELLS["gru"], 2, 4, 1.0, seed=0))
    states, records = [], []
    for record in fit(module, made(count=8), made(count=4), SeqTrainConfig(epochs=1, record_every=2)):
        records.append(record)
        states.append(copy.deepcopy(module.state_dict()))
    assert [r.best for r in records] == [True, True, False, False]
    after = module.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in states[1].items())
    assert not torch.equal(after["head.bias"], states[3]["head.bias"])


def test_best_loss_again() -> None:
    """Looking again after training finds the lowest recorded validation loss, far below the baseline's."""
    train, val = made(count=300), made(count=60, stream=1)
    module = network(CELLS["gru"], initial_parameters(CELLS["gru"], 2, 8, 1.0, seed=0))
    records = list(fit(module, train, val, SeqTrainConfig(epochs=2, lr=0.02, record_every=50)))
    best = min(r.val_loss for r in records)
    assert mean_squared_error(module, val) == pytest.approx(best, rel=1e-9)
    assert best < 0.1


def test_baseline_is_looked_at_once() -> None:
    """The baseline trains nothing: one record, at iteration 0, without a training loss."""
    module = network(CELLS["baseline"], {"constant": np.array([1], np.float32)})
    val = made(count=50)
    mse = float(np.mean((val.targets.astype(np.float64) - 1) ** 2))
    assert list(fit(module, made(count=9), val, SeqTrainConfig(cell="baseline"))) == [
        Record(0, None, pytest.approx(mse), True)
    ]


def test_training_follows_its_seed() -> None:
    """From the same weights, the same seed gives the same weights bit by bit; another order, others."""
    results = []
    for seed in (0, 0, 1):
        module = network(CELLS["lstm"], initial_parameters(CELLS["lstm"], 2, 4, 1.0, seed=0))
        list(fit(module, made(count=20), made(count=5), SeqTrainConfig(epochs=1, record_every=20, seed=seed)))
        results.append(parameters(module))
    one, same, other = results
    assert all(np.array_equal(one[name], same[name]) for name in one)
    assert not np.array_equal(one["head.weight"], other["head.weight"])


def test_loss_that_is_not_finite() -> None:
    """A training that runs away ends with an error that names the iteration and what to do."""
    module = network(CELLS["elman"], initial_parameters(CELLS["elman"], 2, 4, 1.0, seed=0))
    with pytest.raises(DlcvError, match=r"no longer a finite number at iteration 10: try a lower --lr"):
        list(fit(module, made(count=20), made(count=5), SeqTrainConfig(epochs=1, lr=1e38, record_every=10)))
