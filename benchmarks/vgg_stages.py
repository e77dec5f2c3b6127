"""dlcv's image stages beside a plain notebook loop, on the same images, in one run.

    python benchmarks/vgg_stages.py ROOT --images 96 --rounds 3 --threads 2

ROOT is a folder of class folders. Prints for each stage milliseconds an image (the median over the rounds, in which
plain and dlcv alternate, each in a process of its own), their ratio, the rate of arithmetic beside the best that this
machine reached in the same run for a matrix product and a convolution, and peak memory. Then what the published recipes
on all of Caltech101 would take at these costs. Weights are random: they cost the same.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from PIL import Image
from tabulate import tabulate
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from dlcv_cli.config import Machine, TrainConfig
from dlcv_cli.studies.images.predictor import place_and_split, prepare
from dlcv_cli.vision.architectures import ARCHITECTURES
from dlcv_cli.vision.batches import build_image_source, build_row_source, split_batches, to_rows
from dlcv_cli.vision.inference import FeatureExtractor, extract_in_threads, resolve_precision
from dlcv_cli.vision.models import build_random_network
from dlcv_cli.vision.steps import measure_cost
from dlcv_cli.vision.training import Progress, Training, evaluate
from dlcv_cli.vision.transforms import PLAIN, Images

CLASSES = 101
TRAINED = {"head": ("classifier.6",), "finetune": ("classifier", "features.28"), "scratch": ("features", "classifier")}
RECIPES = {"head": 6, "finetune": 4, "scratch": 5}  # epochs, on 5,552 training and 1,389 validation images
TRAIN, VAL = 5552, 1389
PLAIN_BATCH, BATCH = 32, 64
VGG16 = ARCHITECTURES["vgg16"]
GFLOP = {"validation": 30.93, "scratch": 3 * 30.93}  # an image; a backward pass is twice a forward pass
PEERS = {  # what each of dlcv's figures is compared with
    **{f"dlcv {stage}": f"plain {stage}" for stage in TRAINED},
    **{f"frozen {name}": "plain validation" for name in ("head", "finetune", "float32")},
}

Figures = dict[str, float]


class Files(Dataset[tuple[Tensor, int]]):
    """Images as torchvision's documentation loads them."""

    def __init__(self, paths: list[Path]) -> None:
        t = torchvision.transforms
        normal = t.Normalize(VGG16.preprocessing.mean, VGG16.preprocessing.std)
        self.paths = paths
        self.transform = t.Compose([t.Resize(256), t.CenterCrop(224), t.ToTensor(), normal])

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.open(self.paths[index]).convert("RGB")), index % CLASSES


