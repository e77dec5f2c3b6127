"""One training loop for head, finetune and scratch: what differs is which layers train, and the settings.

Letters: N images, C channels, H and W pixels, K classes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import msgspec
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dlcv_cli.config import FinetuneConfig, TrainConfig
from dlcv_cli.errors import DivergedError
from dlcv_cli.vision.batches import Source
from dlcv_cli.vision.optimizers import build_optimizer, get_optimizer_state, restore_optimizer, set_lr
from dlcv_cli.vision.regularization import MeanWeights, list_changing, mix_images, weigh_classes
from dlcv_cli.vision.steps import SplitNetwork, scale_by_depth

EVALUATION_BATCH = 32
NOW, BEST, MEAN, OF_OPTIMIZER = "now.", "best.", "mean.", "optimizer."  # how the names of a snapshot's tensors begin


@dataclass(frozen=True)
class Progress:
    """Number of images done in an epoch, of training or of its validation pass."""

    epoch: int
    done: int
    total: int
    validation: bool = False


@dataclass(frozen=True)
class Epoch:
    """One epoch's record; losses are means per image in nats, accuracies fractions in 0..1."""

    epoch: int  # 1 is the first; 0 is the network before it, which has no lr and no training loss
    lr: float | None
    train_loss: float | None
    train_accuracy: float | None
    val_loss: float
    val_accuracy: float
    images_per_second: float
    best: bool  # better on the validation part than all before
    val_predicted: tuple[int, ...]  # (K,) number of validation images predicted as each class
    val_right: tuple[int, ...] = ()  # (K,) number of these that are of that class


