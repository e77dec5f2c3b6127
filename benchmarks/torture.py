"""Kills, starves and deceives dlcv, and counts what comes of it.

    python benchmarks/torture.py [--kills N] [--mutations N] ...

Kills stages at random moments (half of them in the middle of writing a file), stops them by SIGTERM, fills the disk
under them, takes write permission away, starts twins, and feeds every reader damaged and forged files. What a
stage writes in the end is compared with what it writes undisturbed, byte by byte. Every part prints what it tried and
what went wrong. With TMPDIR in memory (/dev/shm) it goes faster: a killed process loses nothing that it wrote there.
POSIX only; as root it mounts a small tmpfs to fill, and gives its powers up to lose permissions.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torchvision.io  # noqa: F401  # before the forks, so that each child has it
from mutations import mutations

from dlcv_cli.__main__ import main as dlcv
from dlcv_cli.cli import app as root  # noqa: F401  # before the forks
from dlcv_cli.stages import data, evaluate  # noqa: F401  # likewise
from dlcv_cli.stages import snapshots as resume

COMMON = ["--batch-size", "8", "--precision", "float32", "--threads", "1", "--cache", "{cache}"]
MINI = ["--arch", "vgg16_mini"]
SPLIT, START, DATA = "../inputs/drawn.split.json", "../inputs/start.safetensors", "../inputs/data.safetensors"
EVERYTHING = [
    "--unfreeze", "features,classifier", "--optimizer", "adamw", "--schedule", "one-cycle", "--weight-decay", "0.1",
    "--label-smoothing", "0.1", "--mixup", "0.3", "--ema", "0.9", "--clip-norm", "1", "--layer-decay", "0.8",
    "--class-weights", "sqrt", "--augment", "trivial", "--erase", "0.3", "--patience", "3",
    "--crop-area", "0.1", "--color-jitter", "0.3", "--cutmix", "1",
]  # fmt: skip
STAGES = {
    "head": ["vgg", "head", SPLIT, *MINI, "--epochs", "12", *COMMON],
    "auto": ["vgg", "head", SPLIT, *MINI, "--recipe", "auto", *COMMON],
    "finetune": ["vgg", "finetune", SPLIT, "--from", START, "--epochs", "8", *COMMON],
    "scratch": ["vgg", "scratch", SPLIT, *MINI, "--epochs", "3", "--augment", "crop-flip", *COMMON[:-2]],
    "tuned": ["vgg", "finetune", SPLIT, "--from", START, "--epochs", "5", *EVERYTHING, *COMMON],
    "heads": ["vgg", "head", SPLIT, *MINI, "--seeds", "2", "--epochs", "6", *COMMON],
    "seq": ["seq", "train", DATA, "--seeds", "2", "--epochs", "30", "--cache", "{cache}"],
}
MAKERS = {
    "split": ["data", "split", "../inputs/drawn"],
    "gen": ["seq", "gen", "--count", "20000"],
}
SAID = tempfile.mkdtemp(prefix="dlcv-torture-said-")
ENDINGS = {"split": ".split.json"}


Row = tuple[str, Counter[str]]


class Place:
    """A folder with inputs, results and a cache; what undisturbed stages make lies in `reference`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.cache, self.seconds = folder, folder / "cache", dict.fromkeys([*STAGES, *MAKERS], 1.0)

    def command(self, name: str, cache: Path | None = None) -> list[str]:
        """The words of a stage, whose output is in the folder it runs in."""
        words = [word.format(cache=cache or self.cache) for word in {**STAGES, **MAKERS}[name]]
        return [*words, "-o", name + ENDINGS.get(name, ".safetensors")]

    def prepare(self) -> None:
        """Makes the inputs, and each stage's result undisturbed."""
        inputs = self.folder / "inputs"
        inputs.mkdir(parents=True)
        for line in (
            "data draw --classes 8 --per-class 24 -o drawn",
            "data split drawn -o drawn.split.json",
            "vgg head drawn.split.json --arch vgg16_mini --epochs 2 --precision float32 --threads 1 "
            f"--cache {self.cache} -o start.safetensors",
            "seq gen --count 2000 -o data.safetensors",
            f"seq train data.safetensors --epochs 1 --cache {self.cache} -o compiled.safetensors",
        ):
            ended(start(line.split(), inputs))
        for name in self.seconds:
            begun = time.monotonic()
            ended(start(self.command(name), self.made("reference")))
            self.seconds[name] = time.monotonic() - begun

    def made(self, name: str) -> Path:
        """A folder for results, beside the inputs."""
        (self.folder / name).mkdir(exist_ok=True)
        return self.folder / name

    def wrong(self, name: str, folder: Path, reference: Path | None = None) -> str | None:
        """What differs from the undisturbed run: in bytes, or by files that should not be there."""
        reference = reference or self.folder / "reference"
        expected = {p.name for p in reference.iterdir() if p.name.partition(".")[0] == name}
        there = {p.name for p in folder.iterdir()}
        if there != expected:
            return f"files {sorted(there ^ expected)}"
        for file in expected:
            ours, theirs = (where / file for where in (folder, reference))
            if file.endswith(".metrics.json"):
                documents = [json.loads(path.read_bytes()) | {"run": None} for path in (ours, theirs)]
                same = documents[0] == documents[1]
            else:
                same = ours.read_bytes() == theirs.read_bytes()
            if not same:
                return f"{file} differs"
        return None


