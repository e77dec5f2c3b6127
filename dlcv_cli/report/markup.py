"""Names from data, made harmless."""

from __future__ import annotations

import html
import unicodedata

# What turns the direction of the text around it, or is not seen at all.
TRICKS = {0x061C, 0x200E, 0x200F, 0xFEFF, *range(0x202A, 0x202F), *range(0x2066, 0x206A)}


def plain(text: object) -> str:
    """The text with control characters, lone surrogates and the like as escapes such as `\\x1b`."""
    return "".join(
        char.encode("unicode_escape").decode()
        if unicodedata.category(char) in ("Cc", "Cn", "Cs", "Zl", "Zp") or ord(char) in TRICKS
        else char
        for char in str(text)
    )


def safe(text: object) -> str:
    """`plain`, for HTML and SVG, in text and between quotation marks."""
    return html.escape(plain(text))


def short(text: object, length: int) -> str:
    """`plain`, cut to so many characters with an ellipsis."""
    shown = plain(text)
    return shown if len(shown) <= length else shown[: length - 1] + "…"
