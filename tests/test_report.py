"""`report`: one HTML page that stands alone, says what the evaluation files say, and harms nobody."""

from __future__ import annotations

import hashlib
import html
import itertools
import json
import re
import shutil
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import safetensors.numpy
from conftest import Run, make_photos, run_dlcv
from PIL import Image

from dlcv_cli.results.comparison import format_number
from dlcv_cli.studies.images.pictures import make_thumbnail

HOSTILE = "<script>alert(1)<"  # a folder's name has no slash; the page would still run it
QUOTED = '"onload="alert(2)'
IMAGES, CELLS = ("scratch", "head", "head.seed1"), ("elman", "gru.seed0", "gru.seed1", "gru.seed2")
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """A page as a parser reads it: elements with attributes and text. Fails on elements closed out of order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(set(names)) == len(names), (tag, names)
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str]]:
        """Return the attributes of every element with this name."""
        return [attributes for name, attributes in self.elements if name == tag]


def parse_svgs(text: str) -> list[ElementTree.Element]:
    """Return every <svg> of a page, parsed as XML."""
    return [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL)]


def list_checkpoints(folder: Path, names: tuple[str, ...]) -> list[Path]:
    """Return the paths of checkpoints by name."""
    return [folder / f"{name}.safetensors" for name in names]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with both studies, evaluated, with hostile names. Tests must not change it."""
    folder = tmp_path_factory.mktemp("made")
    photos = make_photos(folder / "photos", {HOSTILE: 10, QUOTED: 10, "tree house": 15})
    for number_, path in enumerate(sorted(photos.rglob("*.png"))):
        path.rename(path.with_name(f"{number_}<b onload='x'>\n.png"))
    split = folder / "photos.split.json"
    run_dlcv("data", "split", photos, "-o", split)
    common = (split, "--arch", "vgg16_mini", "--precision", "float32", "--threads", 1, "-o")
    run_dlcv("vgg", "scratch", *common, folder / "scratch.safetensors", "--epochs", 2, "--lr", 0.001, "--batch-size", 8)
    head = ("--epochs", 1, "--weights", folder / "scratch.safetensors")
    run_dlcv("vgg", "head", *common, folder / "head.safetensors", *head)
    run_dlcv("vgg", "head", *common, folder / "head.seed1.safetensors", *head, "--seed", 1)
    run_dlcv("seq", "gen", "--count", 100, "-o", folder / "data.safetensors")
    train = ("seq", "train", folder / "data.safetensors", "--hidden-size", 4, "--record-every", 50)
    run_dlcv(*train, "--cell", "elman", "-o", folder / "elman.safetensors")
    for seed in range(3):
        run_dlcv(*train, "--cell", "gru", "--seed", seed, "-o", folder / f"gru.seed{seed}.safetensors")
    run_dlcv("eval", *list_checkpoints(folder, IMAGES), "--threads", 1)
    run_dlcv("eval", *list_checkpoints(folder, CELLS))
    run_dlcv("report", *list_checkpoints(folder, IMAGES + CELLS), "-o", folder / "report.html", "--threads", 1)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """Return a copy of it that a test may change."""
    return Path(shutil.copytree(made, tmp_path / "folder"))


@pytest.fixture(scope="module")
def text(made: Path) -> str:
    """Return the page of both studies."""
    return (made / "report.html").read_text("utf-8")


def read_evaluation(folder: Path, name: str) -> dict[str, Any]:
    """Return the evaluation of a checkpoint."""
    document: dict[str, Any] = json.loads((folder / f"{name}.test.eval.json").read_text("utf-8"))
    return document


# ------------------------------------------------------------------------------------------------------------ the page


def test_page_is_well_formed(text: str) -> None:
    """Elements are closed in order, attributes and ids are unique, and pictures are XML."""
    ids = [attributes["id"] for _, attributes in Page(text).elements if "id" in attributes]
    assert len(set(ids)) == len(ids) > 10
    assert len(parse_svgs(text)) > 20


