"""Settings: what is computed of them."""

from __future__ import annotations

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, ExponentialLR, OneCycleLR

from dlcv_cli.config import HeadConfig, TrainConfig
from dlcv_cli.errors import SettingError
from dlcv_cli.files.recipes import Recipe


@pytest.mark.parametrize("epochs", [1, 6])
@pytest.mark.parametrize("schedule", ["exponential", "cosine", "constant"])
def test_lr_schedules_match_torch(schedule: str, epochs: int) -> None:
    """The learning rate of each epoch is that of torch's scheduler of the same name."""
    config = TrainConfig(epochs=epochs, lr=0.3, decay=0.8, schedule=schedule)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    schedulers = {
        "exponential": lambda: ExponentialLR(optimizer, gamma=0.8),
        "cosine": lambda: CosineAnnealingLR(optimizer, T_max=epochs),
        "constant": lambda: ExponentialLR(optimizer, gamma=1.0),
    }
    scheduler = schedulers[schedule]()
    for epoch in range(epochs):
        assert config.lr_at(epoch) == pytest.approx(scheduler.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        scheduler.step()


def test_one_cycle_is_torchs() -> None:
    """Step by step, one-cycle is torch's OneCycleLR, but for the step by which the two count differently."""
    config, steps = TrainConfig(epochs=4, lr=0.3, schedule="one-cycle"), 500
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    scheduler = OneCycleLR(optimizer, 0.3, total_steps=4 * steps)
    for step in range(4 * steps):
        expected = scheduler.get_last_lr()[0]
        assert config.lr_at(step // steps, step % steps / steps) == pytest.approx(expected, abs=0.002 * 0.3)
        optimizer.step()
        scheduler.step()


def test_warm_up_rises_step_by_step() -> None:
    """Over the warm-up's epochs the schedule's rate is multiplied by a share that grows from 0 to 1."""
    config = TrainConfig(epochs=6, lr=0.4, schedule="exponential", decay=0.5, warmup=1.5)
    assert [config.lr_at(*at) for at in ((0, 0), (0, 0.75), (1, 0.25), (1, 0.5), (1, 1), (2, 0))] == pytest.approx(
        [0, 0.4 * 0.5, 0.2 * 1.25 / 1.5, 0.2, 0.2, 0.1]
    )


def test_later_settings_leave_files_as_they_were() -> None:
    """A setting that came later is recorded only where it is set, and an older file has its default."""
    plain, smoothed = HeadConfig(), HeadConfig(label_smoothing=0.1)
    assert "label_smoothing" not in plain.to_json()
    assert smoothed.to_json()["label_smoothing"] == 0.1
    recorded = {"stage": "vgg.head", "config": plain.to_json(), "inputs": {}}
    assert Recipe("vgg.head", plain).differences(recorded) == []
    assert Recipe("vgg.head", smoothed).differences(recorded) == ["--label-smoothing was 0.0, now 0.1"]
    recorded["config"] = smoothed.to_json()
    assert Recipe("vgg.head", plain).differences(recorded) == ["--label-smoothing was 0.1, now 0.0"]


@pytest.mark.parametrize("option", ["erase", "crop-area", "color-jitter"])
def test_changes_of_random_parts_need_random_parts(option: str) -> None:
    """What changes random parts contradicts an augmentation without them."""
    with pytest.raises(SettingError, match=f"--{option} needs --augment"):
        TrainConfig(augment="flip", **{option.replace("-", "_"): 0.5})  # type: ignore[arg-type]
