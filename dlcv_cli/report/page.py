"""The report as one HTML page: no network, no script, nothing but itself. Knows no files."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from dlcv_cli import __version__
from dlcv_cli.report.axes import number
from dlcv_cli.report.kinds import AnyFigure, Graph, Matrix, Panel, Table
from dlcv_cli.report.markup import plain, safe
from dlcv_cli.report.page_parts import JSON, Study, details, html_table, scroll, table, thumbnails
from dlcv_cli.report.svg import draw, interval_bar
from dlcv_cli.results.comparison import COLUMNS

GENERATOR = "dlcv"
RECIPE = "dlcv.recipe"
# Nothing is loaded and nothing is run, whatever a name in the data might say.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


GROUPS = {
    "differences": (
        "Differences",
        "The dot is the difference, the bar its 95 % interval, the dashed line none; an arrow: far beyond.",
    ),
    "learning": (
        "Learning curves",
        "The ring marks the record whose weights were kept. Curves of one quantity share their vertical scale.",
    ),
    "predicted": (
        "Answers and true values",
        "The stronger a cell's colour, the more answers lie in it; on the diagonal they are right.",
    ),
    "length": ("Error by length", "Mean squared error over the sequences of each length."),
    "confusion": (
        "Confusion matrix",
        "Rows are true classes, columns answers; the stronger a cell's colour, the larger its share of the row.",
    ),
    "recall": ("Recall by class", "The share of each class's images that is answered right, the lowest first."),
    "calibration": (
        "Calibration",
        "A network that knows how sure it may be lies on the diagonal: of the answers it gives 80 %, 80 % are right. "
        "Below the diagonal it is too sure. ECE is the mean distance, weighted by images.",
    ),
    "line": (
        "From data to table",
        "Each file with the first digits of its sha256; a line leads to what was made from it.",
    ),
}


def page(studies: Sequence[Study], recipe: JSON) -> str:
    """The whole page; `recipe` is kept in it, to know later from what it was made."""
    style = Path(__file__).with_name("page.css").read_text("utf-8")
    headings = [heading_of(study) for study in studies]
    contents = "".join(f'<li><a href="#s{k}">{safe(heading)}</a></li>' for k, heading in enumerate(headings))
    nav = f'<nav aria-label="Contents"><ul>{contents}</ul></nav>' if len(studies) > 1 else ""
    names = [network.name for study in studies for network in study.networks]
    record = safe(json.dumps(recipe, ensure_ascii=True, separators=(",", ":")))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f'<meta name="generator" content="{GENERATOR} {__version__}">\n<meta name="{RECIPE}" content="{record}">\n'
        f"<title>{safe(', '.join(names))}: dlcv report</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        f'<a class="skip" href="#main">Skip to the results</a>\n<header>'
        f"<h1>{safe(' · '.join(names))}</h1>{nav}</header>\n"
        f'<main id="main">\n{"".join(_study(study, k, headings[k]) for k, study in enumerate(studies))}</main>\n'
        f"<footer><p>Made by dlcv {__version__}. Nothing in this page is loaded from elsewhere.</p></footer>\n"
        "</body>\n</html>\n"
    )


def heading_of(study: Study) -> str:
    """What a section is about, such as `Images: test, n = 1,736`."""
    found = study.comparison
    return f"{found['study'].capitalize()}: {found['split']}, n = {found['n']:,}"


def _study(study: Study, place: int, heading: str) -> str:
    parts = [f'<section aria-labelledby="s{place}"><h2 id="s{place}">{safe(heading)}</h2>\n', *_banners(study)]
    parts += ["<h3>Comparison</h3>\n", _comparison(study), _sentences(study.comparison)]
    ids = (f"s{place}f{k}" for k in itertools.count())
    for group, figures in study.figures.items():
        if figures and group != "line":
            parts.append(_group(group, figures, ids, _best(study)))
        if group == "differences":
            parts.append(_seeds(study))
        if group == "calibration":
            parts += [_confused(study), _highest(study)]
    parts += [_group("line", study.figures["line"], ids, ""), _settings(study)]
    return "".join(parts) + "</section>\n"


def _best(study: Study) -> str:
    """The network that is best in the first metric."""
    key = COLUMNS[study.comparison["study"]][0].key
    return next((row["name"] for row in study.comparison["rows"] if key in row["best"]), study.networks[0].name)


def _banners(study: Study) -> Iterator[str]:
    for network in study.networks:
        collapse, leak = network.document.get("collapse", {}), network.document.get("contamination", {})
        if collapse.get("collapsed"):
            most = collapse.get("most_frequent")
            often = f" Its most frequent answer, {most}, is {100 * collapse['share']:.1f} % of all." if most else ""
            why = f"{network.name} has collapsed: {collapse.get('why') or 'it gives few different answers'}."
            yield _banner("Collapse", why + often)
        if leak.get("by_chance"):
            continue
        if leak.get("examples"):
            trained = f"{network.name} was trained on {leak['examples']:,} of the {leak['of']:,} examples of this part"
            yield _banner("Contamination", f"{trained}: its numbers say nothing about unseen data.")
        if leak.get("unchecked"):
            files = ", ".join(f"{one['name']} ({one['why']})" for one in leak["unchecked"])
            unknown = (
                f"whether {network.name} was trained on examples of this part could not be checked in full: {files}."
            )
            yield _banner("Not checked", unknown)
    shown = [p for n in study.networks for p in (*n.highest_loss, *(p for c in n.confused for p in c.pictures))]
    gone = {picture.path: picture.problem for picture in shown if picture.problem}
    if gone:
        reasons = ", ".join(sorted(set(gone.values())))
        yield _banner("Pictures missing", f"{len(gone):,} images are not as they were evaluated ({reasons}).")


def _banner(kind: str, text: str) -> str:
    return f'<p class="banner" role="note"><strong>{kind}.</strong> {safe(text)}</p>\n'


def _comparison(study: Study) -> str:
    """The table of all metrics, an interval bar under each number."""
    document, panels = study.comparison, study.forest.panels
    columns = COLUMNS[document["study"]]
    several = any("runs" in row for row in document["rows"])
    rows = []
    for place, row in enumerate(document["rows"]):
        cells = [_cell(panel, place, column.key in row["best"]) for column, panel in zip(columns, panels, strict=True)]
        if several:
            cells.append(f"<td>{len(row['seeds']) if 'seeds' in row else ''}</td>")
        kind = ' class="baseline"' if row.get("baseline") else ""
        rows.append(f'<tr{kind}><th scope="row">{safe(row["name"])}{_marks(row)}</th>{"".join(cells)}</tr>\n')
    caption = f"{document['split']}, n = {document['n']:,}: metrics, most with their 95 % intervals; * is the best"
    headings = ["network", *(column.heading for column in columns), *(["runs"] if several else [])]
    scales = "; ".join(
        f"{column.heading} {panel.axis.low_high()}{' (logarithmic)' if panel.axis.log else ''}"
        for column, panel in zip(columns, panels, strict=True)
    )
    said = f"Bars: {scales}. An arrow: beyond the bar, on that side."
    if over := [row["name"] for row in document["rows"] if row.get("intervals_over") == "seeds"]:
        said += f" Intervals of {', '.join(over)} are over seeds, the others over examples."
    if document.get("common"):
        counts = ", ".join(f"{name} {n:,}" for name, n in document["common"].items())
        said += (
            f" Compared on the {document['n']:,} examples that all share, of {counts}; all below is on each one's own."
        )
    hint = f'<p class="hint">{safe(said)}</p>\n'
    return scroll(html_table(caption, headings, rows, "numbers compared"), caption) + hint


def _cell(panel: Panel, place: int, best: bool) -> str:
    """A value, its interval as a bar, and its interval in numbers."""
    found = panel.values[place]
    if found is None:
        return "<td></td>"
    value, interval = found
    shown = panel.axis.label(value)
    shown = f'<strong>{shown}</strong><abbr title="best">*</abbr>' if best else shown
    ends = " to ".join(map(panel.axis.label, interval or ()))
    return f"<td>{shown}{interval_bar(panel, place)}<small>{ends}</small></td>"


def _marks(row: JSON) -> str:
    collapsed = row.get("collapse", {}).get("collapsed")
    said = [word for word, holds in (("collapsed", collapsed), ("trained on this", row.get("contaminated"))) if holds]
    return "".join(f' <small class="mark">{word}</small>' for word in said)


def _sentences(document: JSON) -> str:
    """One sentence a pair, and which question its p-value answers."""
    pairs = document.get("pairs") or []
    if not pairs:
        return ""
    said = "".join(f"<li>{safe(pair['sentence'])}</li>\n" for pair in pairs)
    questions = dict.fromkeys((pair["question"], pair["test"]) for pair in pairs)
    asked = "".join(f"<dt>{safe(test)}</dt><dd>{safe(question)}</dd>\n" for question, test in questions)
    columns = {column.key: column for column in COLUMNS[document["study"]]}
    rows: list[tuple[str, ...]] = []
    for pair in pairs:
        column = columns[pair["metric"]]
        low_high = " to ".join(number(end, column.percent, signed=True) for end in pair.get("interval") or ())
        tested = *(f"{pair[key]:.3g}" if pair.get(key) is not None else "" for key in ("p", "p_holm")), pair["test"]
        difference = number(pair["difference"], column.percent, signed=True)
        names = f"{pair['name']} - {pair['reference']}"
        rows.append((names, column.heading, difference, low_high, *tested, f"{pair['n']:,}"))
    headings = ("pair", "metric", "difference", "95 % interval", "p", "p, Holm", "test", "n")
    behind = details(
        "The numbers", table(f"The paired tests: {document['study']}", Table(headings, rows)), "of the paired tests"
    )
    return f'<ul class="sentences">{said}</ul>\n<h4>What the p-values answer</h4>\n<dl>{asked}</dl>\n{behind}'


def _figure(figure: AnyFigure, ident: str, caption: bool = True) -> str:
    wide = isinstance(figure, Graph) or _large(figure)
    drawn = draw(figure, ident)
    drawn = scroll(drawn, f"Figure: {figure.title}") if wide else drawn
    numbers = table(figure.title, figure.table(), not isinstance(figure, Graph))
    behind = details("The numbers", numbers, f"of {figure.title}")
    kind, hidden = ' class="wide"' if wide else "", "" if caption else ' class="unseen"'
    return f"<figure{kind}><figcaption{hidden}>{safe(figure.title)}</figcaption>{drawn}{behind}</figure>\n"


def _large(figure: AnyFigure) -> bool:
    """Whether it fills a screen."""
    return isinstance(figure, Matrix) and len(figure.names) > 10


def _group(group: str, figures: Sequence[AnyFigure], ids: Iterator[str], best: str) -> str:
    heading, hint = GROUPS[group]
    made = []
    for figure in figures:
        folded = _large(figure) and len(figures) > 1
        drawn = _figure(figure, next(ids), caption=not folded and group != "line")
        if folded:
            drawn = details(figure.title, drawn, opened=figure.key == f"confusion-{best}")
        made.append(drawn)
    return f'<h3>{heading}</h3>\n<p class="hint">{safe(hint)}</p>\n<div class="grid">{"".join(made)}</div>\n'


def _confused(study: Study) -> str:
    parts = []
    for network in study.networks:
        pairs = [
            f"<li><p><strong>{safe(pair.true)}</strong> taken for <strong>{safe(pair.answered)}</strong>: "
            f"{pair.n:,} images, {100 * pair.share:.1f}&nbsp;% of the class</p>{thumbnails(pair.pictures)}</li>\n"
            for pair in network.confused
        ]
        if pairs:
            made = f'<ol class="grid">{"".join(pairs)}</ol>'
            parts.append(details(network.name, made, opened=network.name == _best(study)))
    return "<h3>Most confused pairs</h3>\n" + "".join(parts) if parts else ""


def _highest(study: Study) -> str:
    parts = []
    for network in study.networks:
        if network.highest_loss:
            made = thumbnails(network.highest_loss)
            parts.append(details(network.name, made, opened=network.name == _best(study)))
    hint = '<p class="hint">With each image: its class, the answer, and the probability given to its class.</p>\n'
    return "<h3>Images of highest loss</h3>\n" + hint + "".join(parts) if parts else ""


def _seeds(study: Study) -> str:
    """Each run's metrics, where there are several."""
    parts = []
    for network in study.networks:
        runs = network.document.get("per_seed") or []
        if len(runs) > 1:
            columns = [c for c in COLUMNS["sequences"] if c.key in runs[0]]
            rows = [
                (str(run["seed"]), *(number(run[c.key], c.percent, small=c.small) for c in columns)) for run in runs
            ]
            behind = Table(("seed", *(c.heading for c in columns)), rows)
            parts.append(details(f"{network.name}: {len(runs)} runs", table(f"Each run of {network.name}", behind)))
    return "<h3>Each run</h3>\n" + "".join(parts) if parts else ""


def _settings(study: Study) -> str:
    parts = []
    for network in study.networks:
        rows: list[tuple[str, ...]] = []
        for what, document in (("training", network.metrics), ("evaluation", network.document)):
            keys = ("stage", "task", "arch", "precision", "config", "parameters", "run")
            for key in keys:
                rows += [(f"{what} {name}", value) for name, value in _flat(key, document.get(key))]
        behind = Table(("setting", "value"), rows)
        parts.append(details(network.name, table(f"Settings and machine of {network.name}", behind, numbers=False)))
    return "<h3>Settings and machine</h3>\n" + "".join(parts)


def _flat(name: str, value: Any) -> Iterable[tuple[str, str]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(f"{name}.{plain(key)}", inner)
    elif value is not None:
        yield name, ", ".join(map(str, value)) if isinstance(value, list) else str(value)
