"""What the runs on one split share: its images, checked once, and their features, checked and opened once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from dlcv_cli.context import Context
from dlcv_cli.files.disk import JSON
from dlcv_cli.files.splits import Split
from dlcv_cli.studies.images.features import FrozenLayers, open_sources
from dlcv_cli.studies.images.predictor import load_part
from dlcv_cli.vision.batches import Source
from dlcv_cli.vision.preprocessing import Preprocessing
from dlcv_cli.vision.transforms import Images

Sources = tuple[Source, Source]  # of training and validation


@dataclass(frozen=True)
class SharedImages:
    """The images of a split or a fold, for one run or several that differ in their seeds.

    Features are shared by runs whose frozen layers are the same to the last bit, so that none sees a difference.

    Args:
        seeds: of all runs.
    """

    split: Split
    seeds: Sequence[int]
    context: Context
    _parts: dict[str, Images] = field(default_factory=dict)
    _sources: dict[object, tuple[Sources, JSON]] = field(default_factory=dict)

    def load(self, part: str, preprocessing: Preprocessing) -> Images:
        """Return the images of a part. FileError: it is empty, or images are missing or changed."""
        if part not in self._parts:
            self._parts[part] = load_part(self.split, part, preprocessing, self.context.reporter)
        return replace(self._parts[part], preprocessing=preprocessing)

    def open(self, frozen: FrozenLayers, train: Images, val: Images, epochs: int) -> tuple[Sources, JSON]:
        """Return the sources of both parts, and what the metrics say of the features. See `open_sources`."""
        if train.augment not in ("none", "flip") or not len(frozen.split.frozen):
            return self._open(frozen, (train,), val, epochs)[0]
        place, mirrors = frozen.place_keys(train)[-1], train.augment == "flip"

        def key(seed: int) -> object:
            return place, train.augment, train.views, seed if mirrors else None, epochs

        if key(train.seed) not in self._sources:
            trains = [replace(train, seed=seed) for seed in (self.seeds if mirrors else [train.seed])]
            for own, opened in zip(trains, self._open(frozen, trains, val, epochs), strict=True):
                self._sources[key(own.seed)] = opened
        return self._sources[key(train.seed)]

    def _open(
        self, frozen: FrozenLayers, trains: Sequence[Images], val: Images, epochs: int
    ) -> list[tuple[Sources, JSON]]:
        counts = [*(epochs for _ in trains), 1]
        (*sources, val_source), features = open_sources(frozen, (*trains, val), counts, self.context)
        return [((source, val_source), features) for source in sources]
