"""Checks the image files of a split's part. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from dlcv_cli.context import Reporter, map_in_threads
from dlcv_cli.errors import FileError, list_names
from dlcv_cli.files.splits import Split
from dlcv_cli.vision import images


def require_images(split: Split, part: str, reporter: Reporter) -> list[Path]:
    """Return the paths of one part's images, after checking each file against its sha256.

    Raises:
        FileError: the part is empty, or images are missing or changed; names them.
    """
    examples = split.parts[part]
    if not examples:
        raise FileError(split.path, f"has no {part} images")
    if not split.root.is_dir():
        raise FileError(split.path, f"its image folder {split.root} does not exist; give the folder with --root")
    paths = [split.root / e.path for e in examples]
    hashes = map_in_threads(_hash_or_none, paths, f"checking {part} images", reporter)
    problems = [
        f"{e.path} ({'changed' if digest else 'missing'})"
        for e, digest in zip(examples, hashes, strict=True)
        if digest != e.sha256
    ]
    if problems:
        raise FileError(
            split.path,
            f"{len(problems)} of its images in {split.root} are missing or changed: {list_names(problems)}; "
            "restore them, give the folder with --root, or make a new split",
        )
    return paths


def _hash_or_none(path: Path) -> str | None:
    try:
        return images.hash_image_file(path)
    except ValueError:
        return None
