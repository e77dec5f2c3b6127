"""Files of dlcv, damaged and forged in every way that torture.py could think of."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import math
import os
import resource
import shutil
import signal
import struct
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.random import Generator

from dlcv_cli.config import EvalConfig, GenConfig, HeadConfig, SeqTrainConfig, TrainMachine
from dlcv_cli.context import Context
from dlcv_cli.errors import DlcvError, Interrupted
from dlcv_cli.files import sequences, splits, tensors
from dlcv_cli.files.disk import write_json
from dlcv_cli.files.feature_cache import FeatureCache
from dlcv_cli.report import page as pages
from dlcv_cli.results import metrics
from dlcv_cli.results.codec import encode
from dlcv_cli.stages import data, evaluate, image_training, weights
from dlcv_cli.stages import seed_runs as runs
from dlcv_cli.stages import train_images as vgg
from dlcv_cli.stages import train_sequences as seq
from dlcv_cli.stages.compare import compare
from dlcv_cli.stages.report import write_report
from dlcv_cli.studies.images.predictor import open_checkpoint
from dlcv_cli.studies.sequences import compiled_kernels as compiled_code
from dlcv_cli.studies.sequences.study import look_up_task
from dlcv_cli.studies.stored import read_evaluation
from dlcv_cli.vision.architectures import ARCHITECTURES
from dlcv_cli.vision.models import build_random_network, copy_weights

HOSTILE: list[Any] = [
    None, True, -1, 0, 1, 7, 2**31, 2**63, 2**64, 10**400, -(10**30), 0.5, 1e308, -0.0, math.nan, math.inf, "", "\0",
    "\x1b[2J", "../../etc/passwd", "/etc/passwd", "C:\\x", "a" * 100_000, "\ud800", "ß", [], {}, [[]], [None] * 1000,
    {"": {}}, [[1]] * 100, "float32", "F64", "NaN", [0, 2**62], [2**40, 2**40], [-1], [1.5],
]  # fmt: skip


def damaged(rng: Generator, data: bytes) -> bytes:
    """What a disk, a cable or a careless hand makes of a file."""
    kind, at = rng.integers(9), int(rng.integers(max(1, len(data))))
    end = min(len(data), at + int(rng.integers(1, 4096)))
    if kind == 0:  # one bit
        return data[:at] + bytes([data[at] ^ 1 << int(rng.integers(8))]) + data[at + 1 :]
    if kind == 1:  # one byte
        return data[:at] + bytes([int(rng.integers(256))]) + data[at + 1 :]
    if kind == 2:
        return data[:at]
    if kind == 3:
        return data + rng.bytes(int(rng.integers(1, 4096)))
    if kind == 4:  # a block of zeros, as after a power cut
        return data[:at] + bytes(end - at) + data[end:]
    if kind == 5:
        return data[:at] + rng.bytes(end - at) + data[end:]
    if kind == 6:
        return data[:at] + data[end:]
    if kind == 7:
        return data[:at] + data[at:end] * 2 + data[end:]
    return data[:8][::-1] + data[8:]  # a length, the other way round


def hostile(rng: Generator, value: Any) -> Any:
    """A JSON value with something else in one or a few places of it."""
    text = json.loads(json.dumps(value))
    for _ in range(int(rng.integers(1, 3))):
        places: list[tuple[Any, Any]] = []
        _places(text, places)
        if not places:
            return _hostile(rng)
        where, key = places[int(rng.integers(len(places)))]
        kind = int(rng.integers(8))
        if kind == 0:
            del where[key]
        elif kind == 1 and isinstance(where, dict):
            where[str(key) + "x"] = where.pop(key)
        elif kind == 2:
            other, name = places[int(rng.integers(len(places)))]
            if (isinstance(other, list) and name < len(other)) or (isinstance(other, dict) and name in other):
                where[key] = json.loads(json.dumps(other[name]))
        elif kind == 3 and isinstance(where[key], int | float) and not isinstance(where[key], bool):
            where[key] = -where[key] - 1
        else:
            where[key] = _hostile(rng)
    return text


def _hostile(rng: Generator) -> Any:
    return copy.deepcopy(HOSTILE[int(rng.integers(len(HOSTILE)))])


def _places(value: Any, actual: list[tuple[Any, Any]], most: int = 3000) -> None:
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        if len(actual) < most:
            actual.append((value, key))
            _places(value[key], actual)


def forged_json(rng: Generator, data: bytes) -> bytes:
    """A JSON file that says something else, or says it in an evil way."""
    kind = int(rng.integers(12))
    if kind == 0:
        return b"[" * int(rng.integers(1, 200_000))
    if kind == 1:
        return b'{"schema":' * int(rng.integers(1, 100_000))
    if kind == 2:
        return data.replace(b": ", b": NaN, ", 1)
    return json.dumps(hostile(rng, json.loads(data)), ensure_ascii=bool(rng.integers(2))).encode(
        "utf-8", "surrogatepass"
    )


def forged_tensors(rng: Generator, data: bytes, path: Path) -> tuple[bytes, bool]:
    """A safetensors file whose header or record says something else; and whether it was sealed anew with its sha256."""
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    kind = int(rng.integers(6))
    if kind == 0:  # lengths that lie
        length = int(rng.choice([0, 1, size - 1, size + 1, len(data), 2**31, 2**40, 2**62]))
        return struct.pack("<Q", length) + data[8:], False
    if kind == 1:
        record = header["__metadata__"]
        record["dlcv"] = str(rng.choice(["[" * 100_000, "{", "null", '{"schema": 1}', record["dlcv"][:-9]]))
    elif kind == 2:
        header = hostile(rng, header)
    else:
        return _sealed(rng, header, data[8 + size :], path), True
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(text)) + text + data[8 + size :], False


def _sealed(rng: Generator, header: dict[str, Any], body: bytes, path: Path) -> bytes:
    record = json.loads(header.pop("__metadata__")["dlcv"])
    kinds = {"F32": "f4", "F64": "f8", "I64": "i8", "U8": "u1", "I16": "i2"}
    arrays = {
        name: np.frombuffer(body[slice(*about["data_offsets"])], kinds[about["dtype"]]).reshape(about["shape"]).copy()
        for name, about in header.items()
    }
    name = list(arrays)[int(rng.integers(len(arrays)))]
    kind, array = int(rng.integers(8)), arrays[name]
    if kind == 0:
        del arrays[name]
    elif kind == 1:
        arrays[name] = array.astype(rng.choice(["f2", "f4", "f8", "i4", "i8", "u1", "?"]))
    elif kind == 2:
        arrays[name] = array[:-1] if array.ndim and len(array) else np.zeros((0, 3), array.dtype)
    elif kind == 3:
        arrays[name] = array[None]
    elif kind == 4 and array.size:
        array.flat[int(rng.integers(array.size))] = (
            rng.choice([np.nan, np.inf, -1, 1e30]) if array.dtype.kind == "f" else int(rng.integers(128))
        )
    elif kind == 5 and array.size:
        array.flat[int(rng.integers(array.size))] = 0
    else:
        record = hostile(rng, record)
        if not isinstance(record, dict):
            record = {"record": record}
    try:
        tensors.write(path, str(record.get("schema", "dlcv.none/1")), arrays, record)
    except (ValueError, TypeError):  # NaN in the record, which the writer refuses
        return body
    return path.read_bytes()


Mutation = Callable[[Generator, bytes, Path], tuple[bytes, bool]]


def of_json(rng: Generator, data: bytes, _: Path) -> tuple[bytes, bool]:
    """A damaged or forged JSON file; never sealed."""
    return (damaged(rng, data) if rng.integers(2) else forged_json(rng, data)), False


def of_tensors(rng: Generator, data: bytes, path: Path) -> tuple[bytes, bool]:
    """A damaged or forged safetensors file of ours."""
    return (damaged(rng, data), False) if rng.integers(2) else forged_tensors(rng, data, path)


def of_bytes(rng: Generator, data: bytes, _: Path) -> tuple[bytes, bool]:
    """Any damaged file."""
    return damaged(rng, data), False


# ------------------------------------------------------------------------------------------------------- the readers


@dataclass(frozen=True)
class Reader:
    """Something of dlcv that reads a file: what it is fed, and what it makes of it."""

    source: str  # the sound file's name
    mutation: Mutation
    read: Callable[[Path], Any]  # gives what has to be the same when an unsealed change was accepted; None: anything
    share: int = 10  # of all mutations


def _arrays(arrays: dict[str, Any]) -> dict[str, tuple[Any, ...]]:
    return {name: (str(a.dtype), a.shape, np.ascontiguousarray(a).tobytes()) for name, a in arrays.items()}


def _checkpoint(path: Path) -> Any:
    stored = open_checkpoint(path)
    return (
        _arrays({name: t.numpy() for name, t in stored.network.state_dict().items()}),
        stored.classes,
        stored.preprocessing,
    )


def _weights(path: Path) -> Any:
    architecture = ARCHITECTURES["vgg16_mini"]
    stored = weights.read_weights(weights.locate_weights(str(path), architecture))
    copy_weights(build_random_network(architecture, 8, 0), stored.tensors, architecture.head)


def _sealed_weights(path: Path) -> Any:
    _weights(path)
    return path.read_bytes()  # accepted: then it has to be what was written


def _predictions(path: Path) -> Any:
    actual = tensors.read(path, tensors.PREDICTIONS)
    return _arrays(actual.arrays), actual.metadata


def _sequences(path: Path) -> Any:
    actual = sequences.read(path)
    look_up_task(actual)
    return {part: _arrays(vars(data)) for part, data in actual.parts.items()}, actual.metadata


def _split(path: Path) -> Any:
    actual = splits.read(path)
    data.describe_split(path)
    return actual.classes, actual.parts


def _metrics(path: Path) -> Any:
    metrics.belongs_to(path.with_name("gru.safetensors"), "0" * 64)


def _compared(path: Path) -> Any:
    read_evaluation(path)
    compare([("one", path), ("other", path)])


def _report(path: Path) -> Any:
    checkpoint, output = path.with_name(path.name.partition(".")[0] + ".safetensors"), path.with_name("report.html")
    write_report([("one", checkpoint)], output, EvalConfig(), context=Context(force=True))


def _page(path: Path) -> Any:
    pages.read_recipe(path)


def _seq_eval(path: Path) -> Any:
    context = Context(cache=path.parent / "cache", force=True)
    document = encode(evaluate.evaluate(path, EvalConfig(), context=context).evaluation)
    return {**document, "run": None, "inputs": None}


def _seq_train(path: Path) -> Any:
    output = path.with_suffix(".safetensors")
    for file in (output, metrics.metrics_path(output)):
        file.unlink(missing_ok=True)
    try:
        seq.train_sequences(path.with_name("data.safetensors"), output, TRAIN, context=Context(save_every=1e9))
    finally:
        for stray in path.parent.glob(".*.lock"):
            raise AssertionError(f"{stray} stayed")
    return output.read_bytes()


def _vgg_head(path: Path) -> Any:
    output = path.with_suffix(".safetensors")
    for file in (output, metrics.metrics_path(output)):
        file.unlink(missing_ok=True)
    vgg.train_head(path.with_name("drawn.split.json"), output, HEAD, context=Context(TrainMachine(threads=1)))
    return output.read_bytes()


def _store(path: Path) -> Any:
    store = FeatureCache(path.parent)
    if not store.open() or not store.digests:
        return True  # nothing is served
    rows = store.map_rows()
    return {
        key: rows[slot].tobytes() for key, slot in store.slots.items() if store.is_sound(rows, slot)
    }.items() <= STORED.items()


def _kernels(path: Path) -> Any:
    return compiled_code._find_problem(path.parent)


TRAIN = SeqTrainConfig(hidden_size=4, epochs=1, record_every=200)
HEAD = HeadConfig(arch="vgg16_mini", epochs=1, precision="float32")
STORED: dict[bytes, bytes] = {}

READERS: dict[str, Reader] = {
    "split": Reader("drawn.split.json", of_json, _split),
    "sequences": Reader("data.safetensors", of_tensors, _sequences),
    "image checkpoint": Reader("start.safetensors", of_tensors, _checkpoint),
    "weights of ours": Reader("start.safetensors", of_tensors, _sealed_weights),
    "weights .pth": Reader("start.pth", of_bytes, _weights),
    "weights .pth, older format": Reader("legacy.pth", of_bytes, _weights),
    "cell checkpoint": Reader("cell.safetensors", of_tensors, _seq_eval),
    "metrics": Reader("gru.metrics.json", of_json, _metrics),
    "evaluation": Reader("gru.test.eval.json", of_json, _compared),
    "image evaluation": Reader("start.test.eval.json", of_json, _compared),
    "evaluation, for a report": Reader("gru.test.eval.json", of_json, _report, 2),
    "image evaluation, for a report": Reader("start.test.eval.json", of_json, _report, 2),
    "metrics, for a report": Reader("gru.metrics.json", of_json, _report, 2),
    "report": Reader("page.html", of_bytes, _page, 4),
    "predictions": Reader("gru.test.predictions.safetensors", of_tensors, _predictions),
    "snapshot of sequences": Reader("new.snapshot", of_tensors, _seq_train),
    "snapshot of images": Reader("head.snapshot", of_tensors, _vgg_head, 1),
    "store": Reader("store/index.bin", of_bytes, _store),
    "store's records": Reader("store/records.bin", of_bytes, _store),
    "store's description": Reader("store/store.json", of_json, _store, 4),
    "list of kernels": Reader("kernels/kernels.json", of_json, _kernels, 4),
}  # fmt: skip


def mutations(folder: Path, cache: Path, count: int, seed: int, problems: list[str]) -> list[tuple[str, Counter[str]]]:
    """Feeds each reader its share of `count` mutated files, some hundred to a process, and counts what comes of it."""
    rows = []
    shares = sum(reader.share for reader in READERS.values())
    place = _sound_files(folder, cache)
    for number, (name, reader) in enumerate(READERS.items()):
        counts: Counter[str] = Counter(tried=0)
        wanted = math.ceil(count * reader.share / shares)
        while counts["tried"] < wanted:
            some = min(250, wanted - counts["tried"])
            result = folder / "counted"
            result.unlink(missing_ok=True)
            process = os.fork()
            if not process:
                try:
                    _child(place, reader, (seed, number, counts["tried"]), some, result)
                except BaseException:
                    traceback.print_exc()
                os._exit(70)
            code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
            actual = json.loads(result.read_text()) if result.exists() else {}
            if code or not actual:
                counts["crashes"] += 1
                problems.append(f"mutated {name}: a process ended with {code}, in {actual}")
            problems += [f"mutated {name}: {problem}" for problem in actual.pop("problems", [])]
            counts.update({key: value for key, value in actual.items() if value})
            counts["tried"] += some - actual.get("tried", 0)
        rows.append((f"mutated {name}", counts))
    return rows


def _sound_files(folder: Path, cache: Path) -> Path:
    """One of each kind, in a folder of their own."""
    place = folder / "sound"
    shutil.copytree(folder / "inputs", place)
    os.environ["DLCV_CACHE"] = str(cache)
    split, start, sequences_file = (
        place / name for name in ("drawn.split.json", "start.safetensors", "data.safetensors")
    )
    small = place / "small.safetensors"
    seq.generate_sequences(small, GenConfig(count=200))
    sequences_file.write_bytes(small.read_bytes())
    state = open_checkpoint(start).network.state_dict()
    torch.save(state, place / "start.pth")
    torch.save(state, place / "legacy.pth", _use_new_zipfile_serialization=False)
    gru = place / "gru.safetensors"
    seq.train_sequences(sequences_file, gru, TRAIN, context=Context(cache=cache))
    shutil.copyfile(gru, place / "cell.safetensors")
    evaluate.evaluate(gru, EvalConfig(), context=Context(cache=cache))
    evaluate.evaluate(start, EvalConfig(), context=Context(TrainMachine(threads=1)))
    runs.TICK = 0.02  # time for a first step
    for stage, output in ((seq, place / "new.safetensors"), (image_training, place / "head.safetensors")):
        held, stage.hold_signals = stage.hold_signals, _at_once
        try:
            if stage is seq:
                seq.train_sequences(sequences_file, output, TRAIN, context=Context(cache=cache))
            else:
                vgg.train_head(split, output, HEAD, context=Context(TrainMachine(threads=1)))
        except Interrupted:
            pass
        stage.hold_signals = held
    write_report([("one", gru), ("other", start)], place / "page.html", EvalConfig())
    rng = np.random.default_rng(0)
    store = FeatureCache(place / "store")
    store.create((4, 4), "float32", {})
    with store.open_for_appending() as append:
        append([rng.bytes(32) for _ in range(50)], rng.normal(size=(50, 4, 4)).astype(np.float32))
    rows = store.map_rows()
    STORED.update({key: rows[slot].tobytes() for key, slot in store.slots.items()})
    (place / "kernels").mkdir()
    (place / "kernels" / "code.nbc").write_bytes(b"code")
    digest = hashlib.sha256(b"code").hexdigest()
    write_json(place / "kernels" / "kernels.json", {"schema": compiled_code.SCHEMA, "files": {"code.nbc": digest}})
    return place


@contextlib.contextmanager
def _at_once() -> Iterator[Callable[[], int | None]]:
    """A signal that is there from the beginning."""
    yield lambda: 15


class _HangError(BaseException):
    pass


def _child(place: Path, reader: Reader, seed: tuple[int, ...], count: int, result: Path) -> None:
    """In a process of its own: mutates, reads, counts; writes the counts and ends."""

    def hangs(*_: object) -> None:
        raise _HangError

    signal.signal(signal.SIGALRM, hangs)
    path, rng = place / reader.source, np.random.default_rng(seed)
    sound = path.read_bytes()
    expected = reader.read(path)
    counts: Counter[str] = Counter()
    problems: list[str] = []
    scratch = place / "forged.safetensors"
    for number in range(count):
        mutated, sealed = reader.mutation(rng, sound, scratch)
        path.write_bytes(mutated)
        counts["tried"] += 1
        signal.alarm(20)
        try:
            actual = reader.read(path)
            counts["accepted"] += 1
            if mutated != sound and not sealed and expected is not None and actual != expected:
                counts["wrongly accepted"] += 1
                problems.append(f"{seed} {number}: accepted {mutated[:200]!r}")
        except (DlcvError, OSError) as error:
            counts["refused"] += 1
            if isinstance(error, DlcvError) and error.exit_code not in (1, 2):
                problems.append(f"exit code of {error!r}")
        except _HangError:
            counts["hangs"] += 1
            problems.append(f"{seed} {number}: hangs")
        except BaseException:
            counts["tracebacks"] += 1
            problems.append(f"{seed} {number}: {traceback.format_exc()[-1500:]}")
        signal.alarm(0)
    path.write_bytes(sound)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    counts["processes over 1 GiB"] = int(most > 2**30)
    if most > 2**30:
        problems.append(f"{seed}: {most:,} bytes")
    result.write_text(json.dumps({**counts, "problems": problems[:5]}))
    os._exit(0)
