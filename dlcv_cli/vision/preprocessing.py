"""What happens to an image before a network sees it; part of the weights, and handed on with them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Preprocessing:
    """Resize the short side, crop the middle, scale to 0..1, then (x - mean) / std per RGB channel.

    `resize` and `crop` are pixels; mean and std are in units of the 0..1 scale.
    Source: torchvision's ImageNet evaluation transform, with bilinear antialiased resizing.
    """

    resize: int = 256
    crop: int = 224
    mean: Triple = (0.485, 0.456, 0.406)
    std: Triple = (0.229, 0.224, 0.225)

    def to_json(self) -> dict[str, Any]:
        """As the checkpoint records it."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: Any) -> Preprocessing:
        """Reads a checkpoint's record. ValueError when it is not one."""
        if not isinstance(record, dict) or set(record) != {"resize", "crop", "mean", "std"}:
            raise ValueError("preprocessing needs resize, crop, mean and std")
        resize, crop = record["resize"], record["crop"]
        if not all(type(side) is int and 1 <= side <= 4096 for side in (resize, crop)) or crop > resize:
            raise ValueError("preprocessing needs 1 <= crop <= resize <= 4096")
        return cls(resize, crop, *normalisation(record))


def normalisation(record: dict[str, Any]) -> tuple[Triple, Triple]:
    """(mean, std) of a record that has them as three finite numbers each, std positive. Else ValueError."""
    triples = []
    for name in ("mean", "std"):
        values = record.get(name)
        if not isinstance(values, list | tuple) or len(values) != 3:
            raise ValueError(f"{name} needs three numbers")
        if not all(isinstance(v, int | float) and abs(v) < 1e6 for v in values):  # false for NaN as well
            raise ValueError(f"{name} needs numbers in reason")
        triples.append((float(values[0]), float(values[1]), float(values[2])))
    if min(triples[1]) <= 0:
        raise ValueError("std needs positive numbers")
    return triples[0], triples[1]
