"""`vgg head`, `finetune` and `scratch`: a split file in, a checkpoint and its metrics out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dlcv_cli.config import FinetuneConfig, HeadConfig, ScratchConfig, TrainConfig, TrainMachine
from dlcv_cli.context import Outcome, Reporter
from dlcv_cli.errors import DivergedError, FileError, list_names, look_up
from dlcv_cli.files import splits, tensors
from dlcv_cli.files.disk import JSON, as_object, check_output, hash_file
from dlcv_cli.files.recipes import Input, Recipe, RunInfo
from dlcv_cli.files.splits import Split
from dlcv_cli.stages import weights
from dlcv_cli.stages.snapshots import SnapshotFile, State, hold_signals, raise_if_signalled
from dlcv_cli.stages.training import claim_training, find_finished, warn_if_unpaired, write_training
from dlcv_cli.statistics.collapse import judge_classes
from dlcv_cli.statistics.metrics import largest_class
from dlcv_cli.studies.images.device import PACKAGES, bits, prepare
from dlcv_cli.studies.images.features import Frozen, sources
from dlcv_cli.studies.images.predictor import load_part, open_checkpoint, read_arch, require_classes, split_at_frozen
from dlcv_cli.vision.architectures import ARCHITECTURES
from dlcv_cli.vision.inference import resolve
from dlcv_cli.vision.models import Network, count_parameters, random_network, take_weights
from dlcv_cli.vision.preprocessing import Preprocessing
from dlcv_cli.vision.training import Epoch, Training


@dataclass(frozen=True)
class _Start:
    """What a training starts from."""

    network: Network
    arch: str
    preprocessing: Preprocessing
    train_layers: tuple[str, ...]


def head(
    split: Path,
    output: Path,
    config: HeadConfig,
    *,
    source: str | None = None,
    root: Path | None = None,
    machine: TrainMachine | None = None,
    force: bool = False,
    cache: Path | None = None,
    report: Reporter | None = None,
) -> Outcome:
    """Trains a new classification layer on top of frozen weights from `source` (a name, a file; None: the default).

    Raises:
        DlcvError: bad inputs, weights that leave more than the head to chance, or an output made differently.
    """
    report = report or Reporter()
    architecture = look_up(ARCHITECTURES, config.arch, "network")
    path, name = weights.find(source, architecture, report)
    given = Input(hash_file(path), None if name else path, name)

    def start(file: Split) -> _Start:
        stored = weights.read(path, name, architecture)
        warn_if_unpaired(path, report)
        network = random_network(architecture, len(file.classes), config.seed)
        taken = take_weights(network, stored.tensors, architecture.head)
        left = f"; left over: {list_names(taken.left_over)}" if taken.left_over else ""
        lacks = f"; missing: {list_names(taken.missing)}" if taken.missing else ""
        fits = f"{len(taken.fits)} tensors fit, {architecture.head} is new"
        report.note(f"weights {name or path}: {fits}{lacks}{left}")
        if taken.missing and not (config.partial and taken.fits):
            raise FileError(
                path,
                f"does not fit {config.arch}: it lacks {list_names(taken.missing, 3)} "
                f"({len(taken.missing)} in all); choose another --arch"
                + (", or --partial to leave them random" if taken.fits else ""),
            )
        return _Start(network, config.arch, stored.preprocessing, (architecture.head,))

    return _train("vgg.head", split, output, config, {"weights": given}, start, root, machine, force, cache, report)


def finetune(
    split: Path,
    output: Path,
    config: FinetuneConfig,
    *,
    source: Path,
    root: Path | None = None,
    machine: TrainMachine | None = None,
    force: bool = False,
    cache: Path | None = None,
    report: Reporter | None = None,
) -> Outcome:
    """Trains more layers of the checkpoint `source`, whose classes must be those of the split.

    Raises:
        DlcvError: bad inputs, other classes, an unknown layer, or an output made differently.
    """
    report = report or Reporter()
    record = tensors.read_metadata(source, tensors.CHECKPOINT)
    if config.unfreeze is None:
        architecture = ARCHITECTURES[read_arch(source, record)]
        config = replace(config, unfreeze=",".join(architecture.unfreeze))

    def start(file: Split) -> _Start:
        warn_if_unpaired(source, report)
        stored = open_checkpoint(source)
        require_classes(source, stored.classes, file.path, file.classes)
        names = tuple(name.strip() for name in str(config.unfreeze).split(","))
        return _Start(stored.network, stored.arch, stored.preprocessing, names)

    given = Input(hash_file(source), source)
    return _train(
        "vgg.finetune", split, output, config, {"checkpoint": given}, start, root, machine, force, cache, report
    )


def scratch(
    split: Path,
    output: Path,
    config: ScratchConfig,
    *,
    root: Path | None = None,
    machine: TrainMachine | None = None,
    force: bool = False,
    report: Reporter | None = None,
) -> Outcome:
    """Trains all layers from random weights.

    Raises:
        DlcvError: bad inputs, or an output made differently.
    """
    architecture = look_up(ARCHITECTURES, config.arch, "network")

    def start(file: Split) -> _Start:
        network = random_network(architecture, len(file.classes), config.seed)
        return _Start(network, config.arch, architecture.preprocessing, ("features", "classifier"))

    report = report or Reporter()
    return _train("vgg.scratch", split, output, config, {}, start, root, machine, force, None, report)


def _train(
    stage: str,
    split: Path,
    output: Path,
    config: TrainConfig,
    inputs: dict[str, Input],
    begin: Callable[[Split], _Start],
    root: Path | None,
    machine: TrainMachine | None,
    force: bool,
    cache: Path | None,
    report: Reporter,
) -> Outcome:
    """The one way of all three stages, from the files to the files."""
    run = RunInfo()
    check_output(output, ".safetensors")
    machine = machine or TrainMachine()
    file = splits.read(split, root)
    recipe = Recipe(stage, config.to_json(), {"split": Input(hash_file(split), split, root=root), **inputs})
    if done := find_finished(output, recipe, force, report):
        return done
    with claim_training(output):
        device, threads = prepare(machine)
        precision = resolve(config.precision, device)
        partial = SnapshotFile(output, recipe, bits(device, threads, precision, PACKAGES), machine.save_every, report)
        left = partial.load(force)
        start = begin(file)
        parts = split_at_frozen(start.network, start.train_layers, device)
        count = count_parameters(start.network)
        trained = f"trains {count['trainable']:,} of {count['total']:,} parameters"
        report.note(f"{trained} ({start.arch}, {len(file.classes)} classes) on {device} in {precision}")
        train = load_part(file, "train", start.preprocessing, report)
        train = replace(train, augment=config.augment, views=config.views, seed=config.seed)
        val = load_part(file, "val", start.preprocessing, report)
        partial.require_space(4 * 4 * count["trainable"], 4 * count["total"])
        frozen = Frozen(parts, start.arch, device, precision, threads, cache)
        (train_source, val_source), store = sources(frozen, (train, val), (config.epochs, 1), report)
        training = Training(start.network, parts, train_source, val_source, config, device, precision)
        with hold_signals() as caught:
            epochs, speeds = _trained(training, partial, left, caught, file.classes, report)
            arrays = {name: t.detach().cpu().contiguous().numpy() for name, t in start.network.state_dict().items()}
            subject = {"arch": start.arch, "precision": precision}
            kept = start.preprocessing.to_json()
            about = {"classes": file.classes, "preprocessing": kept, "trained": start.train_layers}
            told = {"device": str(device), "threads": threads, "images_per_second": speeds, "features": store}
            best = [record for record in epochs if record["best"]][-1]
            outcome = write_training(
                output, recipe, run, arrays, subject, about, count, epochs, best, PACKAGES, partial, **told
            )
            raise_if_signalled(caught, output)
    return outcome


def _trained(
    training: Training,
    partial: SnapshotFile,
    left: tensors.Tensors | None,
    caught: Callable[[], int | None],
    classes: list[str],
    report: Reporter,
) -> tuple[list[JSON], list[float]]:
    """Trains to the end, from what is left of a run before: each epoch's record, and its images a second."""
    epochs: list[JSON] = []
    speeds: list[float] = []
    if left:
        try:
            there = as_object(left.metadata["state"])
            training.restore({name: torch.from_numpy(a) for name, a in left.arrays.items()}, there)
            epochs, speeds = list(there["epochs"]), list(there["speeds"])
            if [e["epoch"] for e in epochs] != [*range(1, training.epoch + 1)]:
                raise ValueError("its epochs are not those it says")
        except (ValueError, KeyError, TypeError) as error:
            raise partial.damaged(error) from None

    def state() -> State:
        found, numbers = training.state()
        return {name: np.asarray(t.cpu()) for name, t in found.items()}, {**numbers, "epochs": epochs, "speeds": speeds}

    last, total = training.config.epochs, len(training.train)
    try:
        for event in training:
            ended = isinstance(event, Epoch)
            if isinstance(event, Epoch):
                fields = asdict(event)
                del fields["val_answered"]
                report.record(fields)
                _look(event, last, training.train.labels, training.val.labels, classes, report)
                speeds.append(round(fields.pop("images_per_second"), 2))
                epochs.append(fields)
            else:
                what = "validation" if event.validation else "epoch"
                report.progress(f"{what} {event.epoch}/{last}", event.done, event.total)
            at = f"{training.epoch} of {last} epochs done"
            at += f", {training.done:,} of {total:,} images of the next" if training.done else ""
            number = caught()
            if number or training.epoch < last:
                partial.save_if_due(state, at, number, ended)
    except DivergedError:
        partial.remove()  # there is nothing to go on to
        raise
    return epochs, speeds


def _look(
    epoch: Epoch, epochs: int, train: NDArray[np.int64], val: NDArray[np.int64], classes: list[str], report: Reporter
) -> None:
    """Warns, half-way and at the end, of a network that answers the validation images as one would without eyes."""
    if epoch.epoch not in ((epochs + 1) // 2, epochs):
        return
    right = round(epoch.val_accuracy * len(val))
    found = judge_classes(np.array(epoch.val_answered), val, right, largest_class(train), classes)
    if found.collapsed:
        remedy = "try a lower --lr, more --epochs, an --arch with batch normalisation, or pretrained weights (vgg head)"
        share = f"{100 * found.share:.1f} % of the predictions are {found.most_frequent}"
        report.warn(f"collapsed after {epoch.epoch} of {epochs} epochs: {found.why}; {share}; {remedy}")
