"""Reports: our HTML pages, which hold the recipe that they were made by in a meta element. Schema dlcv.report/1."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

from dlcv_cli.errors import FileError
from dlcv_cli.files.disk import JSON, check_schema, parse_json, require_file, write_whole
from dlcv_cli.report.page import RECIPE

SCHEMA = "dlcv.report/1"
HEAD = 2**20  # bytes: the recipe stands before any picture


def write(path: Path, text: str) -> None:
    """Write a page whole."""
    with write_whole(path) as temporary:
        temporary.write_bytes(text.encode("utf-8"))


def read_recipe(path: Path) -> JSON:
    """Return the recipe that a report was made by. FileError if it is no report of ours."""
    require_file(path)
    with path.open("rb") as file:
        head = file.read(HEAD).decode("utf-8", "replace")
    parser = _MetaParser()
    parser.feed(head)
    if parser.recipe is None:
        raise FileError(path, "is no report that dlcv wrote")
    try:
        document = parse_json(parser.recipe)
    except ValueError as error:
        raise FileError(path, f"damaged: its recipe is not JSON ({error})") from None
    return check_schema(path, document, SCHEMA)


class _MetaParser(HTMLParser):
    recipe: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        if tag == "meta" and attributes.get("name") == RECIPE and self.recipe is None:
            self.recipe = attributes.get("content")
