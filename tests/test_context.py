"""What stages share: how many processors they may use."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from dlcv_cli.context import count_processors
from dlcv_cli.files.recipes import RunInfo


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs processor affinity")
def test_processors_that_are_allowed() -> None:
    """A process that may use one processor counts one, whatever the machine has."""
    allowed = os.sched_getaffinity(0)
    assert count_processors() == len(allowed)
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
        "from dlcv_cli.context import count_processors; from dlcv_cli.files.recipes import RunInfo; "
        "print(count_processors(), RunInfo().to_json()['machine'])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.split()[0] == "1"
    assert f"1 of {os.cpu_count()} processors" in output


def test_processors_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without processor affinity all processors count; one if their number is unknown."""
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.delattr(os, "process_cpu_count", raising=False)
    for answer, expected in ((7, 7), (None, 1)):
        monkeypatch.setattr(os, "cpu_count", lambda answer=answer: answer)
        if sys.version_info < (3, 13):
            assert count_processors() == expected
    assert "processors" in RunInfo().to_json()["machine"]