def test_page_stands_alone(text: str) -> None:
    """The page has no script and no style sheet, and loads nothing from any address."""
    actual = Page(text)
    tags = {tag for tag, _ in actual.elements}
    assert not tags & {"script", "link", "iframe", "object", "embed", "base", "form", "foreignobject", "use"}
    for tag, attributes in actual.elements:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        for name in ("src", "href", "srcset", "xlink:href", "data", "action"):
            assert attributes.get(name, "#").startswith(("#", "data:image/jpeg;base64,", "data:text/csv;")), (
                tag,
                attributes,
            )
    assert "url(" not in text
    assert "@import" not in text
    assert "http:" not in text
    assert "https:" not in text


def test_names_are_escaped(made: Path, text: str) -> None:
    """Names of classes and files with markup, quotation marks and line breaks are shown as text."""
    actual = Page(text)
    assert HOSTILE in "".join(actual.text)
    assert QUOTED in "".join(actual.text)
    assert "<script" not in text
    assert not [attributes for _, attributes in actual.elements if "onload" in attributes]
    pictures = [attributes["alt"] for attributes in actual.all("img")]
    assert pictures
    assert all("<b onload='x'>\\n.png" in alt for alt in pictures)  # the line break as an escape


def test_every_figure_has_a_text_alternative(text: str) -> None:
    """Each picture has a title and a description, or is hidden beside the same number."""
    printed = 0
    for svg in parse_svgs(text):
        if svg.get("aria-hidden") == "true":
            continue
        title, description = svg.find("title"), svg.find("desc")
        assert svg.get("role") == "img"
        assert title is not None
        assert description is not None
        assert title.text
        assert len(description.text or "") > 20
        assert svg.get("aria-labelledby") == f"{title.get('id')} {description.get('id')}"
        printed += 1
    assert printed > 15
    assert all(attributes["alt"] for attributes in Page(text).all("img"))


