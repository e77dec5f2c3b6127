"""`data split`, `digits`, `draw` and `show`."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from dlcv_cli.config import DrawConfig, SplitConfig
from dlcv_cli.context import Outcome, Reporter, map_in_threads
from dlcv_cli.errors import DlcvError, ExistsError, list_names
from dlcv_cli.files import splits
from dlcv_cli.files.disk import JSON, as_object, check_output, hash_json, read_json, write_folder
from dlcv_cli.files.locks import claim_outputs
from dlcv_cli.files.recipes import Input, Recipe, installed_versions, is_up_to_date
from dlcv_cli.vision import datasets, images
from dlcv_cli.vision.splits import PARTS, Example
from dlcv_cli.vision.splits import split as divide

FOLDER = "dlcv.folder/1"
T = TypeVar("T")


def split(
    root: Path,
    output: Path,
    config: SplitConfig,
    *,
    download: bool = False,
    force: bool = False,
    report: Reporter | None = None,
) -> Outcome:
    """Writes a split file for the images below `root`. Every image is decoded once, unless all is up to date.

    Raises:
        DlcvError: no classes or images, a class with too few, unreadable images without skip_bad, a changed output.
    """
    report = report or Reporter()
    check_output(output, splits.ENDING)
    without: tuple[str, ...] = ()
    if config.dataset == "caltech101":
        root = datasets.find_caltech101(root, download)
        without = () if config.background else (datasets.BACKGROUND,)
    listing = datasets.list_folder(root, without)
    if len(listing.classes) < 2:
        raise DlcvError(f"{root}: only one class, {listing.classes[0]!r}; at least two are needed")
    if listing.ignored:
        report.note(f"ignored {len(listing.ignored)} that are no images: {list_names(listing.ignored)}")

    paths = [root / path for path, _ in listing.images]
    hashes = map_in_threads(_sha256_or_problem, paths, "hashing", report)
    bad = dict(listing.bad) | {
        path: problem for (path, _), (_, problem) in zip(listing.images, hashes, strict=True) if problem
    }
    identity = [(p, label, h) for (p, label), (h, _) in zip(listing.images, hashes, strict=True)]
    source = Input(hash_json([listing.classes, identity, sorted(bad)]))
    recipe = Recipe("data.split", config, {"images": source})
    made = is_up_to_date(output, recipe, lambda path: read_json(path, splits.SCHEMA), force)
    if made and splits.read(output).root.resolve() == root.resolve():  # else the images have moved since
        return Outcome(output, False, show(output))
    with claim_outputs(output):
        problems = map_in_threads(images.problem, paths, "decoding", report)
        bad |= {path: problem for (path, _), problem in zip(listing.images, problems, strict=True) if problem}
        _refuse_or_skip(root, bad, config, report)
        examples = [Example(p, label, h) for p, label, h in identity if p not in bad]
        identical, conflicts = _identical(examples, listing.classes, report)
        parts = divide(examples, listing.classes, config)
        record = {
            **recipe.to_json(output.parent),
            "skipped": [{"path": path, "problem": problem} for path, problem in sorted(bad.items())],
            "ignored": listing.ignored,
            "identical": identical,
            "label_conflicts": conflicts,
            "versions": installed_versions("pillow"),
        }
        splits.write(output, root, listing.classes, parts, record)
        unused = len(examples) - sum(map(len, parts.values()))
        if unused:
            report.note(f"{unused} images are in no part: more than was asked for per class")
    return Outcome(output, True, show(output))


def _sha256_or_problem(path: Path) -> tuple[str, str | None]:
    try:
        return images.sha256(path), None
    except ValueError as error:
        return "", str(error)


def _refuse_or_skip(root: Path, bad: dict[str, str], config: SplitConfig, report: Reporter) -> None:
    if not bad:
        return
    for path, problem in sorted(bad.items()):
        report.warn(f"{root / path}: {problem}")
    if not config.skip_bad:
        raise DlcvError(f"{root}: {len(bad)} unreadable images, listed above: repair or remove them, or --skip-bad")
    report.warn(f"{len(bad)} unreadable images left out (--skip-bad)")


def _identical(
    examples: Sequence[Example], classes: Sequence[str], report: Reporter
) -> tuple[list[list[str]], list[list[str]]]:
    """Paths of byte-identical images, and those of them that lie under different classes."""
    found: dict[str, list[Example]] = defaultdict(list)
    for example in examples:
        found[example.sha256].append(example)
    groups = [group for group in found.values() if len(group) > 1]
    identical = [[e.path for e in group] for group in groups]
    conflicts = [[e.path for e in group] for group in groups if len({e.label for e in group}) > 1]
    if identical:
        report.note(
            f"{len(identical)} times the same image under several names, kept in one part: "
            f"{list_names((' = '.join(g) for g in identical), 3)}"
        )
    if conflicts:
        report.warn(
            f"label conflict: {len(conflicts)} images are in several classes: "
            f"{list_names((' = '.join(g) for g in conflicts), 3)}; remove the wrong ones"
        )
    return identical, conflicts


def show(path: Path, root: Path | None = None) -> dict[str, Any]:
    """What a split file holds: counts per part and class, smallest and largest class."""
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


def digits(folder: Path, *, force: bool = False, report: Reporter | None = None) -> Outcome:
    """Writes scikit-learn's handwritten digits as a folder of class folders of PNGs."""
    made = made_folder(folder, Recipe("data.digits", {}), datasets.digits, 1797, force, report or Reporter())
    return Outcome(folder, made, {"images": 1797})


