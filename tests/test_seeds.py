"""Several runs of one training: each that of its own seed alone; what eval and tables make of them; both engines."""

from __future__ import annotations

import contextlib
import json
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Run, assert_refused, read_files, read_metrics, run_dlcv

from dlcv_cli.context import Context, Reporter
from dlcv_cli.errors import SettingError
from dlcv_cli.files import sequences, tensors
from dlcv_cli.sequences import cells
from dlcv_cli.sequences.engines.compiled import Compiled
from dlcv_cli.sequences.training import Training
from dlcv_cli.stages import seed_runs
from dlcv_cli.stages import train_sequences as seq

LAYERS = {"elman": torch.nn.RNN, "lstm": torch.nn.LSTM, "gru": torch.nn.GRU}
SETTINGS = ("--hidden-size", 4, "--record-every", 40, "--lr", 0.02)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with data, and the GRU's single runs of seeds 5, 6 and 7."""
    folder = tmp_path_factory.mktemp("seeds")
    data = folder / "data.safetensors"
    run_dlcv("seq", "gen", "--count", 100, "-o", data)
    for seed in (5, 6, 7):
        run_dlcv("seq", "train", data, *SETTINGS, "--seed", seed, "-o", folder / f"gru{seed}.safetensors")
    return folder


def read_arrays(path: Path) -> dict[str, Any]:
    """Return the tensors of a checkpoint."""
    return tensors.read(path, tensors.CHECKPOINT).arrays


@pytest.mark.parametrize("cpus", [1, 2, 64])
def test_runs_do_not_depend_on_the_cores(folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch, cpus: int) -> None:
    """For any number of cores a seed's file is that of its own command; each has a line, and its outcome another."""
    for module in (seed_runs, seq):
        monkeypatch.setattr(module, "count_processors", lambda: cpus)
    output = folder / f"cpus{cpus}.safetensors"
    result = run("seq", "train", folder / "data.safetensors", *SETTINGS, "--seed", 5, "--seeds", 3, "-o", output)
    first, *lines = result.stderr.splitlines()
    assert first == "training 101 parameters (gru) on 64 sequences, 3 times"
    assert sorted(line.split()[:3] for line in lines) == [["seed", str(seed), "iteration"] for seed in (5, 6, 7)]
    names = [folder / f"cpus{cpus}.seed{seed}.safetensors" for seed in (5, 6, 7)]
    assert [line.split()[1] for line in result.stdout.splitlines()] == [str(name) for name in names]
    for seed, name in zip((5, 6, 7), names, strict=True):
        assert name.read_bytes() == (folder / f"gru{seed}.safetensors").read_bytes()
        assert read_metrics(name)["run"]["threads"] == 1


# ------------------------------------------------------------------------------------------------- batches and engines


