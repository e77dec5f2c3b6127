"""Errors that a user can cause. The command line turns each into one line on stderr and an exit code."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


class DlcvError(Exception):
    """A problem the user can fix; the message says what, where and what to do next."""

    exit_code = 1


class SettingError(DlcvError):
    """A setting outside its range, or settings that contradict each other."""

    exit_code = 2


class FileError(DlcvError):
    """An input file that cannot be used."""

    def __init__(self, path: Path | str, problem: str) -> None:
        super().__init__(f"{path}: {problem}")


class ExistsError(DlcvError):
    """An output that exists and was made by another recipe.

    Args:
        differences: clauses that complete "PATH already exists, but ...".
    """

    def __init__(self, path: Path | str, differences: Iterable[str], remedy: str = "use --force to replace it") -> None:
        *clauses, last = differences
        text = f"{', '.join(clauses)} and {last}" if clauses else last
        super().__init__(f"{path} already exists, but {text}; {remedy}")


class DivergedError(DlcvError):
    """A loss that is no longer a finite number: the same run would end the same way."""


class Interrupted(KeyboardInterrupt):
    """A signal asked the process to stop; its exit code is 128 + the signal's number, as shells have it."""

    def __init__(self, signal: int, message: str = "interrupted") -> None:
        super().__init__(message)
        self.exit_code = 128 + signal


def list_names(names: Iterable[object], most: int = 5) -> str:
    """Return a short enumeration for a message: the first `most` names, and how many more there are."""
    listed = [str(name) for name in names]
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more


# Characters that reverse the text around them: Unicode's bidirectional controls.
BIDIRECTIONAL = {0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)}


def escape_controls(text: str) -> str:
    r"""Return the text with each control character but \n as an escape such as `\x1b`.

    Names in files must neither command a terminal nor change the order of the text around them. Everything else, such
    as the wide space U+3000, stays as it is.
    """
    return "".join(char.encode("unicode_escape").decode() if _is_control(char) else char for char in text)


def _is_control(char: str) -> bool:
    return char != "\n" and (unicodedata.category(char) in ("Cc", "Cn", "Cs", "Zl", "Zp") or ord(char) in BIDIRECTIONAL)


def look_up(table: dict[str, T], name: str, what: str) -> T:
    """Return the table's entry of that name; SettingError, which lists all names, if it has none."""
    if name not in table:
        raise SettingError(f"unknown {what} {name!r}: choose from {', '.join(table)}")
    return table[name]


UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def format_bytes(count: int) -> str:
    """Return a number of bytes for people, such as `57.3 MB`."""
    unit = max((u for u in UNITS if count >= UNITS[u]), key=lambda u: UNITS[u], default="")
    return f"{count / UNITS[unit]:.3g} {unit}B"
