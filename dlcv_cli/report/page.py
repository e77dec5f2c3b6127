"""The report as one HTML page: no network, no script, no other file. The template is templates/page.html.j2.

A page holds the recipe that it was made by in a meta element, schema dlcv.report/1.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jinja2
import msgspec
from markupsafe import Markup

from dlcv_cli import __version__
from dlcv_cli.errors import FileError, escape_controls
from dlcv_cli.files.disk import JSON, check_schema, parse_json, require_file
from dlcv_cli.report.kinds import AnyFigure, FigureGroup, Forest, Graph, Matrix, Panel, Table
from dlcv_cli.report.render import render_inline
from dlcv_cli.report.reported import Gallery, Reported
from dlcv_cli.results.comparison import Comparison, Row, format_number

SCHEMA = "dlcv.report/1"
RECIPE = "dlcv.recipe"
HEAD = 2**20  # bytes: the recipe stands before any picture
FOLDED = 10  # classes; a larger confusion matrix fills a screen


@dataclass(frozen=True)
class Section:
    """The part of the page about one study: its table, networks and figures."""

    comparison: Comparison
    networks: tuple[Reported, ...]
    forest: Forest  # the table's values, for the bars in it
    groups: tuple[FigureGroup, ...]
    lineage: FigureGroup

    @property
    def all_groups(self) -> tuple[FigureGroup, ...]:
        """The figures in the order of the page."""
        return (*self.groups, self.lineage)

    @property
    def heading(self) -> str:
        """The study, part and size, such as `Images: test, n = 1,736`."""
        data = self.comparison.data
        return f"{data.study.capitalize()}: {data.part}, n = {data.n:,}"

    @cached_property
    def best(self) -> str:
        """The network that is best in the first metric; its pictures are unfolded."""
        key = self.comparison.metric
        return next((row.name for row in self.comparison.rows if key in row.best), self.networks[0].name)

    def banners(self) -> list[tuple[str, str]]:
        """Return warnings as (kind, text): collapse, contamination, and pictures that are missing."""
        banners = [("Collapse", sentence) for sentence in self.comparison.collapses]
        for network in self.networks:
            leak = network.evaluation.contamination
            if leak.leaks:
                trained = f"{network.name} was trained on {leak.examples:,} of the {leak.of:,} examples of this part"
                banners.append(("Contamination", f"{trained}: its metrics say nothing about unseen data."))
            if leak.unchecked and not leak.by_chance:
                files = ", ".join(f"{file.name} ({file.why})" for file in leak.unchecked)
                text = f"some files that {network.name} was made from could not be read: {files}."
                banners.append(("Not checked", f"{text} It may have been trained on examples of this part."))
        galleries = [gallery for network in self.networks for gallery in network.galleries]
        pictures = [picture for gallery in galleries for row in gallery.rows for picture in row.pictures]
        problems = {picture.example.path: picture.problem for picture in pictures if picture.problem}
        if problems:
            reasons = ", ".join(sorted(set(problems.values())))
            text = f"{len(problems):,} images are not as they were when evaluated ({reasons})."
            banners.append(("Pictures missing", text))
        return banners

    def hints(self) -> list[str]:
        """Return how to read the table, in sentences."""
        comparison, panels = self.comparison, self.forest.panels
        scales = "; ".join(
            f"{p.axis.title} {p.axis.low_high()}{' (logarithmic)' if p.axis.log else ''}" for p in panels
        )
        hints = [f"The bars span {scales}. An arrow marks a value beyond that."]
        hints.append(comparison.describe_intervals())
        if comparison.common:
            counts = ", ".join(f"{name} {n:,}" for name, n in comparison.common.items())
            hints.append(f"The table compares the {comparison.data.n:,} examples that all networks share, of {counts}.")
            hints.append("The figures below use all examples of each network.")
        return hints + comparison.untested + comparison.searches

    def marks(self, row: Row) -> list[str]:
        """Return what the table says beside a network's name."""
        several = f"{len(row.fallen)} of {len(row.runs)} runs collapsed"
        fallen = ["collapsed" if len(row.runs) == 1 else several] if row.fallen else []
        return fallen + ["trained on this"] * row.contaminated

    def pairs(self) -> Table:
        """Return the numbers of the paired tests."""
        columns = {column.key: column for column in self.comparison.columns}
        rows = []
        for pair in self.comparison.pairs:
            column = columns[pair.metric]
            difference, low, high = (
                format_number(value, column.percent, signed=True)
                for value in (pair.difference, pair.interval.low, pair.interval.high)
            )
            names = f"{pair.name} - {pair.reference}"
            p, p_holm = f"{pair.p:.3g}", f"{pair.p_holm:.3g}"
            rows.append((names, column.heading, difference, f"{low} to {high}", p, p_holm, pair.test, f"{pair.n:,}"))
        return Table(("pair", "metric", "difference", "95 % interval", "p", "p, Holm", "test", "n"), rows)

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

    def galleries(self) -> dict[str, list[tuple[str, Gallery]]]:
        """Return (network, gallery) pairs by heading."""
        groups: dict[str, list[tuple[str, Gallery]]] = {}
        for network in self.networks:
            for gallery in network.galleries:
                if any(row.pictures for row in gallery.rows):
                    groups.setdefault(gallery.heading, []).append((network.name, gallery))
        return groups

    def tries(self) -> Iterator[tuple[str, Table]]:
        """Yield what was tried, of networks whose settings were chosen."""
        for network in self.networks:
            rows = []
            for t in network.metrics.tries:
                trained = ("linear", "") if t.lr is None else (f"{t.lr:g}", str(t.epochs))
                scores = (format_number(t.val_loss), format_number(t.val_accuracy, percent=True))
                rows.append((t.resize, t.augment, f"{t.weight_decay:g}", *trained, *scores))
            headings = ("resize", "augment", "weight decay", "lr", "epochs", "validation loss", "validation top-1 %")
            if rows:
                yield f"{network.name}: {len(rows)} tries", Table(headings, rows)

    def settings(self) -> Iterator[tuple[str, Table]]:
        """Yield the settings and machine of each network's training and evaluation."""
        for network in self.networks:
            rows: list[tuple[str, ...]] = []
            for what, document in (("training", network.metrics), ("evaluation", network.evaluation)):
                values = msgspec.to_builtins(document)
                for key in ("stage", "task", "arch", "precision", "config", "chosen", "parameters", "run"):
                    rows += [(f"{what} {name}", value) for name, value in _flatten(key, values.get(key))]
            yield network.name, Table(("setting", "value"), rows)


