"""Every hyperparameter: its default, unit and range. One frozen dataclass a stage.

The command line makes its options from these fields, the files record them, the science reads them.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from dlcv_cli.errors import SettingError
from dlcv_cli.settings import Config, Recipes, option_name, setting

Part = Literal["train", "val", "test"]
Augment = Literal["none", "flip", "crop-flip", "trivial"]
Fit = Literal["crop", "squash", "pad"]
Schedule = Literal["exponential", "cosine", "constant", "one-cycle"]
Precision = Literal["auto", "float32", "bfloat16"]

FOLDS = re.compile(r"all|[1-9]\d{0,5}(-[1-9]\d{0,5})?(,[1-9]\d{0,5}(-[1-9]\d{0,5})?)*")
SEED: dict[str, Any] = {"low": 0, "high": 2**32 - 1}


@dataclass(frozen=True)
class SplitConfig(Config):
    """`data split`."""

    PANEL = "How to divide"

    dataset: Literal["folder", "caltech101"] = setting("folder", "what ROOT holds")
    background: bool = setting(False, "include the background class of caltech101, BACKGROUND_Google")
    test_fraction: float = setting(0.2, "share of all images held out for test, rounded up", above=0, high=0.9)
    val_fraction: float = setting(
        0.2, "share of the remaining examples held out for validation, rounded up", above=0, high=0.9
    )
    stratify: bool = setting(True, "give every part the same share of each class")
    train_per_class: int | None = setting(None, "number of training images per class", low=1)
    val_per_class: int | None = setting(None, "number of validation images per class", low=1)
    test_per_class: int | None = setting(None, "largest number of test images per class", low=1)
    seed: int = setting(0, "seed of the random division", **SEED)
    skip_bad: bool = setting(False, "skip unreadable images and list them in FILE, instead of stopping")
    group: str | None = setting(
        None,
        "keep images of one group (patient, video, burst) in one part: a column of --labels, or a regular expression "
        "that matches in each image's path; its group 1 counts, if it has one",
        later=True,
    )
    path_column: str = setting("path", "column of --labels with the images' paths, relative to ROOT", later=True)
    label_column: str = setting("label", "column of --labels with the classes", later=True)
    part_column: str | None = setting(
        None, "column of --labels with train, val and test; part, if there is one", later=True
    )
    group_column: str | None = setting(
        None, "column of --labels with groups, as --group; group, if there is one", later=True
    )
    near_duplicates: Literal["keep-together", "report", "ignore"] = setting(
        "report",
        "copies of one photo that were saved anew, resized, mirrored or brightened: report them and list them in FILE, "
        "keep them in one part, or do not look for them",
        later=True,
    )
    folds: int | None = setting(
        None, "number of folds: every image is a test image in one of them", low=2, high=1000, later=True
    )
    repeats: int = setting(
        1,
        "number of divisions, with the seeds SEED, SEED + 1 and so on; each gives a fold, or --folds of them",
        low=1,
        high=100,
        later=True,
    )

    @property
    def per_class(self) -> bool:
        """Return whether parts have fixed numbers of images per class, as in published protocols."""
        return any((self.train_per_class, self.val_per_class, self.test_per_class))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.per_class and not self.stratify:
            raise SettingError("--no-stratify contradicts --train-per-class, --val-per-class and --test-per-class")
        if self.group and self.group_column:
            raise SettingError("--group and --group-column both name the groups: give one of them")
        if self.folds and self.per_class:
            raise SettingError("--folds contradicts --train-per-class, --val-per-class and --test-per-class")
        if self.folds and self.test_fraction != SplitConfig.test_fraction:
            raise SettingError("--folds contradicts --test-fraction: each fold holds out its share for test")
        _require_last_seed(self.seed, self.repeats, "--repeats")


def _require_last_seed(seed: int, count: int, option: str) -> None:
    if seed + count - 1 > SEED["high"]:
        raise SettingError(f"--seed {seed} and {option} {count}: the last seed would exceed {SEED['high']:,}")


@dataclass(frozen=True)
class DrawConfig(Config):
    """`data draw`."""

    PANEL = "What to draw"

    classes: int = setting(20, "number of different figures", low=2, high=10_000)
    per_class: int = setting(500, "images per figure", low=1, high=1_000_000)
    size: int = setting(64, "side of an image, in pixels", low=16, high=1024)
    seed: int = setting(0, "seed of the figures and of each drawing", **SEED)


@dataclass(frozen=True)
class TrainConfig(Config):
    """What every `vgg` stage has. The epoch with the best validation accuracy is kept."""

    PANEL = "How to train"

    epochs: int = setting(6, "passes over the training part", low=1, high=100_000)
    batch_size: int = setting(64, "images per step", low=1, high=65_536)
    lr: float = setting(0.005, "learning rate in the first epoch", above=0)
    schedule: Schedule = setting("exponential", "how lr changes over the epochs")
    decay: float = setting(0.9, "factor of lr after each epoch, with the exponential schedule", above=0, high=1)
    warmup: float = setting(0.0, "epochs in which lr rises from 0, step by step", low=0, later=True)
    optimizer: Literal["adam", "adamw", "sgd"] = setting(
        "adam", "the optimizer; sgd has Nesterov momentum 0.9", later=True
    )
    weight_decay: float = setting(0.0, "L2 penalty on weights, not on biases and norms; with adamw decoupled", low=0)
    clip_norm: float | None = setting(
        None, "largest norm of the gradient; longer ones are shortened to it", above=0, later=True
    )
    label_smoothing: float = setting(
        0.0, "share of each label that is spread over all classes", low=0, high=0.9, later=True
    )
    class_weights: Literal["none", "balanced", "sqrt"] = setting(
        "none", "weight of a class in the loss: 1 / its frequency, or the square root of that", later=True
    )
    ema: float | None = setting(
        None,
        "decay per step of a running mean of the weights, which is validated and written in their place",
        above=0,
        high=0.99999,
        later=True,
    )
    patience: int | None = setting(None, "stop after this many epochs without improvement", low=1, later=True)
    augment: Augment = setting(
        "none",
        "random changes of training images: flip mirrors; crop-flip also takes a part; trivial adds TrivialAugment",
    )
    erase: float = setting(
        0.0, "with crop-flip and trivial: chance that a random box is erased", low=0, high=1, later=True
    )
    crop_area: float = setting(
        0.35, "with crop-flip and trivial: smallest share of an image's area that is taken", above=0, high=1, later=True
    )
    color_jitter: float = setting(
        0.0,
        "with crop-flip and trivial: largest change of brightness, contrast and saturation, as a share",
        low=0,
        high=1,
        later=True,
    )
    mixup: float = setting(
        0.0,
        "alpha of mixup: each image is mixed with another by a Beta(alpha, alpha) share",
        low=0,
        high=100,
        later=True,
    )
    cutmix: float = setting(
        0.0,
        "alpha of cutmix: a box of each image, of a Beta(alpha, alpha) share of its area, comes from another; "
        "with --mixup as well, each batch takes one of both at random",
        low=0,
        high=100,
        later=True,
    )
    views: int | None = setting(
        None, "with --augment: number of random views of each image, used in turn; default: a new one each epoch", low=1
    )
    precision: Precision = setting(
        "auto", "precision of the arithmetic; auto takes bfloat16 if the device supports it natively"
    )
    seed: int = setting(0, "seed of initial weights, order, dropout and augmentation", **SEED)
    seeds: int = setting(
        1,
        "independent runs, with the seeds SEED, SEED + 1 and so on, each in a file of its own",
        low=1,
        high=100_000,
        later=True,
    )
    fold: str | None = setting(
        None, "of a split with folds: the fold to train on, several (1,3 or 1-3), or all of them", later=True
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_last_seed(self.seed, self.seeds, "--seeds")
        if self.fold is not None and not FOLDS.fullmatch(self.fold):
            raise SettingError(f"--fold is {self.fold!r}: give a number from 1, several (1,3 or 1-3), or all")
        if self.views and self.augment == "none":
            raise SettingError("--views needs --augment: without it every image has one view")
        for name in ("erase", "crop_area", "color_jitter"):
            if name not in self.to_json() or self.augment in ("crop-flip", "trivial"):
                continue
            raise SettingError(f"{option_name(name)} needs --augment crop-flip or trivial")

    def lr_at(self, epoch: int, done: float = 0.0) -> float:
        """Return the learning rate in an epoch (0 is the first), once that share of it is done.

        Source of one-cycle: Smith & Topin 2018 (arXiv:1708.07120), with the shares of torch's OneCycleLR.
        """
        share = (epoch + done) / self.epochs
        rise, low, end = 0.3, 1 / 25, 1 / 25e4
        factor = {
            "exponential": self.decay**epoch,
            "cosine": _anneal(1, 0, epoch / self.epochs),
            "constant": 1.0,
            "one-cycle": _anneal(low, 1, share / rise)
            if share < rise
            else _anneal(1, end, (share - rise) / (1 - rise)),
        }[self.schedule]
        return self.lr * factor * (min(1, (epoch + done) / self.warmup) if self.warmup else 1)


def _anneal(start: float, end: float, share: float) -> float:
    """Return a value on the half cosine wave from start to end."""
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


RESIZE: Any = setting(
    None, "how an image becomes a square: its middle, squeezed, or padded; default: as the weights say", later=True
)
IMAGE_SIZE: Any = setting(
    None,
    "side of the square that the network sees, in pixels; default: as the weights say",
    low=8,
    high=4096,
    later=True,
)


@dataclass(frozen=True)
class HeadConfig(TrainConfig):
    """`vgg head`, by the published recipe: lr 0.005, exponential decay, 6 epochs."""

    RECIPES: ClassVar[Recipes] = {
        "auto": {"resize": None, "augment": None, "weight_decay": None, "lr": None, "schedule": "cosine", "patience": 2}
    }

    recipe: Literal["published", "auto"] = setting(
        "published",
        "defaults of the options: the published study's, or auto, which keeps the best of several values on the "
        "validation part",
        later=True,
    )
    arch: str = setting("vgg16", "the network")
    resize: Fit | None = RESIZE
    image_size: int | None = IMAGE_SIZE
    partial: bool = setting(False, "accept weights in which layers other than the head are missing")


@dataclass(frozen=True)
class FinetuneConfig(TrainConfig):
    """`vgg finetune`, by the published recipe: fixed lr 5e-5, 4 epochs."""

    epochs: int = setting(4, "passes over the training part", low=1, high=100_000)
    lr: float = setting(5e-5, "learning rate in the first epoch", above=0)
    schedule: Schedule = setting("constant", "how lr changes over the epochs")
    layer_decay: float = setting(
        1.0, "factor of lr from each step of the network to the one before it", above=0, high=1, later=True
    )
    unfreeze: str | None = setting(
        None, "layers to train, comma-separated; default: by network, classifier,features.28 for vgg16"
    )


@dataclass(frozen=True)
class ScratchConfig(TrainConfig):
    """`vgg scratch`, by the published recipe: the head's settings, 5 epochs, all layers."""

    RECIPES: ClassVar[Recipes] = {
        "modern": {
            "arch": "resnet18",
            "resize": "squash",
            "image_size": 128,
            "batch_size": 16,
            "optimizer": "sgd",
            "lr": 0.02,
            "schedule": "one-cycle",
            "weight_decay": 5e-4,
            "label_smoothing": 0.1,
            "ema": 0.99,
            "augment": "flip",
        }
    }

    recipe: Literal["published", "modern"] = setting(
        "published",
        "defaults of the options: the published study's, or modern: a resnet18 on whole images of 128 pixels, SGD, "
        "one-cycle learning rate, label smoothing and mean weights",
        later=True,
    )
    epochs: int = setting(5, "passes over the training part", low=1, high=100_000)
    arch: str = setting("vgg16", "the network")
    resize: Fit | None = RESIZE
    image_size: int | None = IMAGE_SIZE


