"""What `data split` does about near-duplicates: find them, and say where they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from dlcv_cli.config import SplitConfig
from dlcv_cli.context import Reporter, map_in_threads
from dlcv_cli.errors import DlcvError, list_names
from dlcv_cli.files.near_duplicates import Copies
from dlcv_cli.vision.images import load_image
from dlcv_cli.vision.near_duplicates import Signatures, find_pairs, make_signature
from dlcv_cli.vision.splits import Example

Near = tuple[Example, Example, float]


def decode_images(
    root: Path, examples: Sequence[Example], config: SplitConfig, reporter: Reporter
) -> tuple[dict[str, str], dict[str, Signatures]]:
    """Decode every image once. Return why images are unreadable by path, and the signatures of the others."""
    search = config.near_duplicates != "ignore"

    def decode(example: Example) -> tuple[str | None, Signatures | None]:
        try:
            image = load_image(root / example.path)
        except ValueError as error:
            return str(error), None
        return None, make_signature(image) if search else None

    decoded = dict(zip((e.path for e in examples), map_in_threads(decode, examples, "decoding", reporter), strict=True))
    problems = {path: problem for path, (problem, _) in decoded.items() if problem}
    signatures = {path: signature for path, (_, signature) in decoded.items() if signature is not None}
    if search and (unjudged := len(examples) - len(problems) - len(signatures)):
        reporter.note(
            f"{unjudged:,} images are too small, or have too little in them, to be compared for near-duplicates"
        )
    return problems, signatures


def find_near_duplicates(
    examples: Sequence[Example], signatures: Mapping[str, Signatures], config: SplitConfig, reporter: Reporter
) -> list[Near]:
    """Return the pairs of near-duplicates. Of identical images the first stands for all.

    Raises:
        DlcvError: too many are alike to keep them together.
    """
    first_of = {e.sha256: e for e in reversed(examples) if e.path in signatures}
    different = sorted(first_of.values(), key=lambda e: e.path)
    try:
        pairs = find_pairs([signatures[e.path] for e in different])
    except DlcvError as error:
        if config.near_duplicates == "keep-together":
            raise DlcvError(f"{error}: name what belongs together with --group instead") from None
        reporter.warn(f"{error}: near-duplicates are not reported; name what belongs together with --group")
        return []
    return [(different[pair.first], different[pair.second], pair.similarity) for pair in pairs]


def report_copies(copies: Sequence[Copies], given: Mapping[str, str], reporter: Reporter) -> None:
    """Say how many near-duplicates there are, how many lie in two parts, and which are in two classes."""
    across = [own for own in copies if own.across_parts]
    conflicts = [own for own in copies if own.across_classes]
    if across and given:
        reporter.warn(
            f"leak: {len(across):,} pairs of near-duplicates lie in two of the parts: {list_names(across, 3)}; parts "
            "that are given are kept: remove the copies from all but one"
        )
    elif across:
        reporter.note(
            f"{len(across):,} of {len(copies):,} pairs of near-duplicates lie in two parts: {list_names(across, 3)}; "
            "--near-duplicates keep-together keeps them in one"
        )
    elif copies:
        reporter.note(f"{len(copies):,} pairs of near-duplicates, each in one part: {list_names(copies, 3)}")
    if conflicts:
        reporter.warn(
            f"label conflict: {len(conflicts):,} pairs of near-duplicates are in different classes: "
            f"{list_names(conflicts, 3)}; remove the wrong ones"
        )
