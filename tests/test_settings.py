"""Settings that are not typed: of a file, of variables, of an earlier training. Default outputs, messages and logs."""

from __future__ import annotations

import csv
import importlib.machinery
import io
import itertools
import json
import re
import signal
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from conftest import COMMON, Run, assert_refused, read_metrics
from test_cli import list_commands
from test_resume import stop_after

from dlcv_cli.cli.app import app
from dlcv_cli.cli.console import Terminal
from dlcv_cli.config import HeadConfig
from dlcv_cli.context import Outcome, Relay
from dlcv_cli.files import tensors

Calls = list[tuple[tuple[Any, ...], dict[str, Any]]]
HEAD = ("image", "head", "photos.split.json", "--arch", "vgg16_mini", *COMMON)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Return the calls of stages, none of which does anything."""
    actual: Calls = []

    def stage(*args: Any, **kwargs: Any) -> Outcome:
        actual.append((args, kwargs))
        return Outcome(Path("x"), True, {"counts": {}, "classes": [], "images": 0})

    def stage_of_runs(*args: Any, **kwargs: Any) -> list[Outcome]:
        return [stage(*args, **kwargs)]

    for name in ("train_sequences.generate_sequences", "report.write_report"):
        monkeypatch.setattr(f"dlcv_cli.stages.{name}", stage)
    for name in ("train_images.train_image_runs", "train_sequences.train_sequence_runs"):
        monkeypatch.setattr(f"dlcv_cli.stages.{name}", stage_of_runs)
    for name in ("write_split", "write_digits", "write_drawings"):
        monkeypatch.setattr(f"dlcv_cli.stages.data.{name}", stage)
    return actual


@pytest.fixture
def place(photo_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to a folder with photos, their split and a head, and return it."""
    monkeypatch.chdir(photo_folder)
    return photo_folder


def write(text: str, name: str = "s.toml") -> str:
    """Write a settings file here and return its name."""
    Path(name).write_text(text, "utf-8")
    return name


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what commands write by default out of the repository."""
    monkeypatch.chdir(tmp_path)


# --- where settings come from ---------------------------------------------------------------------------------------


def test_every_command_takes_a_file() -> None:
    """Every command has --config, and every one that reports progress -q and -v."""
    commands = {}
    for words in list_commands(typer.main.get_command(app)):
        command: Any = typer.main.get_command(app)
        for word in words:
            command = command.commands[word]
        commands[words] = {name for parameter in command.params for name in parameter.opts}
    assert all("--config" in options for options in commands.values())
    silent = {words for words, options in commands.items() if not {"-q", "-v", "--quiet", "--verbose"} <= options}
    assert silent == {
        ("data", "show"), ("show",), ("runs",), ("demo",), ("doctor",), ("cache", "list"), ("cache", "prune"),
        ("cache", "clear"),
    }  # fmt: skip


@pytest.mark.parametrize("command", ["image", "vgg"])
@pytest.mark.parametrize("section", ["image", "vgg"])
def test_a_file_sets_options(run: Run, calls: Calls, command: str, section: str) -> None:
    """A section sets options and arguments of its command, by either name of the group, with - or _ in a key."""
    file = write(
        f'[{section}.head]\nsplit = "a.json"\nbatch-size = 3\nlr = 1\nresize = "pad"\npartial = true\nthreads = 2\n'
        '[eval]\npart = "val"\n[data.split]\nseed = 9\n'
    )
    assert run(command, "head", "--config", file).exit_code == 0
    [((split, _, config), kwargs)] = calls
    assert split == Path("a.json")
    assert config == HeadConfig(batch_size=3, lr=1.0, resize="pad", partial=True)
    assert type(config.lr) is float
    assert kwargs["context"].machine.threads == 2


@pytest.mark.parametrize("given", [*itertools.product([True, False], repeat=3)])
def test_typed_goes_first(
    run: Run, calls: Calls, monkeypatch: pytest.MonkeyPatch, given: tuple[bool, bool, bool]
) -> None:
    """What is typed goes before a variable, that before the file, that before the default."""
    typed, variable, file = given
    if variable:
        monkeypatch.setenv("DLCV_IMAGE_HEAD_EPOCHS", "2")
    arguments = ["--epochs", 1] if typed else []
    arguments += ["--config", write("[image.head]\nepochs = 3")] if file else []
    assert run("image", "head", "x", *arguments).exit_code == 0
    assert calls[0][0][2].epochs == (1 if typed else 2 if variable else 3 if file else 6)


@pytest.mark.parametrize("command", ["image", "vgg"])
def test_variables_set_options(run: Run, calls: Calls, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    """Every option has a variable, also switches and --from, for both names of the group; empty ones are not set."""
    values = {"IMAGE_FINETUNE_FROM": "a", "VGG_FINETUNE_NO_CACHE": "yes", "IMAGE_FINETUNE_LR": "1e-3"}
    for name, value in {**values, "IMAGE_FINETUNE_SEED": ""}.items():
        monkeypatch.setenv(f"DLCV_{name}", value)
    result = run(command, "finetune", "x")
    assert (result.exit_code, result.stderr) == (0, "")
    [((_, _, config), kwargs)] = calls
    assert (config.lr, config.seed, kwargs["start"], kwargs["context"].cache) == (1e-3, 0, Path("a"), None)


def test_a_variable_names_the_file(run: Run, calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file itself can be named by a variable."""
    monkeypatch.setenv("DLCV_SEQ_GEN_CONFIG", write("[seq.gen]\ncount = 12"))
    assert run("seq", "gen").exit_code == 0
    assert calls[0][0][1].count == 12


