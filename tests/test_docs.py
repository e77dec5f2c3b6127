"""README and docs: every command is named, the reference is current, and links lead somewhere."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
import typer

from dlcv_cli.cli.app import app

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")])


@pytest.fixture(scope="module")
def make_reference() -> ModuleType:
    """Return the script that writes the reference, which is no part of the package."""
    spec = importlib.util.spec_from_file_location("make_reference", ROOT / "docs" / "make_reference.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_reference_is_current(make_reference: ModuleType) -> None:
    """docs/reference.md equals the output of its script."""
    current = make_reference.REFERENCE.read_text("utf-8") == make_reference.render_reference()
    assert current, "run python docs/make_reference.py"


def test_every_command_is_documented(make_reference: ModuleType) -> None:
    """README names every command as it is typed, and so does another page than the reference."""
    names = [" ".join(["dlcv", *words]) for words, _ in make_reference.list_commands(typer.main.get_command(app))]
    assert len(names) > 10
    texts = {page.name: page.read_text("utf-8") for page in PAGES}
    guides = "\n".join(text for name, text in texts.items() if name not in ("README.md", "reference.md"))
    assert [name for name in names if name not in texts["README.md"]] == []
    assert [name for name in names if name not in guides] == []


def test_every_long_option_in_the_docs_exists(make_reference: ModuleType) -> None:
    """The docs name no option that dlcv lacks."""
    commands = make_reference.list_commands(typer.main.get_command(app))
    options = {
        option
        for _, command in commands
        for p in command.params
        if not p.hidden
        for option in (*p.opts, *p.secondary_opts)
    }
    guides = [page for page in PAGES if page.name in ("tutorial.md", "how-to.md", "files.md", "statistics.md")]
    foreign = {"--help", "--extra-index-url", "--pip-args", "--logdir"}
    for page in guides:
        named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", page.read_text("utf-8")))
        assert named - options - foreign == set(), page.name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """Links between pages lead to an existing page and heading."""
    for target in re.findall(r"(?<!!)\[[^\]]*\]\(([^)]+)\)", page.read_text("utf-8")):
        if "://" in target:
            continue
        name, _, heading = target.partition("#")
        path = (page.parent / name) if name else page
        assert path.exists(), target
        assert not heading or heading in _anchors(path), target


def _anchors(page: Path) -> set[str]:
    """Return the anchors that a page's headings get on GitHub."""
    headings = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
