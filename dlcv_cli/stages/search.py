"""`--recipe auto`: try settings of a head on stored features, and keep those that are best on the validation part.

First linear heads, each solved in seconds: for each way to make an image a square, and each weight decay. Then the same
with mirrored images. Then training at a few learning rates, from the best of them. The lowest loss is the best: it is
finer than an accuracy where the validation part is small. Letters: N images, C channels.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from dlcv_cli.config import HeadConfig
from dlcv_cli.context import Reporter
from dlcv_cli.files.disk import JSON
from dlcv_cli.results.metrics import Try
from dlcv_cli.stages.shared_images import SharedImages
from dlcv_cli.studies.images.features import FrozenLayers
from dlcv_cli.vision.batches import Source
from dlcv_cli.vision.linear import LinearHead, Solution, list_decays, solve
from dlcv_cli.vision.preprocessing import Preprocessing
from dlcv_cli.vision.regularization import weigh_classes
from dlcv_cli.vision.training import Epoch, Progress, Training
from dlcv_cli.vision.transforms import Images

RESIZE = ("crop", "squash")
AUGMENT = ("none", "flip")
DECAYS = (1e-3, 3e-4, 1e-4, 3e-5, 1e-5, 3e-6, 1e-6, 3e-7, 1e-7)  # in units of the features' variance
LR = (1e-4, 1e-3)
BATCH, SAMPLE = 256, 64  # images that are pooled at a time; images that say how far logits fall


@dataclass(frozen=True)
class Candidate:
    """Linear heads on the same features: the best one, and what a training from it needs."""

    tried: Try
    solution: Solution
    preprocessing: Preprocessing
    sources: tuple[Source, Source]  # training, validation
    features: JSON  # what the metrics say of them


@dataclass(frozen=True)
class Search:
    """The choice of the settings `config.to_try`, for a head behind frozen layers.

    Args:
        images: of the split, whose features are opened here.
        train, val: the images of both parts, with the preprocessing of the weights.
    """

    frozen: FrozenLayers
    images: SharedImages
    train: Images
    val: Images
    config: HeadConfig
    reporter: Reporter
    tries: list[Try] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)  # of each try

    def run(self) -> tuple[Training, Candidate]:
        """Return the best training, which is over and has left its weights in the network, and where it began.

        Raises:
            DlcvError: images cannot be read, or a training diverged.
        """
        weights_own = self.train.preprocessing
        first, *others = self._list("augment", AUGMENT, self.config.augment)
        fits = self._list("resize", RESIZE, weights_own.fit)
        best = min((self._solve(weights_own.change(fit, None), first) for fit in fits), key=_get_loss)
        best = min([best, *(self._solve(best.preprocessing, augment) for augment in others)], key=_get_loss)
        trainings = [self._train(best, lr) for lr in self._list("lr", LR, self.config.lr)]
        training = min(trainings, key=lambda training: training.best_record.val_loss)
        training.load_best()
        return training, best

    def describe(self, training: Training, start: Candidate) -> JSON:
        """Return what was chosen, by the names of the settings. Without lr, the linear head was best as it was."""
        lr = training.config.lr if training.best_record.epoch else None
        values = {**asdict(training.config), "resize": start.tried.resize, "lr": lr}
        return {name: values[name] for name in self.config.to_try}

    def _list(self, name: str, values: tuple[Any, ...], given: Any) -> tuple[Any, ...]:
        """Return the values of a setting that are to be tried: the given one alone, unless it is to be chosen."""
        return values if name in self.config.to_try else (given,)

    def _solve(self, preprocessing: Preprocessing, augment: Any) -> Candidate:
        """Return the best linear head for these images, of all weight decays."""
        train = replace(self.train, preprocessing=preprocessing, augment=augment)
        val = replace(self.val, preprocessing=preprocessing)
        epochs = self.config.epochs
        sources, features = self.images.open(self.frozen, train, val, epochs)
        head = LinearHead.of(self.frozen.split)
        x, labels = _pool(head, sources[0], train, epochs if train.repeats else 1)
        val_x, val_labels = _pool(head, sources[1], val, 1)
        candidates = []
        begun = time.perf_counter()
        decays = self._list("weight_decay", tuple(list_decays(x, DECAYS)), self.config.weight_decay)
        for solution in solve(x, labels, len(self.images.split.classes), decays, self._make_loss(train)):
            logits = F.linear(val_x, solution.weight, solution.bias)
            tried = Try(
                resize=preprocessing.fit,
                augment=augment,
                weight_decay=solution.weight_decay,
                val_loss=F.cross_entropy(logits, val_labels).item(),
                val_accuracy=int((logits.argmax(1) == val_labels).sum()) / len(val_labels),
            )
            begun = self._record(tried, begun)
            candidates.append(Candidate(tried, solution, preprocessing, sources, features))
        best = min(candidates, key=_get_loss)
        self._report(f"{len(candidates)} linear heads; the best", best.tried)
        return best

    def _make_loss(self, train: Images) -> Callable[[Tensor, Tensor], Tensor]:
        smoothing, how = self.config.label_smoothing, self.config.class_weights
        classes = len(self.images.split.classes)
        weights = None if how == "none" else weigh_classes(train.labels, classes, how).to(self.frozen.device)
        return partial(F.cross_entropy, weight=weights, label_smoothing=smoothing)

    def _train(self, start: Candidate, lr: float) -> Training:
        """Return a training from a linear head at this learning rate, which is over."""
        begun, tried = time.perf_counter(), start.tried
        train, val = start.sources
        x = next(iter(train.batches(np.arange(min(SAMPLE, len(train))), SAMPLE, 0)))
        LinearHead.of(self.frozen.split).set(start.solution, x)
        chosen: JSON = {"resize": tried.resize, "augment": tried.augment, "weight_decay": tried.weight_decay, "lr": lr}
        config = replace(self.config, **chosen)
        training = Training(self.frozen.split, train, val, config, self.frozen.precision, evaluate_start=True)
        number = len(self.tries) + 1
        for event in training:
            report_event(event, config.epochs, self.reporter, {"try": number})
        best = training.best_record
        scores = {"val_loss": best.val_loss, "val_accuracy": best.val_accuracy}
        tried = msgspec.structs.replace(tried, lr=lr, epochs=training.epoch, **scores)
        self._record(tried, begun)
        self._report(f"{training.epoch} epochs at lr {lr:g} from the best linear head", tried)
        return training

    def _record(self, tried: Try, begun: float) -> float:
        """Record a try that began at this time; return the time now."""
        now = time.perf_counter()
        self.tries.append(tried)
        self.seconds.append(round(now - begun, 3))
        return now

    def _report(self, what: str, best: Try) -> None:
        settings = f"resize {best.resize}, augment {best.augment}, weight decay {best.weight_decay:g}"
        scores = f"val loss {best.val_loss:.4g}  accuracy {100 * best.val_accuracy:.2f} %"
        self.reporter.note(f"tried {what}: {settings}  {scores}")


def _get_loss(candidate: Candidate) -> float:
    return candidate.tried.val_loss


def list_fields(epoch: Epoch) -> JSON:
    """Return what a reporter hears of an epoch."""
    return {key: value for key, value in asdict(epoch).items() if key not in ("val_predicted", "val_right")}


def report_event(event: Epoch | Progress, epochs: int, reporter: Reporter, of: JSON | None = None) -> None:
    """Show an event of a training: an epoch's record, or how far the next one is. Logs also say `of` which training."""
    if isinstance(event, Epoch):
        reporter.record(list_fields(event))
        reporter.log({**(of or {}), **list_fields(event)})
    else:
        what = "validation" if event.validation else "epoch"
        reporter.progress(f"{what} {event.epoch}/{epochs}", event.done, event.total)


def _pool(head: LinearHead, source: Source, images: Images, epochs: int) -> tuple[Tensor, Tensor]:
    """Return the head's inputs (N, C) float32 and labels (N,) of each view that the epochs show, each once."""
    pooled, labels = [], []
    with torch.inference_mode():
        for epoch, order in _list_views(images, epochs):
            labels.append(source.labels[order])
            pooled += [head.pool(x) for x in source.batches(order, BATCH, epoch)]
    x = torch.cat(pooled)
    return x, torch.from_numpy(np.concatenate(labels)).to(x.device)


def _list_views(images: Images, epochs: int) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Yield (epoch, images that it shows in a view that no earlier one showed)."""
    seen: set[tuple[int, str]] = set()
    for epoch in range(int(min(epochs, images.distinct))):
        views = [(index, images.view(index, epoch)) for index in range(len(images.paths))]
        yield epoch, np.array([index for index, name in views if (index, name) not in seen], np.int64)
        seen.update(views)
