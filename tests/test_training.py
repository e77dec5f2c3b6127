"""The training loop against a plain one, written out here with torch's own parts."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_photos
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.optim.lr_scheduler import CosineAnnealingLR, ExponentialLR

from dlcv_cli.config import TrainConfig
from dlcv_cli.errors import DlcvError
from dlcv_cli.vision import training
from dlcv_cli.vision.architectures import ARCHITECTURES, Architecture, K
from dlcv_cli.vision.networks import Network, random_network, unfreeze
from dlcv_cli.vision.training import Epoch, Images, Kept, Progress, batches, evaluate, fit, predict

CPU = torch.device("cpu")
MINI = ARCHITECTURES["vgg16_mini"]
LAYERS = {
    "head": ("classifier.6",),
    "finetune": ("classifier", "features.28"),
    "scratch": ("features", "classifier"),
}
# no dropout: what an image loses does not depend on when it is looked at
PLAIN = replace(
    MINI, features=(("conv", 8, 3, 2, 1), ("relu",)), classifier=(("linear", K),), pool=2, head="classifier.0"
)
BATCHNORM = replace(PLAIN, features=(("conv", 8, 3, 2, 1), ("batchnorm",), ("relu",)))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Images, Images]:
    """(train of 11, val of 7) images of the size the network wants, three classes."""
    root = make_photos(tmp_path_factory.mktemp("data") / "photos", {"a": 6, "b": 6, "c": 6}, (64, 64))
    paths = sorted(root.rglob("*.png"))
    labels = np.array(["abc".index(p.parent.name) for p in paths], np.int64)
    chosen = np.random.default_rng(0).permutation(len(paths))
    train, val = (
        Images([paths[i] for i in part], labels[part], MINI.preprocessing) for part in (chosen[:11], chosen[11:])
    )
    return train, val


def pixels(images: Images) -> Tensor:
    """What a network should see, (N, 3, H, W), without any code of ours."""
    raw = np.stack([np.asarray(Image.open(path), np.float32) for path in images.paths]) / 255
    raw = (raw - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    return torch.from_numpy(raw.astype(np.float32)).permute(0, 3, 1, 2)


def trainee(architecture: Architecture, layers: tuple[str, ...]) -> Network:
    """A network from seed 0 whose named layers train."""
    network = random_network(architecture, 3, seed=0)
    unfreeze(network, layers)
    return network


def state(network: Network) -> dict[str, Tensor]:
    """A copy of all its tensors."""
    return copy.deepcopy(network.state_dict())


def epochs_of(network: Network, train: Images, val: Images, config: TrainConfig) -> list[Epoch]:
    """Trains, and gives the epochs' records."""
    return [event for event in fit(network, train, val, config, CPU, 2) if isinstance(event, Epoch)]


