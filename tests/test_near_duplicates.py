"""Near-duplicates: planted copies are detected, other images are not, and split, page and evaluation say so."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Iterable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import THREADS, Run, assert_refused, encode, load_json, make_photos, run_dlcv
from PIL import Image, ImageDraw, ImageEnhance, ImageOps
from scipy.fft import dctn

from dlcv_cli.config import DrawConfig, SplitConfig
from dlcv_cli.errors import DlcvError
from dlcv_cli.files import splits, tensors
from dlcv_cli.files.near_duplicates import list_copied, read_copies
from dlcv_cli.vision import near_duplicates
from dlcv_cli.vision.drawing import draw_figures
from dlcv_cli.vision.near_duplicates import Pair, Signatures, find_pairs, make_signature
from dlcv_cli.vision.splits import Example, link_examples, split_examples

Change = Callable[[Image.Image], Image.Image]


def draw_scene(number: int, size: tuple[int, int] = (200, 150)) -> Image.Image:
    """Return a picture with a soft background and some sharp shapes, another one for each number."""
    rng = np.random.default_rng(number)
    image = Image.fromarray(rng.integers(0, 230, (5, 6, 3)).astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(image)
    for _ in range(6):
        x, y, w, h = (int(v) for v in rng.integers((0, 0, 10, 10), (size[0] - 30, size[1] - 30, 80, 60)))
        shape = pen.ellipse if rng.random() < 0.5 else pen.rectangle
        shape((x, y, x + w, y + h), fill=tuple(int(v) for v in rng.integers(0, 230, 3)))
    return image


def compress(image: Image.Image) -> Image.Image:
    return Image.open(io.BytesIO(encode(image, "JPEG", quality=60))).convert("RGB")


def shrink(image: Image.Image) -> Image.Image:
    return image.resize((round(0.8 * image.width), round(0.8 * image.height)), Image.Resampling.BICUBIC)


def brighten(image: Image.Image) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(1.1)


def change_all(image: Image.Image) -> Image.Image:
    return compress(brighten(ImageOps.mirror(shrink(image))))


def sign(images: Iterable[Image.Image]) -> list[Signatures]:
    signatures = [make_signature(image) for image in images]
    assert all(own is not None for own in signatures)
    return [own for own in signatures if own is not None]


def places(pairs: Iterable[Pair]) -> list[tuple[int, int]]:
    return [(pair.first, pair.second) for pair in pairs]


# ----------------------------------------------------------------------------------------------------------- detection


@pytest.mark.parametrize("change", [compress, shrink, ImageOps.mirror, brighten, change_all])
def test_planted_copies_are_paired_and_nothing_else(change: Change) -> None:
    """Each of 40 pictures is paired with its copy, and with no other picture."""
    scenes = [draw_scene(number) for number in range(40)]
    pairs = find_pairs(sign([*scenes, *map(change, scenes)]))
    assert places(pairs) == [(number, number + 40) for number in range(40)]
    assert all(0.95 <= pair.similarity <= 1 for pair in pairs)


def test_unrelated_images_are_not_paired() -> None:
    """Of 300 different pictures, and 300 drawings of ten figures, none is paired, and noise is not either."""
    assert find_pairs(sign(draw_scene(number) for number in range(300))) == []
    drawn = [Image.open(io.BytesIO(png)) for _, png in draw_figures(DrawConfig(classes=10, per_class=30))]
    assert find_pairs(sign(drawn)) == []
    noise = np.random.default_rng(0).integers(0, 255, (300, 40, 40, 3), np.uint8)
    assert find_pairs(sign(map(Image.fromarray, noise))) == []


def test_same_frame_and_other_content_is_no_pair() -> None:
    """Pictures that share a strong frame are told apart by what is in it, also by its colour alone."""

    def frame(number: int, colour: str) -> Image.Image:
        image = Image.new("RGB", (200, 150), "white")
        image.paste((0, 0, 0), (25, 20, 175, 130))
        pen = ImageDraw.Draw(image)
        rng = np.random.default_rng(number)
        for x, y in rng.integers((60, 55), (120, 80), (4, 2)).tolist():
            pen.ellipse((x, y, x + 20, y + 16), fill=colour)
        return image

    framed = sign([frame(0, "#508050"), frame(1, "#508050"), frame(0, "#a03a3a")])
    lengths = near_duplicates._measure_frequencies(np.stack(framed))
    alike = sum(part @ part.T for part in lengths)
    assert alike.min() > 0.95, "the case has pictures that the frequencies do not tell apart"
    assert find_pairs(framed) == []
    assert places(find_pairs([*framed, *sign([change_all(frame(1, "#508050"))])])) == [(1, 3)]


def test_images_that_cannot_be_judged() -> None:
    """Small images and those of one colour have no signature; the smallest that is judged has one."""
    scene = draw_scene(0)
    assert make_signature(scene.resize((31, 64))) is None
    assert make_signature(scene.resize((64, 31))) is None
    assert make_signature(Image.new("RGB", (64, 64), "#808080")) is None
    signature = make_signature(scene.resize((32, 32)))
    assert signature is not None
    assert (signature.shape, signature.dtype) == ((32, 32, 3), np.uint8)
    assert find_pairs([]) == find_pairs([signature]) == []


def test_similarity_against_another_implementation() -> None:
    """The similarity equals the cosine of scipy's cosine transforms, weighted, of an image and its mirror image."""

    def transform(signature: Signatures) -> Any:
        gray = signature.astype(np.float64) @ [0.299, 0.587, 0.114]
        values = dctn(gray, norm="ortho")[:16, :16]
        weights = [[np.sqrt(u * u + v * v) for v in range(16)] for u in range(16)]
        return (values * weights).ravel() / np.linalg.norm(values * weights)

    for number in range(10):
        first, second = sign([draw_scene(number), change_all(draw_scene(number))])
        straight = transform(first) @ transform(second)
        mirrored = transform(first) @ transform(second[:, ::-1])
        [pair] = find_pairs([first, second])
        assert mirrored > straight
        assert pair.similarity == pytest.approx(mirrored, abs=6e-5)


