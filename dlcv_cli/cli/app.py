"""The app, and the one place where errors become messages and exit codes."""

from __future__ import annotations

import errno
import io
import os
import re
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from dlcv_cli import __version__
from dlcv_cli.cli import cache, data, demo, doctor, evaluate, image, predict, seq, show, use
from dlcv_cli.cli.console import Terminal
from dlcv_cli.cli.options import example
from dlcv_cli.errors import DlcvError, Interrupted, escape_controls

OUT_OF_MEMORY = "out of memory: ask for less (a smaller --batch-size, network, --count or --max-length)"


SOURCES = (
    "A setting is what is typed; else a variable's value, DLCV_IMAGE_HEAD_LR for --lr of image head; else that of the "
    "file of --config; else the default."
)


PANELS = DATA, TRAINING, RESULTS, OTHER = "Data", "Training", "Results", "Other"


class Boundary(TyperGroup):
    """Turn errors that a user can cause into one line on stderr and an exit code. Others are bugs: a traceback."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the commands in the order in which they are used."""
        return sorted(self.commands, key=lambda name: PANELS.index(getattr(self.commands[name], "rich_help_panel")))  # noqa: B009

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except DlcvError as error:
            message, code = str(error), error.exit_code
        except BrokenPipeError:
            # the reader of stdout has closed it: keep the interpreter from flushing into it at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(1) from None
        except OSError as error:
            message, code = _describe(error), 1
        except MemoryError:
            message, code = OUT_OF_MEMORY, 1
        except RuntimeError as error:
            if "Symlink loop" in str(error):  # pathlib's, before Python 3.13
                message, code = str(error), 1
            # torch's own, known by name because torch is not imported here
            elif type(error).__name__ != "OutOfMemoryError" and "can't allocate memory" not in str(error):
                raise
            else:
                message, code = OUT_OF_MEMORY, 1
        except Interrupted as error:
            message, code = str(error), error.exit_code
        except KeyboardInterrupt:
            message, code = "interrupted", 130
        finally:
            Terminal.close()
        one_line = re.sub(r"[ \t]*\n[ \t]*", " ", message.strip())
        print(f"dlcv: {escape_controls(one_line)}", file=sys.stderr)
        raise typer.Exit(code)


def _describe(error: OSError) -> str:
    """Return what the system refused, for which file, and on which disk if that is full."""
    where = f"{error.filename}: " if error.filename else ""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not error.filename:
        return f"{where}{error.strerror or error}"
    from dlcv_cli.files.disk import find_mount_point

    return (
        f"{where}{error.strerror} on the disk at {find_mount_point(Path(os.fsdecode(error.filename)))}; what was there "
        "is unchanged: free some space and run the same command again"
    )


app = typer.Typer(
    cls=Boundary,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Transfer learning and recurrent cells, studied from the shell: each stage a command, each result a file.",
    epilog=f"{SOURCES}\n\n{example('dlcv demo')}",
)
app.add_typer(data.app, name="data", rich_help_panel=DATA)
app.add_typer(image.app, name="image", rich_help_panel=TRAINING)
app.add_typer(image.app, name="vgg", rich_help_panel=TRAINING, short_help="The same as image.")
app.add_typer(seq.app, name="seq", rich_help_panel=TRAINING)
for name, command, panel, line in (
    ("eval", evaluate.evaluate, RESULTS, "dlcv eval --compare head.safetensors finetune.safetensors"),
    ("predict", predict.predict, RESULTS, "dlcv predict head.safetensors photo.jpg"),
    ("calibrate", use.calibrate, RESULTS, "dlcv calibrate head.safetensors"),
    ("export", use.export, RESULTS, "dlcv export head.safetensors -o head.onnx"),
    ("card", use.card, RESULTS, "dlcv card head.safetensors -o README.md"),
    ("show", show.show, RESULTS, "dlcv show head.safetensors"),
    ("runs", show.runs, RESULTS, "dlcv runs --sort test"),
    ("report", evaluate.report, RESULTS, "dlcv report head.safetensors -o report.html"),
    ("demo", demo.demo, OTHER, "dlcv demo -o demo"),
    ("doctor", doctor.doctor, OTHER, "dlcv doctor"),
):
    app.command(name, rich_help_panel=panel, epilog=example(line))(command)
app.add_typer(cache.app, name="cache", rich_help_panel=OTHER)


def _print_version(requested: bool) -> None:
    if requested:
        typer.echo(f"dlcv {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def _interrupt(number: int, _: Any) -> None:
    raise Interrupted(number)


def main() -> None:
    """Run the app."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the caller
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115  # for as long as the process lives
    for name in ("SIGTERM", "SIGHUP"):  # end as Ctrl-C does, so that files are cleaned up
        number = getattr(signal, name, None)
        if number and signal.getsignal(number) == signal.SIG_DFL:  # nohup ignores SIGHUP
            signal.signal(number, _interrupt)
    if isinstance(sys.stdout, io.TextIOWrapper):  # file names need not be text
        sys.stdout.reconfigure(errors="backslashreplace")
    app(prog_name="dlcv")
