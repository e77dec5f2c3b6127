"""The training loop against a plain one, written out with torch's own parts; in float32 unless it says so."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_photos
from PIL import Image
from sklearn.utils.class_weight import compute_class_weight
from small_networks import BATCHNORM, PLAIN
from torch import Tensor, nn
from torch.nn import functional as F

from dlcv_cli.config import FinetuneConfig, TrainConfig
from dlcv_cli.errors import DivergedError, DlcvError, SettingError
from dlcv_cli.vision import training
from dlcv_cli.vision.architectures import ARCHITECTURES, Architecture
from dlcv_cli.vision.batches import Source, build_image_source
from dlcv_cli.vision.inference import FeatureExtractor
from dlcv_cli.vision.models import build_random_network, unfreeze
from dlcv_cli.vision.regularization import mix_images
from dlcv_cli.vision.steps import SplitNetwork, list_steps, split_at_frozen, trains
from dlcv_cli.vision.training import Epoch, Progress, Score, Training, evaluate, predict
from dlcv_cli.vision.transforms import Images

CPU = torch.device("cpu")
MINI = ARCHITECTURES["vgg16_mini"]
LAYERS = {
    "head": ("classifier.6",),
    "finetune": ("classifier", "features.28"),
    "scratch": ("features", "classifier"),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Images, Images]:
    """Return (train of 11, val of 7) images of the size that the network needs, in three classes."""
    root = make_photos(tmp_path_factory.mktemp("data") / "photos", {"a": 6, "b": 6, "c": 6}, (64, 64))
    paths = sorted(root.rglob("*.png"))
    labels = np.array(["abc".index(p.parent.name) for p in paths], np.int64)
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
    chosen = np.random.default_rng(0).permutation(len(paths))
    train, val = (
        Images([paths[i] for i in part], [digests[i] for i in part], labels[part], MINI.preprocessing)
        for part in (chosen[:11], chosen[11:])
    )
    return train, val


def read_pixels(images: Images) -> Tensor:
    """Return the network's input (N, 3, H, W), computed without dlcv."""
    raw = np.stack([np.asarray(Image.open(path), np.float32) for path in images.paths]) / 255
    raw = (raw - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    return torch.from_numpy(raw.astype(np.float32)).permute(0, 3, 1, 2)


def build_trainable(architecture: Architecture, layers: tuple[str, ...]) -> nn.Module:
    """Return a network from seed 0 in which the named layers train."""
    network = build_random_network(architecture, 3, seed=0)
    unfreeze(network, layers)
    return network


def copy_state(network: nn.Module) -> dict[str, Tensor]:
    """Return a copy of all tensors of a network."""
    return copy.deepcopy(network.state_dict())


def build_source(split: SplitNetwork, images: Images, precision: str = "float32") -> Source:
    """Return the input of the tail, as the stages build it without cached features."""
    return build_image_source(images, FeatureExtractor([*split.frozen], images.preprocessing, CPU, precision), 2)


def build_training(
    network: nn.Module, train: Images, val: Images, config: TrainConfig, precision: str = "float32", **more: bool
) -> Training:
    """Return a training as the stages make it."""
    split = split_mini(network)
    sources = (build_source(split, images, precision) for images in (train, val))
    return Training(split, *sources, config, precision, **more)


def train_epochs(
    network: nn.Module, train: Images, val: Images, config: TrainConfig, precision: str = "float32", **more: bool
) -> list[Epoch]:
    """Train, and return the records of the epochs."""
    events = build_training(network, train, val, config, precision, **more)
    return [event for event in events if isinstance(event, Epoch)]


def split_mini(network: nn.Module) -> SplitNetwork:
    """Split a network whose steps are named like vgg16_mini's."""
    return split_at_frozen(network, MINI)


def evaluate_network(network: nn.Module, images: Images) -> tuple[float, float, tuple[int, ...]]:
    """Return (loss, accuracy, predictions by class) of a network."""
    split = split_mini(network)
    *_, score = evaluate(split.tail, build_source(split, images), "float32")
    return score.loss / score.done, score.correct / score.done, score.predicted


def train_plain_epoch(
    network: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, labels: Tensor, config: TrainConfig, epoch: int
) -> tuple[float, float]:
    """Train one epoch by a plain loop with the whole network in train mode. Return (loss, accuracy)."""
    network.train()
    order = torch.from_numpy(np.random.default_rng((config.seed, epoch)).permutation(len(x)))
    losses, right = 0.0, 0
    for step, batch in enumerate(order.split(config.batch_size)):
        mixed = np.random.SeedSequence((config.seed, epoch, step)).generate_state(1, np.uint64)
        torch.manual_seed(int(mixed[0]))
        logits = network(x[batch])
        loss = F.cross_entropy(logits, labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses += loss.item() * len(batch)
        right += (logits.argmax(1) == labels[batch]).sum().item()
    return losses / len(x), right / len(x)


@pytest.mark.parametrize("stage", LAYERS)
def test_step_matches_a_plain_step(data: tuple[Images, Images], stage: str) -> None:
    """A step on one batch gives the weights that torch.optim.Adam gives on the whole network."""
    train, val = data
    config = TrainConfig(epochs=1, batch_size=64, lr=1e-3, seed=3)
    ours = build_trainable(MINI, LAYERS[stage])
    theirs = copy.deepcopy(ours)
    before = copy_state(ours)
    [record] = train_epochs(ours, train, val, config)
    optimizer = torch.optim.Adam([p for p in theirs.parameters() if p.requires_grad], lr=config.lr)
    loss, accuracy = train_plain_epoch(theirs, optimizer, read_pixels(train), torch.from_numpy(train.labels), config, 0)
    assert record.train_loss == pytest.approx(loss, rel=1e-5)
    assert record.train_accuracy == pytest.approx(accuracy)
    # Adam's first step is lr * sign(g): where g is all but 0, the last bits of the convolutions decide
    gradients = {name: p.grad for name, p in theirs.named_parameters()}
    for name, tensor in theirs.state_dict().items():
        grad = gradients.get(name)
        clear = ... if grad is None else (grad.abs() >= 1e-3 * grad.abs().max()) | (grad == 0)
        assert grad is None or clear.float().mean() > 0.5, name
        torch.testing.assert_close(ours.state_dict()[name][clear], tensor[clear], rtol=0, atol=1e-5, msg=name)
        assert (grad is None) == torch.equal(ours.state_dict()[name], before[name]), name


@pytest.mark.parametrize(
    "settings",
    [
        {"schedule": "exponential", "decay": 0.5},
        {"schedule": "cosine", "weight_decay": 0.1},
        {"schedule": "constant", "seed": 7},
    ],
    ids=lambda s: s["schedule"],
)
def test_epochs_match_a_plain_loop(data: tuple[Images, Images], settings: dict[str, object]) -> None:
    """Over several epochs with a short last batch, losses and weights match a plain loop."""
    train, val = data
    config = TrainConfig(epochs=3, batch_size=4, lr=1e-2, **settings)
    ours = build_trainable(MINI, LAYERS["head"])
    theirs = copy.deepcopy(ours)
    weights = [p for p in theirs.parameters() if p.requires_grad]
    x, labels = read_pixels(train), torch.from_numpy(train.labels)
    x_val, labels_val = read_pixels(val), torch.from_numpy(val.labels)
    decayed = {"params": [p for p in weights if p.dim() > 1], "weight_decay": config.weight_decay}
    optimizer = torch.optim.Adam([decayed, {"params": [p for p in weights if p.dim() == 1]}], lr=config.lr)
    lrs = {"exponential": [1e-2, 5e-3, 2.5e-3], "cosine": [1e-2, 7.5e-3, 2.5e-3], "constant": [1e-2] * 3}
    number = 0
    for event in build_training(ours, train, val, config):
        if not isinstance(event, Epoch):
            continue
        for group in optimizer.param_groups:
            group["lr"] = lrs[config.schedule][number]
        loss, accuracy = train_plain_epoch(theirs, optimizer, x, labels, config, number)
        number += 1
        assert (event.epoch, event.lr) == (number, pytest.approx(lrs[config.schedule][number - 1]))
        assert event.train_loss == pytest.approx(loss, rel=1e-3)
        assert event.train_accuracy == pytest.approx(accuracy)
        with torch.no_grad():
            logits = theirs.eval()(x_val)
        assert event.val_loss == pytest.approx(F.cross_entropy(logits, labels_val).item(), rel=1e-3)
        assert event.val_accuracy == pytest.approx((logits.argmax(1) == labels_val).float().mean().item())
        for name in ("classifier.6.weight", "classifier.6.bias"):
            torch.testing.assert_close(ours.state_dict()[name], theirs.state_dict()[name], rtol=0, atol=1e-4)
    assert number == 3


@pytest.mark.parametrize("stage", LAYERS)
def test_frozen_layers_do_not_change(data: tuple[Images, Images], stage: str) -> None:
    """Training changes every trainable tensor and no bit of a frozen one."""
    train, val = data
    network = build_trainable(MINI, LAYERS[stage])
    before = copy_state(network)
    train_epochs(network, train, val, TrainConfig(epochs=1, batch_size=4, lr=1e-3, weight_decay=0.1))
    trainable = {name for name, p in network.named_parameters() if p.requires_grad}
    assert {name for name, t in network.state_dict().items() if not torch.equal(t, before[name])} == trainable


@pytest.mark.parametrize("architecture", [PLAIN, BATCHNORM], ids=["plain", "batchnorm"])
def test_best_epoch_is_kept(
    data: tuple[Images, Images], architecture: Architecture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network ends with the weights and statistics of the best epoch on the validation part."""
    train, val = data
    script = iter([Score(9.0 * 4, 2, 4), Score(1.0 * 4, 3, 4), Score(9.0 * 4, 3, 4), Score(2.0 * 4, 1, 4)])
    monkeypatch.setattr(training, "evaluate", lambda *_: [next(script)])
    network = build_trainable(architecture, LAYERS["scratch"])
    records, states = [], []
    for event in build_training(network, train, val, TrainConfig(epochs=4, batch_size=4)):
        if isinstance(event, Epoch):
            records.append(event)
            states.append(copy_state(network))
    assert [r.best for r in records] == [True, True, False, False]
    assert [r.val_accuracy for r in records] == [0.5, 0.75, 0.75, 0.25]
    after = network.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in states[1].items())
    assert any(not torch.equal(after[name], tensor) for name, tensor in states[3].items())


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ([(2.0, 3), (1.0, 3), (1.5, 3)], [True, True, False]),  # accuracy ties: the lower loss
        ([(1.0, 3), (1.0, 3), (1.0, 3)], [True, False, False]),  # both tie: the earliest
        ([(1.0, 3), (9.0, 4), (0.1, 3)], [True, True, False]),  # accuracy comes first
        ([(5.0, 0), (5.0, 0), (4.0, 0)], [True, False, True]),  # an accuracy of 0 throughout
    ],
    ids=["loss", "earliest", "accuracy", "all wrong"],
)
@pytest.mark.parametrize("evaluate_start", [False, True])
def test_ties_go_to_the_lower_loss(
    data: tuple[Images, Images],
    scores: list[tuple[float, int]],
    best: list[bool],
    evaluate_start: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of equal accuracies the lower validation loss is best, then the earliest epoch, epoch 0 included."""
    script = iter([Score(loss * 4, correct, 4) for loss, correct in scores])
    monkeypatch.setattr(training, "evaluate", lambda *_: [next(script)])
    config = TrainConfig(epochs=3 - evaluate_start)
    records = train_epochs(build_trainable(PLAIN, ("classifier",)), *data, config, evaluate_start=evaluate_start)
    assert [r.epoch for r in records] == ([0, 1, 2] if evaluate_start else [1, 2, 3])
    assert [r.best for r in records] == best


def test_the_start_is_epoch_0(data: tuple[Images, Images]) -> None:
    """With `evaluate_start` the initial network is recorded as epoch 0, and can be the best."""
    train, val = data
    network = build_trainable(MINI, LAYERS["head"])
    train_epochs(network, train, val, TrainConfig(epochs=5, batch_size=4, lr=0.05))
    before = copy_state(network)
    loss, accuracy, _ = evaluate_network(network, val)
    records = train_epochs(network, train, val, TrainConfig(epochs=2, batch_size=4, lr=1e4), evaluate_start=True)
    start = records[0]
    assert (start.epoch, start.lr, start.train_loss, start.train_accuracy) == (0, None, None, None)
    assert (start.val_loss, start.val_accuracy) == pytest.approx((loss, accuracy), rel=1e-5)
    assert [r.best for r in records] == [True, False, False]
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_best_weights_have_the_best_metrics(data: tuple[Images, Images]) -> None:
    """After training, the network has the best epoch's validation loss and accuracy."""
    train, val = data
    network = build_trainable(MINI, LAYERS["head"])
    records = train_epochs(network, train, val, TrainConfig(epochs=5, batch_size=4, lr=0.05))
    best = max(records, key=lambda r: (r.val_accuracy, -r.val_loss))  # the first of equal ones
    assert [r.epoch for r in records if r.best][-1] == best.epoch
    assert evaluate_network(network, val)[:2] == pytest.approx((best.val_loss, best.val_accuracy), rel=1e-5)


EVERYTHING: dict[str, Any] = {
    "optimizer": "sgd", "schedule": "one-cycle", "weight_decay": 0.1, "clip_norm": 0.5, "label_smoothing": 0.1,
    "class_weights": "sqrt", "ema": 0.9, "patience": 1, "mixup": 0.3, "layer_decay": 0.7, "warmup": 0.5,
}  # fmt: skip


@pytest.mark.parametrize("architecture", [MINI, BATCHNORM], ids=["dropout", "batchnorm"])
@pytest.mark.parametrize(("evaluate_start", "settings"), [(False, {}), (True, {}), (True, EVERYTHING)])
def test_restored_training_ends_the_same(
    data: tuple[Images, Images], architecture: Architecture, evaluate_start: bool, settings: dict[str, Any]
) -> None:
    """A training restored from the state at any event ends with the same records and weights."""
    config = FinetuneConfig(epochs=2, batch_size=4, **{"lr": 1e-2, "schedule": "exponential", **settings})

    def records_of(events: Iterator[Progress | Epoch]) -> list[Epoch]:
        return [replace(event, images_per_second=0.0) for event in events if isinstance(event, Epoch)]

    network = build_trainable(architecture, LAYERS["scratch"])
    events = [*build_training(network, *data, config, evaluate_start=evaluate_start)]
    expected = records_of(iter(events))
    for stop in range(1, len(events)):
        first = build_training(
            build_trainable(architecture, LAYERS["scratch"]), *data, config, evaluate_start=evaluate_start
        )
        running = iter(first)  # it stays where it is: within a validation pass, the mean weights are in place
        begun = records_of(event for _, event in zip(range(stop), running, strict=False))
        tensors, numbers = copy.deepcopy(first.state())
        running.close()
        again = build_trainable(architecture, LAYERS["scratch"])
        second = build_training(again, *data, config, evaluate_start=evaluate_start)
        second.restore(tensors, numbers)
        assert begun + records_of(iter(second)) == expected, stop
        assert all(torch.equal(again.state_dict()[name], t) for name, t in network.state_dict().items()), stop


@pytest.mark.parametrize("where", ["loss", "weights"])
def test_non_finite_state_is_refused(data: tuple[Images, Images], where: str) -> None:
    """If loss or weights are not finite when a snapshot is due, the error says so."""
    run = build_training(build_trainable(PLAIN, ("classifier",)), *data, TrainConfig(epochs=2, batch_size=4))
    next(iter(run))
    if where == "loss":
        run.loss_sum.fill_(float("nan"))
    else:
        next(iter(run.trainable.values())).data[0] = float("inf")
    with pytest.raises(DivergedError, match=r"no longer a finite number in epoch 1 at lr 0\.005: try a lower --lr"):
        run.state()


def test_short_batch_weighs_less(data: tuple[Images, Images]) -> None:
    """The training loss is the mean over images, not over batches, if the last batch is short."""
    train, val = data
    network = build_trainable(PLAIN, ("classifier",))
    # so small a step changes no weight, so the loss of every batch is that of the network at the start
    config = TrainConfig(epochs=1, batch_size=10, lr=1e-30)
    x, labels = read_pixels(train), torch.from_numpy(train.labels)
    with torch.no_grad():
        logits = network.eval()(x)
        losses = F.cross_entropy(logits, labels, reduction="none")
    [record] = train_epochs(network, train, val, config)
    assert record.train_loss == pytest.approx(losses.mean().item(), rel=1e-5)
    assert record.train_accuracy == pytest.approx((logits.argmax(1) == labels).float().mean().item())
    order = torch.from_numpy(np.random.default_rng((0, 0)).permutation(11))
    per_batch = torch.stack([losses[order[:10]].mean(), losses[order[10:]].mean()]).mean().item()
    assert record.train_loss != pytest.approx(per_batch, rel=1e-3), "the case can tell the two apart"


def test_evaluate(data: tuple[Images, Images]) -> None:
    """Loss and accuracy are means over images, without dropout."""
    _, val = data
    network = build_trainable(MINI, LAYERS["head"]).train()
    loss, accuracy, predicted = evaluate_network(network, val)
    labels = torch.from_numpy(val.labels)
    with torch.no_grad():
        logits = network.eval()(read_pixels(val))
    assert loss == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
    assert accuracy == pytest.approx((logits.argmax(1) == labels).float().mean().item())
    assert list(predicted) == [int((logits.argmax(1) == k).sum()) for k in range(logits.shape[1])]


@pytest.mark.parametrize("batch", [1, 4, 7, 32])
def test_predictions_do_not_depend_on_batches(data: tuple[Images, Images], batch: int) -> None:
    """Logits come in the order of the images, without dropout, in batches of the requested size."""
    _, val = data
    network = build_trainable(MINI, LAYERS["head"]).train()
    split = split_mini(network)
    logits = list(predict(split.tail, build_source(split, val), "float32", batch))
    assert [len(part) for part in logits] == [min(batch, 7 - at) for at in range(0, 7, batch)]
    with torch.no_grad():
        torch.testing.assert_close(torch.cat(logits), network.eval()(read_pixels(val)), rtol=1e-5, atol=1e-5)


def test_progress(data: tuple[Images, Images]) -> None:
    """Every step yields the number of images done, then every batch of validation, then the record."""
    train, val = data
    network = build_trainable(PLAIN, LAYERS["scratch"])
    events = list(build_training(network, train, val, TrainConfig(epochs=2, batch_size=4)))
    done = [(e.epoch, e.done, e.total, e.validation) if isinstance(e, Progress) else e.epoch for e in events]
    one, two = ([*((n, at, 11, False) for at in (4, 8, 11)), (n, 7, 7, True), n] for n in (1, 2))
    assert done == one + two


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("stage", LAYERS)
def test_tail_input_depends_on_the_image_alone(data: tuple[Images, Images], stage: str, precision: str) -> None:
    """The input of the tail is the frozen layers' output, equal to the bit in any batch."""
    train, _ = data
    network = build_trainable(MINI, LAYERS[stage])
    split = split_mini(network)
    entering = build_source(split, train, precision)
    order = np.arange(11)
    features = torch.cat([*entering.batches(order, 11, 0)])
    for batch_size in (1, 3, 64):
        batches = list(entering.batches(order[::-1].copy(), batch_size, 0))
        assert [len(x) for x in batches] == [min(batch_size, 11 - at) for at in range(0, 11, batch_size)]
        assert torch.equal(torch.cat(batches).flip(0), features)
    with torch.no_grad():
        expected = split.frozen.eval()(read_pixels(train))
    assert features.dtype == getattr(torch, precision)
    scale = expected.abs().max().item()
    atol = scale * (1e-5 if precision == "float32" else 0.05)
    torch.testing.assert_close(features.float(), expected, rtol=0, atol=atol)


@pytest.mark.parametrize("stage", LAYERS)
def test_bfloat16_training(data: tuple[Images, Images], stage: str) -> None:
    """Losses in bfloat16 are close to those in float32 and not equal; weights are float32."""
    train, val = data
    config = TrainConfig(epochs=2, batch_size=4, lr=1e-4)
    exact, coarse = (build_trainable(MINI, LAYERS[stage]) for _ in range(2))
    before = copy_state(coarse)
    ours, theirs = train_epochs(exact, train, val, config), train_epochs(coarse, train, val, config, "bfloat16")
    for one, other in zip(ours, theirs, strict=True):
        assert other.train_loss == pytest.approx(one.train_loss, rel=0.03)
        assert other.train_loss != one.train_loss
        assert other.val_loss == pytest.approx(one.val_loss, rel=0.03)
        assert other.val_loss != one.val_loss
    after = coarse.state_dict()
    assert {t.dtype for t in after.values()} == {torch.float32}
    trainable = {name for name, p in coarse.named_parameters() if p.requires_grad}
    assert {name for name in after if not torch.equal(after[name], before[name])} == trainable


@pytest.mark.parametrize(("layers", "epochs"), [(LAYERS["scratch"], 1), (LAYERS["head"], 3)], ids=["scratch", "head"])
def test_divergence_is_an_error(data: tuple[Images, Images], layers: tuple[str, ...], epochs: int) -> None:
    """A training that diverges ends with an error that names the epoch and gives advice."""
    train, val = data
    config = TrainConfig(epochs=epochs, batch_size=4, lr=1e38, schedule="constant")
    with pytest.raises(DlcvError, match=r"no longer a finite number in epoch \d at lr 1e\+38: try a lower --lr"):
        train_epochs(build_trainable(MINI, layers), train, val, config)


def test_training_follows_its_seed(data: tuple[Images, Images]) -> None:
    """The same seed gives the same weights, whatever was drawn before; another seed gives others."""
    train, val = data
    results = []
    for seed in (0, 0, 1):
        network = build_trainable(MINI, LAYERS["finetune"])
        torch.manual_seed(len(results))
        np.random.seed(len(results))
        train_epochs(network, train, val, TrainConfig(epochs=1, batch_size=4, lr=1e-3, seed=seed))
        results.append(network.state_dict())
    one, same, other = results
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["classifier.6.weight"], other["classifier.6.weight"])


def test_missing_image_is_named(data: tuple[Images, Images], tmp_path: Path) -> None:
    """An image that is deleted during training is named in the error."""
    train, val = data
    gone = replace(train, paths=[*train.paths[:-1], tmp_path / "gone.png"])
    with pytest.raises(DlcvError, match=r"gone\.png"):
        train_epochs(build_trainable(PLAIN, ("classifier",)), gone, val, TrainConfig(epochs=1))


@pytest.mark.parametrize("augment", ["flip", "crop-flip"])
def test_augmentation_repeats_and_varies(data: tuple[Images, Images], augment: str) -> None:
    """A view depends on seed, epoch and image alone, and changes with the epoch."""
    varied = replace(data[0], augment=augment, seed=3)  # type: ignore[arg-type]
    entering = build_source(split_mini(build_trainable(MINI, LAYERS["scratch"])), varied)
    order = np.arange(11)
    first = torch.cat([*entering.batches(order, 4, 0)])
    assert torch.equal(first, torch.cat([*entering.batches(order[::-1].copy(), 3, 0)]).flip(0))
    assert not torch.equal(first, torch.cat([*entering.batches(order, 4, 1)]))


def test_augmented_training_differs_in_its_images_alone(data: tuple[Images, Images]) -> None:
    """With `augment`, frozen layers and validation images do not change, and training repeats."""
    train, val = data
    ends, losses = [], []
    for augment in ("flip", "flip", "none"):
        network = build_trainable(MINI, LAYERS["head"])
        before = copy_state(network)
        varied = replace(train, augment=augment)  # type: ignore[arg-type]
        # so small a step changes no weight: the validation loss is that of the network at the start
        [record] = train_epochs(copy.deepcopy(network), varied, val, TrainConfig(epochs=1, batch_size=4, lr=1e-30))
        losses.append((record.train_loss, record.val_loss))
        train_epochs(network, varied, val, TrainConfig(epochs=2, batch_size=4))
        changed = {name for name, tensor in copy_state(network).items() if not torch.equal(tensor, before[name])}
        assert changed == {"classifier.6.weight", "classifier.6.bias"}
        ends.append(network.classifier[6].weight)
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])
    assert losses[0] == losses[1]
    assert losses[0][0] != losses[2][0]
    assert losses[0][1] == losses[2][1]


