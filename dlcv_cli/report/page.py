"""The report as one HTML page: no network, no script, no other file. The template is templates/page.html.j2.

A page holds the recipe that it was made by in a meta element, schema dlcv.report/1.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
from markupsafe import Markup

from dlcv_cli import __version__
from dlcv_cli.errors import FileError, escape_controls
from dlcv_cli.files.disk import JSON, check_schema, parse_json, require_file
from dlcv_cli.report import summary
from dlcv_cli.report.kinds import AnyFigure, FigureGroup, Forest, Graph, Matrix, Panel, Table
from dlcv_cli.report.render import render_inline
from dlcv_cli.report.reported import Disagreement, Gallery, Reported, ReportedRow
from dlcv_cli.results import tables
from dlcv_cli.results.comparison import Comparison, Pair, Row, format_number

SCHEMA = "dlcv.report/1"
RECIPE = "dlcv.recipe"
HEAD = 2**20  # bytes: the recipe stands before any picture
FOLDED = 10  # classes; a larger confusion matrix fills a screen


@dataclass(frozen=True)
class Section:
    """The part of the page about one study: its comparison, rows and figures."""

    comparison: Comparison
    rows: tuple[ReportedRow, ...]
    classes: int  # 0: the study has none
    sizes: Mapping[str, int]  # examples of each part
    forest: Forest  # the table's values, for the bars in it
    groups: tuple[FigureGroup, ...]
    lineage: FigureGroup
    disagreements: tuple[Disagreement, ...] = ()

    @property
    def networks(self) -> list[Reported]:
        """The checkpoints of all rows."""
        return [network for row in self.rows for network in row.networks]

    @property
    def all_groups(self) -> tuple[FigureGroup, ...]:
        """The figures in the order of the page."""
        return (*self.groups, self.lineage)

    @property
    def heading(self) -> str:
        """The study, part and size, such as `Images: test, n = 1,736`."""
        return f"{self.comparison.data.study.capitalize()}: {tables.describe_data(self.comparison)}"

    @property
    def has_runs(self) -> bool:
        """Whether a row has several runs."""
        return any(len(row.networks) > 1 for row in self.rows)

    @cached_property
    def best(self) -> str:
        """The row that is best in the first metric; its pictures are unfolded."""
        key = self.comparison.metric
        return next((row.name for row in self.comparison.rows if key in row.best), self.rows[0].name)

    @cached_property
    def findings(self) -> list[Pair]:
        """The tests whose sentences stand on top."""
        return summary.choose_findings(self.comparison)

    @property
    def limits(self) -> list[summary.Limit]:
        """What cannot be concluded."""
        pictures = [gallery for row in self.rows for gallery in row.galleries]
        pictures += [own.gallery for own in self.disagreements]
        return summary.list_limits(self.comparison, self.rows, pictures)

    @property
    def data(self) -> str:
        """Which data was used."""
        return summary.describe_data(self.comparison, self.classes, self.sizes)

    @property
    def compared(self) -> list[str]:
        """What each row is."""
        return summary.describe_rows(self.comparison, self.rows)

    @property
    def csv(self) -> str:
        """The comparison as CSV, as an address that holds it."""
        return f"data:text/csv;charset=utf-8,{quote(tables.render_csv(self.comparison) + chr(10))}"

    def tests(self) -> list[tuple[Pair, bool, list[str]]]:
        """Return each test, whether its sentence stands on top already, and what else is known of it.

        A test that has nothing beyond the sentence on top is left out.
        """
        tests = [(p, p in self.findings, summary.list_details(p)) for p in self.comparison.pairs]
        return [own for own in tests if not own[1] or own[2]]

    def noun(self, metric: str) -> str:
        """Return what a metric is called in a sentence."""
        return next(column.noun for column in self.comparison.columns if column.key == metric)

    def hints(self) -> list[str]:
        """Return how to read the table, in sentences."""
        comparison, panels = self.comparison, self.forest.panels
        logarithmic = [panel.axis.title for panel in panels if panel.axis.log]
        hints = ["Each bar is the interval, and the dot in it the value, on the scale above its column."]
        if self.has_runs:
            hints.append("The small dots below it are the runs.")
        if logarithmic:
            hints.append(f"The scale of {', '.join(logarithmic)} is logarithmic.")
        hints.append("An arrow marks a value beyond the scale, which leaves out what has collapsed, and baselines.")
        if comparison.common:
            counts = ", ".join(f"{name} {n:,}" for name, n in comparison.common.items())
            hints.append(f"The table compares the {comparison.data.n:,} examples that all networks share, of {counts}.")
            hints.append("The figures below use all examples of each network.")
        return hints

    def marks(self, row: Row) -> list[str]:
        """Return what the table says beside a row's name."""
        several = f"{len(row.fallen)} of {len(row.runs)} runs collapsed"
        fallen = ["collapsed" if len(row.runs) == 1 else several] if row.fallen else []
        return fallen + ["trained on this"] * row.contaminated

    def pairs(self) -> Table:
        """Return the numbers of the tests."""
        columns = {column.key: column for column in self.comparison.columns}
        rows = []
        for pair in self.comparison.pairs:
            column = columns[pair.metric]
            difference, low, high = (
                format_number(value, column.percent, signed=True)
                for value in (pair.difference, pair.interval.low, pair.interval.high)
            )
            names = f"{pair.name} - {pair.reference}"
            ps, runs = map(_format_p, (pair.p, pair.p_holm)), " and ".join(map(str, pair.runs))
            tested = (pair.test, pair.over, f"{pair.n:,}", runs)
            rows.append((names, column.heading, difference, f"{low} to {high}", *ps, *tested))
        headings = ("pair", "metric", "difference", "95 % interval", "p", "p, Holm", "test", "over", "examples", "runs")
        return Table(headings, rows)

    def runs(self) -> Iterator[tuple[str, Table]]:
        """Yield the metrics of each run, of rows that have several."""
        for row in self.comparison.rows:
            if len(row.runs) < 2:
                continue
            columns = [column for column in self.comparison.columns if column.key in row.metrics]
            rows = [
                (run.name, str(run.fold or ""), str(run.seed), *(c.format(run.metrics[c.key]) for c in columns))
                for run in row.runs
            ]
            headings = ("run", "fold", "seed", *(column.heading for column in columns))
            yield f"{row.name}: {len(row.runs)} runs", Table(headings, rows)

    def galleries(self) -> dict[str, list[tuple[str, str, Gallery]]]:
        """Return (row, how it is called, gallery) by heading."""
        groups: dict[str, list[tuple[str, str, Gallery]]] = {}
        for row in self.rows:
            for gallery in row.galleries:
                if any(strip.pictures for strip in gallery.rows):
                    groups.setdefault(gallery.heading, []).append((row.name, row.shown, gallery))
        return groups

    def agreement(self) -> Table:
        """Return how many examples both runs of each pair get right, one of them, or none."""
        rows = [
            (
                f"{own.row.name} and {own.reference.name}",
                *(f"{n:,}" for n in own.counts),
            )
            for own in self.disagreements
        ]
        headings = ("pair of runs", "both right", "only the first", "only the second", "both wrong, alike")
        return Table((*headings, "both wrong, differently"), rows)

    def settings(self) -> Iterator[tuple[str, Table]]:
        """Yield the settings and machine of each row's training and evaluation."""
        return summary.list_settings(self.rows)

    def differing_settings(self) -> Table | None:
        """Return the settings in which rows differ."""
        return summary.compare_settings(self.rows)

    def tries(self) -> Iterator[tuple[str, Table]]:
        """Yield what was tried on the validation part."""
        return summary.list_tries(self.rows)


