"""`vgg head`, `finetune` and `scratch`: a split file in, a checkpoint and its metrics out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from dlcv_cli.config import FinetuneConfig, HeadConfig, ScratchConfig, TrainConfig
from dlcv_cli.context import Context, Outcome, Reporter
from dlcv_cli.errors import DivergedError, DlcvError, FileError, SettingError, list_names, look_up
from dlcv_cli.files import splits, tensors
from dlcv_cli.files.disk import JSON, as_object, check_output, hash_file
from dlcv_cli.files.recipes import Input, Recipe, RunInfo, is_up_to_date
from dlcv_cli.files.splits import Split
from dlcv_cli.stages.snapshots import (
    Caught,
    SnapshotFile,
    State,
    hold_signals,
    raise_if_signalled,
    refuse_other_training,
    snapshot_path,
)
from dlcv_cli.stages.training import TrainingResult, claim_training, find_finished, warn_if_unpaired, write_training
from dlcv_cli.stages.weights import WeightsFile, locate_weights, read_weights
from dlcv_cli.statistics.collapse import judge_classes
from dlcv_cli.statistics.metrics import find_largest_class
from dlcv_cli.studies.images.features import FrozenLayers, open_sources
from dlcv_cli.studies.images.predictor import (
    PACKAGES,
    describe_arithmetic,
    load_part,
    open_checkpoint,
    place_and_split,
    prepare,
    read_arch,
    read_classes,
    require_classes,
)
from dlcv_cli.vision.architectures import ARCHITECTURES
from dlcv_cli.vision.hints import list_hints
from dlcv_cli.vision.inference import resolve_precision
from dlcv_cli.vision.models import build_random_network, copy_weights, count_parameters, list_top_layers
from dlcv_cli.vision.preprocessing import Preprocessing
from dlcv_cli.vision.steps import require_size
from dlcv_cli.vision.training import Epoch, Training


@dataclass(frozen=True)
class _Start:
    """What a training starts from."""

    network: nn.Module
    arch: str
    preprocessing: Preprocessing
    trained: tuple[str, ...]  # names of the layers that are to train


@dataclass(frozen=True)
class _Plan:
    """What one of the three stages is to train, once its inputs are checked."""

    recipe: Recipe
    config: TrainConfig
    split: Split
    output: Path
    context: Context
    start: Callable[[], _Start]
    evaluate_start: bool = False  # as epoch 0, which can be the best


def train_head(
    split: Path, output: Path, config: HeadConfig, *, weights: str | None = None, context: Context = Context()
) -> Outcome:
    """Train a new classification layer on top of frozen weights.

    Args:
        weights: a name that the network's entry knows, or a file; None takes the entry's first.

    Raises:
        DlcvError: bad inputs, weights that lack more than the head, or an output that was made differently.
    """
    architecture = look_up(ARCHITECTURES, config.arch, "network")
    data, split_input = _read_split(split, output, context)
    file = locate_weights(weights, architecture)

    def make_recipe(sha256: str) -> Recipe:
        weights_input = Input(sha256, None if file.name else file.path, file.name)
        return Recipe("vgg.head", config, {"split": split_input, "weights": weights_input})

    sha256 = _refuse_other_recipe(output, make_recipe, "weights", context)
    if not file.is_published_as(sha256):
        if not file.path.exists():
            prepare(context.machine)  # a device that is missing is named before half a gigabyte is downloaded
        sha256 = file.fetch(context.reporter)

    def start() -> _Start:
        return _start_head(file, config, len(data.classes), context.reporter)

    return _train(_Plan(make_recipe(sha256), config, data, output, context, start))


def _start_head(file: WeightsFile, config: HeadConfig, classes: int, reporter: Reporter) -> _Start:
    """Return a network with these weights and a random head, which is to train."""
    architecture = ARCHITECTURES[config.arch]
    file.fetch(reporter)
    weights = read_weights(file)
    warn_if_unpaired(file.path, reporter)
    network = build_random_network(architecture, classes, config.seed)
    fit = copy_weights(network, weights.tensors, architecture.head)
    parts = [f"{len(fit.fits)} tensors fit, {architecture.head} is new"]
    parts += [f"{what}: {list_names(x)}" for what, x in (("missing", fit.missing), ("unused", fit.unused)) if x]
    reporter.note(f"weights {file.name or file.path}: {'; '.join(parts)}")
    if fit.missing and not (config.partial and fit.fits):
        raise FileError(
            file.path,
            f"does not fit {config.arch}: it lacks {list_names(fit.missing, 3)} "
            f"({len(fit.missing)} in all); choose another --arch"
            + (", or --partial to leave them random" if fit.fits else ""),
        )
    preprocessing = weights.preprocessing.change(config.resize, config.image_size)
    _require_size(network, config, preprocessing)
    try:
        require_size(network, architecture, preprocessing.crop)
    except ValueError as error:
        raise FileError(file.path, f"does not fit {config.arch}: {error}") from None
    return _Start(network, config.arch, preprocessing, (architecture.head,))


def train_finetune(
    split: Path, output: Path, config: FinetuneConfig, *, start: Path, context: Context = Context()
) -> Outcome:
    """Train more layers of the checkpoint `start`, whose classes must be those of the split.

    The checkpoint counts as epoch 0: where no epoch is better, the output has its weights.

    Raises:
        DlcvError: bad inputs, other classes, an unknown layer, or an output that was made differently.
    """
    data, split_input = _read_split(split, output, context)
    metadata = tensors.read_metadata(start, tensors.CHECKPOINT)
    arch = read_arch(start, metadata)
    require_classes(start, read_classes(start, metadata), split, data.classes)
    if config.unfreeze is None:
        config = replace(config, unfreeze=",".join(ARCHITECTURES[arch].unfreeze))

    def make_recipe(sha256: str) -> Recipe:
        return Recipe("vgg.finetune", config, {"split": split_input, "checkpoint": Input(sha256, start)})

    _refuse_other_recipe(output, make_recipe, "checkpoint", context)

    def load_start() -> _Start:
        warn_if_unpaired(start, context.reporter)
        checkpoint = open_checkpoint(start)
        names = tuple(name.strip() for name in str(config.unfreeze).split(","))
        return _Start(checkpoint.network, checkpoint.arch, checkpoint.preprocessing, names)

    return _train(_Plan(make_recipe(hash_file(start)), config, data, output, context, load_start, True))


def train_scratch(split: Path, output: Path, config: ScratchConfig, *, context: Context = Context()) -> Outcome:
    """Train all layers from random weights. DlcvError: bad inputs, or an output that was made differently."""
    architecture = look_up(ARCHITECTURES, config.arch, "network")
    data, split_input = _read_split(split, output, context)

    def start() -> _Start:
        network = build_random_network(architecture, len(data.classes), config.seed)
        preprocessing = architecture.preprocessing.change(config.resize, config.image_size)
        _require_size(network, config, preprocessing)
        return _Start(network, config.arch, preprocessing, list_top_layers(network))

    recipe = Recipe("vgg.scratch", config, {"split": split_input})
    return _train(_Plan(recipe, config, data, output, context, start))


def _require_size(network: nn.Module, config: HeadConfig | ScratchConfig, preprocessing: Preprocessing) -> None:
    """Raise SettingError if the network cannot take images of the size that the user asks for."""
    if config.image_size:
        try:
            require_size(network, ARCHITECTURES[config.arch], preprocessing.crop)
        except ValueError as error:
            raise SettingError(f"--image-size {config.image_size}: {error}") from None


def _read_split(split: Path, output: Path, context: Context) -> tuple[Split, Input]:
    """Return the split and how a recipe names it, after checking the output's name."""
    check_output(output, ".safetensors")
    return splits.read(split, context.root), Input(hash_file(split), split, root=context.root)