def draw(folder: Path, config: DrawConfig, *, force: bool = False, report: Reporter | None = None) -> Outcome:
    """Writes drawn figures as a folder of class folders of PNGs."""
    from dlcv_cli.vision import drawing

    recipe = Recipe("data.draw", config)
    total = config.classes * config.per_class
    made = made_folder(folder, recipe, lambda: drawing.draw(config), total, force, report or Reporter())
    return Outcome(folder, made, {"images": total})


def made_folder(
    folder: Path,
    recipe: Recipe,
    make: Callable[[], Iterable[tuple[str, bytes]]],
    total: int,
    force: bool,
    report: Reporter,
    packages: Sequence[str] = ("pillow", "numpy"),
) -> bool:
    """Fills a folder with the (path, bytes) that `make` yields, `total` in all; False when it was up to date.

    Raises:
        DlcvError: the folder holds what dlcv did not make, or was made differently and not `force`.
    """
    manifest = folder / datasets.MANIFEST
    filled = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    if filled and not manifest.is_file():
        raise DlcvError(f"{folder} holds something that dlcv did not make, and is left alone: give another -o")
    if is_up_to_date(manifest, recipe, lambda path: read_json(path, FOLDER), force):
        _check_folder(folder, read_json(manifest, FOLDER))
        return False

    def counted() -> Iterable[tuple[str, bytes]]:
        for done, file in enumerate(make(), 1):
            report.progress("writing images", done, total)
            yield file

    if filled:
        _refuse_additions(folder, read_json(manifest, FOLDER))
    record = {"schema": FOLDER, **recipe.to_json(folder.parent), "versions": installed_versions(*packages)}
    with claim_outputs(folder):
        write_folder(folder, counted(), datasets.MANIFEST, record, replace=filled)
    return True


def _refuse_additions(folder: Path, record: JSON) -> None:
    own = {*as_object(record.get("files")), datasets.MANIFEST}
    others = [p.relative_to(folder).as_posix() for p in sorted(folder.rglob("*")) if not p.is_dir()]
    if added := [name for name in others if name not in own]:
        raise DlcvError(
            f"{folder} holds files that dlcv did not make, and is left alone: {list_names(added)}; move them"
        )


def _check_folder(folder: Path, record: JSON) -> None:
    files = as_object(record.get("files"))
    changed = [name for name, digest in files.items() if _sha256_or_problem(folder / name)[0] != digest]
    if changed:
        raise ExistsError(folder, [f"changed or removed since: {list_names(changed)}"])
