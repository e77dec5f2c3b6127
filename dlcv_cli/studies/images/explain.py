"""Heat maps: which parts of an image speak for a class. Letters: C channels, H and W positions, S pixels a side."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from dlcv_cli.errors import DlcvError, SettingError, look_up
from dlcv_cli.files.disk import write_whole
from dlcv_cli.studies.images.predictor import ImageCheckpoint
from dlcv_cli.vision import images
from dlcv_cli.vision.architectures import ARCHITECTURES
from dlcv_cli.vision.inference import FeatureExtractor
from dlcv_cli.vision.steps import list_steps
from dlcv_cli.vision.transforms import decode, resize

STRONGEST = 0.75  # opacity of the heat where it is highest


class Explainer:
    """Draws heat maps of a checkpoint into a folder, which must be new or empty.

    Args:
        name: the class that they are of; None: the one that is predicted.

    Raises:
        DlcvError: no such class, a folder with files, or a network whose layers keep no positions.
    """

    def __init__(self, checkpoint: ImageCheckpoint, folder: Path, name: str | None, force: bool) -> None:
        if folder.exists() and not folder.is_dir():
            raise DlcvError(f"{folder}: is a file; give a folder")
        if folder.is_dir() and any(folder.iterdir()) and not force:
            raise DlcvError(f"{folder}: is not empty; give a new folder, or --force to write into it")
        self.checkpoint, self.folder, self.taken = checkpoint, folder, set[str]()
        numbers = {own: number for number, own in enumerate(checkpoint.classes)}
        self.number = None if name is None else look_up(numbers, name, "class")
        self.steps = [step.eval() for _, step in list_steps(checkpoint.network, ARCHITECTURES[checkpoint.arch])]
        side = checkpoint.preprocessing.crop
        self.place = find_last_map(self.steps, torch.zeros(1, 3, side, side))
        if not self.place:
            raise SettingError(f"--explain: {checkpoint.arch} has no layer with positions for a heat map")
        self.normalise = FeatureExtractor([], checkpoint.preprocessing, torch.device("cpu"), "float32")
        folder.mkdir(parents=True, exist_ok=True)

    def draw(self, path: Path) -> Path:
        """Write what the network sees of an image, and beside it the same under its heat; return the file.

        Raises:
            ValueError: the image cannot be read.
        """
        pixels = resize(decode(images.read_image_file(path)), self.checkpoint.preprocessing)
        heat, number = compute_heat(self.steps, self.place, self.normalise(pixels[None]), self.number)
        seen = pixels.numpy()
        picture = Image.fromarray(np.concatenate([seen, lay_over(seen, heat.numpy())], axis=1))
        output = self._name(path.stem, self.checkpoint.classes[number])
        with write_whole(output) as temporary:
            picture.save(temporary, "PNG")
        return output

    def _name(self, stem: str, name: str) -> Path:
        """Return a file name that no earlier picture has: the image's, and the class."""
        plain = f"{stem}.{name.replace('/', '-')}"
        endings = itertools.chain([""], (f"-{number}" for number in itertools.count(2)))
        free = next(own for own in (f"{plain}{ending}.png" for ending in endings) if own not in self.taken)
        self.taken.add(free)
        return self.folder / free


def find_last_map(steps: Sequence[nn.Module], x: Tensor) -> int:
    """Return the number of steps after which the output last has several positions (1, C, H, W); 0: after none."""
    last = 0
    with torch.no_grad():
        for number, step in enumerate(steps, 1):
            x = step(x)
            if x.dim() == 4 and x.shape[2] * x.shape[3] > 1:
                last = number
    return last


def compute_heat(steps: Sequence[nn.Module], place: int, x: Tensor, number: int | None) -> tuple[Tensor, int]:
    """Return the heat (S, S) in 0..1 of an image (1, 3, S, S) for a class, and the class's number.

    Channels after `place` steps are weighed by the mean of their gradients; what speaks against the class counts as 0.

    Source: Selvaraju et al. 2017 (arXiv:1610.02391), Grad-CAM.

    Args:
        number: None takes the class with the highest logit.
    """
    with torch.no_grad():
        maps = nn.Sequential(*steps[:place])(x)
    maps.requires_grad_()
    logits = nn.Sequential(*steps[place:])(maps.clone())[0]  # a clone, because ReLUs work in place
    number = int(logits.argmax()) if number is None else number
    [gradient] = torch.autograd.grad(logits[number], maps)
    with torch.no_grad():
        heat = (gradient.mean((2, 3), keepdim=True) * maps).sum(1, keepdim=True).relu()
        heat = F.interpolate(heat, x.shape[2:], mode="bilinear")[0, 0]
        return heat / heat.max().clamp(min=1e-12), number


def lay_over(pixels: NDArray[np.uint8], heat: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return pixels (S, S, 3) under a heat (S, S): the hotter, the less of the image shows."""
    colors = colormaps["inferno"](heat)[..., :3] * 255
    opacity = STRONGEST * heat[..., None]
    mixed: NDArray[np.uint8] = (pixels * (1 - opacity) + colors * opacity).round().astype(np.uint8)
    return mixed