def test_tables_and_regions_can_be_read_and_reached(text: str) -> None:
    """Tables have captions, scrolling regions take the keyboard, headings skip no level."""
    actual = Page(text)
    tags = [tag for tag, _ in actual.elements]
    assert tags.count("table") == tags.count("caption") > 10
    assert all(attributes.get("scope") in ("row", "col") for attributes in actual.all("th"))
    regions = [a for a in actual.all("div") if "scroll" in a.get("class", "").split()]
    assert len(regions) > 10
    assert all(a["tabindex"] == "0" and a["role"] == "region" and a["aria-label"] for a in regions)
    assert len({a["aria-label"] for a in regions} | {a["aria-labelledby"] for a in actual.all("section")}) == (
        len(regions) + 2
    )
    assert '<th scope="col"></th>' not in text
    levels = [int(tag[1]) for tag in tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert actual.all("html") == [{"lang": "en"}]
    assert {"class": "skip", "href": "#main"} in actual.all("a")
    assert {"id": "main"} in actual.all("main")


def test_studies_have_sections(text: str) -> None:
    """Both studies have a section with a heading, in the order of the checkpoints."""
    shown = "".join(Page(text).text)
    assert shown.index("Images: test, n = 7") < shown.index("Sequences: test, n = 20")
    assert len(Page(text).all("section")) == 2


def read_words(text: str) -> str:
    """Return what a page says, each element's text between single spaces."""
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", text)))


def compare(run: Run, folder: Path, names: tuple[str, ...], *options: object) -> dict[str, Any]:
    """Return the comparison of checkpoints as `eval --compare` has it."""
    result = run("eval", "--compare", "--json", *list_checkpoints(folder, names), "--threads", 1, *options)
    document: dict[str, Any] = json.loads(result.stdout)
    return document


def test_page_has_the_metrics(made: Path, run: Run, text: str) -> None:
    """The page has each metric of each row with its interval, a dot for each of its runs, and each run's metrics."""
    for names in (IMAGES, CELLS):
        comparison = compare(run, made, names)
        for row, column in itertools.product(comparison["rows"], comparison["columns"]):
            if column["key"] not in row["metrics"]:
                continue
            shape = {"percent": column.get("percent", False), "small": column.get("small", True)}
            value = format_number(row["metrics"][column["key"]], **shape)
            ends = row["intervals"].get(column["key"], ())
            low_high = " to ".join(format_number(end, **shape) for end in ends)
            cell = (
                rf"<td>(?:<strong>)?{re.escape(value)}(?:</strong>.*?)?\s*<small>\s*{low_high}</small>\s*(<svg.*?</td>)"
            )
            bars = re.findall(cell, text, re.DOTALL)
            assert bars, (row["name"], column["key"], value)
            runs = row.get("runs", [])
            if len(runs) > 1 and not any("collapsed" in own for own in runs):
                assert any(bar.count('class="run"') == len(runs) for bar in bars)
            for own in runs if len(runs) > 1 else ():
                assert f"<td>{format_number(own['metrics'][column['key']], **shape)}</td>" in text


def test_page_says_each_sentence_once(made: Path, run: Run, text: str) -> None:
    """The sentence and the details of each test are on the page once, and so is the question of each p-value."""
    page = read_words(text)
    for names in (IMAGES, CELLS):
        pairs = compare(run, made, names)["pairs"]
        assert pairs
        for pair in pairs:
            assert page.count(pair["sentence"]) == 1, pair["sentence"]
            assert pair["question"] in page


def test_page_answers_a_reader(text: str) -> None:
    """The top says what was compared, on which data, with how many runs, over what, and what does not follow."""
    shown = read_words(text)
    for answer in (
        "photos.split.json: 3 classes; 22 training, 6 validation, 7 test images. Compared on the 7 of test.",
        "head: 2 seeds of dlcv image head vgg16_mini",
        "gru: 3 seeds of dlcv seq train gru",
        "scratch is a single run",
        "head has 2: how far runs differ is itself uncertain",
        "What would vary 95 % intervals of",
        "over seeds and examples",
        "settings: which of them makes a difference does not follow.",
    ):
        assert answer in shown, answer


def test_page_holds_the_table_as_csv(made: Path, run: Run, text: str) -> None:
    """The link of each section is the CSV of `eval --compare`, to be saved without a script."""
    links = [a for a in Page(text).all("a") if "download" in a]
    assert [a["download"] for a in links] == ["images-test.csv", "sequences-test.csv"]
    for link, names in zip(links, (IMAGES, CELLS), strict=True):
        ask = ("eval", "--compare", "--format", "csv", *list_checkpoints(made, names), "--threads", 1)
        head, _, body = link["href"].partition(",")
        assert head == "data:text/csv;charset=utf-8"
        assert unquote(body) == run(*ask).stdout


def test_pictures_are_of_the_median_run(made: Path, text: str) -> None:
    """A row with several runs shows the pictures of one, the median, and says which."""
    names = ("head", "head.seed1")
    lower, _ = sorted(names, key=lambda name: (read_evaluation(made, name)["metrics"]["top1_accuracy"], name))
    assert f"head (run {lower})" in "".join(Page(text).text)
    assert text.count("<h3>Most confused pairs</h3>") == 1


def test_page_shows_where_two_disagree(made: Path, text: str) -> None:
    """The cells of McNemar's test are those of the stored logits, and the pictures of each are of its images."""
    folds = {}
    for name in IMAGES:
        arrays = safetensors.numpy.load_file(made / f"{name}.test.predictions.safetensors")
        folds[name] = arrays["logits"].argmax(1), arrays["labels"]
    table = re.search(r"<caption>Images that both, one or none get right</caption>.*?</table>", text, re.DOTALL)
    assert table
    cells = r"<td>(\d+)</td>" * 5
    [(pair, *counts)] = re.findall(rf'<th scope="row">(.*?)</th>{cells}', table[0])
    first, second = pair.split(" and ")
    assert (first.partition(".")[0], second) == ("head", "scratch")
    (a, labels), (b, _) = folds[first], folds[second]
    right, other, alike = a == labels, b == labels, a == b
    masks = (right & other, right & ~other, other & ~right, ~right & ~other & alike, ~right & ~other & ~alike)
    assert [int(count) for count in counts] == [int(mask.sum()) for mask in masks]
    assert sum(map(int, counts)) == 7
    shown = read_words(text)
    for title, mask in zip(
        (f"Only {first} is right", f"Only {second} is right", "Both are wrong alike"), masks[1:4], strict=True
    ):
        assert (f"{title} : {mask.sum()} images" in shown) == bool(mask.any())


def test_settings_that_differ_come_first(text: str) -> None:
    """Settings in which rows differ are one table, without the seed; the rest is folded."""
    table = re.search(r"<caption>Settings in which the rows differ: sequences</caption>.*?</table>", text, re.DOTALL)
    assert table
    rows = re.findall(r'<th scope="row">(.*?)</th><td>(.*?)</td><td>(.*?)</td>', table[0])
    assert ("config.cell", "elman", "gru") in rows
    assert not {"config.seed", "config.hidden_size"} & {row[0] for row in rows}


def test_page_has_settings_and_hashes(made: Path, text: str) -> None:
    """The page has the settings of each training, and the full hash of each file of the lineage."""
    shown = "".join(Page(text).text)
    for name in IMAGES + CELLS:
        document = read_evaluation(made, name)
        assert document["inputs"]["checkpoint"]["sha256"] in shown
        assert document["inputs"]["data"]["sha256"] in shown
        assert hashlib.sha256((made / f"{name}.test.eval.json").read_bytes()).hexdigest() in shown
    assert "config.hidden_size" in shown
    assert "run.machine" in shown


# ----------------------------------------------------------------------------------------------- collapse, leaks, gone


def edit_evaluation(folder: Path, name: str, **changes: Any) -> None:
    """Change keys of an evaluation file, and delete the report made from it."""
    document = read_evaluation(folder, name) | changes
    (folder / f"{name}.test.eval.json").write_text(json.dumps(document), "utf-8")
    (folder / "report.html").unlink(missing_ok=True)


def write_report_again(run: Run, folder: Path, names: tuple[str, ...], *options: object) -> str:
    """Write the report of these checkpoints again, and return it."""
    result = run(
        "report", *list_checkpoints(folder, names), "-o", folder / "report.html", "--force", "--threads", 1, *options
    )
    assert result.exit_code == 0, result.stderr
    return (folder / "report.html").read_text("utf-8")


def test_collapse_and_contamination_have_banners(run: Run, folder: Path) -> None:
    """Collapsed and contaminated networks have a banner with their name; others have none."""
    honest = {"collapsed": False, "why": None, "classes_predicted": 3, "most_frequent": QUOTED, "share": 0.4}
    clean = read_evaluation(folder, "head")["contamination"]
    assert clean["examples"] == 0
    for name in IMAGES:
        edit_evaluation(folder, name, collapse=honest)
    assert '<p class="banner"' not in write_report_again(run, folder, IMAGES)
    edit_evaluation(folder, "scratch", collapse=honest | {"collapsed": True, "why": "it has one answer", "share": 1.0})
    edit_evaluation(folder, "head", contamination=clean | {"examples": 3, "allowed": True})
    shown = "".join(Page(write_report_again(run, folder, IMAGES, "--allow-contaminated")).text)
    assert "scratch has collapsed: it has one answer" in shown
    assert f"100.0 % of its predictions are {QUOTED}" in shown
    assert "head was trained on 3 of the 7 examples" in shown


def test_missing_and_changed_images(run: Run, folder: Path) -> None:
    """A missing or changed picture is an empty frame with the reason, and the page has their number."""
    first, second = [entry["path"] for entry in read_evaluation(folder, "head")["details"]["highest_loss"]][:2]
    (folder / "photos" / first).unlink()
    Image.new("RGB", (20, 20), "red").save(folder / "photos" / second)
    actual = Page(write_report_again(run, folder, ("head",)))
    [banner] = re.findall("Pictures missing.*", "".join(actual.text))
    assert "2 images" in banner
    assert "(changed, missing)" in banner
    frames = [attributes["aria-label"] for attributes in actual.all("span") if attributes.get("class") == "gone"]
    assert {label.rpartition(": ")[2] for label in frames} == {"missing", "changed"}


def test_thumbnails_are_upright_and_small(tmp_path: Path) -> None:
    """A thumbnail is an upright JPEG of at most 96 pixels a side; small images are enlarged."""
    path = tmp_path / "wide.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying down
    Image.new("RGB", (400, 200), "blue").save(path, exif=exif)
    data, size = make_thumbnail(path, hashlib.sha256(path.read_bytes()).hexdigest())
    assert data.startswith(b"\xff\xd8\xff")
    assert size == (48, 96)
    Image.new("L", (8, 8)).save(tmp_path / "tiny.png")
    tiny = hashlib.sha256((tmp_path / "tiny.png").read_bytes()).hexdigest()
    assert make_thumbnail(tmp_path / "tiny.png", tiny)[1] == (96, 96)
    with pytest.raises(ValueError, match="changed"):
        make_thumbnail(path, tiny)


# ------------------------------------------------------------------------------------------------- like make, and sure


def test_report_is_reproducible(run: Run, folder: Path) -> None:
    """The same files in another folder give the same bytes."""
    first = (folder / "report.html").read_bytes()
    assert write_report_again(run, folder, IMAGES + CELLS).encode() == first


def test_up_to_date_and_refusals(run: Run, folder: Path) -> None:
    """A report of the same inputs is up to date; a different or foreign one is refused unless forced."""
    report = folder / "report.html"
    ask = ("report", "--threads", 1, "-o", report)
    result = run(*ask, *list_checkpoints(folder, IMAGES + CELLS))
    assert (result.exit_code, result.stdout) == (0, f"{report}: up to date\n")
    before = report.read_bytes()
    messages = []
    for names in (IMAGES, ("head", "scratch", "head.seed1", *CELLS)):
        result = run(*ask, *list_checkpoints(folder, names))
        assert (result.exit_code, result.stdout) == (1, "")
        messages.append(result.stderr.splitlines()[-1])
    assert "different elman" in messages[0]
    assert "networks was" in messages[1]
    assert report.read_bytes() == before
    report.write_text("<!DOCTYPE html><title>mine</title>", "utf-8")
    result = run(*ask, *list_checkpoints(folder, IMAGES))
    assert result.exit_code == 1
    assert "is no report that dlcv wrote" in result.stderr
    assert report.read_text("utf-8") == "<!DOCTYPE html><title>mine</title>"
    assert run(*ask, *list_checkpoints(folder, IMAGES), "--force").stdout == f"wrote {report}\n"


def test_report_evaluates_checkpoints(run: Run, folder: Path) -> None:
    """A checkpoint without an evaluation is evaluated first; --json says what was made."""
    (folder / "elman.test.eval.json").unlink()
    result = run("report", folder / "elman.safetensors", "-o", folder / "one.html", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout) == {"status": "made", "output": str(folder / "one.html"), "networks": ["elman"]}
    assert (folder / "elman.test.eval.json").is_file()


def test_changed_checkpoint_is_evaluated_again(run: Run, folder: Path) -> None:
    """A checkpoint that was trained again is evaluated again; replacing the page needs --force."""
    before = read_evaluation(folder, "elman")["inputs"]["checkpoint"]["sha256"]
    train = ("seq", "train", folder / "data.safetensors", "--hidden-size", 5, "--record-every", 50, "--cell", "elman")
    run_dlcv(*train, "-o", folder / "elman.safetensors", "--force")
    ask = ("report", *list_checkpoints(folder, CELLS), "-o", folder / "report.html")
    assert run(*ask).exit_code == 1
    assert run(*ask, "--force").exit_code == 0
    assert read_evaluation(folder, "elman")["inputs"]["checkpoint"]["sha256"] != before
    assert run(*ask).stdout.endswith("up to date\n")


def test_bad_inputs_are_refused(run: Run, folder: Path) -> None:
    """Missing checkpoints, missing or damaged metrics and wrong endings are refused in one line."""
    (folder / "elman.metrics.json").unlink()
    shutil.copy(folder / "gru.seed0.metrics.json", folder / "scratch.metrics.json")
    damaged = json.loads((folder / "head.metrics.json").read_text("utf-8")) | {"records": [{"epoch": 1}]}
    (folder / "head.metrics.json").write_text(json.dumps(damaged), "utf-8")
    for arguments, message in (
        (("nothing.safetensors", "-o", folder / "a.html"), "nothing.safetensors: no such file"),
        ((folder / "photos.split.json", "-o", folder / "a.html"), "is no safetensors file"),
        ((folder / "elman.safetensors", "-o", folder / "a.html"), "elman.metrics.json: no such file"),
        ((folder / "scratch.safetensors", "-o", folder / "a.html"), "scratch.metrics.json: does not belong to scratch"),
        ((folder / "head.safetensors", "-o", folder / "a.html"), "head.metrics.json: damaged: `$.records[0]`"),
        ((folder / "gru.seed0.safetensors", "-o", folder / "a.txt"), "a.txt: the report's name must end in .html"),
    ):
        result = run("report", *arguments)
        assert (result.exit_code, result.stdout) == (1, "")
        assert message in result.stderr.splitlines()[-1]
        assert not (folder / "a.html").exists()


# ----------------------------------------------------------------------------------------------------------- for papers


def test_figures_option(run: Run, folder: Path) -> None:
    """--figures writes each figure as SVG, PDF and PNG, reproducibly, and is up to date the second time."""
    papers = folder / "papers"
    ask = ("report", *list_checkpoints(folder, CELLS), "-o", folder / "gru.html", "--figures")
    result = run(*ask, papers)
    assert result.exit_code == 0, result.stderr
    stems = {path.stem for path in papers.iterdir() if not path.name.startswith(".")}
    wanted = {"by-length", "comparison", "learning-val-loss", "learning-train-loss", "lineage", "predicted-gru"}
    assert {f"sequences-{name}" for name in wanted} <= stems
    for stem in stems:
        svg = (papers / f"{stem}.svg").read_text("utf-8")
        assert ElementTree.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"
        assert "<text" in svg
        assert (papers / f"{stem}.pdf").read_bytes().startswith(b"%PDF-")
        with Image.open(papers / f"{stem}.png") as image:
            image.verify()
    assert run(*ask, papers).stdout == f"{folder / 'gru.html'}: up to date\n"
    assert run(*ask, folder / "again").exit_code == 0
    for path in papers.iterdir():
        if path.suffix:
            assert path.read_bytes() == (folder / "again" / path.name).read_bytes(), path


def test_foreign_figures_folder_is_kept(run: Run, folder: Path) -> None:
    """A figures folder with foreign files is refused, and no report is written."""
    (folder / "mine").mkdir()
    (folder / "mine" / "notes.txt").write_text("mine", "utf-8")
    result = run("report", folder / "gru.seed0.safetensors", "-o", folder / "g.html", "--figures", folder / "mine")
    assert result.exit_code == 1
    assert "did not write" in result.stderr
    assert not (folder / "g.html").exists()
