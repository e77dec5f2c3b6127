"""Features computed once: the cache changes no bit of any result, is used when it can be, and is never trusted."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from conftest import (
    BOTH,
    COMMON,
    TEST,
    TRAIN,
    VAL,
    Run,
    Train,
    contents,
    count_sound_entries,
    dlcv,
    flip_bit,
    metrics_of,
)
from PIL import Image
from small_networks import NEW, shrink_networks
from torch import Tensor, nn
from torch.nn import functional as F

from dlcv_cli.files import feature_cache as stores
from dlcv_cli.files import tensors
from dlcv_cli.stages import weights
from dlcv_cli.vision.architectures import ARCHITECTURES
from dlcv_cli.vision.models import BUILDERS, build_random_network, unfreeze

MINI = ARCHITECTURES["vgg16_mini"]
LAYERS = {"head": (MINI.head,), "finetune": MINI.unfreeze}
COUNTS = ["used", "before", "bytes_per_image", "images", "computed"]


def digests(split: Path, *parts: str) -> list[str]:
    """The sha256 of each image of these parts."""
    document = json.loads(split.read_text("utf-8"))
    return [example["sha256"] for part in parts for example in document["parts"][part]]


# --------------------------------------------------------------------------------------------------- the same results


AUGMENT: dict[str, tuple[tuple[object, ...], int, int]] = {  # options, fewest and most pictures to keep in two epochs
    "none": ((), BOTH, BOTH),
    "flip": (("--augment", "flip"), BOTH + 1, 2 * TRAIN + VAL),
    "views": (("--augment", "crop-flip", "--views", 2), 2 * TRAIN + VAL, 2 * TRAIN + VAL),
    "crop-flip": (("--augment", "crop-flip"), VAL, VAL),
}


@pytest.mark.parametrize("augment", AUGMENT)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("stage", LAYERS)
def test_no_bit_depends_on_the_store(train: Train, stage: str, precision: str, augment: str) -> None:
    """A store that is filled, one that is found full, and none at all: the same checkpoint bytes."""
    more, least, most = AUGMENT[augment]
    cold, warm, without = (train(stage, *more, "--precision", precision, *last) for last in ((), (), ("--no-cache",)))
    assert cold.data == warm.data == without.data
    assert least <= cold.store["images"] <= most
    assert cold.store["computed"] == cold.store["images"] == warm.store["images"]
    assert (warm.store["computed"], without.store["used"]) == (0, False)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("stage", LAYERS)
def test_no_bit_depends_on_who_filled_it(train: Train, stage: str, precision: str, tmp_path: Path) -> None:
    """Frozen layers computed by one, two or three threads give the same store, and the same training from it."""
    given = ("--precision", precision)
    caches = [tmp_path / f"by {threads}" for threads in (1, 2, 3)]
    for threads, cache in enumerate(caches, 1):
        train(stage, *given, "--cache", cache, "--threads", threads)
    one, two, three = ({k: v for k, v in contents(cache).items() if k.endswith(".bin")} for cache in caches)
    assert one == two == three
    # the training step's own arithmetic is that of as many threads as it has, with or without a store
    filled_by_one = train(stage, *given, "--cache", caches[0], "--threads", 2)
    assert filled_by_one.store["computed"] == 0
    assert filled_by_one.data == train(stage, *given, "--no-cache", "--threads", 2).data


@pytest.mark.parametrize(("stage", "precision"), [("head", "float32"), ("finetune", "bfloat16")])
def test_no_bit_of_a_prediction_either(run: Run, train: Train, stage: str, precision: str) -> None:
    """eval writes the same bytes of predictions from a store it fills, one it finds full, and none."""
    checkpoint = train(stage, "--precision", precision).path
    actual = []
    for more, computed in (((), TEST), ((), 0), (("--no-cache",), None)):
        assert run("eval", checkpoint, "--threads", 1, "--force", *more).exit_code == 0
        document = json.loads(checkpoint.with_suffix(".test.eval.json").read_text("utf-8"))
        assert document["run"]["features"].get("computed") == computed
        actual.append(checkpoint.with_suffix(".test.predictions.safetensors").read_bytes())
    assert actual[0] == actual[1] == actual[2]


def plain_training(network: nn.Module, x: dict[str, Tensor], y: dict[str, Tensor], config: dict[str, Any]) -> Any:
    """Train as a notebook does, the whole network in train mode: ([(train loss, val loss)], the best's state)."""
    optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr=config["lr"])
    losses: list[tuple[float, float]] = []
    best: tuple[float, float] = (-1.0, 0.0)
    state: dict[str, Tensor] = {}

    def validate(train_loss: float) -> None:
        nonlocal best, state
        with torch.no_grad():
            logits = network.eval()(x["val"])
        loss, accuracy = F.cross_entropy(logits, y["val"]).item(), (logits.argmax(1) == y["val"]).float().mean().item()
        losses.append((train_loss, loss))
        if (accuracy, -loss) > best:
            best, state = (accuracy, -loss), {name: t.clone() for name, t in network.state_dict().items()}

    if "unfreeze" in config:  # finetune: its start counts as epoch 0
        validate(math.nan)
    for epoch in range(config["epochs"]):
        if config["schedule"] == "exponential":
            optimizer.param_groups[0]["lr"] = config["lr"] * config["decay"] ** epoch
        network.train()
        order = torch.from_numpy(np.random.default_rng((config["seed"], epoch)).permutation(TRAIN))
        total = 0.0
        for step, batch in enumerate(order.split(config["batch_size"])):
            mixed = np.random.SeedSequence((config["seed"], epoch, step)).generate_state(1, np.uint64)
            torch.manual_seed(int(mixed[0]))
            loss = F.cross_entropy(network(x["train"][batch]), y["train"][batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(batch)
        validate(total / TRAIN)
    return losses, state


@pytest.mark.parametrize("batch", [6, 64], ids=["batches", "one step an epoch"])
@pytest.mark.parametrize("stage", LAYERS)
def test_losses_are_a_plain_loops(run: Run, train: Train, photo_folder: Path, stage: str, batch: int) -> None:
    """In float32 every epoch's losses are a plain torch loop's to 1e-5, and the final networks answer the same."""
    kept = train(stage, "--precision", "float32", "--batch-size", batch, "--epochs", 4)
    again = train(stage, "--precision", "float32", "--batch-size", batch, "--epochs", 4)
    assert (again.store["computed"], again.data) == (0, kept.data)
    metrics = metrics_of(again.path)
    network = build_random_network(MINI, 3, seed=0)
    start = photo_folder / "head.safetensors" if stage == "finetune" else weights.find_shipped("vgg16_mini.safetensors")
    stored = safetensors.torch.load_file(start)
    network.load_state_dict({k: t for k, t in stored.items() if stage == "finetune" or MINI.head not in k}, False)
    unfreeze(network, LAYERS[stage])
    document = json.loads((photo_folder / "photos.split.json").read_text("utf-8"))
    x, y = {}, {}
    for part, examples in document["parts"].items():
        raw = np.stack(
            [np.asarray(Image.open(photo_folder / "photos" / e["path"]), np.float64) / 255 for e in examples]
        )
        raw = (raw - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
        x[part] = torch.from_numpy(raw.astype(np.float32)).permute(0, 3, 1, 2)
        y[part] = torch.tensor([document["classes"].index(e["path"].split("/")[0]) for e in examples])
    losses, state = plain_training(network, x, y, metrics["config"])
    recorded = np.array([(record["train_loss"], record["val_loss"]) for record in metrics["records"]], float)
    np.testing.assert_allclose(recorded, losses, rtol=1e-5)
    network.load_state_dict(state)
    for part in ("val", "test"):
        assert run("eval", again.path, "--split", part, "--threads", 1).exit_code == 0
        predictions = tensors.read(again.path.with_suffix(f".{part}.predictions.safetensors"), tensors.PREDICTIONS)
        with torch.no_grad():
            logits = network.eval()(x[part]).numpy()
        np.testing.assert_array_equal(predictions.arrays["logits"].argmax(1), logits.argmax(1))
        np.testing.assert_allclose(predictions.arrays["logits"], logits, rtol=0, atol=1e-4 * np.abs(logits).max())


@pytest.mark.parametrize("precision", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
@pytest.mark.parametrize("arch", NEW)
def test_every_network_trains_from_cached_features(
    run: Run, photo_folder: Path, tmp_path: Path, arch: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Head and finetune of the last stage: the same bytes with and without cache; strict in torchvision's network."""
    shrink_networks(monkeypatch)
    state = build_random_network(ARCHITECTURES[arch], 5, seed=1).state_dict()
    safetensors.torch.save_file(state, tmp_path / "weights.safetensors")
    common = (photo_folder / "photos.split.json", *COMMON, "--precision", precision)
    outputs = []
    for number, more in enumerate(((), ("--no-cache",))):
        head, finetune = (tmp_path / f"{stage}{number}.safetensors" for stage in ("head", "finetune"))
        weights_option = ("--weights", tmp_path / "weights.safetensors")
        result = run("image", "head", *common, "--arch", arch, *weights_option, "-o", head, *more)
        assert result.exit_code == 0, result.stderr
        assert metrics_of(head)["run"]["features"]["used"] is not bool(more)
        result = run("image", "finetune", *common, "--from", tmp_path / "head0.safetensors", "-o", finetune, *more)
        assert result.exit_code == 0, result.stderr
        outputs.append((head.read_bytes(), finetune.read_bytes()))
    assert outputs[0] == outputs[1]
    first, second = (safetensors.torch.load_file(tmp_path / f"{stage}0.safetensors") for stage in ("head", "finetune"))
    changed = {name for name, tensor in second.items() if not torch.equal(tensor, first[name])}
    metrics = metrics_of(tmp_path / "finetune0.safetensors")
    if metrics["best"]["epoch"]:
        trained = ARCHITECTURES[arch].unfreeze
        assert changed
        assert all(any(name.startswith(f"{layer}.") for layer in trained) for name in changed)
    theirs = BUILDERS[arch](3) if arch in BUILDERS else torchvision.models.get_model(arch, num_classes=3)
    theirs.load_state_dict(second, strict=True)


# ------------------------------------------------------------------------------------------------------ when it is used


def changed_weights(photo_folder: Path, change: Callable[[dict[str, Any], Any], Any]) -> Path:
    """The head's checkpoint with something else in its record or its tensors."""
    stored = tensors.read(photo_folder / "head.safetensors", tensors.CHECKPOINT)
    change(stored.metadata["preprocessing"], stored.arrays)
    record = {key: value for key, value in stored.metadata.items() if key != "schema"}
    tensors.write(photo_folder / "changed.safetensors", tensors.CHECKPOINT, stored.arrays, record)
    return photo_folder / "changed.safetensors"


def next_number(name: str) -> Callable[[dict[str, Any], Any], Any]:
    """The first number of a tensor becomes the next that float32 has."""
    return lambda _, arrays: np.nextafter(arrays[name].flat[:1], np.inf, out=arrays[name].reshape(-1)[:1])


CHANGES: dict[str, Callable[[dict[str, Any], Any], Any]] = {
    "first weight": next_number("features.0.weight"),
    "last bias": next_number("classifier.0.bias"),
    "mean": lambda preprocessing, _: preprocessing.update(mean=[0.485, 0.456, 0.407]),
    "std": lambda preprocessing, _: preprocessing.update(std=[0.229, 0.224, 0.226]),
    "resize": lambda preprocessing, _: preprocessing.update(resize=65),
    "crop": lambda preprocessing, _: preprocessing.update(crop=63),
}


@pytest.mark.parametrize("change", [*CHANGES, "precision"])
def test_another_computation_is_computed(train: Train, photo_folder: Path, cache_folder: Path, change: str) -> None:
    """A weight, the preprocessing or the precision being another, nothing of the store is used, and nothing lost."""
    first = train("head", "--weights", photo_folder / "head.safetensors", "--precision", "float32")
    if change == "precision":
        other = train("head", "--weights", photo_folder / "head.safetensors", "--precision", "bfloat16")
    else:
        path = changed_weights(photo_folder, CHANGES[change])
        other = train("head", "--weights", path, "--precision", "float32")
    assert (other.store["images"], other.store["computed"]) == (BOTH, BOTH)
    assert f": 0 of {BOTH} images are cached" in other.printed
    assert "start from" not in other.printed or change == "last bias"
    assert count_sound_entries(cache_folder) == [BOTH, BOTH]
    again = train("head", "--weights", photo_folder / "head.safetensors", "--precision", "float32")
    assert (again.store["computed"], again.data) == (0, first.data)


def test_another_training_uses_it(train: Train, photo_folder: Path, cache_folder: Path) -> None:
    """Hyperparameters, and weights behind the cut, make no difference to what is kept."""
    train("head", "--weights", photo_folder / "head.safetensors")
    behind = changed_weights(photo_folder, next_number("classifier.3.weight"))
    for more in (
        ("--weights", photo_folder / "head.safetensors", "--lr", 0.1, "--epochs", 3, "--batch-size", 7, "--seed", 5),
        ("--weights", photo_folder / "head.safetensors", "--weight-decay", 0.1, "--schedule", "cosine"),
        ("--weights", behind),
    ):
        actual = train("head", *more)
        assert (actual.store["images"], actual.store["computed"]) == (BOTH, 0)
        assert f": {BOTH} of {BOTH} images are cached\n" in actual.printed
    assert count_sound_entries(cache_folder) == [BOTH]


def test_images_are_known_by_content(run: Run, train: Train, photo_folder: Path, cache_folder: Path) -> None:
    """Another split computes the new images only; eval, images that moved and other names find what is there."""
    first = train("head")
    names = [f"{n}.split.json" for n in ("photos", "other", "moved", "changed")]
    old, other, moved, changed = (photo_folder / name for name in names)
    dlcv("data", "split", photo_folder / "photos", "-o", other, "--seed", 1)
    new = {*digests(other, "train", "val")} - {*digests(old, "train", "val")}
    assert 0 < len(new) <= TEST
    assert train("head", split=other).store["computed"] == len(new)
    assert run("eval", first.path, "--split", "val").exit_code == 0
    assert json.loads(first.path.with_suffix(".val.eval.json").read_text())["run"]["features"]["computed"] == 0
    assert run("eval", first.path).exit_code == 0
    seen = json.loads(first.path.with_suffix(".test.eval.json").read_text())["run"]["features"]
    assert (seen["images"], seen["computed"]) == (TEST, TEST - len(new))
    assert count_sound_entries(cache_folder) == [24]

    (photo_folder / "photos").rename(photo_folder / "elsewhere")
    assert train("head", "--root", photo_folder / "elsewhere").store["computed"] == 0
    for number, path in enumerate([*(photo_folder / "elsewhere").rglob("*.png")]):
        path.rename(path.with_name(f"new {number}.png"))
    dlcv("data", "split", photo_folder / "elsewhere", "-o", moved)
    assert train("head", split=moved).store["computed"] == 0
    image = photo_folder / "elsewhere" / json.loads(moved.read_text())["parts"]["train"][0]["path"]
    Image.fromarray(255 - np.asarray(Image.open(image))).save(image)
    dlcv("data", "split", photo_folder / "elsewhere", "-o", changed)
    new = {*digests(changed, "train", "val")} - {*digests(moved, "train", "val", "test")}
    assert train("head", split=changed).store["computed"] == len(new)


def test_identical_images_are_computed_once(train: Train, photo_folder: Path, cache_folder: Path) -> None:
    """One image under several names is one record, and the training is that without a store."""
    for number in range(6):
        shutil.copy(photo_folder / "photos" / "cat" / "000.png", photo_folder / "photos" / "cat" / f"copy {number}.png")
    split = photo_folder / "copies.split.json"
    dlcv("data", "split", photo_folder / "photos", "-o", split, "--seed", 2)
    given = digests(split, "train", "val")
    assert len({*given}) < len(given), "the case has identical images"
    actual = train("head", split=split)
    assert (actual.store["images"], actual.store["computed"]) == (len({*given}), len({*given}))
    assert count_sound_entries(cache_folder) == [len({*given})]
    assert actual.data == train("head", "--no-cache", split=split).data


@pytest.mark.parametrize("damaged", [False, True], ids=["sound", "damaged"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_an_earlier_cut_serves(
    train: Train, photo_folder: Path, precision: str, damaged: bool, cache_folder: Path, tmp_path: Path
) -> None:
    """A head continues from what finetune cached of the same weights, as far as that is sound; same bytes."""
    train("finetune", "--precision", precision)
    dlcv("data", "split", photo_folder / "photos", "-o", photo_folder / "other.split.json", "--seed", 1)
    [earlier] = stores.list_feature_caches(cache_folder)
    if damaged:
        flip_bit(earlier.cache.folder / "records.bin", 5)
    given = ("--weights", photo_folder / "head.safetensors", "--precision", precision)
    actual = train("head", *given, split=photo_folder / "other.split.json")
    common = {*digests(photo_folder / "photos.split.json", "train", "val")}.intersection(
        digests(photo_folder / "other.split.json", "train", "val")
    )
    printed = f"{len(common)} images start from feature cache {earlier.cache.name}, before features.28"
    assert (printed in actual.printed, len(actual.warnings)) == ((False, 1) if damaged else (True, 0))
    assert actual.store["computed"] == BOTH
    assert actual.data == train("head", *given, "--no-cache", split=photo_folder / "other.split.json").data
    empty = train("head", *given, "--cache", tmp_path / "empty", split=photo_folder / "other.split.json")
    assert (empty.data, "start from" in empty.printed) == (actual.data, False)


def test_what_the_metrics_say(run: Run, train: Train, photo_folder: Path) -> None:
    """`run.features` of each kind of run has these keys, and stderr says it in words."""
    kept, without = train("head", "--precision", "float32"), train("finetune", "--no-cache", "--precision", "bfloat16")
    assert list(kept.store) == COUNTS
    assert kept.store == dict(zip(COUNTS, (True, "classifier.2", 2048, BOTH, BOTH), strict=True))
    assert f": 0 of {BOTH} images are cached, 38.9 kB to add, " in kept.printed
    assert without.store == {"used": False, "why": "--no-cache", "before": "features.28", "bytes_per_image": 2048}
    assert list(without.store) == ["used", "why", "before", "bytes_per_image"]
    assert "--no-cache: the features are computed again for each batch\n" in without.printed
    anew = train("head", "--augment", "crop-flip", "--precision", "float32")
    why = "each epoch sees another random part of each training image"
    assert anew.store == {"used": True, "why": why, **{**kept.store, "images": VAL, "computed": 0}}
    assert list(anew.store) == ["used", "why", *COUNTS[1:]]
    assert f"{why}: those features are not cached; --views N would cache N views of each image\n" in anew.printed
    scratch = run(
        "vgg", "scratch", photo_folder / "photos.split.json", *COMMON, "-o", photo_folder / "scratch.safetensors",
                  "--arch", "vgg16_mini")  # fmt: skip
    assert scratch.exit_code == 0
    assert "feature cache" not in scratch.stderr
    assert metrics_of(photo_folder / "scratch.safetensors")["run"]["features"] == {
        "used": False,
        "why": "nothing frozen",
    }
