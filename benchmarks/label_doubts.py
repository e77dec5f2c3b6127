"""How many planted wrong labels `data doubts` finds: a share of a split's images gets another label at random.

python benchmarks/label_doubts.py SPLIT --arch NAME --weights FILE --resize squash --cache DIR
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from dlcv_cli.config import DoubtsConfig
from dlcv_cli.context import Context
from dlcv_cli.files import splits
from dlcv_cli.files.feature_cache import find_default_folder
from dlcv_cli.stages.label_doubts import choose_parts, compute_features, judge
from dlcv_cli.vision.splits import Example


def plant(examples: list[Example], classes: int, share: float, seed: int) -> list[Example]:
    """Return the examples, of which a share has another label, each other one equally likely."""
    rng = np.random.default_rng(seed)
    chosen = {*rng.choice(len(examples), round(share * len(examples)), replace=False).tolist()}
    shifts = rng.integers(1, classes, len(examples))
    return [
        replace(example, label=int((example.label + shifts[i]) % classes)) if i in chosen else example
        for i, example in enumerate(examples)
    ]


def main() -> None:
    """Print precision and recall at the top of the ranking, and of the doubts, for each seed of the planted labels."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("split", type=Path)
    parser.add_argument("--share", type=float, default=0.05)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--arch", default="vgg16")
    parser.add_argument("--resize")
    parser.add_argument("--weights")
    parser.add_argument("--cache", type=Path, default=find_default_folder())
    args = parser.parse_args()
    config, context = DoubtsConfig(arch=args.arch, resize=args.resize), Context(cache=args.cache)
    data = splits.read(args.split)
    parts = choose_parts(data, config)
    begun = time.perf_counter()
    x = compute_features(data, parts, config, args.weights, context)
    print(f"{len(x):,} images, features in {time.perf_counter() - begun:.1f} s")
    for seed in range(args.seeds):
        planted = {part: plant(own, len(data.classes), args.share, seed) for part, own in parts.items()}
        right = {example.path: example.label for own in parts.values() for example in own}
        begun = time.perf_counter()
        judged = judge(data.classes, planted, x, config, context)
        seconds = time.perf_counter() - begun
        wrong = np.array([example.label != right[example.path] for example in judged.examples])
        top = wrong[judged.rank()[: round(args.share * len(wrong))]]
        doubted = judged.doubts.doubted
        print(
            f"seed {seed}: {wrong.sum()} planted; top {100 * args.share:g} %: precision {top.mean():.3f}, recall "
            f"{top.sum() / wrong.sum():.3f}; {doubted.sum()} doubts: precision {wrong[doubted].mean():.3f}, recall "
            f"{doubted[wrong].mean():.3f}; {seconds:.1f} s"
        )


if __name__ == "__main__":
    main()
