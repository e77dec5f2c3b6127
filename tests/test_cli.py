"""The shell's side: help, usage, exit codes, what is imported when, and that every command is documented."""

from __future__ import annotations

import ast
import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from conftest import Run, make_photos

import dlcv_cli
from dlcv_cli.cli.app import OUT_OF_MEMORY, app
from dlcv_cli.context import Context, Outcome
from dlcv_cli.errors import DlcvError, Interrupted

PACKAGE = Path(dlcv_cli.__file__).parent
README = Path(__file__).parent.parent / "README.md"


def list_commands(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield every command of the app, as typed words."""
    below = getattr(command, "commands", None)
    if not below:
        yield words
    for name, subcommand in (below or {}).items():
        yield from list_commands(subcommand, (*words, name))


COMMANDS = sorted(list_commands(typer.main.get_command(app)))
every_command = pytest.mark.parametrize("words", COMMANDS, ids=" ".join)


def run_python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run another Python, as a user's shell would start it."""
    command, env = [sys.executable, *arguments], {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, errors="replace", env=env, timeout=60)


def test_command_list_is_complete() -> None:
    """The list of commands that the tests below use is not empty."""
    assert {("data", "split"), ("vgg", "head"), ("seq", "train"), ("eval",), ("demo",)} <= set(COMMANDS)


# --- help and usage -------------------------------------------------------------------------------------------------


NEED_NOTHING = [
    ("demo",),
    ("doctor",),
    ("runs",),
    ("cache", "list"),
    ("cache", "clear"),
    ("data", "digits"),
    ("data", "draw"),
    ("seq", "gen"),
]


def test_help_and_usage_errors_import_no_torch() -> None:
    """Help, version, usage errors, settings out of range and the cache commands import no torch."""
    lines = [["--help"], ["--version"], [], ["nonsense"], ["--nonsense"], ["data"], ["data", "nonsense"]]
    for words in COMMANDS:
        lines += [[*words, "--help"], [*words, "--nonsense"], [*words[:-1], words[-1] + "x"]]
        if words not in NEED_NOTHING:
            lines.append([*words])
    lines += [
        ["data", "split", "x", "-o", "x.split.json", "--test-fraction", "2"],
        ["data", "split", "x", "-o", "x.split.json", "--seed", "many"],
        ["vgg", "head", "x", "-o", "x.safetensors", "--lr", "-1"],
        ["vgg", "head", "x", "-o", "x.safetensors", "--arch", "vgg99"],
        ["seq", "train", "x", "-o", "x.safetensors", "--epochs", "0"],
        ["seq", "train", "x", "-o", "x.safetensors", "--cell", "brain"],
    ]
    works = [["cache", "list"], ["cache", "clear", "--json"], ["cache", "prune", "--max-size", "1GB"]]
    script = f"""
import contextlib, io, sys
from dlcv_cli.cli.app import app
for line in {lines + works!r}:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            app(line, prog_name="dlcv")
        except SystemExit as end:
            code = end.code
    fine = "--help" in line or "--version" in line or line in {works!r}
    assert code == (0 if fine else 2), (line, code)
    heavy = {{"torch", "torchvision", "sklearn", "scipy", "numba", "matplotlib"}} & set(sys.modules)
    assert not heavy, (line, heavy)
"""
    result = run_python("-c", script)
    assert result.returncode == 0, result.stderr


@every_command
def test_help_says_what_a_command_does(run: Run, words: tuple[str, ...]) -> None:
    """The help of each command fits 80 columns and describes the command, its options and arguments."""
    result = run(*words, "--help")
    assert result.exit_code == 0
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "Example: dlcv" in result.stdout
    assert f"dlcv {' '.join(words)}" in result.stdout or f"root {' '.join(words)}" in result.stdout
    command = typer.main.get_command(app)
    for word in words:
        command = command.commands[word]  # type: ignore[attr-defined]
    assert command.help
    for parameter in command.params:
        assert getattr(parameter, "help", None), parameter.name


def test_help_lists_the_groups(run: Run) -> None:
    """`dlcv --help` lists every group and command; -h is the same."""
    result = run("--help")
    assert result.exit_code == 0
    for words in COMMANDS:
        assert f" {words[0]} " in result.stdout
    assert run("-h").stdout == result.stdout


def test_version_of_python_m() -> None:
    """`python -m dlcv_cli --version` prints the version."""
    result = run_python("-m", "dlcv_cli", "--version")
    assert (result.returncode, result.stdout, result.stderr) == (0, f"dlcv {dlcv_cli.__version__}\n", "")


@pytest.mark.parametrize(
    "line",
    [
        "nonsense",
        "--nonsense",
        "data nonsense",
        "data split",
        "data split here -o x.split.json --seed many",
        "data split here -o x.split.json --dataset imagenet",
        "data show",
        "vgg finetune x.split.json -o x.safetensors",
        "seq train x.safetensors -o y.safetensors --cell brain",
        "vgg head x.split.json -o x.safetensors --precision float16",
        "cache prune",
        "eval",
    ],
)
def test_wrong_usage(run: Run, line: str) -> None:
    """Wrong usage is exit code 2, with the usage on stderr and nothing on stdout."""
    result = run(*line.split())
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Usage: " in result.stderr


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("data split x -o x.split.json --test-fraction 1.5", "--test-fraction is 1.5: it must be <= 0.9"),
        ("data split x -o x.split.json --val-fraction 0", "--val-fraction is 0.0: it must be > 0"),
        ("data split x -o x.split.json --val-fraction nan", "--val-fraction is nan: it must be a finite number"),
        ("data split x -o x.split.json --seed -1", "--seed is -1: it must be >= 0"),
        ("data split x -o x.split.json --seed 4294967296", "--seed is 4294967296: it must be <= 4,294,967,295"),
        ("data split x -o x.split.json --train-per-class 0", "--train-per-class is 0: it must be >= 1"),
        ("data split x -o x.split.json --no-stratify --test-per-class 3", "--no-stratify contradicts"),
        ("data draw -o x --size 8", "--size is 8: it must be >= 16"),
        ("data draw -o x --classes 1", "--classes is 1: it must be >= 2"),
        ("vgg head x -o x.safetensors --lr 0", "--lr is 0.0: it must be > 0"),
        ("vgg scratch x -o x.safetensors --lr inf", "--lr is inf: it must be a finite number"),
        ("vgg head x -o x.safetensors --threads 0", "--threads is 0: it must be >= 1"),
        ("vgg head x -o x.safetensors --views 0", "--views is 0: it must be >= 1"),
        ("cache prune --max-size many", "--max-size 'many': give a size such as 500MB or 20GB"),
        ("cache prune --max-size -1", "--max-size '-1': give a size"),
        ("seq gen -o x.safetensors --min-length 5 --max-length 4", "--max-length is 4: it must be >= --min-length, 5"),
        ("seq train x -o x.safetensors --hidden-size 0", "--hidden-size is 0: it must be >= 1"),
    ],
)
def test_setting_out_of_range(run: Run, line: str, message: str) -> None:
    """A setting out of its range is exit code 2 and one line with the setting, its value and the range."""
    result = run(*line.split())
    assert result.exit_code == 2
    assert result.stdout == ""
    [told] = result.stderr.splitlines()
    assert told.startswith(f"dlcv: {message}")


