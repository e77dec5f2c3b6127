"""Writes docs/reference.md from the command line itself: `python docs/make_reference.py`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import typer

from dlcv_cli.cli.app import app

PAGE = Path(__file__).with_name("reference.md")
HEAD = """# Commands and options

Made by `python docs/make_reference.py` from what `--help` says. Results are printed on stdout, everything else on
stderr. Every command has `-h` and `--help`.
"""


def make_reference() -> str:
    """Return the page: one section per command, in the order of their names."""
    sections = [HEAD]
    for words, command in sorted(_list_commands(typer.main.get_command(app), ())):
        sections.append(_describe(words, command))
    return "\n".join(sections)


def _list_commands(command: Any, words: tuple[str, ...]) -> list[tuple[tuple[str, ...], Any]]:
    children = getattr(command, "commands", {})
    if not children:
        return [(words, command)]
    # vgg is a second name of image: its commands are the same objects
    return [pair for name, child in children.items() if name != "vgg" for pair in _list_commands(child, (*words, name))]


def _describe(words: tuple[str, ...], command: Any) -> str:
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option" and not p.hidden and "--help" not in p.opts]
    usage = " ".join(["dlcv", *words, *(p.metavar or p.name.upper() for p in arguments)])
    lines = [f"## `dlcv {' '.join(words)}`", "", _clean(command.help), "", f"    {usage}", ""]
    if command.epilog:
        lines += [command.epilog.replace("Example: ", "Example: `") + "`", ""]
    rows = [(f"`{p.metavar or p.name.upper()}`", _clean(p.help)) for p in arguments]
    rows += [(_name(p), f"{_clean(p.help)}{_default(p)}") for p in options]
    lines += ["| | |", "|---|---|", *(f"| {name} | {text} |" for name, text in rows), ""]
    return "\n".join(lines)


def _name(option: Any) -> str:
    names = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
    return names if option.is_flag or not option.metavar else f"{names} {option.metavar.replace('|', ' or ')}"


def _default(option: Any) -> str:
    if isinstance(option.show_default, str):
        return f" Default: {option.show_default}."
    if option.required:
        return " Required."
    plain = isinstance(option.default, int | float | str | Path) and not isinstance(option.default, bool)
    return f" Default: {option.default}." if plain and option.show_default is not False else ""


def _clean(text: str | None) -> str:
    return re.sub(r"\s+", " ", text or "").strip().replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(make_reference(), "utf-8")