def plain_epoch(network: Network, optimizer: torch.optim.Optimizer, x: Tensor, labels: Tensor, config: TrainConfig,
                epoch: int) -> tuple[float, float]:  # fmt: skip
    """One epoch as a notebook has it: the whole network in train mode, whatever is frozen. (loss, accuracy)."""
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
def test_one_step_is_a_plain_one(data: tuple[Images, Images], stage: str) -> None:
    """One step on one batch leaves the weights that torch.optim.Adam leaves on the whole network."""
    train, val = data
    config = TrainConfig(epochs=1, batch_size=64, lr=1e-3, seed=3)
    ours = trainee(MINI, LAYERS[stage])
    theirs = copy.deepcopy(ours)
    before = state(ours)
    [record] = epochs_of(ours, train, val, config)
    optimizer = torch.optim.Adam([p for p in theirs.parameters() if p.requires_grad], lr=config.lr)
    loss, accuracy = plain_epoch(theirs, optimizer, pixels(train), torch.from_numpy(train.labels), config, 0)
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
def test_several_epochs_are_plain_ones(data: tuple[Images, Images], settings: dict[str, object]) -> None:
    """Over epochs of several batches, the last one short, losses and weights follow the plain loop."""
    train, val = data
    config = TrainConfig(epochs=3, batch_size=4, lr=1e-2, **settings)
    ours = trainee(MINI, LAYERS["head"])
    theirs = copy.deepcopy(ours)
    weights = [p for p in theirs.parameters() if p.requires_grad]
    x, labels = pixels(train), torch.from_numpy(train.labels)
    x_val, labels_val = pixels(val), torch.from_numpy(val.labels)
    optimizer = torch.optim.Adam(weights, lr=config.lr, weight_decay=config.weight_decay)
    lrs = {"exponential": [1e-2, 5e-3, 2.5e-3], "cosine": [1e-2, 7.5e-3, 2.5e-3], "constant": [1e-2] * 3}
    number = 0
    for event in fit(ours, train, val, config, CPU, 2):
        if not isinstance(event, Epoch):
            continue
        optimizer.param_groups[0]["lr"] = lrs[config.schedule][number]
        loss, accuracy = plain_epoch(theirs, optimizer, x, labels, config, number)
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
    """After training, frozen tensors are what they were bit by bit, and each trainable one is not."""
    train, val = data
    network = trainee(MINI, LAYERS[stage])
    before = state(network)
    epochs_of(network, train, val, TrainConfig(epochs=1, batch_size=4, lr=1e-3, weight_decay=0.1))
    trainable = {name for name, p in network.named_parameters() if p.requires_grad}
    assert {name for name, t in network.state_dict().items() if not torch.equal(t, before[name])} == trainable


