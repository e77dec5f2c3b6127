"""A training step of SqueezeNet's head on cached features: with torch's layers and with those that replace them.

    python benchmarks/head_step.py --threads 2

Prints the median of each, taken in turn, and what each layer contributes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch
from tabulate import tabulate
from torch import nn
from torch.nn import functional as F

from dlcv_cli.vision.faster_layers import replace_layer

BATCH, CHANNELS, SIDE, CLASSES = 64, 512, 13, 101


def build_step(faster: tuple[type[nn.Module], ...]) -> Callable[[], None]:
    """Return a function that takes one training step, with these kinds of layer replaced."""
    torch.manual_seed(0)
    layers = [nn.Dropout(0.5), nn.Conv2d(CHANNELS, CLASSES, 1), nn.ReLU(True), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    head = nn.Sequential(*(replace_layer(m) if isinstance(m, faster) else m for m in layers))
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-3, fused=True)
    features = torch.randn(BATCH, CHANNELS, SIDE, SIDE).bfloat16().contiguous(memory_format=torch.channels_last)
    labels = torch.randint(CLASSES, (BATCH,))

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(head(features).float(), labels)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description="Time a training step of SqueezeNet's head.")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=30)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    steps = {
        "torch's layers": build_step(()),
        "faster pooling": build_step((nn.AdaptiveAvgPool2d,)),
        "faster dropout": build_step((nn.Dropout,)),
        "both": build_step((nn.Dropout, nn.AdaptiveAvgPool2d)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(arguments.rounds):
        for name, step in steps.items():
            begun = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - begun)
    first = median(seconds["torch's layers"])
    rows = [[name, 1e3 * median(each), first / median(each)] for name, each in seconds.items()]
    print(tabulate(rows, ["", "ms per step", "times"], floatfmt=("", ".1f", ".1f")))


if __name__ == "__main__":
    main()
