"""One training loop for head, finetune and scratch: what differs is which layers train, and the settings.

Letters: N images, C channels, H and W pixels, K classes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image
from torch import Tensor, nn
from torch.nn import functional as F

from dlcv_cli.config import Augment, TrainConfig
from dlcv_cli.errors import DlcvError
from dlcv_cli.vision.frozen_prefix import Cut, cut
from dlcv_cli.vision.images import load_batches, random_view, resize_and_crop
from dlcv_cli.vision.networks import Network
from dlcv_cli.vision.preprocessing import Preprocessing

EVALUATION_BATCH = 32
MAX_KEPT = 4 * 2**30  # bytes of frozen layers' outputs held in memory; beyond it they are computed in every epoch

Order = NDArray[np.int64]


@dataclass(frozen=True)
class Images:
    """One part of a data set: where the images are, and their labels (N,) int64 in 0..K-1."""

    paths: list[Path]
    labels: NDArray[np.int64]
    preprocessing: Preprocessing


@dataclass(frozen=True)
class Progress:
    """How many of an epoch's images are done; epoch 0 is the pass through the frozen layers."""

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


@dataclass(frozen=True)
class Kept:
    """What of the frozen layers is held in memory: the first layer behind them, and bytes in all."""

    layer: str
    size: int


# (order of images, images a batch, epoch) -> batches of (x (n, ...), labels (n,)) on the device
Source = Callable[[Order, int, int], Iterator[tuple[Tensor, Tensor]]]


def batches(images: Images, device: torch.device, threads: int, augment: Augment = "none", seed: int = 0) -> Source:
    """Images decoded for each batch: x (n, 3, H, W) float32, normalised, channels last.

    With `augment`, an image's view is a function of (seed, epoch, its number).
    """
    mean = torch.tensor(images.preprocessing.mean, device=device).view(1, 3, 1, 1)
    std = torch.tensor(images.preprocessing.std, device=device).view(1, 3, 1, 1)

    def source(order: Order, batch_size: int, epoch: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        def view(image: Image, index: int) -> NDArray[np.uint8]:
            if augment == "none":
                return resize_and_crop(image, images.preprocessing)
            return random_view(image, images.preprocessing, augment, np.random.default_rng((seed, epoch, index)))

        for indices, pixels in load_batches(images.paths, order, view, batch_size, threads):
            # (n, H, W, 3) seen as (n, 3, H, W) is channels last already
            x = torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2)
            labels = torch.from_numpy(images.labels[indices]).to(device)
            yield x.float().div_(255).sub_(mean).div_(std), labels

    return source


