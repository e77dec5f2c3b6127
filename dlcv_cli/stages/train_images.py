"""`vgg head`, `finetune` and `scratch`: a split file in, a checkpoint and its metrics out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from torch import nn

from dlcv_cli.config import FinetuneConfig, HeadConfig, ScratchConfig
from dlcv_cli.context import Context, Outcome, Reporter
from dlcv_cli.errors import DlcvError, FileError, SettingError, list_names, look_up
from dlcv_cli.files import splits, tensors
from dlcv_cli.files.disk import as_object, check_output, hash_file
from dlcv_cli.files.recipes import Input, Recipe, is_up_to_date
from dlcv_cli.files.splits import Split
from dlcv_cli.stages.image_training import Plan, Start, train
from dlcv_cli.stages.snapshots import (
    refuse_other_training,
    snapshot_path,
)
from dlcv_cli.stages.training import warn_if_unpaired
from dlcv_cli.stages.weights import WeightsFile, locate_weights, read_weights
from dlcv_cli.studies.images.predictor import (
    open_checkpoint,
    prepare,
    read_arch,
    read_classes,
    require_classes,
)
from dlcv_cli.vision.architectures import ARCHITECTURES
from dlcv_cli.vision.models import build_random_network, copy_weights, list_top_layers
from dlcv_cli.vision.preprocessing import Preprocessing
from dlcv_cli.vision.steps import require_size


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

    def start() -> Start:
        return start_head(file, config, len(data.classes), context.reporter)

    return train(Plan(make_recipe(sha256), config, data, output, context, start))


def start_head(file: WeightsFile, config: HeadConfig, classes: int, reporter: Reporter) -> Start:
    """Return a network with these weights and a random head, which is to train.

    Raises:
        FileError: the weights lack more than the head, or do not fit the network.
        SettingError: the network cannot take images of the size that the user asks for.
    """
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
    return Start(network, config.arch, preprocessing, (architecture.head,))


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

    def load_start() -> Start:
        warn_if_unpaired(start, context.reporter)
        checkpoint = open_checkpoint(start)
        names = tuple(name.strip() for name in str(config.unfreeze).split(","))
        return Start(checkpoint.network, checkpoint.arch, checkpoint.preprocessing, names)

    return train(Plan(make_recipe(hash_file(start)), config, data, output, context, load_start, True))


def train_scratch(split: Path, output: Path, config: ScratchConfig, *, context: Context = Context()) -> Outcome:
    """Train all layers from random weights. DlcvError: bad inputs, or an output that was made differently."""
    architecture = look_up(ARCHITECTURES, config.arch, "network")
    data, split_input = _read_split(split, output, context)

    def start() -> Start:
        network = build_random_network(architecture, len(data.classes), config.seed)
        preprocessing = architecture.preprocessing.change(config.resize, config.image_size)
        _require_size(network, config, preprocessing)
        return Start(network, config.arch, preprocessing, list_top_layers(network))

    recipe = Recipe("vgg.scratch", config, {"split": split_input})
    return train(Plan(recipe, config, data, output, context, start))


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
