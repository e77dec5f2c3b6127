"""`data split`, `digits`, `draw` and `show`."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dlcv_cli.config import DrawConfig, SplitConfig
from dlcv_cli.context import Context, Outcome, Reporter, map_in_threads
from dlcv_cli.errors import DlcvError, ExistsError, SettingError, list_names
from dlcv_cli.files import splits
from dlcv_cli.files.disk import JSON, as_object, check_output, hash_file, hash_json, read_json, write_folder
from dlcv_cli.files.locks import claim_outputs
from dlcv_cli.files.near_duplicates import encode_copies, place_copies, read_copies
from dlcv_cli.files.recipes import Input, Recipe, is_up_to_date, read_versions
from dlcv_cli.settings import option_name
from dlcv_cli.stages.near_duplicates import decode_images, find_near_duplicates, report_copies
from dlcv_cli.vision import datasets, images
from dlcv_cli.vision.folds import check_folds, fold_examples
from dlcv_cli.vision.groups import match_groups
from dlcv_cli.vision.labels import read_labels
from dlcv_cli.vision.splits import PARTS, Example, check_examples

FOLDER = "dlcv.folder/1"


def write_split(
    root: Path,
    output: Path,
    config: SplitConfig,
    *,
    labels: Path | None = None,
    download: bool = False,
    context: Context = Context(),
) -> Outcome:
    """Write a split file for the images below `root`. Every image is decoded once, unless the file is up to date.

    Args:
        labels: a CSV that lists the images and their classes, in place of class folders.

    Raises:
        DlcvError: no classes or images, a class with too few, unreadable images without skip_bad, a changed output,
            a row of `labels` that is not as it should be, parts that are given and differ in their classes.
        SettingError: settings that contradict each other, or the parts that are given.
    """
    reporter = context.reporter
    check_output(output, splits.ENDING)
    inputs = {"labels": Input(hash_file(labels), labels)} if labels else {}
    root, scan = _scan(root, labels, config, download, reporter)
    recipe = Recipe("data.split", config, {"images": scan.identify(), **inputs})
    up_to_date = is_up_to_date(output, recipe, splits.read_metadata, context.force)
    if up_to_date and splits.read_each(output)[0].root.resolve() == root.resolve():  # else the images have moved since
        return Outcome(output, False, describe_split(output))
    with claim_outputs(output):
        problems, signatures = decode_images(root, scan.examples, config, reporter)
        bad = scan.bad | problems
        _refuse_or_skip(root, bad, config, reporter)
        examples = [example for example in scan.examples if example.path not in bad]
        identical, conflicts = _find_identical(examples, scan.given, reporter)
        near = find_near_duplicates(examples, signatures, config, reporter)
        together = near if config.near_duplicates == "keep-together" else []
        links = [(first.sha256, second.sha256) for first, second, _ in together]
        folds = fold_examples(examples, scan.classes, config, scan.given, links)
        copies = place_copies(near, folds)
        metadata = {
            **recipe.to_json(output.parent),
            "skipped": [{"path": path, "problem": problem} for path, problem in sorted(bad.items())],
            "ignored": scan.ignored,
            "identical": identical,
            "label_conflicts": conflicts,
            **encode_copies(copies),
            "versions": read_versions("pillow"),
        }
        if config.folds or len(folds) > 1:
            splits.write_folds(output, root, scan.classes, folds, config.folds, metadata)
        else:
            splits.write(output, root, scan.classes, folds[0], metadata)
        _note_parts(examples, folds[0], scan.given, reporter)
        report_copies(copies, scan.given, reporter)
    return Outcome(output, True, describe_split(output))


def _note_parts(
    examples: Sequence[Example], parts: Mapping[str, Sequence[Example]], given: Mapping[str, str], reporter: Reporter
) -> None:
    """Say which parts were given and which were taken from train, and how many images are in none."""
    parts_given = [part for part in PARTS if part in set(given.values())]
    taken = [part for part in PARTS if part not in parts_given]
    if given:
        rest = f"; {' and '.join(taken)} {'is' if len(taken) == 1 else 'are'} taken from train" if taken else ""
        reporter.note(f"parts that are given: {', '.join(parts_given)}{rest}")
    unused = len(examples) - sum(map(len, parts.values()))
    if unused:
        reporter.note(f"{unused:,} images are in no part, because of the limits per class")


@dataclass(frozen=True)
class _Scan:
    """The images of a folder, hashed but not decoded yet."""

    classes: list[str]
    examples: list[Example]  # with an empty sha256 where the file could not be read
    bad: dict[str, str]  # path of an image that cannot be read: reason
    ignored: list[str]
    given: dict[str, str]  # path of every image: the part that it is in already; empty if none are given

    def identify(self) -> Input:
        """Return the hash of everything that a split depends on, beside its settings and labels."""
        groups = {e.path: e.group for e in self.examples if e.group}
        examples = [(e.path, e.label, e.sha256) for e in self.examples]
        return Input(hash_json([self.classes, examples, sorted(self.bad), *([groups] if groups else [])]))


def _scan(
    root: Path, labels: Path | None, config: SplitConfig, download: bool, reporter: Reporter
) -> tuple[Path, _Scan]:
    """Return the folder that the images' paths start from, and its images."""
    root, listing = _list_images(root, labels, config, download)
    if len(listing.classes) < 2:
        raise DlcvError(f"{root}: only one class, {listing.classes[0]!r}; at least two are needed")
    if listing.ignored:
        reporter.note(
            f"ignored {len(listing.ignored)} that are not images, or in no class folder: {list_names(listing.ignored)}"
        )
    examples = [Example(path, label, "", listing.groups.get(path)) for path, label in listing.images]
    try:
        check_examples(examples, listing.classes, config, listing.parts)
        check_folds(config, listing.parts)
    except DlcvError as error:
        raise type(error)(f"{labels or root}: {error}") from None
    hashes = map_in_threads(_hash_image, [root / path for path, _ in listing.images], "hashing", reporter)
    examples = [replace(e, sha256=sha256) for e, (sha256, _) in zip(examples, hashes, strict=True)]
    bad = dict(listing.bad) | {e.path: problem for e, (_, problem) in zip(examples, hashes, strict=True) if problem}
    return root, _Scan(listing.classes, examples, bad, listing.ignored, listing.parts)


