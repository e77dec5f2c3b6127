"""One training loop for head, finetune and scratch: what differs is which layers train, and the settings.

Letters: N images, C channels, H and W pixels, K classes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dlcv_cli.config import TrainConfig
from dlcv_cli.errors import DivergedError
from dlcv_cli.vision.batches import Source
from dlcv_cli.vision.models import Network
from dlcv_cli.vision.steps import Cut

EVALUATION_BATCH = 32


@dataclass(frozen=True)
class Progress:
    """How many of an epoch's images are done, of training or of validation."""

    epoch: int
    done: int
    total: int
    validation: bool = False


@dataclass(frozen=True)
class Epoch:
    """One epoch's record; losses are means per image in nats, accuracies fractions in 0..1."""

    epoch: int  # 1 is the first
    lr: float
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float
    images_per_second: float
    best: bool  # the best validation accuracy so far, the earliest where several are equal
    val_answered: tuple[int, ...]  # (K,) how often it answers each class on the validation part


def predict(suffix: nn.Module, source: Source, precision: str, batch_size: int = EVALUATION_BATCH) -> Iterator[Tensor]:
    """Yields logits (n, K) float32 of a part's images in order, in eval mode."""
    suffix.eval()
    with torch.inference_mode():
        for x in source.batches(np.arange(len(source)), batch_size, 0):
            yield _logits(suffix, x, precision)


