"""What a report shows of cells: predictions against true values, and the error by sequence length."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dlcv_cli.report.axes import Axis, spanning_axis
from dlcv_cli.report.kinds import Curves, Density, FigureGroup, Line
from dlcv_cli.report.reported import Reported
from dlcv_cli.results.comparison import format_number
from dlcv_cli.results.evaluation import Evaluation, SequenceDetails
from dlcv_cli.studies.stored import read_predictions

BINS = 48  # of each axis


def draw_figures(networks: Sequence[Reported]) -> list[FigureGroup]:
    """Return predictions against true values of each network, and the error by length of all."""
    densities = []
    for network in networks:
        arrays = read_predictions(network.file, network.evaluation)
        densities.append(draw_predictions(network.name, arrays["predictions"], arrays["targets"]))
    return [
        FigureGroup(
            "Predictions and true values",
            "The stronger a cell's colour, the more predictions lie in it; correct ones lie on the diagonal.",
            densities,
        ),
        FigureGroup(
            "Error by length",
            "Mean squared error over the sequences of each length.",
            [draw_error_by_length([(network.name, network.evaluation) for network in networks])],
        ),
    ]


def draw_predictions(name: str, predictions: NDArray[np.floating], targets: NDArray[np.floating]) -> Density:
    """Return predictions (N,) or (runs, N) against true values (N,); those beyond an axis are counted at its end."""
    true = np.broadcast_to(targets, predictions.shape).ravel().astype(float)
    predicted = predictions.ravel().astype(float)
    low, high = float(targets.min()), float(targets.max())
    margin = 0.1 * (high - low) or 0.5
    x = Axis("true value", low, high if high > low else low + 1)
    y = Axis("prediction", low - margin, high + margin)
    inside = predicted.clip(y.low, y.high)
    counts = np.histogram2d(true, inside, bins=BINS, range=((x.low, x.high), (y.low, y.high)))[0].astype(np.int64)
    edges = np.linspace(x.low, x.high, 11)
    tenths = np.digitize(true, edges[1:-1])
    deciles = []
    for tenth in np.unique(tenths):
        chosen = tenths == tenth
        error = float(np.abs(predicted - true)[chosen].mean())
        deciles.append((edges[tenth], edges[tenth + 1], int(chosen.sum()), float(predicted[chosen].mean()), error))
    beyond = int((inside != predicted).sum())
    text = f"{true.size:,} predictions of {name} against the true values; correct ones lie on the diagonal. "
    text += f"Mean absolute error {format_number(float(np.abs(predicted - true).mean()))}."
    text += f" {beyond:,} lie beyond the axis." if beyond else ""
    return Density(f"predicted-{name}", f"Predictions: {name}", text, x, y, counts, tuple(deciles))


def draw_error_by_length(evaluations: Sequence[tuple[str, Evaluation[SequenceDetails]]]) -> Curves:
    """Return the mean squared error by sequence length, one line per network."""
    lines = []
    for style, (name, evaluation) in enumerate(evaluations):
        rows = evaluation.details.by_length
        lines.append(Line(name, tuple(row.length for row in rows), tuple(row.mse for row in rows), style=style))
    x = spanning_axis("length", [x for line in lines for x in line.x], whole=True)
    y = spanning_axis("MSE", [y for line in lines for y in line.y], log=True)
    ends = "; ".join(f"{line.name} {y.label(line.y[0])} to {y.label(line.y[-1])}" for line in lines)
    text = f"Mean squared error from length {x.label(lines[0].x[0])} to {x.label(lines[0].x[-1])}: {ends}."
    return Curves("by-length", "Error by length", text, x, y, tuple(lines))