def test_the_cache_folder(run: Run, calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    """DLCV_CACHE is for all commands: it goes before the file, and the command's own variable before it."""
    file = write('[image.head]\ncache = "c"')
    monkeypatch.delenv("DLCV_CACHE")
    run("image", "head", "x", "--config", file)
    monkeypatch.setenv("DLCV_CACHE", "a")
    run("image", "head", "x", "--config", file)
    monkeypatch.setenv("DLCV_IMAGE_HEAD_CACHE", "b")
    run("image", "head", "x", "--config", file)
    run("image", "head", "x", "--config", file, "--cache", "d")
    assert [str(kwargs["context"].cache) for _, kwargs in calls] == ["c", "a", "b", "d"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[image.head]\nbatch = 3", "[image.head] batch is no option of dlcv image head: did you mean batch_size?"),
        ("[vgg.head]\nzzz = 3", "[vgg.head] zzz is no option of dlcv image head: dlcv image head --help lists"),
        ("[image.head]\nconfig = 'x'", "[image.head] config is no option of dlcv image head"),
        ("[image.head]\nepochs = 2.5", "[image.head] epochs is 2.5: expected a whole number"),
        ("[image.head]\nepochs = true", "[image.head] epochs is True: expected a whole number"),
        ("[image.head]\nlr = 'fast'", "[image.head] lr is 'fast': expected a number"),
        ("[image.head]\npartial = 1", "[image.head] partial is 1: expected true or false"),
        ("[image.head]\nweights = 1", "[image.head] weights is 1: expected a text"),
        ("[image.head]\noutput = [1]", "[image.head] output is [1]: expected a text"),
        ("[image.head]\nresize = 'no'", "[image.head] resize is 'no': expected one of crop, squash, pad"),
        ("[image.hed]\nlr = 1", "[image.hed] is no command: expected one of image.head, image.finetune, image.scratch"),
        ("[train]\nlr = 1", "[train] is no command: expected one of "),
        ("[image]\nlr = 1", "image.lr is in no section"),
        ("lr = 1", "lr is in no section: expected that of a command before it"),
        ("lr = ", "not TOML: Invalid value"),
        ("\udcff", "not TOML: "),
    ],
)
def test_a_wrong_file_is_one_line(run: Run, calls: Calls, text: str, message: str) -> None:
    """A wrong key, type or section is one line with the file, the key and what was expected; nothing is trained."""
    Path("s.toml").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert_refused(run("image", "head", "x", "--config", "s.toml"), f"dlcv: s.toml: {message}")
    assert calls == []