@dataclass(frozen=True)
class DoubtsConfig(Config):
    """`data doubts`."""

    PANEL = "How to judge"
    WHAT = PANEL

    part: Part | None = setting(None, "judge the images of this part alone; default: all parts together")
    arch: str = setting("vgg16", "the network whose frozen layers give the features")
    resize: Fit | None = RESIZE
    image_size: int | None = IMAGE_SIZE
    folds: int = setting(5, "each image is judged by a linear head that is trained on the other folds", low=2, high=100)
    precision: Precision = setting(
        "auto", "precision of the frozen layers; auto takes bfloat16 if the device supports it natively"
    )
    seed: int = setting(0, "seed of the division into folds", **SEED)


@dataclass(frozen=True)
class Machine(Config):
    """Where a stage computes. Recorded under `run`: no part of what is computed."""

    PANEL = "Where it computes"

    device: Literal["auto", "cpu", "cuda", "mps"] = setting(
        "auto", "device to compute on; auto takes a GPU if there is one"
    )
    threads: int | None = setting(None, "CPU threads; default: one per core", low=1, high=1024)


@dataclass(frozen=True)
class Saving(Config):
    """How a training guards against being stopped: no part of what is computed either."""

    PANEL = "Files"

    save_every: float = setting(300.0, "seconds between two snapshots within an epoch", low=0)


