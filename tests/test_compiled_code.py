"""Where compiled code lies, what is imported on the way, and how an interruption ends it: in processes of their own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import Run, read_files, run_dlcv

from dlcv_cli.context import Reporter, count_processors
from dlcv_cli.studies.sequences import compiled_kernels
from dlcv_cli.studies.sequences.compiled_kernels import prepare_kernels

COMPILE = compiled_kernels._use_kernels


def run_python(*arguments: object, **environment: str | None) -> subprocess.CompletedProcess[str]:
    """Run another Python. None removes an environment variable."""
    env = {name: value for name, value in {**os.environ, **environment}.items() if value is not None}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=120)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Return a sequence file."""
    path = tmp_path / "data.safetensors"
    run_dlcv("seq", "gen", "--count", 500, "-o", path)
    return path


def test_kernels_are_compiled_once(data: Path, tmp_path: Path) -> None:
    """The first process compiles into the cache and says so; the next loads the kernels; bytes are equal."""
    cache = tmp_path / "cache"
    settings = ("seq", "train", data, "--cell", "lstm", "--cache", cache, "-o")
    printed = []
    for name in ("one", "other"):
        result = run_python("-m", "dlcv_cli", *settings, tmp_path / f"{name}.safetensors", NUMBA_CACHE_DIR=None)
        assert result.returncode == 0, result.stderr
        printed.append("compiling the kernels" in result.stderr)
        assert len([*(cache / "kernels").rglob("*.nbc")]) > 0
    assert printed == [True, False]
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "other.safetensors").read_bytes()
    [version] = (path for path in (cache / "kernels").iterdir() if path.is_dir())
    assert len(version.name) == 16
    (version / "notes.txt").write_text("mine")
    run_dlcv("cache", "clear", "--cache", cache)
    assert [*read_files(cache)] == [f"kernels/{version.name}/notes.txt"], "and nothing that is not ours"
    (version / "notes.txt").unlink()
    run_dlcv("cache", "clear", "--cache", cache)
    assert not version.exists()


WHERE = """
import os, sys, pathlib
from dlcv_cli.studies.sequences import compiled_kernels as module
from dlcv_cli.studies.sequences.compiled_kernels import prepare_kernels
from dlcv_cli.context import Reporter

def compile():
    folder = pathlib.Path(os.environ["NUMBA_CACHE_DIR"])
    (folder / "code.nbc").write_bytes(b"code")
    return True

module._use_kernels = compile
cache = pathlib.Path(sys.argv[1]) if sys.argv[1:] else None
folder = prepare_kernels(cache, Reporter())
assert folder.is_dir() and prepare_kernels(pathlib.Path("elsewhere"), Reporter()) == folder, "once a process"
print(folder)
"""


@pytest.mark.parametrize("state", ["none", "file", "read-only", "fine"])
def test_unusable_cache_folder(tmp_path: Path, state: str) -> None:
    """Without a writable cache, kernels are in a temporary folder that is deleted when the process ends."""
    cache = tmp_path / "cache"
    if state == "file":
        cache.write_text("a file")
    elif state == "read-only":
        if os.geteuid() == 0:
            pytest.skip("root writes anywhere")
        cache.mkdir(mode=0o500)
    before = read_files(tmp_path)
    given = () if state == "none" else (cache,)
    temporary = tmp_path.parent / f"{tmp_path.name}-temporary"
    temporary.mkdir()
    result = run_python("-c", WHERE, *given, NUMBA_CACHE_DIR=None, TMPDIR=str(temporary))
    assert result.returncode == 0, result.stderr
    folder = Path(result.stdout.strip())
    if state == "fine":
        assert folder.parent == cache / "kernels"
        assert [*folder.rglob("*.nbc")]
    else:
        assert folder.parent == temporary
        assert read_files(tmp_path) == before
    assert [*temporary.iterdir()] == []