@pytest.mark.parametrize(("batch", "clip"), [(1, ()), (7, ()), (200, ("--clip-norm", 0.1))])
def test_engines_agree(folder: Path, tmp_path: Path, batch: int, clip: tuple[object, ...]) -> None:
    """Both engines give the same losses at the same iterations, also with mixed lengths."""
    actual = []
    for engine in ("compiled", "torch"):
        output = tmp_path / f"{engine}.safetensors"
        more = ("--batch-size", batch, "--engine", engine, *clip)
        run_dlcv("seq", "train", folder / "data.safetensors", *SETTINGS, "--record-every", 9, *more, "-o", output)
        actual.append(read_metrics(output))
        assert actual[-1]["run"]["versions"].keys() - {"dlcv", "numpy", "safetensors"} == {
            "compiled": {"numba"}, "torch": {"torch"},
        }[engine]  # fmt: skip
    ours, theirs = ([(r["iteration"], r["val_loss"], r["train_loss"]) for r in one["records"]] for one in actual)
    np.testing.assert_allclose(ours, theirs, rtol=1e-3)
    assert ours[-1][0] == -(-3 * 64 // batch)


@pytest.mark.parametrize("batch", [1, 7, 64, 200])
def test_progress_ends_at_its_total(folder: Path, tmp_path: Path, batch: int) -> None:
    """The last progress is its total, even if the last batch is smaller."""
    message: list[tuple[int, int]] = []

    class Told(Reporter):
        def progress(self, what: str, done: int, total: int) -> None:
            message.append((done, total))

    config = seq.SeqTrainConfig(hidden_size=3, batch_size=batch, record_every=10)
    output = tmp_path / "new.safetensors"
    seq.train_sequences(folder / "data.safetensors", output, config, context=Context(reporter=Told()))
    assert message[-1] == (-(-3 * 64 // batch),) * 2


def test_a_cell_without_kernels(folder: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cell of torch.nn without kernels trains and evaluates with torch, and is refused otherwise."""
    relu = cells.Cell("RNN", gates=1, options={"nonlinearity": "relu"})
    monkeypatch.setitem(cells.CELLS, "elman", relu)  # the options know its name
    output = tmp_path / "relu.safetensors"
    settings = (folder / "data.safetensors", "--cell", "elman", *SETTINGS, "-o", output)
    result = run("seq", "train", *settings)
    assert (result.exit_code, read_files(tmp_path)) == (2, {})
    printed = " ".join(result.stderr.replace("│", " ").split())
    assert "the cell 'elman' has no compiled kernels: train it with --engine torch" in printed
    assert run("seq", "train", *settings, "--engine", "torch").exit_code == 0
    assert run("eval", output).exit_code == 0
    actual = json.loads((tmp_path / "relu.test.eval.json").read_text())
    assert "torch" in actual["run"]["versions"]
    rnn, head = torch.nn.RNN(2, 4, nonlinearity="relu"), torch.nn.Linear(4, 1)
    stored = {name: torch.from_numpy(array.copy()) for name, array in read_arrays(output).items()}
    for part, module in (("rnn.", rnn), ("head.", head)):
        module.load_state_dict({n.removeprefix(part): t for n, t in stored.items() if n.startswith(part)})
    test = sequences.read(folder / "data.safetensors").parts["test"]
    with torch.no_grad():
        xs = np.split(test.inputs, np.cumsum(test.lengths)[:-1])
        errors = np.array([head(rnn(torch.from_numpy(x))[0][-1]).item() for x in xs]) - test.targets
    assert actual["metrics"]["mse"] == pytest.approx(np.mean(errors**2), rel=1e-4)
    monkeypatch.delitem(cells.CELLS, "elman")
    assert_refused(run("eval", output, "--force"), output, "no checkpoint of a cell that this version knows (elman)")


class OwnCell(torch.nn.Module):
    """A user's own cell: an Elman network without a nonlinearity."""

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


def test_own_cell(run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cell whose entry has a class trains and evaluates with --engine torch."""
    config = seq.SeqTrainConfig(cell="own", engine="torch", hidden_size=3, epochs=1)
    monkeypatch.setitem(cells.CELLS, "own", cells.Cell(OwnCell, gates=1))
    output = tmp_path / "own.safetensors"
    seq.train_sequences(folder / "data.safetensors", output, config)
    assert read_metrics(output)["parameters"]["total"] == 3 * (2 + 3 + 2) + 4
    assert run("eval", output).exit_code == 0


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        (cells.Cell("NoSuchLayer", gates=1), "torch.nn has no layer 'NoSuchLayer'"),
        (cells.Cell(OwnCell, gates=2), r"rnn.weight_ih_l0 is \(3, 2\), and by `gates` and names it would be \(6, 2\)"),
    ],
)
def test_impossible_cell_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cell: cells.Cell, words: str
) -> None:
    """A name that torch.nn lacks, or a class with other parameters, is refused with the reason."""
    monkeypatch.setitem(cells.CELLS, "own", cell)
    config = seq.SeqTrainConfig(cell="own", engine="torch", hidden_size=3)
    with pytest.raises(SettingError, match=words):
        seq.train_sequences(folder / "data.safetensors", tmp_path / "own.safetensors", config)
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("signals", [False, True], ids=["it dies", "it dies, then Ctrl-C"])
def test_failing_worker_saves_the_others(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signals: bool
) -> None:
    """If a worker fails, the other seeds are saved and the command ends with the error or signal."""
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
        list(seq.train_sequence_runs(folder / "data.safetensors", output, config, context=context))
    assert died.is_set()
    snapshot = tensors.read(tmp_path / "two.seed0.snapshot", tensors.SNAPSHOT)
    assert "0" in snapshot.metadata["state"]["runs"]
    assert [path.name for path in tmp_path.iterdir()] == ["two.seed0.snapshot"]