def test_everything_is_a_plain_loop(data: tuple[Images, Images]) -> None:
    """With every setting at once, losses and weights are those of a loop written with torch's own parts."""
    train, val = data
    config = FinetuneConfig(epochs=2, batch_size=len(train.labels), lr=1e-2, **EVERYTHING)
    ours, theirs = build_trainable(PLAIN, ("classifier",)), build_trainable(PLAIN, ("classifier",))
    records = train_epochs(ours, train, val, config)
    steps = [step for _, step in list_steps(theirs, PLAIN) if [*step.parameters()] and trains(step)]
    groups = []
    for depth, step in enumerate(reversed(steps)):
        for p in step.parameters():
            groups.append({"params": [p], "weight_decay": 0.1 if p.dim() > 1 else 0.0, "scale": 0.7**depth})
    optimizer = torch.optim.SGD(groups, lr=1.0, momentum=0.9, nesterov=True)
    labels, classes = torch.from_numpy(train.labels), int(train.labels.max()) + 1
    balanced = compute_class_weight("balanced", classes=np.arange(classes), y=train.labels)
    means = [p.detach().clone() for g in groups for p in g["params"]]
    for epoch, record in enumerate(records):
        seed = int(np.random.SeedSequence((0, epoch, 0)).generate_state(1, np.uint64)[0])
        order = np.random.default_rng((0, epoch)).permutation(len(labels))
        rng = np.random.default_rng(seed)
        share, other = rng.beta(0.3, 0.3), rng.permutation(len(labels))
        split = split_at_frozen(theirs, PLAIN)
        x = split.frozen.eval()(read_pixels(train)[order]).detach()
        x = share * x + (1 - share) * x[other]
        for group in optimizer.param_groups:
            group["lr"] = group["scale"] * config.lr_at(epoch, 1.0)
        torch.manual_seed(seed)
        logits = split.tail.train()(x)
        log_p, weight = logits.log_softmax(1), torch.from_numpy(balanced).float().sqrt()
        # torch's mean with weights and smoothing, of each of the two labels, written out
        loss = torch.zeros(())
        for part, target in ((share, labels[order]), (1 - share, labels[order][other])):
            true = -(weight[target] * log_p[range(len(target)), target]).sum()
            spread = -(weight * log_p).sum() / classes
            loss = loss + part * (0.9 * true + 0.1 * spread) / weight[target].sum()
        assert record.train_loss == pytest.approx(loss.item(), rel=1e-4)
        main = labels[order] if share > 0.5 else labels[order][other]  # of mixed images, the one that is more of it
        assert record.train_accuracy == pytest.approx((logits.argmax(1) == main).float().mean().item())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_([p for g in groups for p in g["params"]], 0.5)
        optimizer.step()
        decay = min(0.9, (1 + epoch) / (10 + epoch))
        parameters = [p for group in groups for p in group["params"]]
        means = [decay * mean + (1 - decay) * p.detach() for mean, p in zip(means, parameters, strict=True)]
        if record.best:
            best = {id(p): mean for p, mean in zip(parameters, means, strict=True)}
    for name, p in theirs.named_parameters():
        if id(p) in best:
            torch.testing.assert_close(ours.state_dict()[name], best[id(p)], rtol=0, atol=1e-5)


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_cutmix_pastes_one_box(alpha: float) -> None:
    """Each image keeps its pixels outside of one box, which comes from the other; labels count by area."""
    rows = torch.arange(6.0)
    x = rows[:, None, None, None].expand(6, 2, 9, 11).contiguous()
    boxes = set()
    for seed in range(60):
        mixed, [(labels, share), (others, rest)] = mix_images(x, rows.long(), TrainConfig(cutmix=alpha), seed)
        own = mixed == labels[:, None, None, None]
        pasted = mixed == others[:, None, None, None]
        assert (own | pasted).all()
        different = labels != others
        assert (own[different].double().mean((1, 2, 3)) - share).abs().max() < 1e-9
        assert share + rest == pytest.approx(1)
        box = ~own[different][0, 0]
        assert box.sum() == box.any(0).sum() * box.any(1).sum()  # a rectangle
        assert (own[different] == own[different][:1]).all()
        boxes.add((int(box.any(0).sum()), int(box.any(1).sum())))
    assert len(boxes) > 10


