"""Trainings whose loss stops being a finite number: what is kept, what is said, and that it is said again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Run, contents, dlcv, metrics_of
from typer.testing import Result

from dlcv_cli.files import tensors
from dlcv_cli.sequences.training import Training
from dlcv_cli.stages import seed_runs as runs

SETTINGS = ("--hidden-size", 4, "--record-every", 20)
ADVICE = "the file has the best weights before that: try a lower --lr, or --clip-norm 1"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with 64 training sequences."""
    dlcv("seq", "gen", "--count", 100, "-o", tmp_path / "data.safetensors")
    return tmp_path


@pytest.fixture
def wild(monkeypatch: pytest.MonkeyPatch) -> dict[int, int]:
    """Seed -> iteration whose loss is not finite: to be filled."""
    iterations: dict[int, int] = {}

    def broken(engine: Any, count: int, val: Any, config: Any, seed: int) -> Training:
        advance, done = engine.advance, [0]

        def until(order: Any) -> tuple[float, int]:
            left = iterations.get(seed, 10**9) - 1 - done[0]
            done[0] += len(order)
            return advance(order) if left >= len(order) else (0.0, left)

        engine.advance = until
        return Training(engine, count, val, config, seed)

    monkeypatch.setattr(runs, "Training", broken)
    return iterations


def last(result: Result) -> str:
    """The last line on stderr, of a command that failed with nothing on stdout."""
    assert (result.exit_code, result.stdout) == (1, "")
    assert "Traceback" not in result.stderr
    return result.stderr.splitlines()[-1]


def test_after_a_look(run: Run, folder: Path, wild: dict[int, int]) -> None:
    """The best weights before it are written and evaluate; every further run says so again, and touches nothing."""
    output, plain = folder / "gru.safetensors", folder / "plain.safetensors"
    train = ("seq", "train", folder / "data.safetensors", *SETTINGS, "-o")
    dlcv(*train, plain)
    wild[0] = 53
    message = f"dlcv: {output}: the loss was no longer a finite number at iteration 53 of seed 0; {ADVICE}"
    assert last(run(*train, output)) == message
    record = tensors.read_metadata(output, tensors.CHECKPOINT)
    assert list(record)[2:] == ["stage", "config", "inputs", "task", "seeds", "diverged", "best", "versions"]
    assert record["diverged"] == {"0": 53}
    actual, whole = metrics_of(output)["records"], metrics_of(plain)["records"]
    assert [r["iteration"] for r in actual] == [20, 40]
    assert actual == whole[:2]
    assert record["best"] == min(actual, key=lambda r: r["val_loss"])
    before = contents(folder)
    for more in ((), ("--json",)):
        again = run(*train, output, *more)
        assert (last(again), len(again.stderr.splitlines())) == (message, 1)
    assert contents(folder) == before
    val = run("eval", output, "--split", "val", "--json")
    assert val.exit_code == 0
    assert json.loads(val.stdout)["metrics"]["mse"] == pytest.approx(record["best"]["val_loss"], rel=1e-9)
    wild.clear()
    assert run(*train, output, "--force").exit_code == 0
    assert output.read_bytes() == plain.read_bytes().replace(b"plain", b"gru")


def test_a_wild_learning_rate(run: Run, folder: Path) -> None:
    """Without any trick: one step of 1e30, a look at what is still finite, and the next step is too much."""
    for engine in ("compiled", "torch"):
        output = folder / f"{engine}.safetensors"
        settings = ("--hidden-size", 4, "--record-every", 1, "--lr", "1e30", "--engine", engine, "-o", output)
        result = run("seq", "train", folder / "data.safetensors", *settings)
        assert last(result) == (
            f"dlcv: {output}: the loss was no longer a finite number at iteration 2 of seed 0; {ADVICE}"
        )
        assert run("eval", output).exit_code == 0


def test_before_any_look(run: Run, folder: Path, wild: dict[int, int]) -> None:
    """Nothing is written where there is nothing to keep, of one run or of several; the first of the seeds is named."""
    before = contents(folder)
    train = ("seq", "train", folder / "data.safetensors", *SETTINGS, "-o", folder / "gru.safetensors")
    why = "the loss is no longer a finite number at iteration 20: try a lower --lr than 0.003"
    wild.update({0: 20, 1: 20})
    assert last(run(*train)) == f"dlcv: seed 0: {why}"
    assert last(run(*train, "--seeds", 3)) == f"dlcv: seed 0: {why}"
    del wild[0]
    assert last(run(*train, "--seeds", 3)) == f"dlcv: seed 1: {why}"
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("iterations", "printed"),
    [
        ({1: 21}, "at iteration 21 of seed 1; "),
        ({2: 192, 0: 100}, "at iteration 100 of seed 0 (and of 1 others); "),
    ],
)
def test_some_of_several(
    run: Run, folder: Path, wild: dict[int, int], iterations: dict[int, int], printed: str
) -> None:
    """The other runs are what they would have been; all are written, with the iterations of those that ran away."""
    output, plain = folder / "some.safetensors", folder / "all.safetensors"
    train = ("seq", "train", folder / "data.safetensors", *SETTINGS, "--seeds", 3, "-o")
    dlcv(*train, plain)
    wild.update(iterations)
    assert printed + ADVICE in last(run(*train, output))
    record = tensors.read_metadata(output, tensors.CHECKPOINT)
    assert record["diverged"] == {str(seed): iterations[seed] for seed in sorted(iterations)}
    assert record["seeds"] == [0, 1, 2]
    actual, expected = (tensors.read(path, tensors.CHECKPOINT).arrays for path in (output, plain))
    for seed in {0, 1, 2} - set(iterations):
        assert all(np.array_equal(actual[name][seed], array[seed]) for name, array in expected.items())
    for seed, iteration in iterations.items():
        wanted = [r for r in metrics_of(plain)["records"] if r["seed"] == seed and r["iteration"] < iteration]
        assert [r for r in metrics_of(output)["records"] if r["seed"] == seed] == wanted
    assert run("eval", output).exit_code == 0