def test_largest_difference_of_a_tile() -> None:
    """A pair ends where one tile of 4 x 4 pixels differs by more than the limit, computed here in loops."""
    [first] = sign([draw_scene(3)])
    for strength in (20, 40, 60, 80, 100, 120):
        second = first.copy()
        second[8:12, 16:20, 0] = np.clip(second[8:12, 16:20, 0].astype(int) + strength, 0, 255)
        a, b = ((own - own.mean()) / own.std() for own in (first.astype(float), second.astype(float)))
        worst = max(
            np.sqrt(np.mean([(a[y + v, x + u] - b[y + v, x + u]) ** 2 for v in range(4) for u in range(4)]))
            for y in range(0, 32, 4)
            for x in range(0, 32, 4)
        )
        assert len(find_pairs([first, second])) == (worst <= near_duplicates.DIFFERENT), (strength, worst)


def test_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pairs are the same however many images are compared at once."""
    scenes = [draw_scene(number) for number in (*range(20), *range(13), *range(5, 9))]
    signatures = sign([*scenes, *map(change_all, scenes[3:9])])
    whole = find_pairs(signatures)
    assert len(whole) > 30
    for block in (1, 7, 16):
        monkeypatch.setattr(near_duplicates, "BLOCK", block)
        monkeypatch.setattr(near_duplicates, "COLUMNS", 2 * block)
        assert find_pairs(signatures) == whole


def test_data_that_is_alike_by_nature(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the limit the search ends with an error instead of with millions of pairs."""
    monkeypatch.setattr(near_duplicates, "LIMIT", 9)
    copies = sign([draw_scene(0)] * 5)
    with pytest.raises(DlcvError, match="more than 9 pairs"):
        find_pairs(copies)
    assert len(find_pairs(copies[:4])) == 6


# -------------------------------------------------------------------------------------------------------------- splits


def make_scenes(root: Path, classes: int = 3, count: int = 12) -> Path:
    """Write class folders of different scenes, and in the first class a changed copy of each, named after it."""
    for label in range(classes):
        folder = root / f"class{label}"
        folder.mkdir(parents=True)
        for number in range(count):
            scene = draw_scene(100 * label + number)
            scene.save(folder / f"{number:02d}.png")
            if label == 0:
                change_all(scene).save(folder / f"{number:02d}-copy.jpg", quality=90)
    return root