# --- the one place where errors become messages and exit codes ------------------------------------------------------


FULL = "on the disk at /proc; what was there is unchanged: free some space and run the same command again"


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (DlcvError("a thing:\n  two lines"), 1, "dlcv: a thing: two lines\n"),
        (OSError(28, "No space left on device", "/proc/x"), 1, f"dlcv: /proc/x: No space left on device {FULL}\n"),
        (PermissionError(13, "Permission denied"), 1, "dlcv: Permission denied\n"),
        (MemoryError(), 1, f"dlcv: {OUT_OF_MEMORY}\n"),
        (KeyboardInterrupt(), 130, "dlcv: interrupted\n"),
        (Interrupted(15, "interrupted: saved"), 143, "dlcv: interrupted: saved\n"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_errors_become_one_line(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, message: str
) -> None:
    """An error that a user can cause is one line on stderr with its exit code, in any command."""

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("dlcv_cli.stages.data.describe_split", fail)
    result = run("data", "show", "x.split.json", "--json")
    assert (result.exit_code, result.stdout, result.stderr) == (code, "", message)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("two  spaces", "two  spaces"),
        ("wide\u3000space", "wide\u3000space"),
        ("fixed\u00a0space", "fixed\u00a0space"),
        ("\U0001f469\u200d\U0001f52c", "\U0001f469\u200d\U0001f52c"),
        ("red\x1b[31m", "red\\x1b[31m"),
        ("turned\u202e", "turned\\u202e"),
        ("next\u2028line", "next\\u2028line"),
    ],
)
def test_messages_escape_control_characters(run: Run, monkeypatch: pytest.MonkeyPatch, name: str, shown: str) -> None:
    """Messages print names as they are, except for characters that control the terminal or text direction."""

    def fail(*_: object, **__: object) -> None:
        raise DlcvError(f"{name}: cannot be used")

    monkeypatch.setattr("dlcv_cli.stages.data.describe_split", fail)
    assert run("data", "show", "x.split.json").stderr == f"dlcv: {shown}: cannot be used\n"


