"""What the course of a training suggests to try next."""

from __future__ import annotations

import math
from collections.abc import Sequence

from dlcv_cli.config import TrainConfig
from dlcv_cli.vision.training import Epoch

FALLING, OVERFITTED, RISEN = 0.99, 0.15, 1.1  # factor of a loss, difference of accuracies, factor of a loss


def list_hints(records: Sequence[Epoch], classes: int, config: TrainConfig) -> list[str]:
    """Return a sentence for each thing to try, from all records of a training and what it used already."""
    epochs = [record for record in records if record.epoch]
    last, best = epochs[-1], [record for record in records if record.best][-1]
    start = records[0].val_loss if not records[0].epoch else math.log(classes)
    hints = []
    if len(epochs) > 1 and best is last and last.val_loss < FALLING * epochs[-2].val_loss:
        hints.append("the validation loss was still falling at the last epoch: try more --epochs")
    trained, validated = best.train_accuracy or 0, best.val_accuracy
    if trained - validated > OVERFITTED:
        remedies = {
            "--augment flip or crop-flip": config.augment == "none",
            "--label-smoothing 0.1": not config.label_smoothing,
            "--mixup 0.2": not config.mixup and not config.cutmix,
        }
        unused = [remedy for remedy, is_unused in remedies.items() if is_unused]
        hints.append(
            f"accuracy is {100 * trained:.1f} % on training images and {100 * validated:.1f} % on validation images; "
            f"try {', '.join([*unused, 'or more images'] if unused else ['more images'])}"
        )
    if epochs[0].val_loss > RISEN * start and best.epoch <= 1:
        hints.append(
            f"the validation loss rose from {start:.3g} to {epochs[0].val_loss:.3g} at first: try a lower --lr"
        )
    return hints
