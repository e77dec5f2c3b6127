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
    count_sound_entries,
    flip_bit,
    read_files,
    read_metrics,
    run_dlcv,
)
from PIL import Image
from small_networks import NEW, shrink_networks
from torch import Tensor, nn
from torch.nn import functional as F

from dlcv_cli.files import feature_cache, tensors
from dlcv_cli.stages import weights
from dlcv_cli.vision.architectures import ARCHITECTURES
from dlcv_cli.vision.models import BUILDERS, build_random_network, unfreeze

MINI = ARCHITECTURES["vgg16_mini"]
LAYERS = {"head": (MINI.head,), "finetune": MINI.unfreeze}
COUNTS = ["used", "before", "bytes_per_image", "images", "computed"]


def read_digests(split: Path, *parts: str) -> list[str]:
    """Return the sha256 of each image of these parts."""
    document = json.loads(split.read_text("utf-8"))
    return [example["sha256"] for part in parts for example in document["parts"][part]]


# --------------------------------------------------------------------------------------------------- the same results


EVERYTHING = (
    "--augment", "trivial", "--views", 2, "--erase", 0.5, "--crop-area", 0.1, "--color-jitter", 0.3,
    "--mixup", 0.3, "--label-smoothing", 0.1, "--ema", 0.9, "--optimizer", "adamw", "--schedule", "one-cycle",
    "--weight-decay", 0.1, "--class-weights", "sqrt",
)  # fmt: skip
AUGMENT: dict[str, tuple[tuple[object, ...], int, int]] = {  # options, fewest and most pictures to keep in two epochs
    "none": ((), BOTH, BOTH),
    "flip": (("--augment", "flip"), BOTH + 1, 2 * TRAIN + VAL),
    "views": (("--augment", "crop-flip", "--views", 2), 2 * TRAIN + VAL, 2 * TRAIN + VAL),
    "crop-flip": (("--augment", "crop-flip"), VAL, VAL),
    "everything": (EVERYTHING, 2 * TRAIN + VAL, 2 * TRAIN + VAL),
}


@pytest.mark.parametrize("augment", AUGMENT)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("stage", LAYERS)
def test_cache_does_not_change_training(train: Train, stage: str, precision: str, augment: str) -> None:
    """Filling the cache, reading it, and no cache give the same checkpoint bytes."""
    more, least, most = AUGMENT[augment]
    cold, warm, without = (train(stage, *more, "--precision", precision, *last) for last in ((), (), ("--no-cache",)))
    assert cold.data == warm.data == without.data
    assert least <= cold.features["images"] <= most
    assert cold.features["computed"] == cold.features["images"] == warm.features["images"]
    assert (warm.features["computed"], without.features["used"]) == (0, False)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("stage", LAYERS)
def test_cache_origin_does_not_change_training(train: Train, stage: str, precision: str, tmp_path: Path) -> None:
    """One, two and three threads fill the same cache and train to the same bytes."""
    given = ("--precision", precision)
    caches = [tmp_path / f"by {threads}" for threads in (1, 2, 3)]
    for threads, cache in enumerate(caches, 1):
        train(stage, *given, "--cache", cache, "--threads", threads)
    one, two, three = ({k: v for k, v in read_files(cache).items() if k.endswith(".bin")} for cache in caches)
    assert one == two == three
    # the training step's own arithmetic is that of as many threads as it has, with or without a store
    filled_by_one = train(stage, *given, "--cache", caches[0], "--threads", 2)
    assert filled_by_one.features["computed"] == 0
    assert filled_by_one.data == train(stage, *given, "--no-cache", "--threads", 2).data


