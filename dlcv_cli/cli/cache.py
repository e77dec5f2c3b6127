"""`dlcv cache`: the cached features of frozen layers, listed and deleted."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dlcv_cli.cli.console import print_json, say
from dlcv_cli.cli.options import CacheFolder, ConfigFile, Json, example
from dlcv_cli.errors import UNITS, SettingError, format_bytes

if TYPE_CHECKING:
    from dlcv_cli.files.feature_cache import CacheListing

app = typer.Typer(no_args_is_help=True, help="Cached features of frozen layers: list, prune, clear.")
HEADINGS = ["key", "network", "frozen before", "precision", "images", "size", "last used"]


@app.command("list", epilog=example("dlcv cache list"))
def list_(cache: CacheFolder, as_json: Json = False, config_file: ConfigFile = None) -> None:
    """List the cached features, most recently used first."""
    from tabulate import tabulate

    from dlcv_cli.files.feature_cache import list_feature_caches

    listings = list_feature_caches(cache)
    if as_json:
        print_json({"cache": str(cache), "feature_caches": [_to_json(listing) for listing in listings]})
        return
    rows = [
        [
            listing.cache.name,
            listing.metadata.get("arch", "damaged"),
            listing.metadata.get("before", ""),
            listing.metadata.get("precision", ""),
            f"{listing.entries:,}",
            format_bytes(listing.size),
            datetime.fromtimestamp(listing.used).isoformat(" ", "minutes"),
        ]
        for listing in listings
    ]
    align = ["left", "left", "left", "left", "right", "right", "left"]
    if rows:
        say(tabulate(rows, headers=HEADINGS, colalign=align, disable_numparse=True))
    say(f"{len(rows)} in {cache}, {format_bytes(sum(listing.size for listing in listings))}")


@app.command("prune", epilog=example("dlcv cache prune --max-size 20GB"))
def prune(
    cache: CacheFolder,
    max_size: Annotated[
        str, typer.Option(metavar="SIZE", help="Largest total size that stays, e.g. 500MB or 20GB.", show_default=False)
    ],
    as_json: Json = False,
    config_file: ConfigFile = None,
) -> None:
    """Delete the least recently used features until the cache is no larger than SIZE."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)B?\s*", max_size, re.IGNORECASE)
    if not match:
        raise SettingError(f"--max-size {max_size!r}: give a size such as 500MB or 20GB")
    unit = next(unit for unit in UNITS if unit.upper() == match[2].upper())
    _prune(cache, int(float(match[1]) * UNITS[unit]), as_json)


@app.command("clear", epilog=example("dlcv cache clear"))
def clear(cache: CacheFolder, as_json: Json = False, config_file: ConfigFile = None) -> None:
    """Delete all cached features and compiled kernels."""
    from dlcv_cli.files.kernel_cache import clear_kernels

    for folder in clear_kernels(cache):
        typer.echo(f"{folder} is in use by another dlcv process and was not deleted", err=True)
    _prune(cache, 0, as_json)


def _prune(cache: Path, limit: int, as_json: bool) -> None:
    from dlcv_cli.files import feature_cache

    dropped, busy = feature_cache.prune(cache, limit)
    if as_json:
        lists = {"dropped": dropped, "in_use": busy}
        print_json({"cache": str(cache), **{key: [_to_json(item) for item in items] for key, items in lists.items()}})
        return
    for listing in busy:
        typer.echo(f"{listing.cache.name} is in use by another dlcv process and was not deleted", err=True)
    say(f"deleted {len(dropped)} of {cache}, {format_bytes(sum(listing.size for listing in dropped))}")


def _to_json(listing: CacheListing) -> dict[str, Any]:
    metadata = {key: listing.metadata.get(key) for key in ("arch", "before", "precision", "image_size")}
    return {"key": listing.cache.folder.name, **metadata, "images": listing.entries, "bytes": listing.size}
