"""`vgg head`, `finetune` and `scratch`: a split file in, a checkpoint and its metrics out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from dlcv_cli.config import FinetuneConfig, HeadConfig, ScratchConfig
from dlcv_cli.context import Context, Labelled, Outcome, Reporter
from dlcv_cli.errors import DivergedError, DlcvError, FileError, SettingError, list_names, look_up
from dlcv_cli.files import tensors
from dlcv_cli.files.disk import as_object, check_output, hash_file
from dlcv_cli.files.recipes import Input, Recipe, identify_run, is_up_to_date
from dlcv_cli.stages.image_training import Plan, Start, train
from dlcv_cli.stages.repeats import PlannedRun, list_runs, name_run, raise_diverged, read_folds, require_one
from dlcv_cli.stages.shared_images import SharedImages
from dlcv_cli.stages.snapshots import (
    refuse_other_training,
    snapshot_path,
)
from dlcv_cli.stages.training import find_finished, warn_if_unpaired
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

AnyConfig = HeadConfig | FinetuneConfig | ScratchConfig


def train_head(
    split: Path, output: Path, config: HeadConfig, *, weights: str | None = None, context: Context = Context()
) -> Outcome:
    """Train a new classification layer on top of frozen weights.

    Args:
        weights: a name that the network's entry knows, or a file; None takes the entry's first.

    Raises:
        DlcvError: bad inputs, weights that lack more than the head, or an output that was made differently.
    """
    return train(_plan_one(split, output, config, context, weights=weights))


def train_finetune(
    split: Path, output: Path, config: FinetuneConfig, *, start: Path, context: Context = Context()
) -> Outcome:
    """Train more layers of the checkpoint `start`, whose classes must be those of the split.

    The checkpoint counts as epoch 0: where no epoch is better, the output has its weights.

    Raises:
        DlcvError: bad inputs, other classes, an unknown layer, a start that was trained on another fold, or an output
            that was made differently.
    """
    return train(_plan_one(split, output, config, context, start=start))


def train_scratch(split: Path, output: Path, config: ScratchConfig, *, context: Context = Context()) -> Outcome:
    """Train all layers from random weights. DlcvError: bad inputs, or an output that was made differently."""
    return train(_plan_one(split, output, config, context))


def train_image_runs(
    split: Path,
    output: Path,
    config: AnyConfig,
    *,
    weights: str | None = None,
    start: Path | None = None,
    context: Context = Context(),
) -> Iterator[Outcome]:
    """Train the run of each fold and seed of the settings; yield each outcome when it is there.

    Each run writes what its own command would write, under its name by `name_run`. What exists is checked before the
    first training starts.

    Args:
        weights: of a head. start: the checkpoint that fine-tuning starts from, or the name of one for each run.

    Raises:
        DlcvError: as the function of one run.
        DivergedError: a loss was no longer finite; the other runs are finished all the same.
    """
    plans = _plan_all(split, output, config, context, weights, start)
    finished = [find_finished(plan.output, plan.recipe, plan.context) for plan in plans]
    diverged: list[tuple[Path, DivergedError]] = []
    for number, (plan, outcome) in enumerate(zip(plans, finished, strict=True), 1):
        if len(plans) > 1 and not outcome:
            context.reporter.note(f"run {number} of {len(plans)}: {plan.output}")
        try:
            yield outcome or train(plan)
        except DivergedError as error:
            diverged.append((plan.output, error))
    raise_diverged(diverged, len(plans))


def _plan_one(split: Path, output: Path, config: AnyConfig, context: Context, **inputs: Any) -> Plan:
    plans = _plan_all(split, output, config, context, inputs.get("weights"), inputs.get("start"))
    require_one(plans, "train_image_runs")
    return plans[0]


@dataclass(frozen=True)
class _Target:
    """One run, and what it trains on."""

    run: PlannedRun[Any]
    images: SharedImages
    split_input: Input
    context: Context

    def plan(self, recipe: Recipe, config: AnyConfig, start: Callable[[], Start]) -> Plan:
        return Plan(
            recipe, config, self.images, self.run.output, self.context, start, isinstance(config, FinetuneConfig)
        )


def _plan_all(
    split: Path, output: Path, config: AnyConfig, context: Context, weights: str | None, start: Path | None
) -> list[Plan]:
    """Return a plan for each run, fold by fold; those of a fold share its images and their features."""
    if not isinstance(config, FinetuneConfig):
        look_up(ARCHITECTURES, config.arch, "network")
    check_output(output, ".safetensors")
    folds = read_folds(split, context.root, config.fold)
    shared = {data.fold: SharedImages(data, range(config.seed, config.seed + config.seeds), context) for data in folds}
    file = locate_weights(weights, ARCHITECTURES[config.arch]) if isinstance(config, HeadConfig) else None
    split_input, plans = Input(hash_file(split), split, root=context.root), []
    for run in list_runs(config, output, [data.fold for data in folds]):
        fold = None if run.config.fold is None else int(run.config.fold)
        reporter = Labelled(context.reporter, run.labels) if run.labels else context.reporter
        target = _Target(run, shared[fold], split_input, replace(context, reporter=reporter))
        if isinstance(run.config, HeadConfig) and file:
            plans.append(_plan_head(target, run.config, file))
        elif isinstance(run.config, FinetuneConfig):
            plans.append(_plan_finetune(target, run.config, _find_start(start, run.config)))
        elif isinstance(run.config, ScratchConfig):
            plans.append(_plan_scratch(target, run.config))
    return plans


def _plan_head(target: _Target, config: HeadConfig, file: WeightsFile) -> Plan:
    context = target.context

    def make_recipe(sha256: str) -> Recipe:
        weights_input = Input(sha256, None if file.name else file.path, file.name)
        return Recipe("vgg.head", config, {"split": target.split_input, "weights": weights_input})

    sha256 = _refuse_other_recipe(target.run.output, make_recipe, "weights", context)
    if not file.is_published_as(sha256):
        if not file.path.exists():
            prepare(context.machine)  # a device that is missing is named before half a gigabyte is downloaded
        sha256 = file.fetch(context.reporter)

    def start() -> Start:
        return start_head(file, config, len(target.images.split.classes), context.reporter)

    return target.plan(make_recipe(sha256), config, start)


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


def _find_start(start: Path | None, config: FinetuneConfig) -> Path:
    """Return the checkpoint that a run starts from: the file, or the one of the same fold and seed by `name_run`."""
    if start is None:
        raise SettingError("--from says which checkpoint to start from: give it")
    if start.exists():
        return start
    fold = None if config.fold is None else int(config.fold)
    names = [name_run(start, fold, config.seed), name_run(start, fold, None), name_run(start, None, config.seed)]
    return next((name for name in names if name.exists()), start)


def _plan_finetune(target: _Target, config: FinetuneConfig, start: Path) -> Plan:
    split, context = target.images.split, target.context
    metadata = tensors.read_metadata(start, tensors.CHECKPOINT)
    arch, origin = read_arch(start, metadata), identify_run(metadata)
    require_classes(start, read_classes(start, metadata), split.path, split.classes)
    if split.fold not in (None, origin.fold):
        trained = "on no fold" if origin.fold is None else f"on fold {origin.fold}"
        raise DlcvError(
            f"{start} was trained {trained}, and may have seen the test images of fold {split.fold}: start from a "
            f"checkpoint of fold {split.fold}"
        )
    if config.unfreeze is None:
        config = replace(config, unfreeze=",".join(ARCHITECTURES[arch].unfreeze))

    def make_recipe(sha256: str) -> Recipe:
        checkpoint = Input(sha256, start, recipe=origin.recipe)
        return Recipe("vgg.finetune", config, {"split": target.split_input, "checkpoint": checkpoint})

    _refuse_other_recipe(target.run.output, make_recipe, "checkpoint", context)

    def load_start() -> Start:
        warn_if_unpaired(start, context.reporter)
        checkpoint = open_checkpoint(start)
        names = tuple(name.strip() for name in str(config.unfreeze).split(","))
        return Start(checkpoint.network, checkpoint.arch, checkpoint.preprocessing, names, checkpoint.tries)

    return target.plan(make_recipe(hash_file(start)), config, load_start)


def _plan_scratch(target: _Target, config: ScratchConfig) -> Plan:
    architecture = ARCHITECTURES[config.arch]

    def start() -> Start:
        network = build_random_network(architecture, len(target.images.split.classes), config.seed)
        preprocessing = architecture.preprocessing.change(config.resize, config.image_size)
        _require_size(network, config, preprocessing)
        return Start(network, config.arch, preprocessing, list_top_layers(network))

    return target.plan(Recipe("vgg.scratch", config, {"split": target.split_input}), config, start)


def _require_size(network: nn.Module, config: HeadConfig | ScratchConfig, preprocessing: Preprocessing) -> None:
    """Raise SettingError if the network cannot take images of the size that the user asks for."""
    if config.image_size:
        try:
            require_size(network, ARCHITECTURES[config.arch], preprocessing.crop)
        except ValueError as error:
            raise SettingError(f"--image-size {config.image_size}: {error}") from None


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