def _list_images(root: Path, labels: Path | None, config: SplitConfig, download: bool) -> tuple[Path, datasets.Listing]:
    """Return the folder that the images' paths start from, and its images by class, part and group."""
    if labels:
        if config.dataset != "folder":
            raise SettingError(f"--labels contradicts --dataset {config.dataset}: give the images' folder as ROOT")
        return root, read_labels(labels, root, config)
    for name in ("path_column", "label_column", "part_column", "group_column"):
        if getattr(config, name) != getattr(SplitConfig, name):
            raise SettingError(f"{option_name(name)} names a column of a CSV file: give that with --labels")
    exclude: tuple[str, ...] = ()
    if config.dataset == "caltech101":
        root = datasets.find_caltech101(root, download)
        exclude = () if config.background else (datasets.BACKGROUND,)
    listing = datasets.list_folder(root, exclude)
    if config.group:
        listing.groups.update(match_groups((path for path, _ in listing.images), config.group))
    return root, listing


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


def _find_identical(
    examples: Sequence[Example], given: Mapping[str, str], reporter: Reporter
) -> tuple[list[list[str]], list[list[str]]]:
    """Return the groups of paths of byte-identical images, and those of them that lie in different classes."""
    by_content: dict[str, list[Example]] = defaultdict(list)
    for example in examples:
        by_content[example.sha256].append(example)
    groups = [group for group in by_content.values() if len(group) > 1]
    identical = [[e.path for e in group] for group in groups]
    conflicts = [[e.path for e in group] for group in groups if len({e.label for e in group}) > 1]
    together: list[list[str]] = []
    leaks: list[list[str]] = []
    for paths in identical:
        (leaks if len({given.get(path) for path in paths}) > 1 else together).append(paths)
    if together:
        reporter.note(
            f"{len(together)} images exist under several names; the copies stay in one part: "
            f"{list_names((' = '.join(g) for g in together), 3)}"
        )
    if leaks:
        reporter.warn(
            f"leak: {len(leaks)} images are in several of the parts that are given, byte for byte: "
            f"{list_names((' = '.join(g) for g in leaks), 3)}; the parts are kept: remove the copies from all but one"
        )
    if conflicts:
        reporter.warn(
            f"label conflict: {len(conflicts)} images are in several classes: "
            f"{list_names((' = '.join(g) for g in conflicts), 3)}; remove the wrong ones"
        )
    return identical, conflicts


def describe_split(path: Path, root: Path | None = None) -> dict[str, Any]:
    """Return what a split file holds: counts per part and class, smallest and largest class.

    Of a file with folds, `counts` is a list of them, one for each fold, and `classes` has the images of each class.
    """
    file, *others = splits.read_each(path, root)
    if file.folds:
        return _describe_folds([file, *others])
    per_part = {part: Counter(e.label for e in file.parts[part]) for part in PARTS}
    sizes = {c: sum(per_part[part][i] for part in PARTS) for i, c in enumerate(file.classes)}
    smallest, largest = min(sizes, key=sizes.__getitem__), max(sizes, key=sizes.__getitem__)
    contents = Counter(sha256 for part in PARTS for sha256 in {e.sha256 for e in file.parts[part]})
    groups = {part: len({e.group for e in file.parts[part] if e.group}) for part in PARTS}
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
        "in_several_parts": sum(count > 1 for count in contents.values()),
        **_count_copies(file),
        "groups": groups if any(groups.values()) else {},
    }


def _describe_folds(folds: Sequence[splits.Split]) -> dict[str, Any]:
    file = folds[0]
    examples = {e.path: e for fold in folds for own in fold.parts.values() for e in own}
    sizes = Counter(e.label for e in examples.values())
    return {
        "split": str(file.path),
        "root": str(file.root),
        "fingerprint": file.metadata["fingerprint"],
        "folds": file.folds,
        "folds_per_repeat": file.metadata["folds_per_repeat"],
        "images": len(examples),
        "counts": [{part: len(fold.parts[part]) for part in PARTS} for fold in folds],
        "classes": {name: sizes[label] for label, name in enumerate(file.classes)},
        "groups": len({e.group for e in examples.values() if e.group}),
        **{key: len(file.metadata.get(key, ())) for key in ("skipped", "identical", "label_conflicts")},
        **_count_copies(*folds),
    }


def _count_copies(*folds: splits.Split) -> dict[str, int]:
    """Return the numbers of pairs of near-duplicates; those of folds are across parts if they are in any fold."""
    copies = read_copies(*folds)
    return {
        "near_duplicates": len(copies),
        "near_duplicates_across_parts": sum(own.across_parts for own in copies),
        "near_duplicates_across_classes": sum(own.across_classes for own in copies),
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