@pytest.fixture
def compiles(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Return the folders that kernels are compiled in, where a file is written instead of code."""
    monkeypatch.delenv("NUMBA_CACHE_DIR")
    actual: list[Path] = []

    def fake() -> bool:
        folder = Path(os.environ["NUMBA_CACHE_DIR"])
        (folder / "sub").mkdir(exist_ok=True)
        (folder / "sub" / "code.nbc").write_bytes(b"code")
        (folder / "index.nbi").write_bytes(b"index")
        actual.append(folder)
        return True

    monkeypatch.setattr(compiled_kernels, "_use_kernels", fake)
    return actual


@pytest.mark.parametrize(
    "damage",
    ["code", "truncated", "missing", "no list", "list of nothing", "list not ours", "half-written list", "none"],
)
def test_damaged_kernels_are_recompiled(
    compiles: list[Path], tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Damaged or incomplete kernels are never given to numba, but compiled again with a message."""
    folder = prepare_kernels(tmp_path, Reporter())
    listed, code = folder / "kernels.json", folder / "sub" / "code.nbc"
    whole = listed.read_bytes()
    changes: dict[str, Callable[[], object]] = {
        "code": lambda: code.write_bytes(b"kode"),
        "truncated": lambda: code.write_bytes(b""),
        "missing": code.unlink,
        "no list": listed.unlink,
        "list of nothing": lambda: listed.write_text('{"schema": "dlcv.kernels/1", "files": {}}'),
        "list not ours": lambda: listed.write_text("[]"),
        "half-written list": lambda: listed.write_bytes(whole[:-9]),
        "none": lambda: None,
    }
    changes[damage]()
    monkeypatch.delenv("NUMBA_CACHE_DIR")
    message: list[str] = []
    report = Reporter()
    report.warn = message.append  # type: ignore[method-assign]
    assert prepare_kernels(tmp_path, report) == folder
    assert len(compiles) == 2, "used once to compile, and once to compile again or to load"
    assert len(message) == (damage not in ("none", "no list"))
    assert all(text.endswith("; compiling again") for text in message)
    assert (code.read_bytes(), listed.read_bytes()) == (b"code", whole)


def test_full_disk_while_compiling(compiles: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels that cannot be saved are still compiled, and not listed as complete."""
    monkeypatch.setattr(compiled_kernels, "_use_kernels", COMPILE)
    failures = iter([True, True, False])

    def begin(*_: object) -> Any:
        if next(failures):
            raise OSError(28, "No space left on device")
        return SimpleNamespace(advance=lambda _: None, predict=lambda _: None)

    monkeypatch.setattr(compiled_kernels.engines, "build_engine", begin)
    folder = prepare_kernels(tmp_path, Reporter())
    assert next(failures, "used up") == "used up"
    assert not (folder / "kernels.json").exists()


def test_clear_keeps_kernels_being_loaded(
    run: Run, compiles: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`cache clear` deletes kernels unless another process is loading them, and reports those."""
    cache = tmp_path / "cache"
    folder = prepare_kernels(cache, Reporter())
    before, outputs = read_files(folder), []

    def load() -> bool:
        code = "import sys; from dlcv_cli.__main__ import main; sys.argv = ['dlcv', 'cache', 'clear']; main()"
        outputs.append(run_python("-c", code, DLCV_CACHE=str(cache)))
        return True

    monkeypatch.setattr(compiled_kernels, "_use_kernels", load)
    monkeypatch.delenv("NUMBA_CACHE_DIR")
    assert prepare_kernels(cache, Reporter()) == folder
    assert outputs[0].returncode == 0
    assert f"{folder} is in use by another dlcv process" in outputs[0].stderr
    assert read_files(folder) == before
    assert run("cache", "clear", "--cache", cache).exit_code == 0
    assert not folder.exists()


def test_numba_cache_dir_is_respected(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """NUMBA_CACHE_DIR has priority."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    assert prepare_kernels(tmp_path / "cache", Reporter()) == tmp_path
    assert read_files(tmp_path) == {}


def test_sequences_need_no_torch(tmp_path: Path) -> None:
    """With the default engine, no step from data to table imports torch or scikit-learn."""
    data, output, other = (str(tmp_path / f"{name}.safetensors") for name in ("data", "gru", "torch"))
    train = ["seq", "train", data, "--hidden-size", "3", "--epochs", "1", "-o"]
    lines = [
        ["seq", "gen", "--count", "50", "-o", data], [*train, output], [*train, output, "--seeds", "2"],
        ["eval", output], ["eval", "--compare", output, "--split", "val"], [*train, other, "--engine", "torch"],
    ]  # fmt: skip
    script = f"""
import json, sys
from dlcv_cli.cli.app import app
found = []
for line in {lines!r}:
    try:
        app(line, prog_name="dlcv")
    except SystemExit as end:
        assert not end.code, line
    found.append(sorted({{"torch", "torchvision", "sklearn", "numba"}} & set(sys.modules)))
print(json.dumps(found))
"""
    result = run_python("-c", script)
    assert result.returncode == 0, result.stderr
    gen, *default, torch = json.loads(result.stdout.splitlines()[-1])
    assert gen == []
    assert default == [["numba"]] * 4
    assert "torch" in torch


@pytest.mark.parametrize("seeds", [1, 50])
def test_interrupted_training(data: Path, tmp_path: Path, seeds: int) -> None:
    """Ctrl-C ends a training within seconds, with one line and only a snapshot written."""
    run_dlcv("seq", "train", data, "--hidden-size", 3, "-o", tmp_path / "before.safetensors")  # compiled from here on
    before = read_files(tmp_path)
    settings = ("--seeds", seeds, "--epochs", 20_000, "--record-every", 1000, "-o", tmp_path / "new.safetensors")
    command = [sys.executable, "-m", "dlcv_cli", "seq", "train", data, *settings]
    with subprocess.Popen([*map(str, command)], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr
            assert process.stderr.readline().startswith("training ")
            time.sleep(2)
            assert process.poll() is None, "it is in the midst of it"
            process.send_signal(signal.SIGINT)
            out, message = process.communicate(timeout=8)
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
    assert process.returncode == 130
    assert out == ""
    assert "Traceback" not in message
    snapshots = {*read_files(tmp_path)} - {*before}
    assert all(name.endswith(".snapshot") for name in snapshots)
    last = message.splitlines()[-1]
    if len(snapshots) == 1:
        assert last.startswith(f"dlcv: interrupted: {tmp_path / snapshots.pop()} is saved (")
    else:
        assert 1 < len(snapshots) <= count_processors()
        assert last.endswith(" are saved; the same command continues from them")
