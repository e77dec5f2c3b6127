"""`dlcv doctor`: what is in order is ok, what is not is named with what to do, and wrong numbers are a problem."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Run

from dlcv_cli.context import Context
from dlcv_cli.stages import doctor
from dlcv_cli.vision.inference import FeatureExtractor

NAMES = ["versions", "device", "threads", "fusion", "cache", "disk", "network", "kernels", "cell"]


def examine(run: Run, *arguments: object) -> tuple[int, dict[str, dict[str, Any]]]:
    """Return the exit code of `doctor --json`, and its checks by name."""
    result = run("doctor", "--json", *arguments)
    return result.exit_code, {check["name"]: check for check in json.loads(result.stdout)}


def test_a_sound_machine_has_no_problem(run: Run, cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without network all is checked, the numbers are right in any number of threads, and the cache is counted."""

    def refuse(*_: object) -> None:
        raise AssertionError("a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    (cache_folder / "activations").mkdir(parents=True)
    (cache_folder / "activations" / "x").write_bytes(b"x" * 1234)
    code, checks = examine(run)
    assert code == 0
    assert [*checks] == NAMES
    assert all(checks[name]["mark"] == "ok" for name in ("device", "cache", "network", "kernels", "cell"))
    assert (checks["cache"]["cache"], checks["cache"]["bytes"]) == (str(cache_folder), 1234)
    assert checks["versions"]["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert all(check["remedy"] for check in checks.values() if check["mark"] != "ok")
    torch.set_num_threads(2)
    assert examine(run)[1]["network"]["sha256"] == checks["network"]["sha256"]


def test_text_has_a_line_for_each_check(run: Run, cache_folder: Path) -> None:
    """Each line begins with a mark and a name; below what is not in order stands what to do."""
    cache_folder.parent.mkdir(parents=True, exist_ok=True)
    cache_folder.write_text("a file")
    result = run("doctor")
    lines = [line for line in result.stdout.splitlines() if not line.startswith(" ")]
    assert [line.split()[1] for line in lines] == NAMES
    assert {line.split()[0] for line in lines} <= {"ok", "warning", "problem"}
    assert lines[4].startswith("warning  cache")
    assert "-> give another folder with --cache DIR or DLCV_CACHE" in result.stdout
    assert result.exit_code == 0


@pytest.mark.parametrize("fault", [0.001, float("nan")])
def test_wrong_numbers_are_a_problem(run: Run, monkeypatch: pytest.MonkeyPatch, fault: float) -> None:
    """If the frozen layers are off by a thousandth, or give no numbers, that check is a problem: exit code 1."""
    right = FeatureExtractor.__call__
    monkeypatch.setattr(FeatureExtractor, "__call__", lambda self, x: right(self, x) * (1 + fault))
    result = run("doctor", "--json")
    checks = {check["name"]: check for check in json.loads(result.stdout)}
    assert [name for name, check in checks.items() if check["mark"] == "problem"] == ["network"]
    assert "wrong numbers" in checks["network"]["text"]
    assert result.exit_code == 1
    assert result.stderr == "dlcv: not in order: network; see above for what to do\n"


def test_bits_are_the_sha256_of_the_numbers() -> None:
    """The bits are the sha256 of the numbers as they lie in memory, so the last bit of one changes them."""
    numbers = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    check = doctor.judge_bits("x", numbers, numbers.astype(float))
    assert check.values == {"sha256": hashlib.sha256(numbers.tobytes()).hexdigest(), "error": 0}
    assert check.values["sha256"][:12] in check.text
    other = numbers.copy()
    other[1, 1] = np.nextafter(other[1, 1], np.float32(2))
    assert doctor.judge_bits("x", other, numbers).values["sha256"] != check.values["sha256"]


def test_a_broken_package_is_named() -> None:
    """Without torch, what needs it is a problem, what does not is still checked, and no traceback is printed."""
    code = "import sys; sys.modules['torch'] = None; from dlcv_cli.cli.app import app; app(['doctor', '--json'])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, timeout=120)
    marks = {check["name"]: check["mark"] for check in json.loads(result.stdout)}
    broken = ["device", "fusion", "network", "cell"]
    assert [name for name, mark in marks.items() if mark == "problem"] == broken
    assert result.returncode == 1
    assert result.stderr == f"dlcv: not in order: {', '.join(broken)}; see above for what to do\n"


def test_versions_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that is missing, or older than required, is a problem; what extras require is not looked at."""
    own = {"dlcv": "0.1.0", "old": "2.9.1+cpu", "new": "2.10.0", "same": "3"}

    def version(name: str) -> str:
        if name not in own:
            raise doctor.importlib.metadata.PackageNotFoundError(name)  # type: ignore[attr-defined]
        return own[name]

    required = ["old>=2.10", "new>=2.9.5", "same>=3", "gone>=1", 'other>=1; extra == "test"']
    monkeypatch.setattr("importlib.metadata.requires", lambda _: required)
    monkeypatch.setattr("importlib.metadata.version", version)
    check = doctor.check_versions(Context())
    assert check.mark == "problem"
    assert check.text.startswith("old 2.9.1+cpu is older than 2.10, gone is missing, dlcv 0.1.0, python 3.")


@pytest.mark.parametrize(
    ("quota", "remedy"),
    [("max 100000", ""), ("400000 100000", ""), ("250000 100000", "give --threads 2"), ("5 10", "give --threads 1")],
)
def test_a_container_with_less_time_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, quota: str, remedy: str
) -> None:
    """A container that gives less processor time than dlcv starts threads is a warning, with the right number."""
    (tmp_path / "cpu.max").write_text(f"{quota}\n")
    monkeypatch.setattr(doctor, "CPU_QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(doctor, "count_processors", lambda: 4)
    check = doctor.check_threads(Context())
    assert (check.mark, check.remedy) == ("warning" if remedy else "ok", remedy)


def test_a_full_disk_is_a_warning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Little free space on the disk of the cache or of the current folder is a warning."""
    free = {str(tmp_path): 10**9, "/": 10**12}
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(doctor, "find_mount_point", lambda path: tmp_path if path == tmp_path else Path("/"))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(free[str(path)]))
    check = doctor.check_disk(Context(cache=tmp_path))
    assert (check.mark, check.values) == ("warning", {"free": free})
    free[str(tmp_path)] = 10**10
    assert doctor.check_disk(Context(cache=tmp_path)).mark == "ok"


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch can use the GPU")
def test_a_gpu_that_torch_cannot_use_is_a_warning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where the system has a GPU's driver and torch sees no GPU, that is a warning."""
    monkeypatch.setattr(doctor, "GPU", tmp_path)
    assert doctor.check_device(Context()).mark == "warning"
    monkeypatch.setattr(doctor, "GPU", tmp_path / "none")
    assert doctor.check_device(Context()).mark == "ok"


def test_no_fusion_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """A torch without a fused convolution and ReLU is a warning that names the precision."""
    monkeypatch.setattr("dlcv_cli.vision.inference.fusion_works", lambda dtype: dtype == torch.float32)
    check = doctor.check_fusion(Context())
    assert (check.mark, check.values) == ("warning", {"float32": True, "bfloat16": False})
    assert "in bfloat16" in check.text