@pytest.fixture(scope="module")
def shared_scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of scenes. Tests must not change it."""
    return make_scenes(tmp_path_factory.mktemp("scenes") / "scenes")


@pytest.fixture
def scenes(shared_scenes: Path, tmp_path: Path) -> Path:
    """Return a copy of it that a test may change."""
    return Path(shutil.copytree(shared_scenes, tmp_path / "scenes"))


def read_parts(split: Path) -> dict[str, str]:
    """Return the part of each image."""
    return {e["path"]: part for part, own in load_json(split)["parts"].items() for e in own}


def test_links_between_contents() -> None:
    """Linked contents are one group, through others and with their identical copies."""
    examples = [Example(f"{n}.png", 0, sha256) for n, sha256 in enumerate("abcdae")]
    groups = link_examples(examples, 0, [("a", "c"), ("c", "d"), ("x", "e")])
    assert {frozenset(e.path for e in group.examples) for group in groups} == {
        frozenset({"0.png", "2.png", "3.png", "4.png"}),
        frozenset({"1.png"}),
        frozenset({"5.png"}),
    }


@pytest.mark.parametrize("settings", [{}, {"stratify": False}, {"train_per_class": 5}, {"test_per_class": 4}])
def test_linked_images_stay_in_one_part(settings: dict[str, Any]) -> None:
    """Linked images are never in two parts, within a class or across classes, whatever the settings and the seed."""
    examples = [Example(f"{label}/{n:02d}", label, f"{label}-{n}") for label in range(3) for n in range(20)]
    links = [*((f"0-{n}", f"0-{n + 10}") for n in range(10)), ("1-3", "2-4"), ("2-4", "2-5")]
    for seed in range(20):
        parts = split_examples(examples, list("abc"), SplitConfig(seed=seed, **settings), None, links)
        part_of = {e.sha256: part for part, own in parts.items() for e in own}
        assert all(part_of.get(first) == part_of.get(second) for first, second in links)
        labels = [{e.label for e in own} for own in parts.values()]
        assert all(own == {0, 1, 2} if settings.get("stratify", True) else own for own in labels)


def test_class_of_copies_of_another_class() -> None:
    """A class whose every image is linked to one of another class still has its share of each part."""
    examples = [Example(f"{label}/{n:02d}", label, f"{label}-{n}") for label in range(3) for n in range(20)]
    links = [(f"0-{n}", f"1-{n}") for n in range(20)]
    parts = split_examples(examples, list("abc"), SplitConfig(), None, links)
    counts = {part: [sum(e.label == label for e in own) for label in range(3)] for part, own in parts.items()}
    assert counts == {"train": [13, 13, 13], "val": [3, 3, 3], "test": [4, 4, 4]}


def test_report_stores_and_says(run: Run, scenes: Path, tmp_path: Path) -> None:
    """By default pairs are counted on stderr and listed in the file; which image is in which part does not change."""
    reported, ignored = tmp_path / "reported.split.json", tmp_path / "ignored.split.json"
    result = run("data", "split", scenes, "-o", reported)
    assert result.exit_code == 0, result.stderr
    run_dlcv("data", "split", scenes, "-o", ignored, "--near-duplicates", "ignore")
    parts = read_parts(reported)
    assert parts == read_parts(ignored)
    listed = load_json(reported)["near_duplicates"]
    assert [pair[:2] for pair in listed] == [[f"class0/{n:02d}-copy.jpg", f"class0/{n:02d}.png"] for n in range(12)]
    across = sum(parts[first] != parts[second] for first, second, _ in listed)
    assert 0 < across < 12
    assert f"{across} of 12 pairs of near-duplicates lie in two parts" in result.stderr
    summary = json.loads(run("data", "show", reported, "--json").stdout)
    keys = ("near_duplicates", "near_duplicates_across_parts", "near_duplicates_across_classes")
    assert [summary[key] for key in keys] == [12, across, 0]
    assert f"12 pairs of near-duplicates; {across} of these pairs in two parts" in run("data", "show", reported).stdout
    assert "up to date" in run("data", "split", scenes, "-o", reported).stdout


def test_ignore_does_neither(run: Run, scenes: Path, tmp_path: Path) -> None:
    """With ignore nothing is searched, said or stored."""
    output = tmp_path / "scenes.split.json"
    result = run("data", "split", scenes, "-o", output, "--near-duplicates", "ignore")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "near_duplicates" not in load_json(output)
    assert "near-duplicates" not in run("data", "show", output).stdout


def test_data_without_near_duplicates_keeps_its_bytes(run: Run, scenes: Path, tmp_path: Path) -> None:
    """Where there are no pairs the file says nothing of them: the default is not recorded, nor an empty list."""
    for copy in (scenes / "class0").glob("*-copy.jpg"):
        copy.unlink()
    output = tmp_path / "scenes.split.json"
    result = run("data", "split", scenes, "-o", output)
    assert (result.exit_code, result.stderr) == (0, "")
    assert b"near_duplicates" not in output.read_bytes()


def test_keep_together(run: Run, scenes: Path, tmp_path: Path) -> None:
    """With keep-together every copy is in the part of its original, also one in another class, which is named."""
    shutil.move(scenes / "class0/03-copy.jpg", scenes / "class1/stray.jpg")
    output = tmp_path / "scenes.split.json"
    result = run("data", "split", scenes, "-o", output, "--near-duplicates", "keep-together")
    assert result.exit_code == 0, result.stderr
    parts = read_parts(output)
    pairs = load_json(output)["near_duplicates"]
    assert len(pairs) == 12
    assert all(parts[first] == parts[second] for first, second, _ in pairs)
    assert set(parts.values()) == {"train", "val", "test"}
    assert "12 pairs of near-duplicates, each in one part" in result.stderr
    [warning] = [line for line in result.stderr.splitlines() if line.startswith("warning: ")]
    assert "label conflict: 1 pairs" in warning
    assert "class0/03.png ~ class1/stray.jpg" in warning


@pytest.mark.parametrize("choice", ["report", "keep-together"])
def test_near_duplicates_in_given_parts(run: Run, tmp_path: Path, choice: str) -> None:
    """With parts that are given, a pair in two of them is a leak, which is warned of; the parts stay."""
    for part, start in (("train", 0), ("test", 50)):
        for label in range(2):
            folder = tmp_path / "set" / part / f"class{label}"
            folder.mkdir(parents=True)
            for number in range(6):
                draw_scene(1000 * label + start + number).save(folder / f"{number}.png")
    change_all(draw_scene(2)).save(tmp_path / "set/test/class0/leak.jpg")
    output = tmp_path / "set.split.json"
    result = run("data", "split", tmp_path / "set", "-o", output, "--near-duplicates", choice)
    [warning] = [line for line in result.stderr.splitlines() if line.startswith("warning: ")]
    assert "leak: 1 pairs of near-duplicates" in warning
    assert "test/class0/leak.jpg ~ train/class0/2.png" in warning
    assert read_parts(output)["test/class0/leak.jpg"] == "test"


def test_identical_images_are_searched_once(run: Run, scenes: Path, tmp_path: Path) -> None:
    """Byte-identical images are no near-duplicates, and one of them stands for all in a pair."""
    shutil.copy(scenes / "class0/05.png", scenes / "class0/again.png")
    shutil.copy(scenes / "class1/05.png", scenes / "class1/again.png")
    output = tmp_path / "scenes.split.json"
    run_dlcv("data", "split", scenes, "-o", output)
    assert len(load_json(output)["near_duplicates"]) == 12


def test_unreadable_and_small_images(run: Run, scenes: Path, tmp_path: Path) -> None:
    """Unreadable images stop the split as ever; skipped, the others are compared; small ones are counted in a note."""
    whole = (scenes / "class0/01.png").read_bytes()
    (scenes / "class0/01.png").write_bytes(whole[: len(whole) // 2])
    draw_scene(7).resize((20, 20)).save(scenes / "class1/small.png")
    output = tmp_path / "scenes.split.json"
    refused = run("data", "split", scenes, "-o", output)
    assert refused.exit_code == 1
    assert "1 unreadable images" in refused.stderr
    result = run("data", "split", scenes, "-o", output, "--skip-bad")
    assert result.exit_code == 0, result.stderr
    assert "1 images are too small" in result.stderr
    assert len(load_json(output)["near_duplicates"]) == 11


def test_too_many_pairs(run: Run, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where images are alike by nature, report warns and goes on, and keep-together refuses."""
    monkeypatch.setattr(near_duplicates, "LIMIT", 5)
    output = tmp_path / "scenes.split.json"
    assert_refused(
        run("data", "split", scenes, "-o", output, "--near-duplicates", "keep-together"), "5 pairs", "--group"
    )
    assert not output.exists()
    result = run("data", "split", scenes, "-o", output)
    assert result.exit_code == 0
    assert "warning: more than 5 pairs" in result.stderr
    assert "near_duplicates" not in load_json(output)