def _refuse_other_recipe(output: Path, make_recipe: Callable[[str], Recipe], role: str, context: Context) -> str:
    """Raise if the output or its snapshot differs in more than one input, before that is downloaded or hashed.

    Returns:
        The sha256 that the output records for the input, or an empty string.

    Raises:
        DlcvError: what exists was made by another command.
    """
    is_finished, snapshot = output.exists(), snapshot_path(output)
    if context.force or not (is_finished or snapshot.exists()):
        return ""
    path, schema = (output, tensors.CHECKPOINT) if is_finished else (snapshot, tensors.SNAPSHOT)
    try:
        metadata = tensors.read_metadata(path, schema)
    except DlcvError:  # not ours: for _train to judge
        return ""
    sha256 = str(as_object(as_object(metadata.get("inputs")).get(role)).get("sha256", ""))
    if not is_finished:
        refuse_other_training(snapshot, make_recipe(sha256))
        return ""
    is_up_to_date(output, make_recipe(sha256), lambda path: metadata, context.force)
    return sha256


def _train(plan: _Plan) -> Outcome:
    """Train by a plan, from the files to the files."""
    info = RunInfo()
    if finished := find_finished(plan.output, plan.recipe, plan.context):
        return finished
    with claim_training(plan.output):
        device, threads = prepare(plan.context.machine)
        precision = resolve_precision(plan.config.precision, device)
        arithmetic = describe_arithmetic(device, threads, precision)
        snapshots = SnapshotFile(plan.output, plan.recipe, arithmetic, plan.context)
        snapshot = snapshots.load()
        start = plan.start()
        split = place_and_split(start.network, start.arch, start.trained, device)
        frozen = FrozenLayers(split, start.arch, device, precision, threads)
        training, features = _build_training(plan, start, frozen, snapshots)
        if snapshot:
            try:
                arrays = {name: torch.from_numpy(array) for name, array in snapshot.arrays.items()}
                training.restore(arrays, as_object(snapshot.metadata["state"]))
            except (ValueError, KeyError) as error:
                raise snapshots.damaged(error) from None
        with hold_signals() as caught:
            _run_epochs(training, snapshots, plan.split.classes, caught, plan.context.reporter)
            machine = {"device": str(device), "threads": threads, "features": features}
            result = _collect_result(training, start, plan.split.classes, machine)
            outcome = write_training(plan.output, plan.recipe, result, info, snapshots)
            raise_if_signalled(caught, plan.output)
    return outcome