def test_bugs_keep_their_traceback(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unexpected error keeps its traceback."""

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("a bug")

    monkeypatch.setattr("dlcv_cli.stages.data.describe_split", fail)
    with pytest.raises(AssertionError, match="a bug"):
        run("data", "show", "x.split.json")


@pytest.mark.parametrize(("error", "code"), [(DlcvError("full"), 1), (KeyboardInterrupt(), 130)], ids=["error", "^C"])
def test_demo_stops_at_the_first_failure(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: BaseException, code: int
) -> None:
    """A command of the demo that fails or is interrupted ends the demo with its exit code and message."""

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("dlcv_cli.stages.data.write_digits", fail)
    monkeypatch.setattr("dlcv_cli.cli.demo.COMMANDS", "data digits -o {o}/digits\ndata draw -o {o}/drawn --size 8\n")
    result = run("demo", "-o", tmp_path / "demo")
    assert result.exit_code == code
    assert result.stdout.count("$ dlcv ") == 1
    assert result.stderr == f"dlcv: {str(error) or 'interrupted'}\n"
    assert (tmp_path / "demo" / "demo.log").read_text("utf-8").endswith(result.stderr)


SHORT_DEMO = """
seq gen -o {o}/adding.safetensors --count 60
seq train {o}/adding.safetensors --cell baseline -o {o}/baseline.safetensors
eval --compare {o}/baseline.safetensors
report {o}/baseline.safetensors -o {o}/report.html
"""


def test_demo_ends_with_its_result(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The demo prints a line for each command and its result, then the tables, and what to do next; a log has all."""
    monkeypatch.setattr("dlcv_cli.cli.demo.COMMANDS", SHORT_DEMO)
    folder = tmp_path / "demo"
    result = run("demo", "-o", folder)
    table = run("eval", "--compare", folder / "baseline.safetensors").stdout
    before, _, after = result.stdout.partition(f"\n\n{table}")
    assert (result.exit_code, result.stderr) == (0, "")
    first, *steps = before.split("\n\n")
    assert str(folder / "demo.log") in first
    assert [[line[:7] for line in step.splitlines()] for step in steps] == [
        ["$ dlcv ", "wrote /"],
        ["$ dlcv ", "wrote /"],
        ["$ dlcv ", "compare"],
        ["$ dlcv ", "wrote /"],
    ]
    assert after.startswith(f"\nopen {folder}/report.html\n")
    typed = [tuple(line.split()[1:]) for line in after.splitlines() if line.startswith("  dlcv ")]
    assert [next(words for words in COMMANDS if words == own[: len(words)]) for own in typed] == [
        ("data", "split"),
        ("image", "head"),
        ("predict",),
    ]
    log = (folder / "demo.log").read_text("utf-8")
    assert all(step.splitlines()[0] in log for step in steps)
    assert table in log
    assert "training 0 parameters (baseline)" in log


def test_demo_passes_warnings_on(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A warning in the demo is printed as well as logged; notes are logged alone."""

    def warn(*_: object, context: Context, **__: object) -> Outcome:
        context.reporter.note("a note")
        context.reporter.warn("the disk is full")
        return Outcome(tmp_path, True, {"counts": {}})

    monkeypatch.setattr("dlcv_cli.stages.train_sequences.generate_sequences", warn)
    monkeypatch.setattr("dlcv_cli.cli.demo.COMMANDS", "seq gen -o {o}/adding.safetensors")
    result = run("demo", "-o", tmp_path / "demo")
    assert (result.exit_code, result.stderr) == (0, "warning: the disk is full\n")
    assert "a note\nwarning: the disk is full\n" in (tmp_path / "demo" / "demo.log").read_text("utf-8")


@pytest.mark.parametrize(
    ("encoding", "name"), [("cp1252", b"\xe7\x8c\xab"), ("ascii", b"stra\xc3\x9fe"), ("utf-8", b"caf\xe9")]
)
def test_unencodable_names_are_printed(run: Run, tmp_path: Path, encoding: str, name: bytes) -> None:
    """A class name that stdout cannot encode is printed as well as possible, without a traceback."""
    try:
        root = make_photos(tmp_path / "photos", {os.fsdecode(name): 3, "zebra": 3})
    except (OSError, UnicodeError):
        pytest.skip("such a name cannot be made here")
    split = tmp_path / "x.split.json"
    assert run("data", "split", root, "-o", split, "--json").exit_code == 0
    result = run_python("-m", "dlcv_cli", "data", "show", str(split), PYTHONIOENCODING=encoding)
    assert result.returncode == 0, result.stderr
    assert "zebra" in result.stdout


def test_interrupted_progress_bar_restores_the_terminal() -> None:
    """An interruption removes the progress bar and restores the cursor before the message."""
    pty = pytest.importorskip("pty")
    script = """
from dlcv_cli.cli.app import app
from dlcv_cli.stages import data
def interrupted(*_, context, **__):
    context.reporter.progress("hashing", 1, 10)
    raise KeyboardInterrupt
data.write_split = interrupted
app(["data", "split", "x", "-o", "x.split.json"])
"""
    ours, theirs = pty.openpty()
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.DEVNULL, stderr=theirs, env=env) as process:
        os.close(theirs)
        told = b""
        with contextlib.suppress(OSError):  # how Linux says that the other side has closed
            while piece := os.read(ours, 4096):
                told += piece
    os.close(ours)
    assert process.returncode == 130
    hidden, shown = told.find(b"\x1b[?25l"), told.find(b"\x1b[?25h")
    assert 0 <= hidden < shown < told.find(b"dlcv: interrupted")
    assert told.endswith(b"dlcv: interrupted\r\n")


def test_no_progress_bar_without_terminal(run: Run, split_file: Path, photos: Path) -> None:
    """Without a terminal no part of a progress bar is printed."""
    result = run("data", "split", photos, "-o", split_file, "--near-duplicates", "ignore", "--force")
    assert (result.exit_code, result.stderr) == (0, "")


# --- the house ------------------------------------------------------------------------------------------------------

# What a part of the package may import of the package, beside itself; cli may import all.
BASE = {"config", "settings", "errors"}
SCIENCE = {"vision", "sequences", "statistics"}
ALLOWED = {
    "errors": set(),
    "settings": {"errors"},
    "config": {"settings", "errors"},
    "context": BASE,
    "vision": BASE,
    "sequences": BASE,
    "statistics": BASE,
    "files": BASE | {"context", "vision", "sequences"},
    "results": BASE | {"statistics", "files"},
    "report": BASE | {"statistics", "results", "files"},
    "studies": BASE | SCIENCE | {"context", "files", "results", "report"},
    "stages": BASE | SCIENCE | {"context", "files", "results", "report", "studies"},
    "api": BASE | {"context", "results", "studies", "stages", "cli"},
}


def list_imports(path: Path) -> set[str]:
    """Return the parts of the package that a file imports anywhere, including in functions."""
    actual = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import, which this test does not follow"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        actual |= {name.split(".")[1] for name in names if name.startswith("dlcv_cli.")}
    return actual - {"__version__"}


@pytest.mark.parametrize("part", ALLOWED)
def test_imports_run_one_way(part: str) -> None:
    """cli -> stages -> studies -> science, results, report, files -> config, errors: no import runs the other way."""
    files = sorted((PACKAGE / part).rglob("*.py")) or [PACKAGE / f"{part}.py"]
    wrong = {str(path.relative_to(PACKAGE)): list_imports(path) - ALLOWED[part] - {part} for path in files}
    assert {path: names for path, names in wrong.items() if names} == {}


def test_the_import_rule_covers_the_package() -> None:
    """The import rule covers every part of the package."""
    parts = {path.stem for path in PACKAGE.iterdir() if path.is_dir() or path.suffix == ".py"}
    assert parts - {"__init__", "__main__", "__pycache__", "cli", "checkpoints", "data"} == set(ALLOWED)


def test_science_prints_nothing() -> None:
    """Only the command line prints."""
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.is_relative_to(PACKAGE / "cli") or path.name == "__main__.py":
            continue
        calls = [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call)]
        assert "print" not in [getattr(call.func, "id", "") for call in calls], path


@every_command
def test_readme_mentions_every_command(words: tuple[str, ...]) -> None:
    """The README has every command as it is typed."""
    words = ("vgg", *words[1:]) if words[0] == "image" else words
    assert f"dlcv {' '.join(words)}" in README.read_text("utf-8")
