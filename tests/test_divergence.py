"""Trainings whose loss stops being a finite number: what is kept, what is said, and that it is said again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import Run, read_files, read_metrics, run_dlcv
from typer.testing import Result

from dlcv_cli.files import tensors
from dlcv_cli.sequences.training import Training
from dlcv_cli.stages import seed_runs as runs

SETTINGS = ("--hidden-size", 4, "--record-every", 20)
ADVICE = "the file has the best weights before that: try a lower --lr, or --clip-norm 1"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with 64 training sequences."""
    run_dlcv("seq", "gen", "--count", 100, "-o", tmp_path / "data.safetensors")
    return tmp_path


@pytest.fixture
def divergences(monkeypatch: pytest.MonkeyPatch) -> dict[int, int]:
    """Return a dict to be filled: seed -> iteration whose loss is not finite."""
    iterations: dict[int, int] = {}

    def build_diverging_training(engine: Any, count: int, val: Any, config: Any, seed: int) -> Training:
        advance, done = engine.advance, [0]

        def advance_until(order: Any) -> tuple[float, int]:
            remaining = iterations.get(seed, 10**9) - 1 - done[0]
            done[0] += len(order)
            return advance(order) if remaining >= len(order) else (0.0, remaining)

        engine.advance = advance_until
        return Training(engine, count, val, config, seed)

    monkeypatch.setattr(runs, "Training", build_diverging_training)
    return iterations


def read_last_line(result: Result) -> str:
    """Return the last line on stderr of a command that failed with nothing on stdout."""
    assert (result.exit_code, result.stdout) == (1, "")
    assert "Traceback" not in result.stderr
    return result.stderr.splitlines()[-1]


def test_divergence_after_a_validation_pass(run: Run, folder: Path, divergences: dict[int, int]) -> None:
    """The best weights so far are written and can be evaluated; later runs repeat the message and change nothing."""
    output, plain = folder / "gru.safetensors", folder / "plain.safetensors"
    train = ("seq", "train", folder / "data.safetensors", *SETTINGS, "-o")
    run_dlcv(*train, plain)
    divergences[0] = 53
    message = f"dlcv: {output}: the loss was no longer a finite number at iteration 53 of seed 0; {ADVICE}"
    assert read_last_line(run(*train, output)) == message
    record = tensors.read_metadata(output, tensors.CHECKPOINT)
    assert list(record)[2:] == ["stage", "config", "inputs", "task", "seeds", "diverged", "best", "versions"]
    assert record["diverged"] == {"0": 53}
    actual, whole = read_metrics(output)["records"], read_metrics(plain)["records"]
    assert [r["iteration"] for r in actual] == [20, 40]
    assert actual == whole[:2]
    assert record["best"] == min(actual, key=lambda r: r["val_loss"])
    before = read_files(folder)
    for more in ((), ("--json",)):
        again = run(*train, output, *more)
        assert (read_last_line(again), len(again.stderr.splitlines())) == (message, 1)
    assert read_files(folder) == before
    val = run("eval", output, "--split", "val", "--json")
    assert val.exit_code == 0
    assert json.loads(val.stdout)["metrics"]["mse"] == pytest.approx(record["best"]["val_loss"], rel=1e-9)
    divergences.clear()
    assert run(*train, output, "--force").exit_code == 0
    assert output.read_bytes() == plain.read_bytes().replace(b"plain", b"gru")


def test_divergence_at_a_huge_learning_rate(run: Run, folder: Path) -> None:
    """One step of 1e30 leaves finite weights, and the next step diverges, with either engine."""
    for engine in ("compiled", "torch"):
        output = folder / f"{engine}.safetensors"
        settings = ("--hidden-size", 4, "--record-every", 1, "--lr", "1e30", "--engine", engine, "-o", output)
        result = run("seq", "train", folder / "data.safetensors", *settings)
        assert read_last_line(result) == (
            f"dlcv: {output}: the loss was no longer a finite number at iteration 2 of seed 0; {ADVICE}"
        )
        assert run("eval", output).exit_code == 0


def test_divergence_before_the_first_validation_pass(run: Run, folder: Path, divergences: dict[int, int]) -> None:
    """Nothing is written, and the message says why."""
    before = read_files(folder)
    train = ("seq", "train", folder / "data.safetensors", *SETTINGS, "-o", folder / "gru.safetensors")
    why = "the loss is no longer a finite number at iteration 20: try a lower --lr than 0.003"
    divergences[0] = 20
    assert read_last_line(run(*train)) == f"dlcv: seed 0: {why}"
    assert read_files(folder) == before


@pytest.mark.parametrize(
    ("iterations", "printed"),
    [({1: 21}, "1 of 3 runs diverged: {1}: "), ({2: 192, 0: 100}, "2 of 3 runs diverged: {0} (and {2}): ")],
)
def test_divergence_of_some_seeds(
    run: Run, folder: Path, divergences: dict[int, int], iterations: dict[int, int], printed: str
) -> None:
    """The other runs do not change and are printed; all are written, and the last line names those that diverged."""
    train = ("seq", "train", folder / "data.safetensors", *SETTINGS, "--seeds", 3, "-o")
    names = [folder / f"some.seed{seed}.safetensors" for seed in range(3)]
    run_dlcv(*train, folder / "all.safetensors")
    divergences.update(iterations)
    first = min(iterations)
    reason = f"the loss was no longer a finite number at iteration {iterations[first]} of seed {first}; {ADVICE}"
    for _ in range(2):
        result = run(*train, folder / "some.safetensors")
        assert (result.exit_code, len(result.stdout.splitlines())) == (1, 3 - len(iterations))
        assert result.stderr.splitlines()[-1] == f"dlcv: {printed.format(*names)}{reason}"
    for seed, path in enumerate(names):
        plain = folder / f"all.seed{seed}.safetensors"
        if seed in iterations:
            record = tensors.read_metadata(path, tensors.CHECKPOINT)
            assert record["diverged"] == {str(seed): iterations[seed]}
            complete = [r for r in read_metrics(plain)["records"] if r["iteration"] < iterations[seed]]
            assert read_metrics(path)["records"] == complete
            assert run("eval", path).exit_code == 0
        else:
            assert path.read_bytes() == plain.read_bytes()
