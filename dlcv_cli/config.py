"""Every hyperparameter: its default, unit and range. One frozen dataclass a stage.

The command line makes its options from these fields, the files record them, the science reads them.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints

from dlcv_cli.errors import SettingError

Part = Literal["train", "val", "test"]
Augment = Literal["none", "flip", "crop-flip"]
Precision = Literal["auto", "float32", "bfloat16"]


def setting(
    default: Any, help: str, *, low: float | None = None, high: float | None = None, above: float | None = None
) -> Any:
    """Declare a field with its help text and its range: low <= value <= high, value > above."""
    return field(default=default, metadata={"help": help, "low": low, "high": high, "above": above})


def describe_range(metadata: Mapping[str, Any]) -> str:
    """Return a field's range in words, such as "1 to 64"; empty if it has none."""
    low, high, above = (
        None if metadata[bound] is None else _format_bound(metadata[bound]) for bound in ("low", "high", "above")
    )
    if low and high:
        return f"{low} to {high}"
    lower = f"at least {low}" if low else f"above {above}" if above else ""
    upper = f"at most {high}" if high else ""
    return ", ".join(filter(None, (lower, upper)))


def _format_bound(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def option_name(name: str) -> str:
    """Return a field's name as it is typed: `--batch-size` for batch_size."""
    return f"--{name.replace('_', '-')}"


@dataclass(frozen=True)
class Config:
    """Base of the stages' settings: checks each value against its field's range."""

    PANEL: ClassVar[str] = "Settings"  # heading of the options in a command's help

    def __post_init__(self) -> None:
        types = get_type_hints(type(self))
        for f in fields(self):
            value, kind, option = getattr(self, f.name), types[f.name], option_name(f.name)
            if get_origin(kind) is Literal and value not in get_args(kind):
                raise SettingError(f"{option} is {value!r}: choose from {', '.join(get_args(kind))}")
            if isinstance(value, float) and not math.isfinite(value):
                raise SettingError(f"{option} is {value}: it must be a finite number")
            for name, holds, sign in (
                ("low", operator.ge, ">="),
                ("above", operator.gt, ">"),
                ("high", operator.le, "<="),
            ):
                bound = f.metadata.get(name)
                if bound is not None and value is not None and not holds(value, bound):
                    raise SettingError(f"{option} is {value}: it must be {sign} {_format_bound(bound)}")

    def to_json(self) -> dict[str, Any]:
        """Return the settings as the files record them."""
        return asdict(self)


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

    @property
    def per_class(self) -> bool:
        """Return whether parts have fixed numbers of images per class, as in published protocols."""
        return any((self.train_per_class, self.val_per_class, self.test_per_class))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.per_class and not self.stratify:
            raise SettingError("--no-stratify contradicts --train-per-class, --val-per-class and --test-per-class")


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
    schedule: Literal["exponential", "cosine", "constant"] = setting("exponential", "how lr changes over the epochs")
    decay: float = setting(0.9, "factor of lr after each epoch, with the exponential schedule", above=0, high=1)
    weight_decay: float = setting(0.0, "L2 penalty on the weights", low=0)
    augment: Augment = setting("none", "how training images vary: mirrored; or a random part, mirrored")
    views: int | None = setting(
        None, "with --augment: number of random views of each image, used in turn; default: a new one each epoch", low=1
    )
    precision: Precision = setting(
        "auto", "precision of the arithmetic; auto takes bfloat16 if the device supports it natively"
    )
    seed: int = setting(0, "seed of initial weights, order, dropout and augmentation", **SEED)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.views and self.augment == "none":
            raise SettingError("--views needs --augment: without it every image has one view")

    def lr_at(self, epoch: int) -> float:
        """Learning rate of an epoch (0 is the first)."""
        factor = {
            "exponential": self.decay**epoch,
            "cosine": (1 + math.cos(math.pi * epoch / self.epochs)) / 2,
            "constant": 1.0,
        }[self.schedule]
        return self.lr * factor


@dataclass(frozen=True)
class HeadConfig(TrainConfig):
    """`vgg head`, by the published recipe: lr 0.005, exponential decay, 6 epochs."""

    arch: str = setting("vgg16", "the network")
    partial: bool = setting(False, "accept weights in which layers other than the head are missing")


@dataclass(frozen=True)
class FinetuneConfig(TrainConfig):
    """`vgg finetune`, by the published recipe: fixed lr 5e-5, 4 epochs."""

    epochs: int = setting(4, "passes over the training part", low=1, high=100_000)
    lr: float = setting(5e-5, "learning rate in the first epoch", above=0)
    schedule: Literal["exponential", "cosine", "constant"] = setting("constant", "how lr changes over the epochs")
    unfreeze: str | None = setting(
        None, "layers to train, comma-separated; default: by network, classifier,features.28 for vgg16"
    )


@dataclass(frozen=True)
class ScratchConfig(TrainConfig):
    """`vgg scratch`, by the published recipe: the head's settings, 5 epochs, all layers."""

    epochs: int = setting(5, "passes over the training part", low=1, high=100_000)
    arch: str = setting("vgg16", "the network")


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
    seeds: int = setting(1, "independent runs, with the seeds SEED, SEED + 1 and so on", low=1, high=100_000)
    seed: int = setting(0, "seed of the first run's initial weights and order", **SEED)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seed + self.seeds - 1 > SEED["high"]:
            raise SettingError(
                f"--seed {self.seed} and --seeds {self.seeds}: the last seed would exceed {SEED['high']:,}"
            )


@dataclass(frozen=True)
class EvalConfig(Config):
    """`eval`."""

    PANEL = "What to evaluate"

    part: Part = setting("test", "part of the data to evaluate on")