@pytest.mark.parametrize(("stage", "precision"), [("head", "float32"), ("finetune", "bfloat16")])
def test_cache_does_not_change_predictions(run: Run, train: Train, stage: str, precision: str) -> None:
    """eval writes the same predictions with a new cache, a full one and none."""
    checkpoint = train(stage, "--precision", precision).path
    actual = []
    for more, computed in (((), TEST), ((), 0), (("--no-cache",), None)):
        assert run("eval", checkpoint, "--threads", 1, "--force", *more).exit_code == 0
        document = json.loads(checkpoint.with_suffix(".test.eval.json").read_text("utf-8"))
        assert document["run"]["features"].get("computed") == computed
        actual.append(checkpoint.with_suffix(".test.predictions.safetensors").read_bytes())
    assert actual[0] == actual[1] == actual[2]


def train_plainly(network: nn.Module, x: dict[str, Tensor], y: dict[str, Tensor], config: dict[str, Any]) -> Any:
    """Train by a plain loop in train mode. Return ([(train loss, val loss)], state of the best epoch)."""
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
def test_losses_match_a_plain_loop(run: Run, train: Train, photo_folder: Path, stage: str, batch: int) -> None:
    """In float32 losses match a plain torch loop to 1e-5, and final networks predict the same."""
    kept = train(stage, "--precision", "float32", "--batch-size", batch, "--epochs", 4)
    again = train(stage, "--precision", "float32", "--batch-size", batch, "--epochs", 4)
    assert (again.features["computed"], again.data) == (0, kept.data)
    metrics = read_metrics(again.path)
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
    losses, state = train_plainly(network, x, y, metrics["config"])
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
    """With and without cache, head and finetune write the same bytes."""
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
        assert read_metrics(head)["run"]["features"]["used"] is not bool(more)
        result = run("image", "finetune", *common, "--from", tmp_path / "head0.safetensors", "-o", finetune, *more)
        assert result.exit_code == 0, result.stderr
        outputs.append((head.read_bytes(), finetune.read_bytes()))
    assert outputs[0] == outputs[1]
    first, second = (safetensors.torch.load_file(tmp_path / f"{stage}0.safetensors") for stage in ("head", "finetune"))
    changed = {name for name, tensor in second.items() if not torch.equal(tensor, first[name])}
    metrics = read_metrics(tmp_path / "finetune0.safetensors")
    if metrics["best"]["epoch"]:
        trained = ARCHITECTURES[arch].unfreeze
        assert changed
        assert all(any(name.startswith(f"{layer}.") for layer in trained) for name in changed)
    theirs = BUILDERS[arch](3) if arch in BUILDERS else torchvision.models.get_model(arch, num_classes=3)
    theirs.load_state_dict(second, strict=True)


# ------------------------------------------------------------------------------------------------------ when it is used


def change_weights(photo_folder: Path, change: Callable[[dict[str, Any], Any], Any]) -> Path:
    """Write the head's checkpoint with a change in its metadata or tensors, and return its path."""
    stored = tensors.read(photo_folder / "head.safetensors", tensors.CHECKPOINT)
    change(stored.metadata["preprocessing"], stored.arrays)
    record = {key: value for key, value in stored.metadata.items() if key != "schema"}
    tensors.write(photo_folder / "changed.safetensors", tensors.CHECKPOINT, stored.arrays, record)
    return photo_folder / "changed.safetensors"


def increment_first_number(name: str) -> Callable[[dict[str, Any], Any], Any]:
    """Return a change of the first number of a tensor to the next float32."""
    return lambda _, arrays: np.nextafter(arrays[name].flat[:1], np.inf, out=arrays[name].reshape(-1)[:1])


CHANGES: dict[str, Callable[[dict[str, Any], Any], Any]] = {
    "first weight": increment_first_number("features.0.weight"),
    "last bias": increment_first_number("classifier.0.bias"),
    "mean": lambda preprocessing, _: preprocessing.update(mean=[0.485, 0.456, 0.407]),
    "std": lambda preprocessing, _: preprocessing.update(std=[0.229, 0.224, 0.226]),
    "resize": lambda preprocessing, _: preprocessing.update(resize=65),
    "crop": lambda preprocessing, _: preprocessing.update(crop=63),
}


