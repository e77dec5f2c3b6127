"""Several runs of one training: each that of its own seed alone; what eval and tables make of them; both engines."""

from __future__ import annotations

import contextlib
import csv
import json
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Run, contents, dlcv, metrics_of, refused

from dlcv_cli.context import Context, Reporter
from dlcv_cli.errors import SettingError
from dlcv_cli.files import sequences, tensors
from dlcv_cli.sequences import cells
from dlcv_cli.sequences.engines.compiled import Compiled
from dlcv_cli.sequences.training import Training
from dlcv_cli.stages import seed_runs
from dlcv_cli.stages import train_sequences as seq
from dlcv_cli.statistics.metrics import summarize_runs

LAYERS = {"elman": torch.nn.RNN, "lstm": torch.nn.LSTM, "gru": torch.nn.GRU}
SETTINGS = ("--hidden-size", 4, "--record-every", 40, "--lr", 0.02)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, the GRU's runs of seeds 5, 6 and 7 one by one, and all three in one file."""
    folder = tmp_path_factory.mktemp("seeds")
    data = folder / "data.safetensors"
    dlcv("seq", "gen", "--count", 100, "-o", data)
    for seed in (5, 6, 7):
        dlcv("seq", "train", data, *SETTINGS, "--seed", seed, "-o", folder / f"gru{seed}.safetensors")
    dlcv("seq", "train", data, *SETTINGS, "--seed", 5, "--seeds", 3, "-o", folder / "all.safetensors")
    return folder


def arrays(path: Path) -> dict[str, Any]:
    """A checkpoint's tensors."""
    return tensors.read(path, tensors.CHECKPOINT).arrays


def same_runs(one: Path, singles: list[Path]) -> None:
    """Asserts that a file's runs are, byte for byte and record for record, those of these files."""
    stacked, records = arrays(one), metrics_of(one)["records"]
    for k, single in enumerate(singles):
        alone = arrays(single)
        assert list(alone) == list(stacked)
        for name, array in alone.items():
            assert (stacked[name][k].dtype, stacked[name][k].tobytes()) == (array.dtype, array.tobytes()), name
    assert records == [record for single in singles for record in metrics_of(single)["records"]]


@pytest.mark.parametrize("cpus", [1, 2, 64])
def test_runs_are_those_of_their_seeds(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpus: int
) -> None:
    """Run k is the run of seed + k alone, however many there are and however many cores."""
    for module in (seed_runs, seq):
        monkeypatch.setattr(module, "count_processors", lambda: cpus)
    for count in (2, 3):
        output = tmp_path / f"{count}.safetensors"
        dlcv("seq", "train", folder / "data.safetensors", *SETTINGS, "--seed", 5, "--seeds", count, "-o", output)
        same_runs(output, [folder / f"gru{seed}.safetensors" for seed in (5, 6, 7)[:count]])
        assert metrics_of(output)["run"]["threads"] == min(cpus, count)
        if count == 3:
            assert arrays(output).keys() == arrays(folder / "all.safetensors").keys()


@pytest.mark.parametrize("cell", ["elman", "lstm", "baseline"])
@pytest.mark.parametrize("engine", ["compiled", "torch"])
def test_runs_of_every_cell_and_engine(folder: Path, tmp_path: Path, cell: str, engine: str) -> None:
    """Other cells and the other engine keep to it too."""
    settings = (folder / "data.safetensors", *SETTINGS, "--cell", cell, "--engine", engine, "-o")
    for seed in (0, 1):
        dlcv("seq", "train", *settings, tmp_path / f"{seed}.safetensors", "--seed", seed)
    dlcv("seq", "train", *settings, tmp_path / "both.safetensors", "--seeds", 2)
    same_runs(tmp_path / "both.safetensors", [tmp_path / f"{seed}.safetensors" for seed in (0, 1)])
    assert run_keys(tmp_path / "both.safetensors") == ["mse", "mae", "close", "r2"]


def run_keys(checkpoint: Path) -> list[str]:
    """The keys of the runs in its evaluation."""
    dlcv("eval", checkpoint)
    return list(json.loads(checkpoint.with_suffix(".test.eval.json").read_text())["seed_spread"])


