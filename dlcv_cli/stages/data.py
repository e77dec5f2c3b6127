"""`data split`, `digits`, `draw` and `show`."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlcv_cli.config import DrawConfig, SplitConfig
from dlcv_cli.context import Context, Outcome, Reporter, map_in_threads
from dlcv_cli.errors import DlcvError, ExistsError, list_names
from dlcv_cli.files import splits
from dlcv_cli.files.disk import JSON, as_object, check_output, hash_json, read_json, write_folder
from dlcv_cli.files.locks import claim_outputs
from dlcv_cli.files.recipes import Input, Recipe, is_up_to_date, read_versions
from dlcv_cli.vision import datasets, images
from dlcv_cli.vision.splits import PARTS, Example, split_examples

FOLDER = "dlcv.folder/1"


def write_split(
    root: Path, output: Path, config: SplitConfig, *, download: bool = False, context: Context = Context()
) -> Outcome:
    """Write a split file for the images below `root`. Every image is decoded once, unless the file is up to date.

    Raises:
        DlcvError: no classes or images, a class with too few, unreadable images without skip_bad, a changed output.
    """
    reporter = context.reporter
    check_output(output, splits.ENDING)
    root, scan = _scan(root, config, download, reporter)
    recipe = Recipe("data.split", config, {"images": scan.identify()})
    up_to_date = is_up_to_date(output, recipe, lambda path: read_json(path, splits.SCHEMA), context.force)
    if up_to_date and splits.read(output).root.resolve() == root.resolve():  # else the images have moved since
        return Outcome(output, False, describe_split(output))
    with claim_outputs(output):
        problems = map_in_threads(images.find_problem, [root / e.path for e in scan.examples], "decoding", reporter)
        bad = scan.bad | {e.path: problem for e, problem in zip(scan.examples, problems, strict=True) if problem}
        _refuse_or_skip(root, bad, config, reporter)
        examples = [example for example in scan.examples if example.path not in bad]
        identical, conflicts = _find_identical(examples, reporter)
        parts = split_examples(examples, scan.classes, config)
        metadata = {
            **recipe.to_json(output.parent),
            "skipped": [{"path": path, "problem": problem} for path, problem in sorted(bad.items())],
            "ignored": scan.ignored,
            "identical": identical,
            "label_conflicts": conflicts,
            "versions": read_versions("pillow"),
        }
        splits.write(output, root, scan.classes, parts, metadata)
        unused = len(examples) - sum(map(len, parts.values()))
        if unused:
            reporter.note(f"{unused:,} images are in no part, because of the limits per class")
    return Outcome(output, True, describe_split(output))


@dataclass(frozen=True)
class _Scan:
    """The images of a folder, hashed but not decoded yet."""

    classes: list[str]
    examples: list[Example]  # with an empty sha256 where the file could not be read
    bad: dict[str, str]  # path of an image that cannot be read: reason
    ignored: list[str]

    def identify(self) -> Input:
        """Return the hash of everything that a split depends on."""
        return Input(hash_json([self.classes, [(e.path, e.label, e.sha256) for e in self.examples], sorted(self.bad)]))


def _scan(root: Path, config: SplitConfig, download: bool, reporter: Reporter) -> tuple[Path, _Scan]:
    """Return the folder that holds the class folders, and its images."""
    exclude: tuple[str, ...] = ()
    if config.dataset == "caltech101":
        root = datasets.find_caltech101(root, download)
        exclude = () if config.background else (datasets.BACKGROUND,)
    listing = datasets.list_folder(root, exclude)
    if len(listing.classes) < 2:
        raise DlcvError(f"{root}: only one class, {listing.classes[0]!r}; at least two are needed")
    if listing.ignored:
        reporter.note(f"ignored {len(listing.ignored)} files that are not images: {list_names(listing.ignored)}")
    hashes = map_in_threads(_hash_image, [root / path for path, _ in listing.images], "hashing", reporter)
    bad, examples = dict(listing.bad), []
    for (path, label), (sha256, problem) in zip(listing.images, hashes, strict=True):
        examples.append(Example(path, label, sha256))
        if problem:
            bad[path] = problem
    return root, _Scan(listing.classes, examples, bad, listing.ignored)


def _hash_image(path: Path) -> tuple[str, str | None]:
    """Return (sha256, None), or ("", why the file cannot be read)."""
    try:
        return images.hash_image_file(path), None
    except ValueError as error:
        return "", str(error)


def _refuse_or_skip(root: Path, bad: dict[str, str], config: SplitConfig, reporter: Reporter) -> None:
    """Warn of each unreadable image; raise DlcvError unless they may be skipped."""
    if not bad:
        return
    for path, problem in sorted(bad.items()):
        reporter.warn(f"{root / path}: {problem}")
    if not config.skip_bad:
        raise DlcvError(
            f"{root}: {len(bad)} unreadable images, listed above: repair or remove them, or skip them with --skip-bad"
        )
    reporter.warn(f"skipped {len(bad)} unreadable images (--skip-bad)")


def _find_identical(examples: Sequence[Example], reporter: Reporter) -> tuple[list[list[str]], list[list[str]]]:
    """Return the groups of paths of byte-identical images, and those of them that lie in different classes."""
    by_content: dict[str, list[Example]] = defaultdict(list)
    for example in examples:
        by_content[example.sha256].append(example)
    groups = [group for group in by_content.values() if len(group) > 1]
    identical = [[e.path for e in group] for group in groups]
    conflicts = [[e.path for e in group] for group in groups if len({e.label for e in group}) > 1]
    if identical:
        reporter.note(
            f"{len(identical)} images exist under several names; the copies stay in one part: "
            f"{list_names((' = '.join(g) for g in identical), 3)}"
        )
    if conflicts:
        reporter.warn(
            f"label conflict: {len(conflicts)} images are in several classes: "
            f"{list_names((' = '.join(g) for g in conflicts), 3)}; remove the wrong ones"
        )
    return identical, conflicts


def describe_split(path: Path, root: Path | None = None) -> dict[str, Any]:
    """Return what a split file holds: counts per part and class, smallest and largest class."""
    file = splits.read(path, root)
    per_part = {part: Counter(e.label for e in file.parts[part]) for part in PARTS}
    sizes = {c: sum(per_part[part][i] for part in PARTS) for i, c in enumerate(file.classes)}
    smallest, largest = min(sizes, key=sizes.__getitem__), max(sizes, key=sizes.__getitem__)
    return {
        "split": str(path),
        "root": str(file.root),
        "fingerprint": file.metadata["fingerprint"],
        "counts": {part: len(file.parts[part]) for part in PARTS},
        "classes": {c: {part: per_part[part][i] for part in PARTS} for i, c in enumerate(file.classes)},
        "smallest_class": {"name": smallest, "count": sizes[smallest]},
        "largest_class": {"name": largest, "count": sizes[largest]},
        "skipped": len(file.metadata.get("skipped", ())),
        "identical": len(file.metadata.get("identical", ())),
        "label_conflicts": len(file.metadata.get("label_conflicts", ())),
    }


def write_digits(folder: Path, *, context: Context = Context()) -> Outcome:
    """Write the built-in handwritten digits as class folders of PNGs."""
    return fill_folder(folder, Recipe("data.digits", {}), datasets.read_digits, datasets.DIGITS, context=context)


def write_drawings(folder: Path, config: DrawConfig, *, context: Context = Context()) -> Outcome:
    """Write drawn figures as class folders of PNGs."""
    from dlcv_cli.vision.drawing import draw_figures

    recipe, count = Recipe("data.draw", config), config.classes * config.per_class
    return fill_folder(folder, recipe, lambda: draw_figures(config), count, context=context)


def fill_folder(
    folder: Path,
    recipe: Recipe,
    make_files: Callable[[], Iterable[tuple[str, bytes]]],
    count: int,
    *,
    context: Context = Context(),
    packages: Sequence[str] = ("pillow", "numpy"),
) -> Outcome:
    """Fill a folder with the `count` (path, bytes) of images that `make_files` yields, unless it is up to date.

    Args:
        packages: those whose versions the folder's manifest records.

    Raises:
        DlcvError: the folder holds other files, or was made from other settings and `context.force` is not set.
    """
    manifest = folder / datasets.MANIFEST
    filled = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    if filled and not manifest.is_file():
        raise DlcvError(f"{folder} holds files that dlcv did not write, and is left as it is: give another -o")
    if is_up_to_date(manifest, recipe, lambda path: read_json(path, FOLDER), context.force):
        _check_unchanged(folder, read_json(manifest, FOLDER))
        return Outcome(folder, False, {"images": count})

    def report_files() -> Iterable[tuple[str, bytes]]:
        for number, file in enumerate(make_files(), 1):
            context.reporter.progress("writing images", number, count)
            yield file

    if filled:
        _refuse_additions(folder, read_json(manifest, FOLDER))
    metadata = {"schema": FOLDER, **recipe.to_json(folder.parent), "versions": read_versions(*packages)}
    with claim_outputs(folder):
        write_folder(folder, report_files(), datasets.MANIFEST, metadata, replace=filled)
    return Outcome(folder, True, {"images": count})


def _refuse_additions(folder: Path, metadata: JSON) -> None:
    """Raise DlcvError if files were added to a folder that is about to be replaced."""
    own = {*as_object(metadata.get("files")), datasets.MANIFEST}
    paths = [p.relative_to(folder).as_posix() for p in sorted(folder.rglob("*")) if not p.is_dir()]
    if added := [path for path in paths if path not in own]:
        raise DlcvError(
            f"{folder} holds files that dlcv did not write, and is left as it is: {list_names(added)}; "
            "move them elsewhere first"
        )


def _check_unchanged(folder: Path, metadata: JSON) -> None:
    """Raise ExistsError if a file of the folder has changed since it was written, or is gone."""
    files = as_object(metadata.get("files"))
    changed = [path for path, sha256 in files.items() if _hash_image(folder / path)[0] != sha256]
    if changed:
        raise ExistsError(folder, [f"changed or removed since: {list_names(changed)}"])