def _logits(suffix: nn.Module, x: Tensor, precision: str) -> Tensor:
    with torch.autocast(x.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        logits: Tensor = suffix(x)
    return logits.float()


@dataclass
class Score:
    """Sums over examples, to be divided once."""

    loss: float = 0.0
    right: int = 0
    done: int = 0
    answered: tuple[int, ...] = ()  # how often, by class


def evaluate(suffix: nn.Module, source: Source, precision: str) -> Iterator[Score]:
    """Yields sums so far: of cross-entropies in nats, right answers, answers by class; the last over all examples."""
    score = Score()
    for logits in predict(suffix, source, precision):
        labels = torch.from_numpy(source.labels[score.done : score.done + len(logits)]).to(logits.device)
        score.loss += F.cross_entropy(logits, labels, reduction="sum").item()
        answers = logits.argmax(1)
        score.right += int((answers == labels).sum())
        answered = answers.bincount(minlength=logits.shape[1]).tolist()
        score.answered = tuple(map(sum, zip(score.answered, answered, strict=True))) if score.done else tuple(answered)
        score.done += len(labels)
        yield score


class Training:
    """Trains what `unfreeze` left trainable, when iterated over; at the end the network has the best epoch's weights.

    Order is a function of (seed, epoch), dropout of (seed, epoch, step): at whatever event it is left, `state` is all
    that another one has to `restore` to go on to the same end, bit for bit. The last batch may be short.

    Args:
        parts: the network, cut; the sources give what enters its suffix.
        precision: `float32`, or `bfloat16` for all but the weights, the loss and Adam.

    Raises (when iterated over):
        DivergedError: the loss stopped being a finite number.
    """

    def __init__(
        self,
        network: Network,
        parts: Cut,
        train: Source,
        val: Source,
        config: TrainConfig,
        device: torch.device,
        precision: str,
    ) -> None:
        self.network, self.parts, self.train, self.val, self.config = network, parts, train, val, config
        self.device, self.precision = device, precision
        self.trainable = {name: p for name, p in network.named_parameters() if p.requires_grad}
        self.fused = device.type in ("cpu", "cuda")
        self.optimizer = torch.optim.Adam(
            self.trainable.values(), lr=config.lr, weight_decay=config.weight_decay, fused=self.fused
        )
        self.epoch = 0  # epochs that are done
        self.done = 0  # images of the next one that were trained on
        self.loss_sum, self.right = torch.zeros((), device=device), torch.zeros((), device=device)
        self.best_accuracy = -1.0
        self.best: dict[str, Tensor] = {}
        self.best_is_now = False  # no step since

    def __iter__(self) -> Iterator[Progress | Epoch]:
        while self.epoch < self.config.epochs:
            begun, before = time.perf_counter(), self.done
            lr = self.config.lr_at(self.epoch)
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            yield from self._steps()
            for score in evaluate(self.parts.suffix, self.val, self.precision):
                yield Progress(self.epoch + 1, score.done, len(self.val), validation=True)
            count = self.done - before + len(self.val)
            record = self._ended(lr, score)
            yield Epoch(**record, images_per_second=count / (time.perf_counter() - begun))
        self.optimizer.zero_grad()  # frees what is as large as the weights
        self.network.load_state_dict(self.best, strict=False)

    def _steps(self) -> Iterator[Progress]:
        """The rest of an epoch's training steps."""
        self.parts.train()
        config, train = self.config, self.train
        order = np.random.default_rng((config.seed, self.epoch)).permutation(len(train))
        for x in train.batches(order[self.done :], config.batch_size, self.epoch):
            labels = torch.from_numpy(train.labels[order[self.done : self.done + len(x)]]).to(self.device)
            torch.manual_seed(_mix(config.seed, self.epoch, self.done // config.batch_size))
            logits = _logits(self.parts.suffix, x, self.precision)
            loss = F.cross_entropy(logits, labels)
            self.optimizer.zero_grad()
            torch.autograd.backward(loss)
            self.optimizer.step()
            self.best_is_now = False
            self.loss_sum += loss.detach() * len(labels)
            self.right += (logits.detach().argmax(1) == labels).sum()
            self.done += len(labels)
            yield Progress(self.epoch + 1, self.done, len(train))

    def _ended(self, lr: float, score: Score) -> dict[str, Any]:
        """Closes an epoch: its record."""
        train_loss, train_accuracy = self.loss_sum.item() / self.done, self.right.item() / self.done
        val_loss, val_accuracy = score.loss / score.done, score.right / score.done
        if not (math.isfinite(train_loss) and math.isfinite(val_loss)):
            raise DivergedError(
                f"the loss is no longer a finite number in epoch {self.epoch + 1} at lr {lr:g}: try a lower --lr"
            )
        better = val_accuracy > self.best_accuracy
        if better:
            self.best_accuracy, self.best_is_now = val_accuracy, True
            self.best = {name: t.detach().clone() for name, t in _changing(self.network)}
        record = {
            "epoch": self.epoch + 1,
            "lr": lr,
            "train_loss": train_loss,
            "train_accuracy": train_accuracy,
            "val_loss": val_loss,
            "val_accuracy": val_accuracy,
            "best": better,
            "val_answered": score.answered,
        }
        self.epoch, self.done = self.epoch + 1, 0
        self.loss_sum.zero_()
        self.right.zero_()
        return record

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(tensors, numbers): all that changed since the beginning. The tensors are the training's own, not copies."""
        found = {f"now.{name}": t.detach() for name, t in _changing(self.network)}
        for name, p in self.trainable.items():
            found |= {f"{key}.{name}": t for key, t in self.optimizer.state[p].items()}
        if not self.best_is_now:
            found |= {f"best.{name}": t for name, t in self.best.items()}
        return found, {
            "epoch": self.epoch,
            "done": self.done,
            "loss_sum": self.loss_sum.item(),
            "right": self.right.item(),
            "best_accuracy": self.best_accuracy,
            "best_is_now": self.best_is_now,
        }

    def restore(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        """Goes on from what `state` gave.

        Raises:
            ValueError: it is not the state of such a training.
        """
        rest = dict(tensors)

        def taken(name: str, like: Tensor) -> Tensor:
            t = rest.pop(name, None)
            if t is None or t.shape != like.shape or t.dtype != like.dtype:
                raise ValueError(f"its tensor {name} is not {tuple(like.shape)} {like.dtype}")
            return torch.empty_like(like).copy_(t)  # in the memory layout that it had

        epoch, done = numbers.get("epoch"), numbers.get("done")
        if type(epoch) is not int or not 0 <= epoch <= self.config.epochs:
            raise ValueError(f"epoch {epoch}")
        if type(done) is not int or not (0 <= done <= len(self.train) * (epoch < self.config.epochs)):
            raise ValueError(f"{done} images of an epoch")
        if done % self.config.batch_size and done < len(self.train):
            raise ValueError(f"{done} images in batches of {self.config.batch_size}")
        with torch.no_grad():
            for name, t in _changing(self.network):
                t.copy_(taken(f"now.{name}", t))
            for name, p in self.trainable.items():
                if f"step.{name}" in rest:  # Adam has none before the first step
                    like = {
                        "step": torch.zeros((), device=self.device if self.fused else None),
                        "exp_avg": p,
                        "exp_avg_sq": p,
                    }
                    self.optimizer.state[p] = {key: taken(f"{key}.{name}", t.detach()) for key, t in like.items()}
            self.best_is_now, self.best_accuracy = bool(numbers["best_is_now"]), float(numbers["best_accuracy"])
            if self.best_is_now:
                self.best = {name: t.detach().clone() for name, t in _changing(self.network)}
            elif epoch:
                self.best = {name: taken(f"best.{name}", t.detach()) for name, t in _changing(self.network)}
            self.loss_sum.fill_(float(numbers["loss_sum"]))
            self.right.fill_(float(numbers["right"]))
        if rest:
            raise ValueError(f"it has a tensor {next(iter(rest))}")
        self.epoch, self.done = epoch, done


def _changing(network: Network) -> Iterator[tuple[str, Tensor]]:
    """What training changes: trainable parameters, and buffers (BatchNorm's statistics)."""
    yield from ((name, p) for name, p in network.named_parameters() if p.requires_grad)
    yield from network.named_buffers()


def _mix(*numbers: int) -> int:
    """One seed of several numbers, different for different ones."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