def test_files_of_several_runs(folder: Path) -> None:
    """The record has the seeds, `best` is the lowest of all runs, and one run's file has the form it always had."""
    several, one = (tensors.read(folder / name, tensors.CHECKPOINT) for name in ("all.safetensors", "gru5.safetensors"))
    assert list(several.metadata) == [
        "schema",
        "sha256",
        "stage",
        "config",
        "inputs",
        "task",
        "seeds",
        "best",
        "versions",
    ]
    assert (several.metadata["seeds"], one.metadata["seeds"]) == ([5, 6, 7], [5])
    records = metrics_of(folder / "all.safetensors")["records"]
    assert [record["seed"] for record in records] == sorted(record["seed"] for record in records)
    assert several.metadata["best"] == min(records, key=lambda record: record["val_loss"])
    assert {n: a.shape for n, a in several.arrays.items()} == {n: (3, *a.shape) for n, a in one.arrays.items()}
    assert metrics_of(folder / "all.safetensors")["parameters"] == metrics_of(folder / "gru5.safetensors")["parameters"]


def test_runs_load_into_torch(folder: Path, run: Run) -> None:
    """Each slice loads strictly into torch.nn, and gives the predictions, whose mean metrics the evaluation has."""
    path = folder / "all.safetensors"
    assert run("eval", path).exit_code == 0
    actual = json.loads((folder / "all.test.eval.json").read_text())
    answers = tensors.read(folder / "all.test.predictions.safetensors", tensors.PREDICTIONS).arrays
    test = sequences.read(folder / "data.safetensors").parts["test"]
    assert answers["predictions"].shape == (3, 20)
    assert actual["data"]["n"] == 20
    by_run: dict[str, list[float]] = {"mse": [], "mae": [], "close": []}
    for k in range(3):
        rnn, head = torch.nn.GRU(2, 4), torch.nn.Linear(4, 1)
        chosen = {name: torch.from_numpy(array[k].copy()) for name, array in arrays(path).items()}
        for part, module in (("rnn.", rnn), ("head.", head)):
            module.load_state_dict({n.removeprefix(part): t for n, t in chosen.items() if n.startswith(part)})
        with torch.no_grad():
            xs = np.split(test.inputs, np.cumsum(test.lengths)[:-1])
            expected = np.array([head(rnn(torch.from_numpy(x))[0][-1]).item() for x in xs])
        np.testing.assert_allclose(answers["predictions"][k], expected, atol=2e-6)
        errors = np.abs(answers["predictions"][k].astype(np.float64) - test.targets)
        for key, value in (("mse", errors**2), ("mae", errors), ("close", errors < 0.04)):
            by_run[key].append(float(np.mean(value)))
        of_run = {key: values[-1] for key, values in by_run.items()}
        r2 = 1 - of_run["mse"] / np.var(test.targets.astype(np.float64))
        assert actual["per_seed"][k]["seed"] == 5 + k
        assert actual["per_seed"][k]["metrics"] == pytest.approx({**of_run, "r2": r2})
    assert np.ptp(by_run["mse"]) > 1e-4, "the runs differ"
    assert [run["seed"] for run in actual["per_seed"]] == [5, 6, 7]
    for key, values in by_run.items():
        assert actual["metrics"][key] == pytest.approx(np.mean(values))
        assert list(actual["seed_spread"][key]) == ["mean", "std", "min", "max"]
        expected_runs = [np.mean(values), np.std(values, ddof=1), min(values), max(values)]
        assert [*actual["seed_spread"][key].values()] == pytest.approx(expected_runs)
        total = sum(row["n"] * row[key] for row in actual["details"]["by_length"])
        assert total / 20 == pytest.approx(actual["metrics"][key])


def test_over_runs() -> None:
    """Mean, sample standard deviation, least and largest; one run has no spread."""
    assert summarize_runs([1.0, 2.0, 6.0]) == {"mean": 3, "std": pytest.approx(7**0.5), "min": 1, "max": 6}
    assert summarize_runs([0.5]) == {"mean": 0.5, "std": 0, "min": 0.5, "max": 0.5}


def test_table_of_several_runs(folder: Path, run: Run) -> None:
    """The table shows how many runs a row has, csv how they spread; one run, and no baseline, has no spread."""
    paths = (folder / "all.safetensors", folder / "gru5.safetensors")
    document = json.loads(run("eval", "--compare", *paths, "--json").stdout)
    rows, pairs = document["rows"], document["pairs"]
    assert ["seed_spread" in row for row in rows] == [True, False, False, False]
    assert [row.get("intervals_over") for row in rows] == ["seeds", "examples", "examples", "examples"]
    assert [pair["over"] for pair in pairs] == ["examples", "seeds", "seeds"], "one run against several: no other seeds"
    header, _, several, one, constant, *_ = run("eval", "--compare", *paths, "--format", "github").stdout.splitlines()
    assert [cell.strip() for cell in header.split("|")[1:-1]] == [
        "test, n = 20", "MSE", "95 % interval", "MAE", "within 0.04 %", "R2", "seeds", "MSE - all",
        "95 % interval", "p",
    ]  # fmt: skip
    low, high, spread = (rows[0]["seed_spread"]["mse"][key] for key in ("min", "max", "std"))
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in (several, one, constant)]
    assert [row[6] for row in cells] == ["3", "1", ""]
    assert [row[9].split()[-1] for row in cells[1:]] == ["examples", "seeds"], "which question each p answers"
    lines = list(csv.DictReader(run("eval", "--compare", *paths, "--format", "csv").stdout.splitlines()))
    spreads = ["seeds", "mse_std", "mse_min", "mse_max"]
    assert [float(lines[0][key]) for key in spreads] == [3, spread, low, high]
    assert [lines[1][key] for key in spreads] == ["1", "", "", ""]
    alone = run("eval", "--compare", paths[1], "--format", "csv").stdout.splitlines()[0]
    assert "mse_std" not in alone, "one run has the table it always had"