def plain(stage: str, paths: list[Path], threads: int, device: str) -> Figures:
    """ms an image of the loop in a notebook: whole network, float32, default layout, each epoch from the files."""
    torch.set_num_threads(threads)
    place = torch.device("cuda" if device in ("auto", "cuda") and torch.cuda.is_available() else "cpu")
    network = torchvision.models.vgg16(weights=None, num_classes=CLASSES).to(place)
    if stage != "validation":
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(any(name.startswith(f"{layer}.") for layer in TRAINED[stage]))
        optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr=1e-5)
    network.train(stage != "validation")

    def steps() -> Iterator[int]:
        for x, labels in DataLoader(Files(paths), PLAIN_BATCH, num_workers=2):
            x, labels = x.to(place), labels.to(place)
            if stage == "validation":
                with torch.no_grad():
                    F.cross_entropy(network(x), labels).item()
            else:
                loss = F.cross_entropy(network(x), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                loss.item()
            yield len(labels)

    figures = {"ms": per_image(steps()), "memory": peak()}
    return {**figures, **({"gflop": GFLOP[stage]} if stage in GFLOP else {})}


def frozen(stage: str, paths: list[Path], threads: int, device: str, precision: Any) -> Figures:
    """ms an image of decoding and the frozen layers, once."""
    split, place, exact = begin(stage, threads, device, precision)
    images = images_of(paths)
    extractor = FeatureExtractor([*split.frozen], images.preprocessing, place, exact)

    def load(batch: Any) -> Tensor:
        return torch.stack([images.pixels(index, PLAIN) for index in batch])

    def steps() -> Iterator[int]:
        batches = split_batches(range(len(paths)), extractor.batch_size)
        for batch, x in extract_in_threads(extractor, batches, load, threads):
            to_rows(x)
            yield len(batch)

    extractor(load(range(4)))  # the first call prepares what later ones reuse
    begun = time.perf_counter()
    count = sum(steps())
    ms = 1e3 * (time.perf_counter() - begun) / count
    return {"ms": ms, "gflop": measure_cost(split, images.preprocessing.crop).flops / 1e9, "memory": peak()}


def train_from_cache(stage: str, paths: list[Path], threads: int, device: str, precision: Any) -> Figures:
    """ms an image of training (and of validation) behind the frozen layers; for scratch, of all of it."""
    split, place, exact = begin(stage, threads, device, precision)
    images = images_of([path for path, _ in zip(cycle(paths), range(3 * BATCH), strict=False)])
    config = TrainConfig(epochs=1, batch_size=BATCH, lr=1e-5)
    if len(split.frozen):
        shape = measure_cost(split, images.preprocessing.crop).shape
        count = 10 * BATCH  # costs nothing to have, and takes the noise out of short steps
        dtype = torch.bfloat16 if exact == "bfloat16" else torch.float32
        rows = to_rows(torch.rand(count, *shape).to(dtype))
        labels = np.arange(count) % CLASSES
        train = build_row_source(rows, lambda epoch: np.arange(count), labels, place)
    else:
        train = build_image_source(images, FeatureExtractor([], images.preprocessing, place, exact), threads)
    val = train
    evaluate_ms = 0.0

    def steps() -> Iterator[int]:
        done = 0
        for event in Training(split, train, val, config, exact):
            if isinstance(event, Progress):
                yield event.done - done
                done = event.done
                if done == event.total:
                    return

    ms = per_image(steps())
    if len(split.frozen):
        begun = time.perf_counter()
        [*evaluate(split.tail, val, exact)]
        evaluate_ms = 1e3 * (time.perf_counter() - begun) / len(val)
    figures = {"ms": ms, "val_ms": evaluate_ms, "memory": peak()}
    return {**figures, **({"gflop": GFLOP[stage]} if stage in GFLOP else {})}


def begin(stage: str, threads: int, device: str, precision: Any) -> tuple[Any, torch.device, str]:
    """Return what a stage begins with: network, split; device; precision."""
    place, _ = prepare(Machine(device=device, threads=threads))  # type: ignore[arg-type]
    network = build_random_network(VGG16, CLASSES, 0)
    return place_and_split(network, "vgg16", TRAINED[stage], place), place, resolve_precision(precision, place)


def images_of(paths: list[Path]) -> Images:
    """All of them as one part."""
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
    return Images(paths, digests, np.arange(len(paths)) % CLASSES, VGG16.preprocessing)


def per_image(steps: Iterator[int]) -> float:
    """Milliseconds an image, the first step left out: it makes what later ones reuse."""
    next(steps)
    begun = time.perf_counter()
    count = sum(steps)
    return 1e3 * (time.perf_counter() - begun) / count


def peak() -> float:
    """Peak resident memory of this process in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def rates(threads: int) -> Figures:
    """The machine's best rates in TFLOP/s: the median of 5 products of 2,048 x 2,048 matrices, and 5 convolutions."""
    torch.set_num_threads(threads)
    figures = {}
    with torch.no_grad():
        for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
            a = torch.randn(2048, 2048).to(dtype)
            figures[f"matrix {name}"] = 2 * 2048**3 / timed(partial(torch.mm, a, a)) / 1e12
            conv = nn.Conv2d(256, 256, 3, padding=1).to(dtype).to(memory_format=torch.channels_last)
            x = torch.randn(4, 256, 56, 56).to(dtype).to(memory_format=torch.channels_last)
            figures[f"convolution {name}"] = 2 * 4 * 256 * 256 * 9 * 56 * 56 / timed(partial(conv, x)) / 1e12
    return figures


def timed(function: Callable[[], Any]) -> float:
    """Seconds of a call, the median of 5 after one that is not counted."""
    seconds = []
    for _ in range(6):
        begun = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds[1:])