@pytest.mark.parametrize("change", [*CHANGES, "precision"])
def test_changed_computation_misses_cache(train: Train, photo_folder: Path, cache_folder: Path, change: str) -> None:
    """Other weights, preprocessing or precision use no entry, and delete none."""
    first = train("head", "--weights", photo_folder / "head.safetensors", "--precision", "float32")
    if change == "precision":
        other = train("head", "--weights", photo_folder / "head.safetensors", "--precision", "bfloat16")
    else:
        path = change_weights(photo_folder, CHANGES[change])
        other = train("head", "--weights", path, "--precision", "float32")
    assert (other.features["images"], other.features["computed"]) == (BOTH, BOTH)
    assert f": 0 of {BOTH} images are cached" in other.printed
    assert "start from" not in other.printed or change == "last bias"
    assert count_sound_entries(cache_folder) == [BOTH, BOTH]
    again = train("head", "--weights", photo_folder / "head.safetensors", "--precision", "float32")
    assert (again.features["computed"], again.data) == (0, first.data)


def test_other_trainings_share_the_cache(train: Train, photo_folder: Path, cache_folder: Path) -> None:
    """Other hyperparameters and other weights in the tail use the same cache."""
    train("head", "--weights", photo_folder / "head.safetensors")
    behind = change_weights(photo_folder, increment_first_number("classifier.3.weight"))
    for more in (
        ("--weights", photo_folder / "head.safetensors", "--lr", 0.1, "--epochs", 3, "--batch-size", 7, "--seed", 5),
        ("--weights", photo_folder / "head.safetensors", "--weight-decay", 0.1, "--schedule", "cosine"),
        ("--weights", behind),
    ):
        actual = train("head", *more)
        assert (actual.features["images"], actual.features["computed"]) == (BOTH, 0)
        assert f": {BOTH} of {BOTH} images are cached\n" in actual.printed
    assert count_sound_entries(cache_folder) == [BOTH]


def test_images_are_known_by_content(run: Run, train: Train, photo_folder: Path, cache_folder: Path) -> None:
    """Another split computes its new images only; moved or renamed images use the cache."""
    first = train("head")
    names = [f"{n}.split.json" for n in ("photos", "other", "moved", "changed")]
    old, other, moved, changed = (photo_folder / name for name in names)
    run_dlcv("data", "split", photo_folder / "photos", "-o", other, "--seed", 1)
    new = {*read_digests(other, "train", "val")} - {*read_digests(old, "train", "val")}
    assert 0 < len(new) <= TEST
    assert train("head", split=other).features["computed"] == len(new)
    assert run("eval", first.path, "--split", "val").exit_code == 0
    assert json.loads(first.path.with_suffix(".val.eval.json").read_text())["run"]["features"]["computed"] == 0
    assert run("eval", first.path).exit_code == 0
    seen = json.loads(first.path.with_suffix(".test.eval.json").read_text())["run"]["features"]
    assert (seen["images"], seen["computed"]) == (TEST, TEST - len(new))
    assert count_sound_entries(cache_folder) == [24]

    (photo_folder / "photos").rename(photo_folder / "elsewhere")
    assert train("head", "--root", photo_folder / "elsewhere").features["computed"] == 0
    for number, path in enumerate([*(photo_folder / "elsewhere").rglob("*.png")]):
        path.rename(path.with_name(f"new {number}.png"))
    run_dlcv("data", "split", photo_folder / "elsewhere", "-o", moved)
    assert train("head", split=moved).features["computed"] == 0
    image = photo_folder / "elsewhere" / json.loads(moved.read_text())["parts"]["train"][0]["path"]
    Image.fromarray(255 - np.asarray(Image.open(image))).save(image)
    run_dlcv("data", "split", photo_folder / "elsewhere", "-o", changed)
    new = {*read_digests(changed, "train", "val")} - {*read_digests(moved, "train", "val", "test")}
    assert train("head", split=changed).features["computed"] == len(new)


