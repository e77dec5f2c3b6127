"""One training loop for head, finetune and scratch: what differs is which layers train, and the settings.

Letters: N images, C channels, H and W pixels, K classes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dlcv_cli.config import TrainConfig
from dlcv_cli.errors import DlcvError
from dlcv_cli.vision.frozen_prefix import Cut
from dlcv_cli.vision.networks import Network
from dlcv_cli.vision.sources import Source

EVALUATION_BATCH = 32


@dataclass(frozen=True)
class Progress:
    """How many of an epoch's images are done."""

    epoch: int
    done: int
    total: int


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


def evaluate(suffix: nn.Module, source: Source, precision: str) -> tuple[float, float, tuple[int, ...]]:
    """(mean cross-entropy in nats, accuracy in 0..1), each summed over examples and divided once; answers by class."""
    loss, right, done, answers = 0.0, 0, 0, []
    for logits in predict(suffix, source, precision):
        labels = torch.from_numpy(source.labels[done : done + len(logits)]).to(logits.device)
        loss += F.cross_entropy(logits, labels, reduction="sum").item()
        answers.append(logits.argmax(1))
        right += int((answers[-1] == labels).sum())
        done += len(labels)
    answered = torch.cat(answers).bincount(minlength=logits.shape[1])
    return loss / done, right / done, tuple(answered.tolist())


def fit(
    network: Network, parts: Cut, train: Source, val: Source, config: TrainConfig, device: torch.device, precision: str
) -> Iterator[Progress | Epoch]:
    """Trains what `unfreeze` left trainable; afterwards the network holds the best validation epoch's weights.

    Order is a function of (seed, epoch), dropout of (seed, epoch, step). The last batch may be short.

    Args:
        parts: the network, cut; the sources give what enters its suffix.
        precision: `float32`, or `bfloat16` for all but the weights, the loss and Adam.

    Raises:
        DlcvError: the loss stopped being a finite number.
    """
    trainable = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(
        trainable, lr=config.lr, weight_decay=config.weight_decay, fused=device.type in ("cpu", "cuda")
    )
    best_accuracy, best_state = -1.0, {}
    for epoch in range(config.epochs):
        begun = time.perf_counter()
        lr = config.lr_at(epoch)
        for group in optimizer.param_groups:
            group["lr"] = lr
        parts.train()
        loss_sum, right, done = torch.zeros((), device=device), torch.zeros((), device=device), 0
        order = np.random.default_rng((config.seed, epoch)).permutation(len(train))
        for step, x in enumerate(train.batches(order, config.batch_size, epoch)):
            labels = torch.from_numpy(train.labels[order[done : done + len(x)]]).to(device)
            torch.manual_seed(_mix(config.seed, epoch, step))
            logits = _logits(parts.suffix, x, precision)
            loss = F.cross_entropy(logits, labels)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            loss_sum += loss.detach() * len(labels)
            right += (logits.detach().argmax(1) == labels).sum()
            done += len(labels)
            yield Progress(epoch + 1, done, len(train))
        train_loss = loss_sum.item() / done
        val_loss, val_accuracy, answered = evaluate(parts.suffix, val, precision)
        if not (math.isfinite(train_loss) and math.isfinite(val_loss)):
            raise DlcvError(
                f"the loss is no longer a finite number in epoch {epoch + 1} at lr {lr:g}: try a lower --lr"
            )
        best = val_accuracy > best_accuracy
        if best:
            best_accuracy = val_accuracy
            best_state = {name: t.detach().clone() for name, t in _changing(network)}
        seconds = time.perf_counter() - begun
        speed = (done + len(val)) / seconds
        yield Epoch(epoch + 1, lr, train_loss, right.item() / done, val_loss, val_accuracy, speed, best, answered)
    optimizer.zero_grad()  # frees what is as large as the weights
    network.load_state_dict(best_state, strict=False)


def _changing(network: Network) -> Iterator[tuple[str, Tensor]]:
    """What training changes: trainable parameters, and buffers (BatchNorm's statistics)."""
    yield from ((name, p) for name, p in network.named_parameters() if p.requires_grad)
    yield from network.named_buffers()


def _mix(*numbers: int) -> int:
    """One seed of several numbers, different for different ones."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