@dataclass(frozen=True)
class TrainMachine(Machine, Saving):
    """Both, for the `vgg` stages."""


@dataclass(frozen=True)
class GenConfig(Config):
    """`seq gen`."""

    PANEL = "How to generate"

    task: str = setting("adding", "the task, which says what the target of a sequence is")
    count: int = setting(10_000, "number of sequences in all parts together", low=3, high=100_000_000)
    min_length: int = setting(2, "steps of the shortest sequence", low=2, high=1_000_000)
    max_length: int = setting(10, "steps of the longest sequence; lengths are uniform", low=2, high=1_000_000)
    test_fraction: float = setting(0.2, "share held out for test, rounded up", above=0, high=0.9)
    val_fraction: float = setting(
        0.2, "share of the remaining examples held out for validation, rounded up", above=0, high=0.9
    )
    seed: int = setting(0, "seed of the sequences", **SEED)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_length < self.min_length:
            raise SettingError(f"--max-length is {self.max_length}: it must be >= --min-length, {self.min_length}")


@dataclass(frozen=True)
class SeqTrainConfig(Config):
    """`seq train`, by the published recipe: one sequence a step, Adam, fixed lr 0.003, 3 epochs."""

    PANEL = "How to train"

    cell: str = setting("gru", "the recurrent cell")
    engine: str = setting("compiled", "code that trains the cell: compiled kernels, or torch.nn with autograd")
    hidden_size: int = setting(32, "width of the hidden state", low=1, high=8192)
    epochs: int = setting(3, "passes over the training part", low=1, high=100_000)
    batch_size: int = setting(1, "sequences per step", low=1, high=65_536)
    lr: float = setting(0.003, "Adam's learning rate", above=0)
    clip_norm: float | None = setting(None, "largest norm of the gradient; longer ones are shortened to it", above=0)
    chrono: int | None = setting(
        None,
        "with lstm and gru: steps to remember from the start, by the gates' biases; default: torch's random ones",
        low=3,
    )
    record_every: int = setting(500, "iterations between two validation passes", low=1)
    seeds: int = setting(
        1, "independent runs, with the seeds SEED, SEED + 1 and so on, each in a file of its own", low=1, high=100_000
    )
    seed: int = setting(0, "seed of the first run's initial weights and order", **SEED)

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_last_seed(self.seed, self.seeds, "--seeds")