def alone(function: Callable[..., Figures], *args: Any) -> Figures:
    """The function's result from a fresh process, so that peak memory is its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def median(figures: list[Figures], key: str) -> float:
    return statistics.median(one[key] for one in figures)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    args = parser.parse_args()
    paths = sorted(args.root.glob("*/*.jpg"))
    paths = [paths[i] for i in np.random.default_rng(0).permutation(len(paths))[: args.images]]
    inputs, machine = (paths, args.threads, args.device), (args.threads, args.device)
    print(f"{len(paths)} images, {args.rounds} rounds, {args.threads} threads, torch {torch.__version__}")

    results: dict[str, list[Figures]] = {}
    for _ in range(args.rounds):
        results.setdefault("rates", []).append(alone(rates, args.threads))
        for stage in ("validation", *TRAINED):
            results.setdefault(f"plain {stage}", []).append(alone(plain, stage, *inputs))
        for stage in TRAINED:
            results.setdefault(f"dlcv {stage}", []).append(
                alone(train_from_cache, stage, paths, *machine, args.precision)
            )
        for name, stage, precision in (
            ("frozen head", "head", args.precision),
            ("frozen finetune", "finetune", args.precision),
            ("frozen float32", "head", "float32"),
        ):
            results.setdefault(name, []).append(alone(frozen, stage, paths, *machine, precision))
    show(results)


def show(results: dict[str, list[Figures]]) -> None:
    """The tables."""
    speeds = results.pop("rates")
    rows = [[name, f"{median(speeds, name):.2f}"] for name in speeds[0]]
    print(f"\n{tabulate(rows, headers=['best rate', 'TFLOP/s'], disable_numparse=True)}\n")

    ms = {name: median(figures, "ms") for name, figures in results.items()}
    rows = []
    for name, figures in results.items():
        spread, memory = [one["ms"] for one in figures], max(one["memory"] for one in figures)
        ratio = f"{ms[PEERS[name]] / ms[name]:.1f}" if name in PEERS else ""
        rate = f"{figures[0]['gflop'] / ms[name]:.2f}" if "gflop" in figures[0] else ""
        span = f"{min(spread):.2f} .. {max(spread):.2f}"
        rows.append([name, f"{ms[name]:.2f}", span, ratio, rate, f"{memory:.2f}"])
    headers = ["", "ms/image", "from .. to", "times plain", "TFLOP/s", "peak GiB"]
    print(tabulate(rows, headers=headers, disable_numparse=True), "\n")

    rows = []
    for stage, epochs in RECIPES.items():
        before = epochs * (TRAIN * ms[f"plain {stage}"] + VAL * ms["plain validation"])
        val_ms = median(results[f"dlcv {stage}"], "val_ms") if stage != "scratch" else ms["frozen head"]
        once = (TRAIN + VAL) * ms.get(f"frozen {stage}", 0.0)
        training = epochs * (TRAIN * ms[f"dlcv {stage}"] + VAL * val_ms)
        seconds = [f"{t / 1e3:,.0f}" for t in (before, once + training, training)]
        rows.append([stage, epochs, *seconds, f"{before / (once + training):.1f}"])
    headers = ["Caltech101, vgg16", "epochs", "plain s", "dlcv s", "of it training", "times"]
    print(tabulate(rows, headers=headers, disable_numparse=True))


if __name__ == "__main__":
    main()
