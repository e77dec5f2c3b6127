"""What happens to an image before a network sees it; part of the weights, and handed on with them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

Triple = tuple[float, float, float]
Interpolation = Literal["bilinear", "bicubic"]


@dataclass(frozen=True)
class Preprocessing:
    """Resize the short side, crop the middle, scale to 0..1, then (x - mean) / std per RGB channel.

    `resize` and `crop` are pixels; mean and std are in units of the 0..1 scale. Resizing is antialiased.
    Source: torchvision's ImageNet evaluation transform.
    """

    resize: int = 256
    crop: int = 224
    mean: Triple = (0.485, 0.456, 0.406)
    std: Triple = (0.229, 0.224, 0.225)
    interpolation: Interpolation = "bilinear"

    def to_json(self) -> dict[str, Any]:
        """Return what checkpoints record; `interpolation` only if it is not bilinear."""
        fields = asdict(self)
        if self.interpolation == "bilinear":  # older checkpoints have no such field, and keep their bytes
            del fields["interpolation"]
        return fields

    @classmethod
    def from_json(cls, document: Any) -> Preprocessing:
        """Return the preprocessing that a checkpoint records. Raise ValueError if it is damaged."""
        required = {"resize", "crop", "mean", "std"}
        if not isinstance(document, dict) or set(document) not in (required, {*required, "interpolation"}):
            raise ValueError("preprocessing needs resize, crop, mean and std")
        resize, crop = document["resize"], document["crop"]
        if not all(type(side) is int and 1 <= side <= 4096 for side in (resize, crop)) or crop > resize:
            raise ValueError("preprocessing needs 1 <= crop <= resize <= 4096")
        interpolation = document.get("interpolation", "bilinear")
        if interpolation not in get_args(Interpolation):
            raise ValueError(f"preprocessing has an unknown interpolation, {interpolation!r}")
        return cls(resize, crop, *read_normalisation(document), interpolation)


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
