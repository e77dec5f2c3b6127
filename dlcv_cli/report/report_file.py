"""Reports: HTML pages of ours that say, in a meta element, from what they were made. Schema dlcv.report/1."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

from dlcv_cli.errors import FileError
from dlcv_cli.files.disk import JSON, check_schema, parse_json, require_file, write_whole
from dlcv_cli.report.page import RECIPE

SCHEMA = "dlcv.report/1"
HEAD = 2**20  # the record stands in the first bytes, before any picture


def write(path: Path, text: str) -> None:
    """Writes a page whole."""
    with write_whole(path) as temporary:
        temporary.write_bytes(text.encode("utf-8"))


def read_record(path: Path) -> JSON:
    """What a report says it was made from. FileError when it is no report of ours."""
    require_file(path)
    with path.open("rb") as file:
        head = file.read(HEAD).decode("utf-8", "replace")
    found = _Head()
    found.feed(head)
    if found.record is None:
        raise FileError(path, "is not a report that dlcv made")
    try:
        document = parse_json(found.record)
    except ValueError as error:
        raise FileError(path, f"damaged: its record is not JSON ({error})") from None
    return check_schema(path, document, SCHEMA)


class _Head(HTMLParser):
    record: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "meta" and given.get("name") == RECIPE and self.record is None:
            self.record = given.get("content")