def test_lists_are_lists_of_texts(run: Run) -> None:
    """An argument that may be repeated is a list."""
    file = write('[eval]\ncheckpoints = ["a.safetensors", "b.safetensors"]')
    assert_refused(run("eval", "--config", file), "a.safetensors")
    assert_refused(run("eval", "--config", write('[eval]\ncheckpoints = "a"')), "is 'a': expected a list of texts")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("fast", "DLCV_IMAGE_HEAD_LR is 'fast': expected a number"),
        ("-1", "--lr is -1.0: it must be > 0 (from DLCV_IMAGE_HEAD_LR)"),
    ],
)
def test_a_wrong_variable_is_named(run: Run, monkeypatch: pytest.MonkeyPatch, value: str, message: str) -> None:
    """A bad value of a variable is exit code 2 and one line that names the variable, unless it was typed."""
    monkeypatch.setenv("DLCV_IMAGE_HEAD_LR", value)
    result = run("image", "head", "x")
    assert (result.exit_code, result.stderr) == (2, f"dlcv: {message}\n")
    monkeypatch.setenv("DLCV_IMAGE_HEAD_LR", "3")
    assert run("image", "head", "x", "--lr", -2).stderr == "dlcv: --lr is -2.0: it must be > 0\n"


def test_a_value_out_of_range_names_its_file(run: Run) -> None:
    """A value of a file that is out of its range is one line with the file."""
    result = run("seq", "gen", "--config", write("[seq.gen]\ncount = 1"))
    assert (result.exit_code, result.stderr) == (2, "dlcv: --count is 1: it must be >= 3 (from s.toml)\n")