@pytest.mark.parametrize("architecture", [PLAIN, BATCHNORM], ids=["plain", "batchnorm"])
def test_best_epoch_is_kept(
    data: tuple[Images, Images], architecture: Architecture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network ends with the weights and statistics of the best validation accuracy, the earliest of equal ones."""
    train, val = data
    script = iter([(9.0, 0.5), (9.0, 0.75), (1.0, 0.75), (2.0, 0.25)])
    monkeypatch.setattr(training, "evaluate", lambda *_: next(script))
    network = trainee(architecture, LAYERS["scratch"])
    records, states = [], []
    for event in fit(network, train, val, TrainConfig(epochs=4, batch_size=4), CPU, 2):
        if isinstance(event, Epoch):
            records.append(event)
            states.append(state(network))
    assert [r.best for r in records] == [True, True, False, False]
    assert [r.val_accuracy for r in records] == [0.5, 0.75, 0.75, 0.25]
    after = network.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in states[1].items())
    assert any(not torch.equal(after[name], tensor) for name, tensor in states[3].items())


def test_best_epoch_again(data: tuple[Images, Images]) -> None:
    """Evaluating the network after training gives the best epoch's validation loss and accuracy."""
    train, val = data
    network = trainee(MINI, LAYERS["head"])
    records = epochs_of(network, train, val, TrainConfig(epochs=5, batch_size=4, lr=0.05))
    best = max(records, key=lambda r: r.val_accuracy)  # the first of equal ones
    assert [r.epoch for r in records if r.best][-1] == best.epoch
    again = evaluate(network, batches(val, CPU, 2), len(val.paths))
    assert again == pytest.approx((best.val_loss, best.val_accuracy), rel=1e-5)


def test_all_wrong_is_kept_too(data: tuple[Images, Images], monkeypatch: pytest.MonkeyPatch) -> None:
    """A validation accuracy of 0 throughout still leaves the first epoch's weights, marked best."""
    train, val = data
    monkeypatch.setattr(training, "evaluate", lambda *_: (5.0, 0.0))
    records = epochs_of(trainee(PLAIN, ("classifier",)), train, val, TrainConfig(epochs=2))
    assert [r.best for r in records] == [True, False]


@pytest.mark.parametrize("epochs", [1, 6])
@pytest.mark.parametrize("schedule", ["exponential", "cosine", "constant"])
def test_lr_at(schedule: str, epochs: int) -> None:
    """Each epoch's learning rate is that of torch's scheduler of the name."""
    config = TrainConfig(epochs=epochs, lr=0.3, decay=0.8, schedule=schedule)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    schedulers = {
        "exponential": lambda: ExponentialLR(optimizer, gamma=0.8),
        "cosine": lambda: CosineAnnealingLR(optimizer, T_max=epochs),
        "constant": lambda: ExponentialLR(optimizer, gamma=1.0),
    }
    scheduler = schedulers[schedule]()
    for epoch in range(epochs):
        assert config.lr_at(epoch) == pytest.approx(scheduler.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        scheduler.step()


def test_short_batch_weighs_as_it_should(data: tuple[Images, Images]) -> None:
    """The training loss is the mean over images, not over batches, when the last batch is short."""
    train, val = data
    network = trainee(PLAIN, ("classifier",))
    # so small a step changes no weight, so the loss of every batch is that of the network at the start
    config = TrainConfig(epochs=1, batch_size=10, lr=1e-30)
    x, labels = pixels(train), torch.from_numpy(train.labels)
    with torch.no_grad():
        logits = network.eval()(x)
        losses = F.cross_entropy(logits, labels, reduction="none")
    [record] = epochs_of(network, train, val, config)
    assert record.train_loss == pytest.approx(losses.mean().item(), rel=1e-5)
    assert record.train_accuracy == pytest.approx((logits.argmax(1) == labels).float().mean().item())
    order = torch.from_numpy(np.random.default_rng((0, 0)).permutation(11))
    per_batch = torch.stack([losses[order[:10]].mean(), losses[order[10:]].mean()]).mean().item()
    assert record.train_loss != pytest.approx(per_batch, rel=1e-3), "the case can tell the two apart"


def test_evaluate(data: tuple[Images, Images]) -> None:
    """Loss and accuracy are means over images, dropout off."""
    _, val = data
    network = trainee(MINI, LAYERS["head"]).train()
    loss, accuracy = evaluate(network, batches(val, CPU, 2), len(val.paths))
    labels = torch.from_numpy(val.labels)
    with torch.no_grad():
        logits = network.eval()(pixels(val))
    assert loss == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
    assert accuracy == pytest.approx((logits.argmax(1) == labels).float().mean().item())


@pytest.mark.parametrize("batch", [1, 4, 7, 32])
def test_predictions_do_not_depend_on_batches(data: tuple[Images, Images], batch: int) -> None:
    """Logits and labels come in the images' order, dropout off, in batches of the size asked for."""
    _, val = data
    network = trainee(MINI, LAYERS["head"]).train()
    logits, labels = zip(*predict(network, batches(val, CPU, 2), len(val.paths), batch), strict=True)
    assert [len(part) for part in labels] == [min(batch, 7 - at) for at in range(0, 7, batch)]
    assert torch.cat(labels).tolist() == val.labels.tolist()
    with torch.no_grad():
        torch.testing.assert_close(torch.cat(logits), network.eval()(pixels(val)), rtol=1e-5, atol=1e-5)


def test_progress(data: tuple[Images, Images]) -> None:
    """Every step tells how many of the epoch's images are done, a short batch by its size; then the epoch's record."""
    train, val = data
    network = trainee(PLAIN, LAYERS["scratch"])
    events = list(fit(network, train, val, TrainConfig(epochs=2, batch_size=4), CPU, 2))
    done = [(e.epoch, e.done, e.total) if isinstance(e, Progress) else e.epoch for e in events]
    assert done == [(1, 4, 11), (1, 8, 11), (1, 11, 11), 1, (2, 4, 11), (2, 8, 11), (2, 11, 11), 2]


@pytest.mark.parametrize("stage", ["head", "finetune"])
def test_frozen_layers_kept_or_not(data: tuple[Images, Images], stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frozen layers computed once give what frozen layers computed in every epoch give; memory decides which."""
    train, val = data
    found = []
    for limit in (2**30, 0):
        monkeypatch.setattr(training, "MAX_KEPT", limit)
        network = trainee(MINI, LAYERS[stage])
        events = list(fit(network, train, val, TrainConfig(epochs=2, batch_size=4, lr=1e-4), CPU, 2))
        kept = [event for event in events if isinstance(event, Kept)]
        passes = [(e.done, e.total) for e in events if isinstance(e, Progress) and e.epoch == 0]
        if limit:
            # float32 in 11 + 7 images: 512 behind classifier.1, 64 channels of 4 x 4 before features.28
            layer, numbers = {"head": ("classifier.2", 512), "finetune": ("features.28", 64 * 4 * 4)}[stage]
            assert kept == [Kept(layer, 18 * 4 * numbers)]
            assert passes[-1] == (18, 18)
        else:
            assert (kept, passes) == ([], [])
        found.append([(e.train_loss, e.val_loss) for e in events if isinstance(e, Epoch)])
    np.testing.assert_allclose(found[0], found[1], rtol=1e-3)


@pytest.mark.parametrize(("layers", "epochs"), [(LAYERS["scratch"], 1), (LAYERS["head"], 3)], ids=["scratch", "head"])
def test_loss_that_is_not_finite(data: tuple[Images, Images], layers: tuple[str, ...], epochs: int) -> None:
    """A training that runs away ends with an error that names the epoch and what to do."""
    train, val = data
    config = TrainConfig(epochs=epochs, batch_size=4, lr=1e38, schedule="constant")
    with pytest.raises(DlcvError, match=r"no longer a finite number in epoch \d at lr 1e\+38: try a lower --lr"):
        epochs_of(trainee(MINI, layers), train, val, config)


def test_seed_decides(data: tuple[Images, Images]) -> None:
    """The same seed gives the same weights bit by bit, whatever was drawn before; another seed gives others."""
    train, val = data
    results = []
    for seed in (0, 0, 1):
        network = trainee(MINI, LAYERS["finetune"])
        torch.manual_seed(len(results))
        np.random.seed(len(results))
        epochs_of(network, train, val, TrainConfig(epochs=1, batch_size=4, lr=1e-3, seed=seed))
        results.append(network.state_dict())
    one, same, other = results
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["classifier.6.weight"], other["classifier.6.weight"])


def test_missing_image_is_named(data: tuple[Images, Images], tmp_path: Path) -> None:
    """An image that goes away while training is named in the error."""
    train, val = data
    gone = replace(train, paths=[*train.paths[:-1], tmp_path / "gone.png"])
    with pytest.raises(DlcvError, match=r"gone\.png"):
        epochs_of(trainee(PLAIN, ("classifier",)), gone, val, TrainConfig(epochs=1))


@pytest.mark.parametrize("augment", ["flip", "crop-flip"])
def test_augmentation_repeats_and_varies(data: tuple[Images, Images], augment: str) -> None:
    """A view is a function of seed, epoch and image: the same again, whatever the order; another in the next epoch."""
    source = batches(data[0], CPU, 2, augment, seed=3)  # type: ignore[arg-type]
    order = np.arange(11)
    first = torch.cat([x for x, _ in source(order, 4, 0)])
    backwards = torch.cat([x for x, _ in source(order[::-1].copy(), 3, 0)])
    assert torch.equal(first, backwards.flip(0))
    assert not torch.equal(first, torch.cat([x for x, _ in source(order, 4, 1)]))


def test_augmented_training_differs_in_its_images_alone(data: tuple[Images, Images]) -> None:
    """With `augment`, frozen layers stay as they are, only the validation images' outputs are kept, and it repeats."""
    ends = []
    for augment in ("flip", "flip", "none"):
        network = trainee(MINI, LAYERS["head"])
        before = state(network)
        config = TrainConfig(epochs=2, batch_size=4, augment=augment)  # type: ignore[arg-type]
        kept = [event.size for event in fit(network, *data, config, CPU, 2) if isinstance(event, Kept)]
        assert kept == [4 * 512 * (7 if augment == "flip" else 18)]
        changed = {name for name, tensor in state(network).items() if not torch.equal(tensor, before[name])}
        assert changed == {"classifier.6.weight", "classifier.6.bias"}
        ends.append(network.classifier[6].weight)
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])