@pytest.mark.parametrize(
    "damage",
    [7, [["class0/00.png"]], [["class0/00.png", "no.png", 0.99]], [["class0/00.png", "class0/01.png", "high"]], [None]],
    ids=str,
)
def test_damaged_pairs_are_refused(run: Run, scenes: Path, tmp_path: Path, damage: object) -> None:
    """A split file whose pairs are not pairs of its images is refused by name."""
    output = tmp_path / "scenes.split.json"
    run_dlcv("data", "split", scenes, "-o", output)
    output.write_text(json.dumps(load_json(output) | {"near_duplicates": damage}))
    assert_refused(run("data", "show", output), output.name, "damaged: near_duplicates")


# ---------------------------------------------------------------------------------------------------------------- page


class PageReader(HTMLParser):
    """What a page holds: tags that were opened and not closed, images, and text."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.text = ""
        self.feed(page.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.images.append(dict(attrs))
        assert tag not in ("script", "link", "iframe")
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_page_shows_pairs_in_two_parts(run: Run, scenes: Path, tmp_path: Path) -> None:
    """The page has both thumbnails of each pair in two parts, with path, class and part, and is one HTML file."""
    shutil.move(scenes / "class0/03-copy.jpg", scenes / "class1/<b>&.jpg")
    output, page = tmp_path / "scenes.split.json", tmp_path / "pairs.html"
    result = run("data", "split", scenes, "-o", output, "--duplicates-page", page)
    assert result.exit_code == 0, result.stderr
    copies = read_copies(splits.read(output))
    shown = [own for own in copies if own.across_parts] + [
        own for own in copies if own.across_classes and not own.across_parts
    ]
    reader = PageReader(page)
    assert reader.open == []
    expected = [
        f"{e.path}, class class{e.label}, in {part}"
        for own in shown
        for e, part in zip((own.first, own.second), own.parts, strict=True)
    ]
    assert [image["alt"] for image in reader.images] == expected
    assert any("<b>&.jpg" in text for text in expected)
    assert all((image["src"] or "").startswith("data:image/jpeg;base64,") for image in reader.images)
    assert f"In two parts: {sum(own.across_parts for own in copies)}" in reader.text
    assert reader.text.count("two classes") >= 1
    assert f"similarity {shown[0].similarity:.3f}" in reader.text
    before = page.read_bytes()
    run_dlcv("data", "split", scenes, "-o", output, "--duplicates-page", page)
    assert page.read_bytes() == before, "the same split gives the same page"


def test_page_of_images_that_are_gone(run: Run, scenes: Path, tmp_path: Path) -> None:
    """An image that changed since is shown by its name, with the reason."""
    from dlcv_cli.stages.duplicates_page import write_page

    output, page = tmp_path / "scenes.split.json", tmp_path / "pairs.html"
    run_dlcv("data", "split", scenes, "-o", output)
    [first, *_] = [own for own in read_copies(splits.read(output)) if own.across_parts]
    (scenes / first.first.path).unlink()
    draw_scene(5000).save(scenes / first.second.path)
    write_page(output, page)
    reader = PageReader(page)
    assert "missing" in reader.text
    assert "changed" in reader.text
    assert first.first.path in reader.text


def test_page_that_cannot_be_written(run: Run, scenes: Path, tmp_path: Path) -> None:
    """A wrong name is refused before anything is decoded; a file with other content stays unless forced."""
    output, page = tmp_path / "scenes.split.json", tmp_path / "pairs.html"
    assert_refused(run("data", "split", scenes, "-o", output, "--duplicates-page", tmp_path / "pairs.txt"), ".html")
    assert not output.exists()
    page.write_text("notes of mine")
    refused = run("data", "split", scenes, "-o", output, "--duplicates-page", page)
    assert refused.exit_code == 1
    assert "other content" in refused.stderr
    assert page.read_text() == "notes of mine"
    run_dlcv("data", "split", scenes, "-o", output, "--duplicates-page", page, "--force")
    assert "Near-duplicates in" in PageReader(page).text


# ---------------------------------------------------------------------------------------------------------- evaluation


@pytest.fixture(scope="module")
def trained(shared_scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a split that has near-duplicates in two parts, and a head trained on it."""
    folder = tmp_path_factory.mktemp("trained")
    run_dlcv("data", "split", shared_scenes, "-o", folder / "scenes.split.json")
    settings = ("--arch", "vgg16_mini", "--precision", "float32", "--epochs", 1, *THREADS)
    run_dlcv("vgg", "scratch", folder / "scenes.split.json", *settings, "-o", folder / "net.safetensors")
    return folder