def test_cutmix_needs_positions() -> None:
    """Features without positions cannot be cut, and the message names what can be used."""
    with pytest.raises(SettingError, match="use --mixup"):
        mix_images(torch.zeros(4, 5), torch.zeros(4, dtype=torch.long), TrainConfig(cutmix=1.0), 0)


def test_mixup_and_cutmix_take_turns() -> None:
    """With both, some batches are mixed in every pixel, and the others in a box."""
    x = torch.arange(4.0)[:, None, None, None].expand(4, 1, 8, 8).contiguous()
    config, kinds = TrainConfig(mixup=1.0, cutmix=1.0), []
    for seed in range(40):
        mixed, _ = mix_images(x, torch.arange(4), config, seed)
        kinds.append(bool((mixed == mixed.round()).all()))
    assert 10 < sum(kinds) < 30


def test_patience_ends_a_training(data: tuple[Images, Images], monkeypatch: pytest.MonkeyPatch) -> None:
    """After that many epochs without a better one, training is over; the best one's weights stay."""
    script = iter([Score(9.0, 2, 4), Score(9.0, 3, 4), Score(9.0, 3, 4), Score(9.0, 1, 4), Score(9.0, 4, 4)])
    monkeypatch.setattr(training, "evaluate", lambda *_: [next(script)])
    config = TrainConfig(epochs=100, batch_size=4, patience=2)
    assert [r.best for r in train_epochs(build_trainable(PLAIN, ("classifier",)), *data, config)] == [
        True,
        True,
        False,
        False,
    ]