class _State(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a snapshot says of a training beside its tensors."""

    records: list[Epoch]
    done: Annotated[int, msgspec.Meta(ge=0)]
    loss_sum: float
    correct: float
    best_is_now: bool
    optimizer: dict[str, Any]


def predict(tail: nn.Module, source: Source, precision: str, batch_size: int = EVALUATION_BATCH) -> Iterator[Tensor]:
    """Yield logits (n, K) float32 of a part's images in order, in eval mode."""
    tail.eval()
    for x in source.batches(np.arange(len(source)), batch_size, 0):
        with torch.inference_mode():  # not around the loop: the mode would hold for the caller, between two batches
            logits = _compute_logits(tail, x, precision)
        yield logits


def _compute_logits(tail: nn.Module, x: Tensor, precision: str) -> Tensor:
    with torch.autocast(x.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        logits: Tensor = tail(x)
    return logits.float()


@dataclass
class Score:
    """Sums over examples, to be divided once."""

    loss: float = 0.0
    correct: int = 0
    done: int = 0
    predicted: tuple[int, ...] = ()  # number of images, by class
    right: tuple[int, ...] = ()  # number of these that are of that class


def evaluate(tail: nn.Module, source: Source, precision: str) -> Iterator[Score]:
    """Yield sums so far of cross-entropies in nats, correct predictions, and predictions by class; last over all."""
    score = Score()
    for logits in predict(tail, source, precision):
        labels = torch.from_numpy(source.labels[score.done : score.done + len(logits)]).to(logits.device)
        score.loss += F.cross_entropy(logits, labels, reduction="sum").item()
        classes = logits.argmax(1)
        score.correct += int((classes == labels).sum())
        score.predicted = _add_counts(score.predicted, classes, logits.shape[1])
        score.right = _add_counts(score.right, classes[classes == labels], logits.shape[1])
        score.done += len(labels)
        yield score


def _add_counts(counts: tuple[int, ...], classes: Tensor, number: int) -> tuple[int, ...]:
    """Return counts by class (K,), or () at first, with these classes (n,) counted too."""
    more = classes.bincount(minlength=number).tolist()
    return tuple(map(sum, zip(counts, more, strict=True))) if counts else tuple(more)


class Training:
    """The training of the layers that `unfreeze` selected. It runs when iterated over, and ends with the best weights.

    The best epoch has the highest validation accuracy; of equal ones the lowest validation loss; of equal ones the
    earliest. The order of images is a function of (seed, epoch), dropout of (seed, epoch, step): another Training that
    restores the `state` at any event ends with the same bits. The last batch may be smaller.

    Args:
        split: the network; the sources give what enters its tail.
        precision: `float32`, or `bfloat16` for all but the weights, the loss and the optimizer.
        evaluate_start: whether the network as it is now is evaluated as epoch 0, and can be the best.

    Raises (when iterated over, and by `state`):
        DivergedError: the loss stopped being a finite number.
    """

    def __init__(
        self,
        split: SplitNetwork,
        train: Source,
        val: Source,
        config: TrainConfig,
        precision: str,
        evaluate_start: bool = False,
    ) -> None:
        self.split, self.train, self.val, self.config = split, train, val, config
        self.network, self.precision, self.evaluate_start = split.network, precision, evaluate_start
        self.trainable = {name: p for name, p in self.network.named_parameters() if p.requires_grad}
        self.device = next(iter(self.trainable.values())).device
        names = {id(p): name for name, p in self.trainable.items()}
        decay = config.layer_decay if isinstance(config, FinetuneConfig) else 1.0
        self.optimizer = build_optimizer(self.trainable, config, scale_by_depth([*split.tail], names, decay))
        self.class_weights: Tensor | None = None
        self.mean = MeanWeights(self.network, config.ema) if config.ema else None
        self.records: list[Epoch] = []  # of epochs that are done
        self.done = 0  # images of the next one that were trained on
        self.loss_sum, self.correct = torch.zeros((), device=self.device), torch.zeros((), device=self.device)
        self.best: dict[str, Tensor] = {}  # weights and statistics of the best epoch
        self.best_is_now = False  # no step since

    @property
    def epoch(self) -> int:
        """The number of epochs that are done."""
        return self.records[-1].epoch if self.records else 0

    @property
    def best_record(self) -> Epoch:
        """The best epoch's record, once there was a validation pass."""
        return next(record for record in reversed(self.records) if record.best)

    @property
    def is_over(self) -> bool:
        """Whether all epochs are done, or the last `patience` epochs were not better."""
        waited = self.epoch - self.best_record.epoch if self.records else 0
        return self.epoch >= self.config.epochs or (self.config.patience or math.inf) <= waited

    def _lr_after(self, done: int) -> float:
        """Return the learning rate of the step after which `done` images of the epoch are done."""
        return self.config.lr_at(self.epoch, done / len(self.train))

    def __iter__(self) -> Iterator[Progress | Epoch]:
        if self.evaluate_start and not self.records:
            yield from self._validate(0, time.perf_counter(), None)
        while not self.is_over:
            begun = time.perf_counter()
            yield from self._take_steps()
            yield from self._validate(self.epoch + 1, begun, self._lr_after(len(self.train)))
        self.optimizer.zero_grad()  # frees what is as large as the weights
        self.load_best()

    def load_best(self) -> None:
        """Give the network the weights of the best epoch."""
        self.network.load_state_dict(self.best, strict=False)

    def _take_steps(self) -> Iterator[Progress]:
        """Take the remaining training steps of an epoch."""
        self.split.train()
        config, train, self.before = self.config, self.train, self.done
        order = np.random.default_rng((config.seed, self.epoch)).permutation(len(train))
        for x in train.batches(order[self.done :], config.batch_size, self.epoch):
            labels = torch.from_numpy(train.labels[order[self.done : self.done + len(x)]]).to(self.device)
            step_seed = _mix_seeds(config.seed, self.epoch, self.done // config.batch_size)
            torch.manual_seed(step_seed)
            set_lr(self.optimizer, self._lr_after(self.done + len(labels)))
            mixed, targets = mix_images(x, labels, config, step_seed)
            logits = _compute_logits(self.split.tail, mixed, self.precision)
            loss = self._compute_loss(logits, targets)
            self.optimizer.zero_grad()
            torch.autograd.backward(loss)
            if config.clip_norm:
                nn.utils.clip_grad_norm_(self.trainable.values(), config.clip_norm)
            self.optimizer.step()
            if self.mean:
                steps = math.ceil(len(train) / config.batch_size)
                self.mean.update(self.epoch * steps + self.done // config.batch_size)
            self.best_is_now = False
            self.loss_sum += loss.detach() * len(labels)
            main_labels, _ = max(targets, key=lambda target: target[1])
            self.correct += (logits.detach().argmax(1) == main_labels).sum()
            self.done += len(labels)
            yield Progress(self.epoch + 1, self.done, len(train))

    def _compute_loss(self, logits: Tensor, targets: list[tuple[Tensor, float]]) -> Tensor:
        """Return the mean cross-entropy with targets of (labels (n,), share)."""
        if self.config.class_weights != "none" and self.class_weights is None:
            self.class_weights = weigh_classes(self.train.labels, logits.shape[1], self.config.class_weights)
            self.class_weights = self.class_weights.to(logits)
        smoothing = self.config.label_smoothing
        losses = [F.cross_entropy(logits, of, self.class_weights, label_smoothing=smoothing) for of, _ in targets]
        return torch.stack([loss * share for loss, (_, share) in zip(losses, targets, strict=True)]).sum()

    def _validate(self, epoch: int, begun: float, lr: float | None) -> Iterator[Progress | Epoch]:
        """Make the validation pass that closes an epoch, and yield its record."""
        if self.mean:
            self.mean.exchange()
        try:
            for score in evaluate(self.split.tail, self.val, self.precision):
                yield Progress(epoch, score.done, len(self.val), validation=True)
            yield from self._close_epoch(epoch, begun, lr, score)
        finally:
            if self.mean:
                self.mean.exchange()

    def _close_epoch(self, epoch: int, begun: float, lr: float | None, score: Score) -> Iterator[Epoch]:
        """Yield an epoch's record, and keep its weights if it is the best."""
        count = self.done - self.before + len(self.val) if epoch else len(self.val)
        sums = (self.loss_sum.item(), self.correct.item())
        loss, accuracy = (total / self.done for total in sums) if epoch else (None, None)
        val_loss, val_accuracy = score.loss / score.done, score.correct / score.done
        self._require_finite(sums[0], val_loss)
        best = self.best_record if self.records else None
        is_best = not best or (val_accuracy, -val_loss) > (best.val_accuracy, -best.val_loss)
        if is_best:
            self.best, self.best_is_now = self._copy_changing(), not self.mean
        self.done = 0
        self.loss_sum.zero_()
        self.correct.zero_()
        speed = count / (time.perf_counter() - begun)
        record = Epoch(epoch, lr, loss, accuracy, val_loss, val_accuracy, speed, is_best, score.predicted, score.right)
        self.records.append(record)
        yield record

    def _copy_changing(self) -> dict[str, Tensor]:
        return {name: t.detach().clone() for name, t in list_changing(self.network)}

    def _require_finite(self, *numbers: float) -> None:
        if not all(map(math.isfinite, numbers)):
            lr = self.config.lr_at(min(self.epoch, self.config.epochs - 1))
            raise DivergedError(
                f"the loss is no longer a finite number in epoch {self.epoch + 1} at lr {lr:g}: try a lower --lr"
            )

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return (tensors, numbers): all that training has changed. The tensors are its own, not copies.

        Raises:
            DivergedError: a number in it is not finite, so training cannot continue from it.
        """
        tensors = {f"{NOW}{name}": t.detach() for name, t in list_changing(self.network)}
        if self.mean:
            now, mean = self.mean.pair()
            tensors = {f"{NOW}{name}": t for name, t in now.items()} | {f"{MEAN}{name}": t for name, t in mean.items()}
        moments, values = get_optimizer_state(self.optimizer, self.trainable)
        tensors |= {f"{OF_OPTIMIZER}{key}": t for key, t in moments.items()}
        loss_sum = self.loss_sum.item()
        self._require_finite(loss_sum, *(t.sum(dtype=torch.float64).item() for t in tensors.values()))
        if not self.best_is_now:
            tensors |= {f"{BEST}{name}": t for name, t in self.best.items()}
        return tensors, {
            "records": [asdict(record) for record in self.records],
            "done": self.done,
            "loss_sum": loss_sum,
            "correct": self.correct.item(),
            "best_is_now": self.best_is_now,
            "optimizer": values,
        }

    def restore(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        """Continue from a state that `state` returned.

        Raises:
            ValueError: it is not a state of this training.
        """
        unused = dict(tensors)

        def take(name: str, like: Tensor) -> Tensor:
            t = unused.pop(name, None)
            if t is None or t.shape != like.shape or t.dtype != like.dtype:
                raise ValueError(f"its tensor {name} is not {tuple(like.shape)} {like.dtype}")
            return torch.empty_like(like).copy_(t)  # in the memory layout that it had

        state = msgspec.convert(numbers, _State)
        self._require_possible(state)
        self.records, self.done, self.best_is_now = state.records, state.done, state.best_is_now
        self.loss_sum.fill_(state.loss_sum)
        self.correct.fill_(state.correct)
        of_optimizer = {name: unused.pop(name) for name in tensors if name.startswith(OF_OPTIMIZER)}
        of_optimizer = {name.removeprefix(OF_OPTIMIZER): t for name, t in of_optimizer.items()}
        restore_optimizer(self.optimizer, self.trainable, of_optimizer, state.optimizer)
        with torch.no_grad():
            for name, t in list_changing(self.network):
                t.copy_(take(f"{NOW}{name}", t))
            for name, t in self.mean.pair()[1].items() if self.mean else ():
                t.copy_(take(f"{MEAN}{name}", t))
        if self.best_is_now:
            self.best = self._copy_changing()
        elif self.records:
            self.best = {name: take(f"{BEST}{name}", t.detach()) for name, t in list_changing(self.network)}
        if unused:
            raise ValueError(f"it has a tensor {next(iter(unused))}")

    def _require_possible(self, state: _State) -> None:
        """Raise ValueError unless this training can be in such a state between two steps."""
        first, epochs = 0 if self.evaluate_start else 1, [record.epoch for record in state.records]
        if epochs != [*range(first, self.config.epochs + 1)][: len(epochs)] or (epochs and not state.records[0].best):
            raise ValueError("its records are of other epochs")
        total = len(self.train) if self.config.epochs not in epochs else 0
        if state.done > total or (state.done % self.config.batch_size and state.done < total):
            raise ValueError(f"{state.done} images of an epoch in batches of {self.config.batch_size}")


def _mix_seeds(*numbers: int) -> int:
    """Return a seed that is a hash of several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