def _build_training(plan: _Plan, start: _Start, frozen: FrozenLayers, snapshots: SnapshotFile) -> tuple[Training, JSON]:
    """Return the training at its beginning, its features computed, and what its metrics say of the features."""
    config, reporter = plan.config, plan.context.reporter
    count = count_parameters(start.network)
    parameters = f"{count['trainable']:,} of {count['total']:,} parameters"
    network = f"{start.arch}, {len(plan.split.classes)} classes"
    reporter.note(f"trains {parameters} ({network}) on {frozen.device} in {frozen.precision}")
    train = load_part(plan.split, "train", start.preprocessing, reporter)
    train = replace(train, augment=config.augment, views=config.views, seed=config.seed, erase=config.erase)
    val = load_part(plan.split, "val", start.preprocessing, reporter)
    # of what trains: weights, best weights, and what the optimizer remembers, about twice as much
    snapshots.require_space(4 * 4 * count["trainable"], 4 * count["total"])
    (train_source, val_source), features = open_sources(frozen, (train, val), (config.epochs, 1), plan.context)
    return Training(frozen.split, train_source, val_source, config, frozen.precision, plan.evaluate_start), features


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
            if isinstance(event, Epoch):
                reporter.record({key: value for key, value in asdict(event).items() if key != "val_predicted"})
                last = event.epoch if training.is_over else epochs
                warn_if_collapsed(event, last, training.train.labels, training.val.labels, classes, reporter)
            else:
                what = "validation" if event.validation else "epoch"
                reporter.progress(f"{what} {event.epoch}/{epochs}", event.done, event.total)
            position = f"{training.epoch} of {epochs} epochs done"
            position += f", {training.done:,} of {total:,} images of the next" if training.done else ""
            signal = caught()
            if signal or not training.is_over:
                snapshots.save_if_due(state, position, signal, isinstance(event, Epoch))
        for hint in list_hints(training.records, len(classes)):
            reporter.note(f"hint: {hint}")
    except DivergedError:
        snapshots.remove()  # training from it would diverge again
        raise


def _collect_result(training: Training, start: _Start, classes: list[str], machine: JSON) -> TrainingResult:
    """Return what checkpoint and metrics hold; the network has the best epoch's weights."""
    records = [asdict(record) for record in training.records]
    speeds = [round(record.pop("images_per_second"), 2) for record in records]
    for record in records:
        del record["val_predicted"]
    return TrainingResult(
        arrays={name: t.detach().cpu().contiguous().numpy() for name, t in start.network.state_dict().items()},
        subject={"arch": start.arch, "precision": training.precision},
        metadata={"classes": classes, "preprocessing": start.preprocessing.to_json(), "trained": start.trained},
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
    correct = round(epoch.val_accuracy * len(val))
    collapse = judge_classes(np.array(epoch.val_predicted), val, correct, find_largest_class(train), classes)
    if collapse.collapsed:
        remedy = "try a lower --lr, more --epochs, an --arch with batch normalisation, or a head (dlcv image head)"
        share = f"{100 * collapse.share:.1f} % of the predictions are {collapse.most_frequent}"
        reporter.warn(f"collapsed after {epoch.epoch} of {epochs} epochs: {collapse.why}; {share}; {remedy}")
