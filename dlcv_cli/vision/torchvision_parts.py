"""What dlcv uses of torchvision, imported in a tenth of the time.

torchvision imports torch's compiler for a single function of an operator that dlcv does not use, roi_align, and that
takes longer than torch itself. Here the compiler is imported if that function is ever called.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

COMPILER = ("torch._dynamo", "torch._dynamo.utils")


def is_compile_supported(device: str) -> Any:
    """Return what torch's own function of that name returns."""
    return importlib.import_module(COMPILER[1]).is_compile_supported(device)


@contextlib.contextmanager
def _postpone_compiler() -> Iterator[None]:
    """Put stand-ins in the compiler's place until the block ends."""
    if not {*COMPILER, "torchvision"}.isdisjoint(sys.modules):
        yield
        return
    stand_ins = {name: ModuleType(name) for name in COMPILER}
    stand_ins[COMPILER[1]].is_compile_supported = is_compile_supported  # type: ignore[attr-defined]
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for name in COMPILER:
            del sys.modules[name]


def _import_torchvision() -> None:
    import torch  # noqa: F401  # before the stand-ins, which are torchvision's alone

    with contextlib.suppress(ImportError, AttributeError), _postpone_compiler():
        import torchvision  # noqa: F401

        return
    # a torchvision that needs more of the compiler: again, and in full
    for name in [own for own in sys.modules if own.partition(".")[0] == "torchvision"]:
        del sys.modules[name]


_import_torchvision()

from torchvision.models import VGG as VGG  # noqa: E402
from torchvision.models import get_model as get_model  # noqa: E402
from torchvision.models.squeezenet import Fire as Fire  # noqa: E402
from torchvision.models.vgg import cfgs as cfgs  # noqa: E402
from torchvision.models.vgg import make_layers as make_layers  # noqa: E402
from torchvision.ops import SqueezeExcitation as SqueezeExcitation  # noqa: E402
from torchvision.ops import StochasticDepth as StochasticDepth  # noqa: E402


def load_functional() -> Any:
    """Return torchvision's transforms of images as functions. They do import the compiler, so they wait for a use."""
    from torchvision.transforms.v2 import functional

    return functional