def start(words: list[str], folder: Path, before: Callable[[], None] = lambda: None) -> int:
    """dlcv in a fork of this process, which has imported everything; its output goes to a file that `said` reads."""
    process = os.fork()
    if process:
        return process
    code = 70
    try:
        os.chdir(folder)
        file = os.open(f"{SAID}/{os.getpid()}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        os.dup2(file, 1)
        os.dup2(file, 2)
        before()
        sys.argv[1:] = words
        dlcv()
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def ended(process: int) -> int:
    """The exit code; minus the signal's number for one that was killed."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def printed(process: int) -> str:
    """What a process printed."""
    path = Path(SAID, str(process))
    text = path.read_text(errors="replace") if path.exists() else ""
    path.unlink(missing_ok=True)
    return text


def often() -> None:
    """Saves as often as can be: what is to be tried is saving."""
    resume.SHARE = 1e9


def troubles(counts: Counter[str], code: int, text: str, problems: list[str]) -> None:
    """Notes tracebacks, and exit codes that are none of ours."""
    if "Traceback" in text or code in (70, -signal.SIGSEGV, -signal.SIGABRT):
        counts["tracebacks"] += 1
        problems.append(text[-2000:])
    if "damaged" in text:
        counts["damaged"] += 1
        problems.append(text[-500:])


def kills(place: Place, count: int, rng: np.random.Generator, problems: list[str]) -> list[Row]:
    """Each training is killed by SIGKILL at a random moment, some again and again, and then goes on to the end."""
    rows = []
    for name in STAGES:
        counts: Counter[str] = Counter(tried=0)
        trial = 0
        while counts["tried"] < count // len(STAGES):
            trial += 1
            folder = place.made(f"kill-{name}-{trial}")
            # now and then with an empty store, to be killed while it is filled
            cache = folder.parent / f"cache-{trial}" if trial % 8 == 0 else None
            words = [*place.command(name, cache), "--save-every", "0.02"]
            killed, again = 0, True
            while again:
                process = start(words, folder, often)
                _kill(process, folder, place.seconds[name], rng)
                code, text = ended(process), printed(process)
                troubles(counts, code, text, problems)
                killed += code == -signal.SIGKILL
                again = code == -signal.SIGKILL and rng.random() < 0.25
                counts["half-written"] += any(p.suffix == ".tmp" for p in folder.iterdir())
                counts["resumed"] += "continuing from" in text
            process = start(words, folder, often)
            code, text = ended(process), printed(process)
            troubles(counts, code, text, problems)
            counts["resumed"] += "continuing from" in text
            wrong = f"exit code {code}" if code else place.wrong(name, folder)
            counts["kills"] += killed
            if killed:  # not done before it came
                counts["tried"] += 1
                counts["the same bytes"] += not wrong
            if wrong:
                counts["mismatched"] += 1
                problems.append(f"{name} {trial}: {wrong}: {text[-500:]}")
            shutil.rmtree(folder)
            if cache:
                shutil.rmtree(cache, ignore_errors=True)
        rows.append((f"SIGKILL {name}", counts))
    return rows


def _kill(process: int, folder: Path, seconds: float, rng: np.random.Generator) -> None:
    """After a random time; or when the n-th temporary file is seen, that is in the middle of writing."""
    if rng.random() < 0.5:
        time.sleep(rng.uniform(0, seconds))
    else:
        left, seen, until = int(rng.integers(1, 12)), "", time.monotonic() + 2 * seconds + 2
        while left and time.monotonic() < until and not _is_over(process):
            now = next((p.name for p in folder.iterdir() if p.suffix == ".tmp"), "")
            if now and now != seen:
                left, seen = left - 1, now
            time.sleep(0.0002)
        time.sleep(rng.uniform(0, 0.003))
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)


def _is_over(process: int) -> bool:
    return os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def terms(place: Place, count: int, rng: np.random.Generator, problems: list[str]) -> list[Row]:
    """SIGTERM at random moments of a training: how long until it is over, and whether the same bytes come of it."""
    rows = []
    for name in STAGES:
        counts: Counter[str] = Counter(tried=0)
        times = []
        while counts["tried"] < count // len(STAGES):
            folder = place.made(f"term-{name}-{counts['tried']}")
            process = start(place.command(name), folder)
            time.sleep(rng.uniform(0.05, place.seconds[name]))
            begun = time.monotonic()
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGTERM)
            code, text = ended(process), printed(process)
            troubles(counts, code, text, problems)
            if code in (143, -signal.SIGTERM):  # the latter: before dlcv began
                times.append(time.monotonic() - begun)
            counts["tried"] += 1
            counts["resumed"] += any(p.suffix == ".snapshot" for p in folder.iterdir())
            process = start(place.command(name), folder)
            code, text = ended(process), printed(process)
            wrong = f"exit code {code}" if code else place.wrong(name, folder)
            counts["finished"] += 1
            counts["the same bytes"] += not wrong
            if wrong:
                counts["mismatched"] += 1
                problems.append(f"{name}: {wrong}: {text[-500:]}")
            shutil.rmtree(folder)
        longest = f"SIGTERM {name}, longest {max(times, default=0):.2f} s"
        rows.append((longest, counts))
    return rows


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path | None]:
    """A tmpfs of that size; None where it cannot be mounted."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "dlcv-torture", str(folder)]
    if os.geteuid() or subprocess.run(command, check=False).returncode:
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def fill(disk: Path, leave: int) -> None:
    """Takes all but so many bytes of a disk."""
    free = shutil.disk_usage(disk).free
    with (disk / "filler").open("ab") as file, contextlib.suppress(OSError):
        while free > leave:
            file.write(bytes(min(2**16, free - leave)))
            file.flush()
            free = shutil.disk_usage(disk).free


def full(place: Place, count: int, rng: np.random.Generator, problems: list[str]) -> list[Row]:
    """The disk that fills up, before a stage or under it: what was there stays, and the message names file and disk."""
    rows = []
    with small_disk(place.folder / "disk", 64) as disk:
        if not disk:
            return [("full disk: cannot mount a tmpfs here", Counter())]
        shutil.copytree(place.folder / "inputs", disk / "inputs")
        inputs = {p: p.read_bytes() for p in (disk / "inputs").rglob("*") if p.is_file()}
        counts: Counter[str] = Counter(tried=0)
        names = list(place.seconds)
        while counts["tried"] < count:
            name = names[counts["tried"] % len(names)]
            (folder := disk / "results").mkdir()
            cache = disk / "cache" if rng.random() < 0.3 else None
            words, late, unchecked = place.command(name, cache), rng.random() < 0.5, rng.random() < 0.7
            words += ["--save-every", "0.02"] if name in STAGES else []
            leave = int(rng.choice([rng.integers(1, 2**14), rng.integers(1, 2**20), rng.integers(1, 12 * 2**20)]))

            def before(unchecked: bool = unchecked) -> None:
                often()
                if unchecked:
                    resume.SnapshotFile.require_space = lambda *_: None  # type: ignore[method-assign,assignment]

            if not late:
                fill(disk, leave)
            process = start(words, folder, before)
            if late:
                time.sleep(rng.uniform(0, place.seconds[name]))
                fill(disk, 0)
            code, text = ended(process), printed(process)
            troubles(counts, code, text, problems)
            counts["tried"] += 1
            last = text.strip().splitlines()[-1] if text.strip() else ""
            if code == 0:
                counts["finished in spite of it"] += 1
            elif code == 1 and f"at {disk}" in last and name in last:
                counts["refused, disk and file named"] += 1
            else:
                counts["mismatched"] += 1
                problems.append(f"full {name}: exit code {code}: {text[-500:]}")
            counts["strays"] += any(p.suffix == ".tmp" for p in folder.iterdir())
            counts["inputs lost"] += any(p.read_bytes() != content for p, content in inputs.items())
            (disk / "filler").unlink(missing_ok=True)
            process = start(words, folder)
            code, text = ended(process), printed(process)
            wrong = f"exit code {code}" if code else place.wrong(name, folder)
            counts["the same bytes"] += not wrong
            if wrong:
                counts["mismatched"] += 1
                problems.append(f"full {name}, again: {wrong}: {text[-500:]}")
            shutil.rmtree(folder)
            shutil.rmtree(disk / "cache", ignore_errors=True)
        rows.append(("full disk", counts))
    return rows


def without_powers() -> None:
    """Root as any user: what belongs to others is closed to it. Source: capset(2), version 3."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()):
        raise OSError(ctypes.get_errno(), "capset")


def forbidden(place: Place, problems: list[str]) -> list[Row]:
    """No permission to write the results, or to read the inputs: one line, and nothing is written."""
    counts: Counter[str] = Counter(tried=0)
    if os.geteuid():
        return [("permissions: only as root, who gives its powers up", counts)]
    inputs = [place.folder / "inputs" / name for name in ("drawn.split.json", "data.safetensors", "drawn")]
    for name in place.seconds:
        for what in ("results", "inputs"):
            if what == "inputs" and name == "gen":
                continue
            folder = place.made(f"forbidden-{name}-{what}")
            with contextlib.ExitStack() as stack:
                for path in inputs if what == "inputs" else [folder]:
                    mode = path.stat().st_mode
                    stack.callback(path.chmod, mode)
                    stack.callback(os.chown, path, 0, 0)
                    os.chown(path, 65534, 65534)
                    path.chmod(0o755 if what == "results" else 0o700)
                process = start(place.command(name), folder, without_powers)
                code, text = ended(process), printed(process)
            troubles(counts, code, text, problems)
            counts["tried"] += 1
            last = text.splitlines()[-1] if text else ""
            if code == 1 and last.startswith("dlcv: ") and "ermission denied" in last and not any(folder.iterdir()):
                counts["refused in one line"] += 1
            else:
                counts["mismatched"] += 1
                problems.append(f"forbidden {name} {what}: exit code {code}: {text[-500:]} {[*folder.iterdir()]}")
            shutil.rmtree(folder)
    return [("no permission", counts)]


def twins(place: Place, count: int, rng: np.random.Generator, problems: list[str]) -> list[Row]:
    """Two processes on one output, begun within a moment: one makes it, the other says why it does not."""
    counts: Counter[str] = Counter(tried=0)
    names = list(place.seconds)
    while counts["tried"] < count:
        name = names[counts["tried"] % len(names)]
        folder = place.made(f"twins-{counts['tried']}")
        processes = []
        for _ in range(2):
            processes.append(start(place.command(name), folder, often))
            time.sleep(rng.choice([0, rng.uniform(0, place.seconds[name])]))
        codes, texts = [ended(p) for p in processes], [printed(p) for p in processes]
        for code, text in zip(codes, texts, strict=True):
            troubles(counts, code, text, problems)
            counts["made it"] += code == 0 and "wrote" in text
            counts["up to date"] += code == 0 and "up to date" in text
            counts["gave way in one line"] += code == 1 and "in use by another dlcv process" in text
        wrong = place.wrong(name, folder)
        counts["tried"] += 1
        counts["the same bytes"] += not wrong
        if wrong or 0 not in codes or not {*codes} <= {0, 1}:
            counts["mismatched"] += 1
            problems.append(f"twins {name}: {codes} {wrong}: {texts}")
        shutil.rmtree(folder)
    return [("twins", counts)]


def main() -> None:
    """Runs all parts and prints their counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (
        ("kills", 300),
        ("terms", 40),
        ("full", 50),
        ("twins", 24),
        ("mutations", 20_000),
        ("seed", 0),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    chosen = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="dlcv-torture-"))
    folder.chmod(0o755)
    problems: list[str] = []
    rng = np.random.default_rng(chosen.seed)
    try:
        place = Place(folder)
        place.prepare()
        parts: list[tuple[int, Callable[[], list[Row]]]] = [
            (chosen.kills, lambda: kills(place, chosen.kills, rng, problems)),
            (chosen.terms, lambda: terms(place, chosen.terms, rng, problems)),
            (chosen.full, lambda: full(place, chosen.full, rng, problems)),
            (chosen.twins, lambda: forbidden(place, problems) + twins(place, chosen.twins, rng, problems)),
            (chosen.mutations, lambda: mutations(place.folder, place.cache, chosen.mutations, chosen.seed, problems)),
        ]
        for wanted, part in parts:
            begun = time.monotonic()
            if wanted:
                for title, counts in part():
                    print(f"{title}: " + ", ".join(f"{n:,} {what}" for what, n in counts.items()), flush=True)
                print(f"  in {time.monotonic() - begun:,.0f} s", flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(SAID)
    print(f"{len(problems)} problems")
    for problem in problems[:20]:
        print(problem, "-" * 80, sep="\n")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