def test_eval_without_near_duplicates(run: Run, trained: Path) -> None:
    """The evaluation has the number of copied test images and the accuracy on the others, as counted by hand."""
    before = 0
    for again in (False, True):
        result = run("eval", trained / "net.safetensors")
        assert result.exit_code == 0, result.stderr
        split = load_json(trained / "scenes.split.json")
        parts = read_parts(trained / "scenes.split.json")
        copied = {
            path
            for first, second, _ in split["near_duplicates"]
            for path, other in ((first, second), (second, first))
            if (parts[path], parts[other]) == ("test", "train")
        }
        file = tensors.read(trained / "net.test.predictions.safetensors", tensors.PREDICTIONS)
        others = [n for n, e in enumerate(split["parts"]["test"]) if e["path"] not in copied]
        right = file.arrays["logits"].argmax(1) == file.arrays["labels"]
        assert copied, "the case has copies"
        assert load_json(trained / "net.test.eval.json")["details"]["near_duplicates"] == {
            "n": len(copied),
            "n_without": len(others),
            "top1_accuracy": sum(map(bool, right[others])) / len(others),
        }
        share = f"{100 * sum(map(bool, right[others])) / len(others):.2f} % on the others"
        [note] = [line for line in result.stderr.splitlines() if "near-duplicate" in line]
        assert f"{len(copied)} of the {len(right)} test images" in note
        assert share in note
        written = (trained / "net.test.eval.json").stat().st_mtime_ns
        assert not again or written == before, "the stored evaluation says it as well"
        before = written