def test_a_variable_of_no_option_is_warned_about(run: Run, calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    """A DLCV_ variable that no option has is warned about, with the one that is like it; those of the tests are not."""
    monkeypatch.setenv("DLCV_SEQ_GEN_CONT", "3")
    monkeypatch.setenv("DLCV_TEST_INSTALLED_NOT", "1")
    monkeypatch.setenv("DLCV_VGG_HEAD_FORCE", "1")
    expected = "warning: the variable DLCV_SEQ_GEN_CONT is no option's: did you mean DLCV_SEQ_GEN_COUNT?\n"
    assert run("seq", "gen").stderr == expected


# --- an earlier training again --------------------------------------------------------------------------------------

AGAIN: dict[str, tuple[object, ...]] = {
    "head": (*HEAD, "--weights", "head.safetensors", "--root", "photos"),
    "finetune": ("image", "finetune", "photos.split.json", "--from", "head.safetensors", *COMMON),
    # the recipe has others than these
    "scratch": (
        "image", "scratch", "photos.split.json", "--recipe", "modern", "--arch", "vgg16_mini", "--image-size", 64,
        "--label-smoothing", 0, "--optimizer", "adam", *COMMON,
    ),
    "gru": ("seq", "train", "data.safetensors", "--engine", "torch", "--hidden-size", 3, "--seed", 2),
}  # fmt: skip


@pytest.mark.parametrize("name", AGAIN)
def test_metrics_repeat_a_training(run: Run, place: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A metrics file given to --config gives the same bytes, from another folder and after all was moved."""
    (place / "runs").mkdir()
    assert run("seq", "gen", "--count", 100, "-o", "data.safetensors").exit_code == 0
    assert run(*AGAIN[name], "-o", "runs/first.safetensors").exit_code == 0
    moved = place.rename(place.parent / "moved")
    monkeypatch.chdir(moved.parent)
    metrics = moved / "runs" / "first.metrics.json"
    result = run(*AGAIN[name][:2], "--config", metrics, "-o", moved / "runs" / "again.safetensors")
    assert result.exit_code == 0, result.stderr
    first, again = ((moved / "runs" / f"{own}.safetensors").read_bytes() for own in ("first", "again"))
    assert first == again
    assert run(*AGAIN[name][:2], "--config", metrics, "-o", moved / "runs" / "first.safetensors").exit_code == 0


def change_metrics(**config: object) -> None:
    """Write new.metrics.json: the metrics of the head with other settings."""
    document = json.loads(Path("head.metrics.json").read_text("utf-8"))
    document["config"] |= config
    write(json.dumps(document), "new.metrics.json")


def test_null_is_tried_again(run: Run, place: Path, calls: Calls) -> None:
    """What an automatic recipe tried is recorded as null, and is tried again; null of an unknown setting is nothing."""
    auto = {"recipe": "auto", "schedule": "cosine", "patience": 2, "gone": None}
    change_metrics(**auto, **dict.fromkeys(("resize", "augment", "weight_decay", "lr")))
    assert run("image", "head", "--config", "new.metrics.json").exit_code == 0
    expected = HeadConfig.by_recipe(recipe="auto", arch="vgg16_mini", epochs=2, batch_size=6)
    assert calls[0][0][2] == expected
    assert calls[0][0][2].to_try == ["resize", "augment", "weight_decay", "lr"]


def test_typed_goes_before_metrics(run: Run, place: Path, calls: Calls) -> None:
    """Settings and inputs of a metrics file give way to what is typed."""
    assert run("image", "head", "other.json", "--config", "head.metrics.json", "--lr", 0.5).exit_code == 0
    [((split, _, config), kwargs)] = calls
    assert (split, config.lr, config.epochs, kwargs["weights"]) == (Path("other.json"), 0.5, 2, "drawn")


def test_metrics_of_another_stage_are_refused(run: Run, place: Path) -> None:
    """Metrics of another command's training, settings that are no more, and other JSON are one line."""
    result = run("image", "finetune", "--config", "head.metrics.json")
    assert_refused(
        result, "head.metrics.json: is of a training by dlcv image head: expected one by dlcv image finetune"
    )
    change_metrics(gone=1)
    assert_refused(run("vgg", "head", "--config", "new.metrics.json"), "new.metrics.json: gone is no option of dlcv")
    assert_refused(run("image", "head", "--config", "photos.split.json"), "photos.split.json: ", "dlcv.metrics/1")
    assert_refused(run("image", "head", "--config", "none.metrics.json"), "none.metrics.json: ")


# --- where outputs go -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "output"),
    [
        ("image head x", "runs/head.safetensors"),
        ("image finetune x --from y", "runs/finetune.safetensors"),
        ("vgg scratch x", "runs/scratch.safetensors"),
        ("seq gen --task adding-1997", "runs/adding-1997.safetensors"),
        ("seq train x --cell lstm", "runs/lstm.safetensors"),
        ("data split some/photos", "runs/photos.split.json"),
        ("data digits", "runs/digits"),
        ("data draw", "runs/figures"),
        ("report x", "runs/report.html"),
    ],
)
def test_default_outputs(run: Run, calls: Calls, line: str, output: str) -> None:
    """Without -o an output goes to runs/, under a name that the help says."""
    assert run(*line.split()).exit_code == 0
    assert Path(output) in calls[0][0]
    shown = re.sub(r"[\s│]+", "", run(*line.split()[: 1 if line.startswith("report") else 2], "--help").stdout)
    general = {"adding-1997": "TASK", "lstm": "CELL", "photos": "ROOT"}
    stem, dot, ending = output.removeprefix("runs/").partition(".")
    assert f"runs/{general.get(stem, stem)}{dot}{ending}" in shown


def test_default_output_is_not_replaced(run: Run) -> None:
    """A default output that was made differently is refused like any other."""
    assert run("seq", "gen", "--count", 30).exit_code == 0
    assert run("seq", "gen", "--count", 30).stdout.startswith("runs/adding.safetensors: up to date")
    assert_refused(run("seq", "gen", "--count", 31), "runs/adding.safetensors already exists, but --count was 30")


# --- how much is told -----------------------------------------------------------------------------------------------


def test_quiet_and_verbose(run: Run, place: Path) -> None:
    """-q prints the result alone, -v begins each line with the seconds and says what it computes on."""
    quiet = run(*HEAD, "-o", "a.safetensors", "-q")
    assert (quiet.exit_code, quiet.stderr) == (0, "")
    assert quiet.stdout.startswith("wrote a.safetensors")
    verbose = run(*HEAD, "-o", "b.safetensors", "--verbose", "--precision", "float32")
    lines = verbose.stderr.splitlines()
    assert all(re.match(r"\[ *\d+\.\d s\] \S", line) for line in lines), lines
    [facts] = [line for line in lines if "device cpu" in line]
    assert "threads 1, precision float32" in facts
    assert "device cpu" in run("eval", "a.safetensors", "-v").stderr
    assert run("eval", "a.safetensors", "-q", "--force").stderr == ""
    both = run(*HEAD, "-q", "-v")
    assert (both.exit_code, both.stderr) == (2, "dlcv: --quiet contradicts --verbose\n")


def test_quiet_warns(capsys: pytest.CaptureFixture[str]) -> None:
    """A quiet terminal still warns, and only that; a relay passes on all but what it changes."""
    terminal = Relay(Terminal(quiet=True))
    terminal.note("a")
    terminal.detail("b")
    terminal.record({"epoch": 1})
    terminal.progress("c", 1, 2)
    terminal.log({})
    terminal.warn("d")
    assert capsys.readouterr() == ("", "warning: d\n")


class Screen(io.StringIO):
    """A terminal."""

    def isatty(self) -> bool:
        return True


def test_epochs_are_a_table_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal records have one line of headings and aligned columns, also above a bar; a note ends the table."""
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    numbers: dict[str, Any] = {"train_accuracy": 0.5, "val_accuracy": 1.0, "images_per_second": 1271.4}
    terminal = Terminal()
    try:
        terminal.record({"epoch": 0, "lr": None, "train_loss": None, "val_loss": 2.5, **numbers, "best": True})
        terminal.progress("epoch 1/2", 1, 9)
        terminal.record({"epoch": 1, "lr": 5e-05, "train_loss": 1.25, "val_loss": 0.123456, **numbers, "best": False})
        terminal.note("a \x1b[31mnote")
        terminal.record({"epoch": 10, "lr": 0.1, "train_loss": 123456.0, "val_loss": 2.5, **numbers, "best": True})
    finally:
        Terminal.close()
    printed = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", re.sub(r".*\r(\x1b\[1A)?\x1b\[2K", "", screen.getvalue()))
    lines = [line for line in printed.splitlines() if line.strip() and "━" not in line]
    assert [line.split() for line in lines] == [
        heading := ["epoch", "lr", "train", "loss", "accuracy", "val", "loss", "accuracy"],
        ["0", "50.00", "%", "2.5", "100.00", "%", "1271", "images/s", "best"],
        ["1", "5e-05", "1.25", "50.00", "%", "0.1235", "100.00", "%", "1271", "images/s"],
        ["a", "\\x1b[31mnote"],
        heading,
        ["10", "0.1", "1.235e+05", "50.00", "%", "2.5", "100.00", "%", "1271", "images/s", "best"],
    ]
    table = [line for line in lines if "note" not in line]
    ends = {tuple(line.index(text) + len(text) for text in texts) for line, texts in zip(
        table, (("train loss", "val loss"), ("2.5",), ("1.25", "0.1235"), ("train loss", "val loss"),
                ("1.235e+05", " 2.5")), strict=True) if len(texts) == 2}  # fmt: skip
    assert len(ends) == 1
    assert max(map(len, table)) <= 80


def test_elsewhere_an_epoch_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a terminal a record is one line with its labels, and there are no headings."""
    Terminal().record({"epoch": 1, "lr": 0.005, "train_loss": 2.77, "val_loss": 1.5, "best": True})
    assert capsys.readouterr().err == "epoch 1  lr 0.005  train loss 2.77  val loss 1.5  best\n"


# --- logs -----------------------------------------------------------------------------------------------------------


def read_log(folder: str) -> list[dict[str, Any]]:
    """Return the rows of a log, numbers as numbers and without what is empty."""
    with (Path(folder) / "records.csv").open(newline="") as file:
        rows = [{key: value for key, value in row.items() if value} for row in csv.DictReader(file)]
    for row in rows:
        assert row.pop("best") in ("True", "False")
    return [{key: float(value) for key, value in row.items()} for row in rows]


def read_records(checkpoint: str) -> list[dict[str, Any]]:
    """Return the records of a training, without what is not set."""
    return [{k: v for k, v in record.items() if v is not None} for record in read_metrics(Path(checkpoint))["records"]]


def without_speed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rows of images without what differs between runs."""
    assert all(row["images_per_second"] > 0 for row in rows)
    return [{key: value for key, value in row.items() if key != "images_per_second"} for row in rows]


def test_log_of_images(run: Run, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log has a row for each epoch, also after a resumption and a repetition, and changes no byte of the result."""
    finetune = ("image", "finetune", "photos.split.json", "--from", "head.safetensors", *COMMON, "--epochs", 4)
    assert run(*finetune, "-o", "plain.safetensors").exit_code == 0
    with monkeypatch.context() as patch:
        stop_after(patch, 9)
        stopped = run(*finetune, "-o", "a.safetensors", "--log-dir", "logs/a")
        assert stopped.exit_code == 128 + signal.SIGTERM
    begun = read_log("logs/a")
    result = run(*finetune, "-o", "a.safetensors", "--log-dir", "logs/a")
    assert "continuing from" in result.stderr
    expected = read_records("a.safetensors")
    assert 0 < len(begun) < len(expected) == 5
    assert without_speed(begun) == expected[: len(begun)]
    assert without_speed(read_log("logs/a")) == expected
    assert Path("a.safetensors").read_bytes() == Path("plain.safetensors").read_bytes()
    assert run(*finetune, "-o", "a.safetensors", "--log-dir", "logs/a").stdout.startswith("a.safetensors: up to date")
    assert run(*finetune, "-o", "a.safetensors", "--log-dir", "logs/a", "--force").exit_code == 0
    assert without_speed(read_log("logs/a")) == expected


@pytest.mark.parametrize("seeds", [1, 3])
def test_log_of_sequences(run: Run, seeds: int) -> None:
    """The log of sequences has every record of every seed."""
    assert run("seq", "gen", "--count", 200, "-o", "data.safetensors").exit_code == 0
    settings = ("--engine", "torch", "--hidden-size", 3, "--record-every", 40, "--seeds", seeds, "--log-dir", "log")
    assert run("seq", "train", "data.safetensors", *settings).exit_code == 0
    names = ["gru"] if seeds == 1 else [f"gru.seed{seed}" for seed in range(seeds)]
    expected = [record for name in names for record in read_records(f"runs/{name}.safetensors")]
    rows = read_log("log")
    if seeds == 1:
        expected = [{key: value for key, value in record.items() if key != "seed"} for record in expected]
    assert sorted(rows, key=lambda row: (row.get("seed", 0), row["iteration"])) == expected
    assert len(rows) >= 5 * seeds


def test_log_of_tries(run: Run, place: Path) -> None:
    """Of an automatic recipe, the log has the epochs of each training that was tried, under the number of its try."""
    fixed = ("--recipe", "auto", "--resize", "crop", "--augment", "none", "--weight-decay", 0.01)
    assert run(*HEAD, *fixed, "-o", "auto.safetensors", "--log-dir", "log").exit_code == 0
    rows = read_log("log")
    tries = read_metrics(Path("auto.safetensors"))["tries"]
    expected = [(n, at) for n, one in enumerate(tries, 1) if "lr" in one for at in range(one["epochs"] + 1)]
    assert len({n for n, _ in expected}) == 2
    assert [(row["try"], row["epoch"]) for row in rows] == expected


def test_a_log_that_cannot_be_written(run: Run, place: Path) -> None:
    """A folder that cannot be made is one line before training; a log that fails later is a warning, and no more."""
    write("", "file")
    assert_refused(run(*HEAD, "-o", "a.safetensors", "--log-dir", "file/log"), "file/log")
    assert not Path("a.safetensors").exists()
    (place / "log" / "records.csv").mkdir(parents=True)
    result = run(*HEAD, "-o", "a.safetensors", "--log-dir", "log", "-q")
    assert result.exit_code == 0
    assert result.stderr == "warning: log: Is a directory; the training goes on without its log\n"


@pytest.fixture
def tensorboard(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], dict[str, list[tuple[str, float, int]]]]:
    """Return a function that installs a TensorBoard of ours, or none, and returns what is written, by folder."""

    def install(is_there: bool) -> dict[str, list[tuple[str, float, int]]]:
        written: dict[str, list[tuple[str, float, int]]] = {}

        class Writer:
            def __init__(self, folder: str) -> None:
                self.rows = written.setdefault(folder, [])
                Path(folder).mkdir(parents=True, exist_ok=True)
                (Path(folder) / f"events.out.tfevents.{len(written)}").touch()

            def add_scalar(self, tag: str, data: float, step: int) -> None:
                self.rows.append((tag, data, step))

            def flush(self) -> None:
                pass

        package, module = types.ModuleType("tensorboard"), types.ModuleType("tensorboard.summary")
        package.__spec__ = importlib.machinery.ModuleSpec("tensorboard", None)
        module.Writer = Writer  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "tensorboard", package)
        monkeypatch.setitem(sys.modules, "tensorboard.summary", module)
        if not is_there:
            monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        return written

    return install


