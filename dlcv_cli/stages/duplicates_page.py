"""The page of the near-duplicates that a split file records."""

from __future__ import annotations

from pathlib import Path

from dlcv_cli.files import splits
from dlcv_cli.files.disk import check_output
from dlcv_cli.files.near_duplicates import Copies, read_copies
from dlcv_cli.report.duplicates import MOST, Copy, Section, Shown, render_duplicates
from dlcv_cli.stages.evaluate import write_text
from dlcv_cli.studies.images.pictures import make_thumbnail


def check_page(page: Path) -> None:
    """Raise DlcvError if this is no name for a page."""
    check_output(page, ".html")


def write_page(split_file: Path, page: Path, force: bool = False) -> None:
    """Write the near-duplicates that a split file records, side by side, as one HTML file.

    Raises:
        DlcvError: `page` is no name for a page, or exists with other content (unless `force`).
    """
    check_page(page)
    split, *others = splits.read_each(split_file)
    copies = read_copies(split, *others)
    kinds = {
        "In two parts": [own for own in copies if own.across_parts],
        "In one part and two classes": [own for own in copies if own.across_classes and not own.across_parts],
    }
    sections = [Section(kind, len(own), [_load(split, pair) for pair in own[:MOST]]) for kind, own in kinds.items()]
    write_text(page, render_duplicates(split_file.name, sections, len(copies)), force)


def _load(split: splits.Split, copies: Copies) -> Shown:
    """Return a pair with thumbnails, or with the reasons why it has none."""
    pictures = []
    for example, part in zip((copies.first, copies.second), copies.parts, strict=True):
        where = (example.path, split.classes[example.label], part)
        try:
            pictures.append(Copy(*where, *make_thumbnail(split.root / example.path, example.sha256)))
        except ValueError as error:
            pictures.append(Copy(*where, problem=str(error)))
    return Shown(pictures[0], pictures[1], copies.similarity)