def _flatten(name: str, value: Any) -> Iterable[tuple[str, str]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flatten(f"{name}.{key}", inner)
    elif value is not None:
        yield name, ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def fills_screen(figure: AnyFigure) -> bool:
    """Return whether a figure is a matrix that is better folded away beside others."""
    return isinstance(figure, Matrix) and len(figure.names) > FOLDED


def is_wide(figure: AnyFigure) -> bool:
    """Return whether a figure may be wider than a phone, and scrolls."""
    return isinstance(figure, Graph) or fills_screen(figure)


def place_bar(panel: Panel, row: int) -> dict[str, float] | None:
    """Return the x positions of a value and its interval on its panel's scale, 0 to 1; None if there is no value."""
    if (estimate := panel.values[row]) is None:
        return None
    axis, (value, interval) = panel.axis, estimate
    position = {"value": axis.place(value), "beyond": (value > axis.high) - (value < axis.low)}
    return position | ({"low": axis.place(interval[0]), "high": axis.place(interval[1])} if interval else {})


def _finalize(value: Any) -> Any:
    """Escape what could hide text or reverse its direction in every value that the template prints."""
    return value if isinstance(value, Markup) else escape_controls(str(value)).replace("\n", "\\n")


def write_page(sections: Sequence[Section], recipe: Mapping[str, Any]) -> str:
    """Return the whole page; `recipe` is kept in it, so that a later run knows what it was made from."""
    return render_page(
        "page.html.j2",
        sections=sections,
        names=[network.name for section in sections for network in section.networks],
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