def behind(prefix: nn.Sequential, source: Source) -> Source:
    """The frozen layers' outputs, computed anew for each batch."""

    def computed(order: Order, batch_size: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        for x, labels in source(order, batch_size, epoch):
            with torch.no_grad():
                x = prefix(x)
            yield x, labels

    return computed


def in_memory(outputs: Tensor, labels: NDArray[np.int64], device: torch.device) -> Source:
    """Batches of outputs (N, ...) that are there already; 4-d ones lie as (N, H, W, C)."""

    def gathered(order: Order, batch_size: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        for some in (torch.from_numpy(order[i : i + batch_size]) for i in range(0, len(order), batch_size)):
            x = outputs[some].to(device)
            yield (x.permute(0, 3, 1, 2) if x.dim() == 4 else x), torch.from_numpy(labels[some.numpy()]).to(device)

    return gathered


def keep(
    parts: Cut, parties: Sequence[Images], device: torch.device, threads: int
) -> Generator[Progress | Kept, None, list[Source]]:
    """The frozen layers' outputs for each party: computed once and held in memory if MAX_KEPT allows, else each time.

    Without frozen layers there is nothing to keep.
    """
    sources = [batches(images, device, threads) for images in parties]
    if not len(parts.prefix):
        return sources
    computed = [behind(parts.prefix, source) for source in sources]
    parts.train()
    (example, _) = next(computed[0](np.zeros(1, np.int64), 1, 0))
    total = sum(len(images.paths) for images in parties)
    size = total * example.nbytes
    if size > MAX_KEPT:
        return computed
    yield Kept(parts.name, size)
    kept, done = [], 0
    for images, source in zip(parties, computed, strict=True):
        count, shape = len(images.paths), example[0].shape
        outputs = torch.empty((count, *(shape[1:] + shape[:1] if len(shape) == 3 else shape)))
        at = 0
        for x, _ in source(np.arange(count), EVALUATION_BATCH, 0):
            outputs[at : at + len(x)] = x.permute(0, 2, 3, 1) if x.dim() == 4 else x
            at += len(x)
            yield Progress(0, done + at, total)
        done += at
        kept.append(in_memory(outputs, images.labels, device))
    return kept


def predict(
    network: nn.Module, source: Source, count: int, batch_size: int = EVALUATION_BATCH
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields (logits (n, K) float32, labels (n,) int64) of `count` images in order, in eval mode."""
    network.eval()
    with torch.inference_mode():
        for x, labels in source(np.arange(count), batch_size, 0):
            yield network(x), labels


def evaluate(network: nn.Module, source: Source, count: int) -> tuple[float, float]:
    """(mean cross-entropy in nats, accuracy in 0..1), each summed over examples and divided once."""
    loss, right = 0.0, 0
    for logits, labels in predict(network, source, count):
        loss += F.cross_entropy(logits, labels, reduction="sum").item()
        right += int((logits.argmax(1) == labels).sum())
    return loss / count, right / count


def fit(
    network: Network, train: Images, val: Images, config: TrainConfig, device: torch.device, threads: int
) -> Iterator[Progress | Kept | Epoch]:
    """Trains what `unfreeze` left trainable; afterwards the network holds the best validation epoch's weights.

    Order is a function of (seed, epoch), augmentation of (seed, epoch, image), dropout of (seed, epoch, step). The last
    batch may be short.

    Raises:
        DlcvError: the loss stopped being a finite number.
    """
    network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # stub knows no module form
    parts = cut(network)
    trainable = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(
        trainable, lr=config.lr, weight_decay=config.weight_decay, fused=device.type in ("cpu", "cuda")
    )
    if config.augment == "none":
        train_source, val_source = yield from keep(parts, (train, val), device, threads)
    else:  # another view in every epoch: nothing of the training images to keep
        (val_source,) = yield from keep(parts, (val,), device, threads)
        train_source = behind(parts.prefix, batches(train, device, threads, config.augment, config.seed))
    best_accuracy, best_state = -1.0, {}
    for epoch in range(config.epochs):
        begun = time.perf_counter()
        lr = config.lr_at(epoch)
        for group in optimizer.param_groups:
            group["lr"] = lr
        parts.train()
        loss_sum, right, done = torch.zeros((), device=device), torch.zeros((), device=device), 0
        order = np.random.default_rng((config.seed, epoch)).permutation(len(train.paths))
        for step, (x, labels) in enumerate(train_source(order, config.batch_size, epoch)):
            torch.manual_seed(_mix(config.seed, epoch, step))
            logits = parts.suffix(x)
            loss = F.cross_entropy(logits, labels)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            loss_sum += loss.detach() * len(labels)
            right += (logits.detach().argmax(1) == labels).sum()
            done += len(labels)
            yield Progress(epoch + 1, done, len(train.paths))
        train_loss = loss_sum.item() / done
        val_loss, val_accuracy = evaluate(parts.suffix, val_source, len(val.paths))
        if not (math.isfinite(train_loss) and math.isfinite(val_loss)):
            raise DlcvError(
                f"the loss is no longer a finite number in epoch {epoch + 1} at lr {lr:g}: try a lower --lr"
            )
        best = val_accuracy > best_accuracy
        if best:
            best_accuracy = val_accuracy
            best_state = {name: t.detach().clone() for name, t in _changing(network)}
        seconds = time.perf_counter() - begun
        yield Epoch(
            epoch + 1, lr, train_loss, right.item() / done, val_loss, val_accuracy,
            (done + len(val.paths)) / seconds, best,
        )  # fmt: skip
    network.load_state_dict(best_state, strict=False)


def _changing(network: Network) -> Iterator[tuple[str, Tensor]]:
    """What training changes: trainable parameters, and buffers (BatchNorm's statistics)."""
    yield from ((name, p) for name, p in network.named_parameters() if p.requires_grad)
    yield from network.named_buffers()


def _mix(*numbers: int) -> int:
    """One seed of several numbers, different for different ones."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
