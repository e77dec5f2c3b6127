"""Preprocessing of images for a network. It belongs to the weights, and checkpoints record it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args

from dlcv_cli.config import Fit

Triple = tuple[float, float, float]
Interpolation = Literal["bilinear", "bicubic"]


@dataclass(frozen=True)
class Preprocessing:
    """Make a square of `crop` pixels a side, scale to 0..1, then (x - mean) / std per RGB channel.

    The fit says how: `crop` takes the middle, after the short side is resized to `resize`; `squash` resizes both sides
    to `crop`, and `pad` the long side, with the mean colour beside or above and below. mean and std are in units of the
    0..1 scale. Resizing is antialiased.

    Source: torchvision's ImageNet evaluation transform, for `crop`.
    """

    resize: int = 256
    crop: int = 224
    mean: Triple = (0.485, 0.456, 0.406)
    std: Triple = (0.229, 0.224, 0.225)
    interpolation: Interpolation = "bilinear"
    fit: Fit = "crop"

    def change(self, fit: Fit | None, size: int | None) -> Preprocessing:
        """Return the same with another fit or size of the square; None leaves it. The short side keeps its ratio."""
        fit, size = fit or self.fit, size or self.crop
        ratio = self.resize / self.crop if self.fit == "crop" else 256 / 224
        return replace(self, fit=fit, crop=size, resize=round(size * ratio) if fit == "crop" else size)

    def to_json(self) -> dict[str, Any]:
        """Return what checkpoints record; `interpolation` and `fit` only if they are not bilinear and crop."""
        # older checkpoints have no such fields, and keep their bytes
        unset = {f.name for f in fields(self)[4:] if getattr(self, f.name) == f.default}
        return {name: value for name, value in asdict(self).items() if name not in unset}

    @classmethod
    def from_json(cls, document: Any) -> Preprocessing:
        """Return the preprocessing that a checkpoint records. Raise ValueError if it is damaged."""
        required, later = {"resize", "crop", "mean", "std"}, {"interpolation", "fit"}
        if not isinstance(document, dict) or not required <= set(document) <= required | later:
            raise ValueError("preprocessing needs resize, crop, mean and std")
        resize, crop = document["resize"], document["crop"]
        if not all(type(side) is int and 1 <= side <= 4096 for side in (resize, crop)) or crop > resize:
            raise ValueError("preprocessing needs 1 <= crop <= resize <= 4096")
        interpolation, fit = document.get("interpolation", "bilinear"), document.get("fit", "crop")
        for value, known in ((interpolation, get_args(Interpolation)), (fit, get_args(Fit))):
            if value not in known:
                raise ValueError(f"preprocessing has {value!r}, which is none of {', '.join(known)}")
        return cls(resize, crop, *read_normalisation(document), interpolation, fit)


def read_normalisation(document: dict[str, Any]) -> tuple[Triple, Triple]:
    """Return (mean, std). Raise ValueError unless each is three finite numbers, those of std positive."""
    triples = []
    for name in ("mean", "std"):
        values = document.get(name)
        if not isinstance(values, list | tuple) or len(values) != 3:
            raise ValueError(f"{name} needs three numbers")
        if not all(isinstance(v, int | float) and abs(v) < 1e6 for v in values):  # false for NaN as well
            raise ValueError(f"{name} needs finite numbers below a million")
        triples.append((float(values[0]), float(values[1]), float(values[2])))
    if min(triples[1]) <= 0:
        raise ValueError("std needs positive numbers")
    return triples[0], triples[1]
