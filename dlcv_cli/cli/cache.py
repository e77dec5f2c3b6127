"""`dlcv cache`: what is kept of frozen layers' outputs, and how to get rid of it."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Any

import typer
from tabulate import tabulate

from dlcv_cli.cli.console import print_json, say
from dlcv_cli.cli.options import CacheFolder, Json
from dlcv_cli.errors import UNITS, SettingError, format_bytes

app = typer.Typer(no_args_is_help=True, help="Frozen layers' outputs, kept between runs: list, prune, clear.")


@app.command("list")
def list_(cache: CacheFolder, as_json: Json = False) -> None:
    """Show what is kept, the one used last first."""
    from dlcv_cli.files import feature_cache as store

    found = store.entries(cache)
    if as_json:
        print_json({"cache": str(cache), "stores": [_record(entry) for entry in found]})
        return
    rows = [
        [
            entry.store.name,
            entry.about.get("arch", "damaged"),
            entry.about.get("before", ""),
            entry.about.get("precision", ""),
            f"{entry.records:,}",
            format_bytes(entry.size),
            datetime.fromtimestamp(entry.used).isoformat(" ", "minutes"),
        ]
        for entry in found
    ]
    headers = ["store", "network", "before", "precision", "images", "size", "used"]
    align = ["left", "left", "left", "left", "right", "right", "left"]
    if rows:
        say(tabulate(rows, headers=headers, colalign=align, disable_numparse=True))
    say(f"{len(rows)} in {cache}, {format_bytes(sum(entry.size for entry in found))}")


@app.command("prune")
def prune(
    cache: CacheFolder,
    max_size: Annotated[
        str, typer.Option(metavar="SIZE", help="What may stay in all, such as 500MB or 20GB.", show_default=False)
    ],
    as_json: Json = False,
) -> None:
    """Delete what was used longest ago, until the rest is no larger than SIZE."""
    _drop(cache, _bytes(max_size), as_json)


@app.command("clear")
def clear(cache: CacheFolder, as_json: Json = False) -> None:
    """Delete everything that is kept, compiled code included."""
    from dlcv_cli.files import feature_cache as store

    store.clear_kernels(cache)
    _drop(cache, 0, as_json)


def _drop(cache: Any, limit: int, as_json: bool) -> None:
    from dlcv_cli.files import feature_cache as store

    dropped, busy = store.prune(cache, limit)
    freed = sum(entry.size for entry in dropped)
    if as_json:
        names = {"dropped": dropped, "in_use": busy}
        print_json({"cache": str(cache), **{k: [_record(entry) for entry in v] for k, v in names.items()}})
        return
    for entry in busy:
        typer.echo(f"{entry.store.name} is being filled by another dlcv: left", err=True)
    say(f"deleted {len(dropped)} of {cache}, {format_bytes(freed)}")


def _record(entry: Any) -> dict[str, Any]:
    about = {key: entry.about.get(key) for key in ("arch", "before", "precision", "image_size")}
    return {"store": entry.store.folder.name, **about, "images": entry.records, "bytes": entry.size}


def _bytes(text: str) -> int:
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)B?\s*", text, re.IGNORECASE)
    if not found:
        raise SettingError(f"--max-size {text!r}: give a size such as 500MB or 20GB")
    unit = next(unit for unit in UNITS if unit.upper() == found[2].upper())
    return int(float(found[1]) * UNITS[unit])