def _format_p(p: float) -> str:
    return f"{p:.3g}" if p else "< 1e-300"


def fills_screen(figure: AnyFigure) -> bool:
    """Return whether a figure is a matrix that is better folded away beside others."""
    return isinstance(figure, Matrix) and len(figure.names) > FOLDED


def is_wide(figure: AnyFigure) -> bool:
    """Return whether a figure may be wider than a phone, and scrolls."""
    return isinstance(figure, Graph) or fills_screen(figure)


def place_bar(panel: Panel, row: int) -> dict[str, Any] | None:
    """Return the x positions of a value, its interval and its runs on its panel's scale, 0 to 1; None: no value."""
    if (estimate := panel.values[row]) is None:
        return None
    axis, (value, interval) = panel.axis, estimate
    runs = [axis.place(run) for run in (panel.runs[row] if panel.runs else ()) if axis.low <= run <= axis.high]
    position = {"value": axis.place(value), "beyond": (value > axis.high) - (value < axis.low), "runs": runs}
    return position | ({"low": axis.place(interval[0]), "high": axis.place(interval[1])} if interval else {})


def _finalize(value: Any) -> Any:
    """Escape what could hide text or reverse its direction in every value that the template prints."""
    return value if isinstance(value, Markup) else escape_controls(str(value)).replace("\n", "\\n")


def write_page(sections: Sequence[Section], recipe: Mapping[str, Any]) -> str:
    """Return the whole page; `recipe` is kept in it, so that a later run knows what it was made from."""
    return render_page(
        "page.html.j2",
        sections=sections,
        names=[row.name for section in sections for row in section.rows],
        recipe=json.dumps(recipe, separators=(",", ":")),
        recipe_name=RECIPE,
    )


def render_page(template: str, **values: Any) -> str:
    """Return a page of a template of this package, with these values, the style sheet and the version."""
    loader = jinja2.PackageLoader("dlcv_cli.report")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, finalize=_finalize, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    numbers = itertools.count()
    environment.filters["inline"] = lambda figure: render_inline(figure, f"f{next(numbers)}")
    environment.globals |= {"fills_screen": fills_screen, "is_wide": is_wide, "place_bar": place_bar}
    environment.globals |= {"format_number": format_number, "is_lineage": lambda figure: isinstance(figure, Graph)}
    css, _, _ = loader.get_source(environment, "page.css")
    page = environment.get_template(template).render(**values, css=Markup(css), version=__version__)  # css is ours
    return re.sub(r"\n\s*\n+", "\n", page).lstrip()  # blank lines of macros


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