def test_eval_where_none_are_recorded(run: Run, trained: Path, tmp_path: Path) -> None:
    """The training part, and data without pairs, have no such field, and nothing is said."""
    folder = Path(shutil.copytree(trained, tmp_path / "folder"))
    result = run("eval", folder / "net.safetensors", "--part", "train", "--data", trained / "scenes.split.json")
    assert result.exit_code == 0, result.stderr
    assert "near-duplicate" not in result.stderr
    assert "near_duplicates" not in load_json(folder / "net.train.eval.json")["details"]
    photos = make_photos(tmp_path / "photos", {"class0": 5, "class1": 5, "class2": 5}, (64, 64))
    run_dlcv("data", "split", photos, "-o", tmp_path / "photos.split.json")
    result = run("eval", folder / "net.safetensors", "--data", tmp_path / "photos.split.json", "--force")
    assert result.exit_code == 0, result.stderr
    assert "near-duplicate" not in result.stderr
    assert "near_duplicates" not in load_json(folder / "net.test.eval.json")["details"]


def test_eval_where_all_are_copies(trained: Path) -> None:
    """Where every image of the part has a copy in training, no accuracy is stated."""
    from dlcv_cli.studies.images.near_duplicates import measure_without

    split = splits.read(trained / "scenes.split.json")
    copied = list_copied(split, "test")
    split.parts["test"][:] = [e for e in split.parts["test"] if e.sha256 in copied]
    near = measure_without(split, "test", np.ones(len(split.parts["test"]), bool))
    assert near is not None
    assert (near.n, near.n_without, near.top1_accuracy) == (len(copied), 0, None)
