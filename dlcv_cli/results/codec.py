"""Reads JSON documents into typed structs, and writes structs as JSON."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

import msgspec

from dlcv_cli.errors import FileError
from dlcv_cli.files.disk import check_schema, read_json, write_json

Finite = Annotated[float, msgspec.Meta(ge=-1e300, le=1e300)]
NonNegative = Annotated[float, msgspec.Meta(ge=0, le=1e300)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Digest = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
Setting = str | int | float | bool | None


class Struct(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all parts of a document: immutable, checked when read."""


class Document(Struct, frozen=True, kw_only=True):
    """A whole file, which names its schema."""

    SCHEMA: ClassVar[str]


D = TypeVar("D", bound=Document)


def decode(path: Path, kind: type[D], document: Any) -> D:
    """Return parsed JSON as a struct; keys that the struct lacks are ignored.

    Args:
        path: the file that the message names. kind: a Document, or a generic one of given parameters.

    Raises:
        FileError: another schema, or a value of a wrong type or out of its range; names the first such field.
    """
    body = {key: value for key, value in check_schema(path, document, kind.SCHEMA).items() if key != "schema"}
    try:
        return msgspec.convert(body, kind)
    except UnicodeError:  # msgspec cannot look at a lone surrogate, which JSON may hold
        raise FileError(path, "damaged: it holds text that is not Unicode") from None
    except msgspec.ValidationError as error:
        match = re.fullmatch(r"(.*) - at `(.*)`", str(error), re.DOTALL)
        what, where = match.groups() if match else (str(error), "$")
        raise FileError(path, f"damaged: `{where}`: {what[:1].lower()}{what[1:]}") from None


def read_document(path: Path, kind: type[D]) -> D:
    """Read a document. Raise FileError, naming the file and the field, if anything in it is wrong."""
    return decode(path, kind, read_json(path, kind.SCHEMA))


def encode(document: Document) -> dict[str, Any]:
    """Return a document as JSON values, its schema first, keys in the order of the fields."""
    return {"schema": document.SCHEMA, **msgspec.to_builtins(document)}


def write_document(path: Path, document: Document) -> None:
    """Write a document whole. The same content is the same bytes; numbers that are not finite are a ValueError."""
    write_json(path, encode(document))
