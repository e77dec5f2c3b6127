"""TorchScript of image networks: the preprocessing of transforms.resize in the part of Python that torch compiles.

Letters: N images, H and W pixels, S pixels a side of what the network sees, K classes.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dlcv_cli.vision.models import Classifier
from dlcv_cli.vision.preprocessing import Preprocessing
from dlcv_cli.vision.transforms import MAX_RATIO, mean_colour


class Prepare(nn.Module):
    """Images (N, H, W, 3) uint8 to pixels (N, 3, S, S) float32, normalised."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.fit: str = preprocessing.fit
        self.short, self.side, self.most = preprocessing.resize, preprocessing.crop, MAX_RATIO
        self.interpolation: str = preprocessing.interpolation
        for name, values in (("mean", preprocessing.mean), ("std", preprocessing.std)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1))
        self.register_buffer("colour", mean_colour(preprocessing).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Return the pixels."""
        x = images.permute(0, 3, 1, 2)
        height, width = x.shape[2], x.shape[3]
        if self.fit == "squash":
            x = self.resize(x, self.side, self.side)
        elif self.fit == "pad":
            longest = max(height, width)
            high = max(1, self.round(self.side * height / longest))
            wide = max(1, self.round(self.side * width / longest))
            top, left = (self.side - high) // 2, (self.side - wide) // 2
            square = self.colour.expand(x.shape[0], 3, self.side, self.side).contiguous()  # type: ignore[operator]
            square[:, :, top : top + high, left : left + wide] = self.resize(x, high, wide)
            x = square
        else:
            short = min(height, width)
            x = self.crop_middle(x, min(height, self.most * short), min(width, self.most * short))
            x = self.resize(x, self.short * x.shape[2] // short, self.short * x.shape[3] // short)
            x = self.crop_middle(x, self.side, self.side)
        return (x.float() / 255 - self.mean) / self.std  # type: ignore[operator]

    def resize(self, x: Tensor, height: int, width: int) -> Tensor:
        """Return images (N, 3, height, width)."""
        return F.interpolate(x, [height, width], mode=self.interpolation, antialias=True)

    def crop_middle(self, x: Tensor, height: int, width: int) -> Tensor:
        """Return the middle (N, 3, height, width) of images."""
        top, left = self.round((x.shape[2] - height) / 2), self.round((x.shape[3] - width) / 2)
        return x[:, :, top : top + height, left : left + width]

    def round(self, value: float) -> int:
        """Return the nearest integer, of two the even one: TorchScript's own rounds halves up."""
        whole = int(value)
        rest = value - whole
        return whole + 1 if rest > 0.5 or (rest == 0.5 and whole % 2 == 1) else whole


class Whole(nn.Module):
    """Images (N, H, W, 3) uint8 to probabilities and logits, both (N, K)."""

    def __init__(self, prepare: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.prepare, self.classifier = prepare, classifier

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return probabilities and logits."""
        probabilities, logits = self.classifier(self.prepare(images))
        return probabilities, logits


def trace(classifier: Classifier, preprocessing: Preprocessing) -> tuple[nn.Module, nn.Module]:
    """Return the classifier of prepared pixels, traced, and of images, ready for torch.jit.script."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch would rather have torch.export
        traced: nn.Module = torch.jit.trace(  # type: ignore[no-untyped-call]
            classifier, torch.zeros(2, 3, preprocessing.crop, preprocessing.crop)
        )
        return traced, Whole(Prepare(preprocessing), traced)
