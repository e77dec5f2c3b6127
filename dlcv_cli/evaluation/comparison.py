"""One table from several evaluations of the same data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dlcv_cli.errors import DlcvError


@dataclass(frozen=True)
class Column:
    """A metric in the table: its key in the files, its heading, and whether more is better; percent on screen only."""

    key: str
    heading: str
    higher_is_better: bool
    percent: bool = False


# The first column of a study is the one whose difference to the first row is shown.
COLUMNS: dict[str, tuple[Column, ...]] = {
    "images": (
        Column("top1_accuracy", "top-1 %", True, percent=True),
        Column("top5_accuracy", "top-5 %", True, percent=True),
        Column("mean_per_class_recall", "per-class recall %", True, percent=True),
        Column("expected_calibration_error", "ECE %", False, percent=True),
        Column("loss", "loss", False),
    ),
    "sequences": (
        Column("mse", "MSE", False),
        Column("mae", "MAE", False),
        Column("close", "within 0.04 %", True, percent=True),
        Column("r2", "R2", True),
    ),
}


def compare(evaluations: Sequence[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    """The comparison of (name, `dlcv.eval/1` document) pairs, the baselines last.

    Returns: study, split, n, data, and rows of name, metrics, seeds and runs (of sequences), difference (first metric
        minus the first row's) and best (the keys in which the row is best among the networks).

    Raises:
        DlcvError: they were measured on different data; names which.
    """
    first_name, first = evaluations[0]
    for name, document in evaluations[1:]:
        for key, what, remedy in (
            ("study", "kind of study", "compare them separately"),
            ("split", "part", "compare them separately"),
            ("fingerprint", "data", "evaluate them on the same file with --data and --force"),
        ):
            if document["data"][key] != first["data"][key]:
                raise DlcvError(
                    f"{name} and {first_name} were measured on different data (another {what}: "
                    f"{_place(document)} and {_place(first)}): {remedy}"
                )
    columns = COLUMNS[first["data"]["study"]]
    rows = [
        {"name": name, "metrics": document["metrics"], **{k: document[k] for k in ("seeds", "runs") if k in document}}
        for name, document in evaluations
    ]
    best: dict[str, float] = {}
    for column in columns:
        choose = max if column.higher_is_better else min
        best[column.key] = choose(row["metrics"][column.key] for row in rows)
    rows += [{"name": f"baseline: {b['name']}", "metrics": b["metrics"]} for b in first["baselines"]]
    key = columns[0].key
    for row in rows:
        row["difference"] = row["metrics"][key] - rows[0]["metrics"][key]
        is_network = not row["name"].startswith("baseline: ")
        row["best"] = [k for k, value in best.items() if is_network and row["metrics"].get(k) == value]
    data = first["data"]
    return {"study": data["study"], "split": data["split"], "n": data["n"], "data": data, "rows": rows}


def _place(document: dict[str, Any]) -> str:
    data = document["data"]
    return f"{data['split']} of {data['path']} ({data['fingerprint'][:8]})"
