"""`dlcv doctor`: whether this machine has what dlcv needs, and computes as it should."""

from __future__ import annotations

from dlcv_cli.cli.console import Terminal, print_json, say
from dlcv_cli.cli.options import CacheFolder, ConfigFile, Json
from dlcv_cli.context import Context
from dlcv_cli.errors import DlcvError


def doctor(cache: CacheFolder, as_json: Json = False, config_file: ConfigFile = None) -> None:
    """Check this machine: versions, device, cache, disk, and whether it computes the right bits (some seconds)."""
    from dlcv_cli.stages.doctor import examine

    rows, problems = [], []
    for name, check in examine(Context(cache=cache, reporter=Terminal())):
        rows.append({"name": name, "mark": check.mark, "text": check.text, "remedy": check.remedy, **check.values})
        problems += [name] if check.mark == "problem" else []
        if not as_json:
            say(f"{check.mark:<9}{name:<10}{check.text}" + (f"\n{'':19}-> {check.remedy}" if check.remedy else ""))
    if as_json:
        print_json(rows)
    if problems:
        raise DlcvError(f"not in order: {', '.join(problems)}; see above for what to do")
