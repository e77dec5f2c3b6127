"""dlcv: transfer learning and recurrent cells, studied from the shell, or from Python (docs/python.md)."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from dlcv_cli.api import *  # noqa: F403  # so that type checkers know what __getattr__ returns
else:

    def __getattr__(name: str) -> Any:
        """Import what api.py lists when it is first used, so that neither `import dlcv_cli` nor help imports torch."""
        from importlib import import_module

        from dlcv_cli.api import MODULES

        if name not in MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(MODULES[name]), name)

    def __dir__() -> list[str]:
        from dlcv_cli.api import MODULES

        return ["__version__", *MODULES]