def test_what_is_said_of_several_runs(folder: Path, tmp_path: Path, run: Run) -> None:
    """One line a run with its seed, in the order of the seeds; --json has the best of all."""
    output = tmp_path / "all.safetensors"
    result = run(
        "seq", "train", folder / "data.safetensors", *SETTINGS, "--seed", 5, "--seeds", 3, "-o", output, "--json"
    )
    first, *lines = result.stderr.splitlines()
    assert first == "training 101 parameters (gru) on 64 sequences, 3 times"
    assert [line.split()[:3] for line in lines] == [["seed", str(seed), "iteration"] for seed in (5, 6, 7)]
    assert json.loads(result.stdout) == {"status": "made", "output": str(output), **metrics_of(output)["best"]}


# ------------------------------------------------------------------------------------------------- batches and engines


@pytest.mark.parametrize(("batch", "clip"), [(1, ()), (7, ()), (200, ("--clip-norm", 0.1))])
def test_engines_agree(folder: Path, tmp_path: Path, batch: int, clip: tuple[object, ...]) -> None:
    """Both engines come to the same losses, in batches of mixed lengths too, at the same iterations."""
    actual = []
    for engine in ("compiled", "torch"):
        output = tmp_path / f"{engine}.safetensors"
        more = ("--batch-size", batch, "--engine", engine, *clip)
        dlcv("seq", "train", folder / "data.safetensors", *SETTINGS, "--record-every", 9, *more, "-o", output)
        actual.append(metrics_of(output))
        assert actual[-1]["run"]["versions"].keys() - {"dlcv", "numpy", "safetensors"} == {
            "compiled": {"numba"}, "torch": {"torch"},
        }[engine]  # fmt: skip
    ours, theirs = ([(r["iteration"], r["val_loss"], r["train_loss"]) for r in one["records"]] for one in actual)
    np.testing.assert_allclose(ours, theirs, rtol=1e-3)
    assert ours[-1][0] == -(-3 * 64 // batch)


@pytest.mark.parametrize("batch", [1, 7, 64, 200])
def test_progress_ends_at_its_total(folder: Path, tmp_path: Path, batch: int) -> None:
    """The last progress told is all of it, also where the last batch is smaller: the bar ends full."""
    message: list[tuple[int, int]] = []

    class Told(Reporter):
        def progress(self, what: str, done: int, total: int) -> None:
            message.append((done, total))

    config = seq.SeqTrainConfig(hidden_size=3, batch_size=batch, record_every=10)
    output = tmp_path / "new.safetensors"
    seq.train_sequences(folder / "data.safetensors", output, config, context=Context(reporter=Told()))
    assert message[-1] == (-(-3 * 64 // batch),) * 2


def test_a_cell_without_kernels(folder: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cell that torch.nn has and the kernels have not trains and evaluates with torch; else it is refused."""
    relu = cells.Cell("RNN", gates=1, options={"nonlinearity": "relu"})
    monkeypatch.setitem(cells.CELLS, "elman", relu)  # the options know its name
    output = tmp_path / "relu.safetensors"
    settings = (folder / "data.safetensors", "--cell", "elman", *SETTINGS, "-o", output)
    result = run("seq", "train", *settings)
    assert (result.exit_code, contents(tmp_path)) == (2, {})
    printed = " ".join(result.stderr.replace("│", " ").split())
    assert "the cell 'elman' has no compiled kernels: train it with --engine torch" in printed
    assert run("seq", "train", *settings, "--engine", "torch").exit_code == 0
    assert run("eval", output).exit_code == 0
    actual = json.loads((tmp_path / "relu.test.eval.json").read_text())
    assert "torch" in actual["run"]["versions"]
    rnn, head = torch.nn.RNN(2, 4, nonlinearity="relu"), torch.nn.Linear(4, 1)
    stored = {name: torch.from_numpy(array.copy()) for name, array in arrays(output).items()}
    for part, module in (("rnn.", rnn), ("head.", head)):
        module.load_state_dict({n.removeprefix(part): t for n, t in stored.items() if n.startswith(part)})
    test = sequences.read(folder / "data.safetensors").parts["test"]
    with torch.no_grad():
        xs = np.split(test.inputs, np.cumsum(test.lengths)[:-1])
        errors = np.array([head(rnn(torch.from_numpy(x))[0][-1]).item() for x in xs]) - test.targets
    assert actual["metrics"]["mse"] == pytest.approx(np.mean(errors**2), rel=1e-4)
    monkeypatch.delitem(cells.CELLS, "elman")
    refused(run("eval", output, "--force"), output, "no checkpoint of a cell that this version knows (elman)")


class OwnCell(torch.nn.Module):
    """A cell of one's own: an Elman network without a nonlinearity."""

    def __init__(self, inputs: int, hidden: int, batch_first: bool) -> None:
        super().__init__()
        self.weight_ih_l0 = torch.nn.Parameter(torch.empty(hidden, inputs))
        self.weight_hh_l0 = torch.nn.Parameter(torch.empty(hidden, hidden))
        self.bias_ih_l0 = torch.nn.Parameter(torch.empty(hidden))
        self.bias_hh_l0 = torch.nn.Parameter(torch.empty(hidden))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, None]:
        state, states = x.new_zeros(len(x), self.bias_ih_l0.numel()), []
        for step in x.unbind(1):
            state = step @ self.weight_ih_l0.T + self.bias_ih_l0 + state @ self.weight_hh_l0.T + self.bias_hh_l0
            states.append(state)
        return torch.stack(states, 1), None


def test_a_cell_of_ones_own(run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cell whose entry has a class trains and evaluates with --engine torch."""
    config = seq.SeqTrainConfig(cell="own", engine="torch", hidden_size=3, epochs=1)
    monkeypatch.setitem(cells.CELLS, "own", cells.Cell(OwnCell, gates=1))
    output = tmp_path / "own.safetensors"
    seq.train_sequences(folder / "data.safetensors", output, config)
    assert metrics_of(output)["parameters"]["total"] == 3 * (2 + 3 + 2) + 4
    assert run("eval", output).exit_code == 0


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        (cells.Cell("NoSuchLayer", gates=1), "torch.nn has no layer 'NoSuchLayer'"),
        (cells.Cell(OwnCell, gates=2), r"rnn.weight_ih_l0 is \(3, 2\), and by `gates` and names it would be \(6, 2\)"),
    ],
)
def test_a_cell_that_cannot_be_built(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cell: cells.Cell, words: str
) -> None:
    """A name that torch.nn lacks, or a class of other parameters, is refused in words."""
    monkeypatch.setitem(cells.CELLS, "own", cell)
    config = seq.SeqTrainConfig(cell="own", engine="torch", hidden_size=3)
    with pytest.raises(SettingError, match=words):
        seq.train_sequences(folder / "data.safetensors", tmp_path / "own.safetensors", config)
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("signals", [False, True], ids=["it dies", "it dies, then Ctrl-C"])
def test_a_worker_that_dies_while_a_save_is_due(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signals: bool
) -> None:
    """When one seed's worker dies, the other's work is saved and the command ends with the error, or at the signal."""
    state, died = Training.state, threading.Event()

    def fail(training: Training) -> Any:
        if training.seed == 1 and not died.is_set():
            died.set()
            raise MemoryError
        return state(training)

    monkeypatch.setattr(Training, "state", fail)
    monkeypatch.setattr(Compiled, "choose_pace", lambda _: 1)
    if signals:
        hold = seq.hold_signals

        @contextlib.contextmanager
        def hold_signals() -> Iterator[Any]:
            with hold():
                yield lambda: signal.SIGINT if died.is_set() else None

        monkeypatch.setattr(seq, "hold_signals", hold_signals)
    output = tmp_path / "two.safetensors"
    config = seq.SeqTrainConfig(hidden_size=4, epochs=300, record_every=10, seeds=2)
    context = Context(save_every=0)
    monkeypatch.setattr(seed_runs, "count_processors", lambda: 2)
    with pytest.raises((MemoryError, KeyboardInterrupt)):
        seq.train_sequences(folder / "data.safetensors", output, config, context=context)
    assert died.is_set()
    snapshot = tensors.read(tmp_path / "two.snapshot", tensors.SNAPSHOT)
    assert "0" in snapshot.metadata["state"]["runs"]
    assert [path.name for path in tmp_path.iterdir()] == ["two.snapshot"]