def test_identical_images_are_computed_once(train: Train, photo_folder: Path, cache_folder: Path) -> None:
    """An image with several names has one entry, and training does not change."""
    for number in range(6):
        shutil.copy(photo_folder / "photos" / "cat" / "000.png", photo_folder / "photos" / "cat" / f"copy {number}.png")
    split = photo_folder / "copies.split.json"
    run_dlcv("data", "split", photo_folder / "photos", "-o", split, "--seed", 2)
    digests = read_digests(split, "train", "val")
    assert len({*digests}) < len(digests), "the case has identical images"
    actual = train("head", split=split)
    assert (actual.features["images"], actual.features["computed"]) == (len({*digests}), len({*digests}))
    assert count_sound_entries(cache_folder) == [len({*digests})]
    assert actual.data == train("head", "--no-cache", split=split).data


@pytest.mark.parametrize("damaged", [False, True], ids=["sound", "damaged"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_earlier_split_point_is_reused(
    train: Train, photo_folder: Path, precision: str, damaged: bool, cache_folder: Path, tmp_path: Path
) -> None:
    """A head starts from sound features that finetune cached, with the same bytes."""
    train("finetune", "--precision", precision)
    run_dlcv("data", "split", photo_folder / "photos", "-o", photo_folder / "other.split.json", "--seed", 1)
    [earlier] = feature_cache.list_feature_caches(cache_folder)
    if damaged:
        flip_bit(earlier.cache.folder / "records.bin", 5)
    given = ("--weights", photo_folder / "head.safetensors", "--precision", precision)
    actual = train("head", *given, split=photo_folder / "other.split.json")
    common = {*read_digests(photo_folder / "photos.split.json", "train", "val")}.intersection(
        read_digests(photo_folder / "other.split.json", "train", "val")
    )
    printed = f"{len(common)} images start from feature cache {earlier.cache.name}, before features.28"
    assert (printed in actual.printed, len(actual.warnings)) == ((False, 1) if damaged else (True, 0))
    assert actual.features["computed"] == BOTH
    assert actual.data == train("head", *given, "--no-cache", split=photo_folder / "other.split.json").data
    empty = train("head", *given, "--cache", tmp_path / "empty", split=photo_folder / "other.split.json")
    assert (empty.data, "start from" in empty.printed) == (actual.data, False)


def test_metrics_describe_the_cache(run: Run, train: Train, photo_folder: Path) -> None:
    """`run.features` has these keys for each kind of run, and stderr says the same."""
    kept, without = train("head", "--precision", "float32"), train("finetune", "--no-cache", "--precision", "bfloat16")
    assert list(kept.features) == COUNTS
    assert kept.features == dict(zip(COUNTS, (True, "classifier.2", 2048, BOTH, BOTH), strict=True))
    assert f": 0 of {BOTH} images are cached, 38.9 kB to add, " in kept.printed
    assert without.features == {"used": False, "why": "--no-cache", "before": "features.28", "bytes_per_image": 2048}
    assert list(without.features) == ["used", "why", "before", "bytes_per_image"]
    assert "--no-cache: the features are computed again for each batch\n" in without.printed
    anew = train("head", "--augment", "crop-flip", "--precision", "float32")
    why = "each epoch sees another random part of each training image"
    assert anew.features == {"used": True, "why": why, **{**kept.features, "images": VAL, "computed": 0}}
    assert list(anew.features) == ["used", "why", *COUNTS[1:]]
    assert f"{why}: those features are not cached; --views N would cache N views of each image\n" in anew.printed
    scratch = run(
        "vgg", "scratch", photo_folder / "photos.split.json", *COMMON, "-o", photo_folder / "scratch.safetensors",
                  "--arch", "vgg16_mini")  # fmt: skip
    assert scratch.exit_code == 0
    assert "feature cache" not in scratch.stderr
    assert read_metrics(photo_folder / "scratch.safetensors")["run"]["features"] == {
        "used": False,
        "why": "nothing frozen",
    }