@dataclass(frozen=True)
class EvalConfig(Config):
    """`eval`."""

    PANEL = "What to evaluate"

    part: Part = setting("test", "part of the data to evaluate on")


@dataclass(frozen=True)
class CompareConfig(Config):
    """`eval --compare` and `report`."""

    PANEL = "How to compare"

    reference: str | None = setting(
        None, "the row that the others are compared with, by the name of it or of one of its runs; default: the first"
    )
    group: bool = setting(True, "take the runs of one recipe, with several seeds or folds, as one row")
    margin: float | None = setting(
        None,
        "also test whether differences in the first metric are smaller than this, in points where it is in percent",
        above=0,
    )
    common: bool = setting(False, "compare on the examples that all share, if their data differs")


@dataclass(frozen=True)
class PredictConfig(Config):
    """`predict`."""

    PANEL = "What to predict"

    top: int = setting(3, "number of the most probable classes that are shown of an image", low=1, high=10_000)
    abstain: float | None = setting(
        None,
        'say "none of these" where a calibrated checkpoint is not sure enough: the largest share of wrong answers',
        above=0,
        high=0.5,
    )
    of_class: str | None = setting(None, "with --explain: the class of the heat maps; default: the predicted one")


@dataclass(frozen=True)
class ExportConfig(Config):
    """`export`."""

    PANEL = "What to write"

    format: Literal["onnx", "torchscript", "timm"] = setting("onnx", "what to write: a file, or for timm a folder")
    input: Literal["image", "tensor"] = setting(
        "image", "what the network takes: images (N, H, W, 3) uint8 RGB, or prepared pixels (N, 3, S, S) float32"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.format == "timm" and self.input != "image":
            raise SettingError("--input is of onnx and torchscript: timm prepares images itself")


# stage, as files record it -> its settings
STAGES: dict[str, type[Config]] = {
    "data.split": SplitConfig,
    "data.draw": DrawConfig,
    "vgg.head": HeadConfig,
    "vgg.finetune": FinetuneConfig,
    "vgg.scratch": ScratchConfig,
    "seq.gen": GenConfig,
    "seq.train": SeqTrainConfig,
    "eval": EvalConfig,
    "export": ExportConfig,
}
