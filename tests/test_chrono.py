"""--chrono: gates that begin with a memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import Run, dlcv
from safetensors.numpy import load_file

from dlcv_cli.sequences.cells import CELLS, draw_parameters

GATES = {"lstm": (1, 0), "gru": (1, None)}  # that keeps the state, that writes it, in torch's order


@pytest.mark.parametrize("cell", GATES)
def test_gates_begin_with_a_memory(cell: str) -> None:
    """A keeping gate lets u / (1 + u) of the state on, u over 1..T-1, the writing gate the rest; all else as is."""
    hidden, steps = 400, 100
    plain = draw_parameters(CELLS[cell], 2, hidden, 1.0, 3)
    actual = draw_parameters(CELLS[cell], 2, hidden, 1.0, 3, steps)
    gates = (actual["rnn.bias_ih_l0"] + actual["rnn.bias_hh_l0"]).astype(np.float64).reshape(-1, hidden)
    keeps, writes = GATES[cell]
    kept = 1 / (1 + np.exp(-gates[keeps]))
    memory = kept / (1 - kept)
    assert 1 <= memory.min() < 5
    assert steps - 5 < memory.max() <= (steps - 1) * 1.0001
    assert memory.mean() == pytest.approx(steps / 2, rel=0.1)
    if writes is not None:
        np.testing.assert_allclose(1 / (1 + np.exp(-gates[writes])), 1 - kept, rtol=1e-5)
    for name, array in plain.items():
        if "bias" not in name or "head" in name:
            assert np.array_equal(actual[name], array), name
            continue
        rows = array.reshape(-1, hidden)
        for gate in set(range(len(rows))) - {keeps, writes}:
            assert np.array_equal(actual[name].reshape(-1, hidden)[gate], rows[gate]), name


def test_chrono_through_the_command(run: Run, tmp_path: Path) -> None:
    """Both engines begin with it: after a step that changes next to nothing, the GRU's keeping gate has the memory."""
    data = tmp_path / "data.safetensors"
    dlcv("seq", "gen", "--count", 20, "-o", data)
    for engine in ("compiled", "torch"):
        output = tmp_path / f"{engine}.safetensors"
        dlcv("seq", "train", data, "--chrono", 50, "--lr", 1e-9, "--epochs", 1, "--engine", engine, "-o", output)
        expected = draw_parameters(CELLS["gru"], 2, 32, 1.0, 0, 50)
        np.testing.assert_allclose(load_file(output)["rnn.bias_hh_l0"], expected["rnn.bias_hh_l0"], atol=1e-6)
    result = run("seq", "train", data, "--cell", "elman", "--chrono", 50, "-o", tmp_path / "elman.safetensors")
    assert result.exit_code == 2
    assert "--chrono" in result.stderr
