"""What `calibrate` adds to a checkpoint's record: its temperature, and how reliable its probabilities are with it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec

from dlcv_cli.errors import FileError
from dlcv_cli.files.disk import JSON
from dlcv_cli.results.codec import Count, NonNegative, Share, Struct
from dlcv_cli.statistics.calibration import Reliability


class Measures(Struct, frozen=True, kw_only=True):
    """How well probabilities fit, on the validation part."""

    loss: NonNegative  # mean cross-entropy, in nats
    expected_calibration_error: Share


class Calibration(Struct, frozen=True, kw_only=True):
    """A temperature, by which logits are divided, and what it did on the n images of the validation part."""

    temperature: Annotated[float, msgspec.Meta(gt=0)]
    n: Count
    before: Measures
    after: Measures
    wrong: list[tuple[Share, Count]]  # as in statistics.calibration.Reliability

    @property
    def reliability(self) -> Reliability:
        """How often the calibrated checkpoint is wrong above each probability."""
        return Reliability(self.n, self.wrong)


def read_calibration(path: Path, metadata: JSON) -> Calibration | None:
    """Return the calibration that a checkpoint's metadata records, if any. Raise FileError if it is damaged."""
    if "calibration" not in metadata:
        return None
    try:
        return msgspec.convert(metadata["calibration"], Calibration)
    except msgspec.ValidationError as error:
        raise FileError(path, f"damaged: its calibration: {error}") from None
