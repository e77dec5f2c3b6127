"""What the three trainings of image networks share: from a checked plan to the files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from dlcv_cli.config import HeadConfig, TrainConfig
from dlcv_cli.context import Context, Outcome, Reporter, list_facts
from dlcv_cli.errors import DivergedError
from dlcv_cli.files.disk import JSON, as_object
from dlcv_cli.files.recipes import Recipe, RunInfo
from dlcv_cli.results.metrics import Try
from dlcv_cli.stages.search import Search, list_fields, report_event
from dlcv_cli.stages.shared_images import SharedImages
from dlcv_cli.stages.snapshots import (
    Caught,
    SnapshotFile,
    State,
    hold_signals,
    raise_if_signalled,
)
from dlcv_cli.stages.training import TrainingResult, claim_training, find_finished, write_training
from dlcv_cli.statistics.collapse import judge_classes
from dlcv_cli.statistics.metrics import find_largest_class
from dlcv_cli.studies.images.features import FrozenLayers
from dlcv_cli.studies.images.predictor import PACKAGES, describe_arithmetic, place_and_split, prepare
from dlcv_cli.vision.hints import list_hints
from dlcv_cli.vision.inference import resolve_precision
from dlcv_cli.vision.models import count_parameters
from dlcv_cli.vision.preprocessing import Preprocessing
from dlcv_cli.vision.training import Epoch, Training


@dataclass(frozen=True)
class Start:
    """What a training starts from."""

    network: nn.Module
    arch: str
    preprocessing: Preprocessing
    trained: tuple[str, ...]  # names of the layers that are to train
    tries: int = 0  # settings of what it starts from that were tried on the validation part


@dataclass(frozen=True)
class Plan:
    """What one of the three stages is to train, once its inputs are checked."""

    recipe: Recipe
    config: TrainConfig
    images: SharedImages
    output: Path
    context: Context
    start: Callable[[], Start]
    evaluate_start: bool = False  # as epoch 0, which can be the best

    @property
    def classes(self) -> list[str]:
        return self.images.split.classes


def train(plan: Plan) -> Outcome:
    """Train by a plan, from the files to the files."""
    info = RunInfo()
    if finished := find_finished(plan.output, plan.recipe, plan.context):
        return finished
    with claim_training(plan.output):
        device, threads = prepare(plan.context.machine)
        precision = resolve_precision(plan.config.precision, device)
        arithmetic = describe_arithmetic(device, threads, precision)
        plan.context.reporter.detail(list_facts(arithmetic))
        snapshots = SnapshotFile(plan.output, plan.recipe, arithmetic, plan.context)
        snapshot = snapshots.load()
        start = plan.start()
        split = place_and_split(start.network, start.arch, start.trained, device)
        frozen = FrozenLayers(split, start.arch, device, precision, threads)
        prepared = _prepare(plan, start, frozen, snapshots)
        training = prepared.training
        if snapshot:
            try:
                arrays = {name: torch.from_numpy(array) for name, array in snapshot.arrays.items()}
                training.restore(arrays, as_object(snapshot.metadata["state"]))
            except (ValueError, KeyError) as error:
                raise snapshots.damaged(error) from None
            for record in training.records:
                plan.context.reporter.log(list_fields(record))
        with hold_signals() as caught:
            if not prepared.tries:
                _run_epochs(training, snapshots, plan.classes, caught, plan.context.reporter)
            machine = {"device": str(device), "threads": threads, **prepared.run}
            result = _collect_result(prepared, start, plan.classes, machine)
            outcome = write_training(plan.output, plan.recipe, result, info, snapshots)
            raise_if_signalled(caught, plan.output)
    return outcome


@dataclass(frozen=True)
class _Prepared:
    """A training at its beginning; or at its end, where its settings were chosen."""

    training: Training
    preprocessing: Preprocessing
    run: JSON  # what `run` says of features and tries
    tries: list[Try] = field(default_factory=list)
    chosen: JSON = field(default_factory=dict)


def _prepare(plan: Plan, start: Start, frozen: FrozenLayers, snapshots: SnapshotFile) -> _Prepared:
    """Return the training at its beginning, its features computed, or the best one of a search."""
    config, reporter = plan.config, plan.context.reporter
    count = count_parameters(start.network)
    parameters = f"{count['trainable']:,} of {count['total']:,} parameters"
    network = f"{start.arch}, {len(plan.classes)} classes"
    reporter.note(f"trains {parameters} ({network}) on {frozen.device} in {frozen.precision}")
    train = plan.images.load("train", start.preprocessing)
    varying = ("augment", "views", "seed", "erase", "crop_area", "color_jitter")
    train = replace(train, **{name: getattr(config, name) for name in varying})
    val = plan.images.load("val", start.preprocessing)
    # of what trains: weights, best weights, and what the optimizer remembers, about twice as much
    snapshots.require_space(4 * 4 * count["trainable"], 4 * count["total"])
    if isinstance(config, HeadConfig) and config.to_try:
        search = Search(frozen, plan.images, train, val, config, plan.context.reporter)
        training, best = search.run()
        run = {"features": best.features, "seconds_per_try": search.seconds}
        return _Prepared(training, best.preprocessing, run, search.tries, search.describe(training, best))
    (source, val_source), features = plan.images.open(frozen, train, val, config.epochs)
    training = Training(frozen.split, source, val_source, config, frozen.precision, plan.evaluate_start)
    return _Prepared(training, start.preprocessing, {"features": features})


def _run_epochs(
    training: Training, snapshots: SnapshotFile, classes: list[str], caught: Caught, reporter: Reporter
) -> None:
    """Train to the end; report and save on the way."""
    epochs, total = training.config.epochs, len(training.train)

    def state() -> State:
        arrays, numbers = training.state()
        return {name: np.asarray(t.cpu()) for name, t in arrays.items()}, numbers

    try:
        for event in training:
            report_event(event, epochs, reporter)
            if isinstance(event, Epoch):
                last = event.epoch if training.is_over else epochs
                warn_if_collapsed(event, last, training.train.labels, training.val.labels, classes, reporter)
            position = f"{training.epoch} of {epochs} epochs done"
            position += f", {training.done:,} of {total:,} images of the next" if training.done else ""
            signal = caught()
            if signal or not training.is_over:
                snapshots.save_if_due(state, position, signal, isinstance(event, Epoch))
        for hint in list_hints(training.records, len(classes), training.config):
            reporter.note(f"hint: {hint}")
    except DivergedError:
        snapshots.remove()  # training from it would diverge again
        raise


def _collect_result(prepared: _Prepared, start: Start, classes: list[str], machine: JSON) -> TrainingResult:
    """Return what checkpoint and metrics hold; the network has the best epoch's weights."""
    training = prepared.training
    records = [asdict(record) for record in training.records]
    speeds = [round(record.pop("images_per_second"), 2) for record in records]
    for record in records:
        del record["val_predicted"], record["val_right"]
    metadata: JSON = {"classes": classes, "preprocessing": prepared.preprocessing.to_json(), "trained": start.trained}
    metrics: JSON = {}
    if start.tries:
        metadata["tries"] = start.tries
    if prepared.tries:
        metadata |= {"tries": len(prepared.tries), "chosen": prepared.chosen}
        metrics = {"tries": msgspec.to_builtins(prepared.tries), "chosen": prepared.chosen}
    return TrainingResult(
        arrays={name: t.detach().cpu().contiguous().numpy() for name, t in start.network.state_dict().items()},
        subject={"arch": start.arch, "precision": training.precision},
        metadata=metadata,
        metrics=metrics,
        parameters=count_parameters(start.network),
        records=records,
        best=[record for record in records if record["best"]][-1],
        packages=PACKAGES,
        run={**machine, "images_per_second": speeds},
    )


def warn_if_collapsed(
    epoch: Epoch, epochs: int, train: NDArray[np.int64], val: NDArray[np.int64], classes: list[str], reporter: Reporter
) -> None:
    """Warn halfway through and at the end of training if the network predicts too few classes."""
    if epoch.epoch not in ((epochs + 1) // 2, epochs):
        return
    predicted, right = np.array(epoch.val_predicted), np.array(epoch.val_right)
    collapse = judge_classes(predicted, right, val, find_largest_class(train), classes)
    if collapse.collapsed:
        remedy = "try a lower --lr, more --epochs, an --arch with batch normalisation, or a head (dlcv image head)"
        share = f"{100 * collapse.share:.1f} % of the predictions are {collapse.most_frequent}"
        reporter.warn(f"collapsed after {epoch.epoch} of {epochs} epochs: {collapse.why}; {share}; {remedy}")