def test_tensorboard(run: Run, place: Path, tensorboard: Any) -> None:
    """TensorBoard gets each number of each epoch, and the files of the training before are replaced."""
    written = tensorboard(True)
    former = place / "log" / "tensorboard" / "events.out.tfevents.0"
    former.parent.mkdir(parents=True)
    former.touch()
    foreign = place / "log" / "events.out.tfevents.0"
    foreign.touch()
    result = run(*HEAD, "-o", "a.safetensors", "--log-dir", "log")
    assert "tensorboard" not in result.stderr.lower()
    [(folder, rows)] = written.items()
    assert folder == str(Path("log", "tensorboard"))
    expected = [
        (key, record[key], record["epoch"])
        for record in read_records("a.safetensors")
        for key in ("lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy")
    ]
    assert [row for row in rows if row[0] != "images_per_second"] == expected
    assert sum(row[0] == "images_per_second" for row in rows) == 2
    assert (former.exists(), foreign.exists()) == (False, True)


def test_tensorboard_of_seeds(run: Run, tensorboard: Any) -> None:
    """Each seed has its own folder for TensorBoard, since their steps are the same."""
    written = tensorboard(True)
    assert run("seq", "gen", "--count", 100, "-o", "data.safetensors").exit_code == 0
    assert (
        run("seq", "train", "data.safetensors", "--cell", "baseline", "--seeds", 2, "--log-dir", "log").exit_code == 0
    )
    assert set(written) == {str(Path("log", "tensorboard", f"seed-{seed}")) for seed in (0, 1)}


def test_without_tensorboard(run: Run, place: Path, tensorboard: Any) -> None:
    """Without TensorBoard one line says what to install, and the CSV is written all the same."""
    written = tensorboard(False)
    result = run(*HEAD, "-o", "a.safetensors", "--log-dir", "log")
    assert result.stderr.splitlines()[0] == "log: only records.csv; for TensorBoard's files, pip install tensorboard"
    assert (written, len(read_log("log"))) == ({}, 2)


def test_settings_of_a_checkpoint_are_those_of_the_file(run: Run) -> None:
    """A setting of a file is recorded as a typed one would be."""
    run("seq", "gen", "--config", write("[seq.gen]\ncount = 30\nmax_length = 4"))
    assert run("seq", "gen", "--count", 30, "--max-length", 4, "-o", "typed.safetensors").exit_code == 0
    recorded = tensors.read_metadata(Path("runs/adding.safetensors"), tensors.SEQUENCES)["config"]
    assert (recorded["count"], recorded["max_length"]) == (30, 4)
    assert Path("runs/adding.safetensors").read_bytes() == Path("typed.safetensors").read_bytes()
