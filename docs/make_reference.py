"""Writes docs/reference.md, the reference of every command, from the commands themselves:

python docs/make_reference.py
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from dlcv_cli.cli.app import app

REFERENCE = Path(__file__).with_name("reference.md")
INTRODUCTION = """\
# Reference

Every command with its arguments and options, made from the commands themselves by `python docs/make_reference.py`.
`dlcv COMMAND --help` prints the same. `dlcv vgg` is a second name of `dlcv image`. An option without a placeholder is a
switch. What the files hold is in [files.md](files.md).
"""
FIRST_PANEL = "Options"  # heading of the options that have none


def list_commands(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every command with the words that are typed for it; `vgg` is left out, because it is `image` again."""
    subcommands = getattr(command, "commands", None)
    if not subcommands:
        yield words, command
    for name, subcommand in (subcommands or {}).items():
        if name != "vgg" and not subcommand.hidden:
            yield from list_commands(subcommand, (*words, name))


def render_reference() -> str:
    """Return the whole page as Markdown."""
    sections = [_render_command(words, command) for words, command in list_commands(typer.main.get_command(app))]
    return "\n".join([INTRODUCTION, *sections])


def _render_command(words: tuple[str, ...], command: Any) -> str:
    shown = [parameter for parameter in command.params if not parameter.hidden]
    arguments = [p for p in shown if not _is_option(p)]
    options = [p for p in shown if _is_option(p)]
    required = [f"{_longest_name(p)} {_placeholder(p)}" for p in options if p.required]
    usage = " ".join(["dlcv", *words, *(p.metavar for p in arguments), *required, "[OPTIONS]"])
    lines = [f"## dlcv {' '.join(words)}", "", _one_line(command.help), "", "```sh", usage, "```", ""]
    if arguments:
        lines += ["| argument | |", "|---|---|"]
        lines += [f"| `{p.metavar}` | {_escape(_one_line(p.help))} |" for p in arguments]
        lines.append("")
    for panel in dict.fromkeys(p.rich_help_panel or FIRST_PANEL for p in options):
        lines += [f"| {panel} | | default |", "|---|---|---|"]
        lines += [_render_option(p) for p in options if (p.rich_help_panel or FIRST_PANEL) == panel]
        lines.append("")
    if command.epilog:
        lines += [f"Example: `{_one_line(command.epilog).removeprefix('Example: ')}`", ""]
    return "\n".join(lines)


def _render_option(option: Any) -> str:
    names = ", ".join(f"`{name}`" for name in sorted([*option.opts, *option.secondary_opts], key=len, reverse=True))
    placeholder = f" `{_placeholder(option)}`" if _placeholder(option) else ""
    help_text = _one_line(option.help)
    choices = _choices(option)
    if choices and "One of " not in help_text:
        help_text += f" One of {', '.join(choices)}."
    return f"| {names}{placeholder} | {_escape(help_text)} | {_default(option)} |"


def _is_option(parameter: Any) -> bool:
    return bool(parameter.opts[0].startswith("-"))


def _longest_name(option: Any) -> str:
    return str(max(option.opts, key=len))


def _placeholder(option: Any) -> str:
    """Return the word for the option's value, without the bar that would end a cell; a switch has none."""
    if option.is_flag:
        return ""
    return str(option.metavar or ("NAME" if _choices(option) else "VALUE")).replace("|", " or ")


def _choices(option: Any) -> tuple[str, ...]:
    """Return the values that the option takes, if they are listed."""
    for attribute in ("type_descriptor", "type"):  # newer and older releases of typer
        choices = getattr(getattr(option, attribute, None), "choices", None)
        if choices:
            return tuple(str(choice) for choice in choices)
    return ()


def _default(option: Any) -> str:
    if option.required:
        return "required"
    if isinstance(option.show_default, str):
        return _escape(option.show_default)
    if option.is_flag and option.default is True:
        return f"`{_longest_name(option)}`"
    if option.is_flag or option.default is None or not option.show_default:
        return ""
    return f"`{option.default}`"


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split())


def _escape(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    REFERENCE.write_text(render_reference(), "utf-8")
