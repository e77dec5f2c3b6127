"""`--weights`: every kind of file that is read, every kind that is refused, and the download."""

from __future__ import annotations

import functools
import hashlib
import http.server
import json
import os
import re
import socket
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from conftest import Run, assert_refused
from small_networks import shrink_networks
from torch import Tensor, nn
from torchvision import models
from torchvision.models import VGG16_Weights, get_model_weights

from dlcv_cli.config import HeadConfig
from dlcv_cli.context import Reporter
from dlcv_cli.errors import DlcvError, FileError
from dlcv_cli.files import tensors as files
from dlcv_cli.files.recipes import Input, Recipe
from dlcv_cli.stages import weights
from dlcv_cli.vision.architectures import ARCHITECTURES
from dlcv_cli.vision.models import build_random_network
from dlcv_cli.vision.preprocessing import Preprocessing

MINI = ARCHITECTURES["vgg16_mini"]
CAFFE = {"mean": [0.48, 0.45, 0.4], "std": [0.0039, 0.004, 0.0041]}
State = dict[str, Tensor]


@functools.cache
def build_mini() -> nn.Module:
    """Return vgg16_mini for 9 classes."""
    return build_random_network(MINI, 9, seed=11)


def draw_state() -> State:
    """Return the tensors of vgg16_mini for 9 classes."""
    return dict(build_mini().state_dict())


def write_dlcv(tensors: State, path: Path) -> None:
    """Write a dlcv checkpoint of nine classes."""
    record = {
        "stage": "vgg.scratch",
        "arch": "vgg16_mini",
        "classes": [str(i) for i in range(9)],
        "preprocessing": {"resize": 80, "crop": 48, **CAFFE},
    }
    files.write(path, files.CHECKPOINT, {name: t.numpy() for name, t in tensors.items()}, record)


def add_module_prefix(tensors: State) -> State:
    """Return the tensors with the names that DataParallel gives."""
    return {f"module.{name}": t for name, t in tensors.items()}


# kind of file -> how it is written
KINDS: dict[str, Callable[[State, Path], Any]] = {
    "zip.pth": lambda t, p: torch.save(OrderedDict(t), p),
    "legacy.pth": lambda t, p: torch.save(t, p, _use_new_zipfile_serialization=False),
    "wrapped.pth": lambda t, p: torch.save({"epoch": 3, "state_dict": add_module_prefix(t), "lr": 0.1}, p),
    "model.pth": lambda t, p: torch.save({"model": OrderedDict(t)}, p),
    "parameters.pth": lambda t, p: torch.save({n: torch.nn.Parameter(x) for n, x in t.items()}, p),
    "plain.safetensors": safetensors.torch.save_file,
    "misnamed.pth": safetensors.torch.save_file,
    "caffe.safetensors": lambda t, p: safetensors.torch.save_file(t, p, {"preprocessing": json.dumps(CAFFE)}),
    "dlcv.safetensors": write_dlcv,
}
PREPROCESSING = {
    "caffe.safetensors": Preprocessing(64, 64, tuple(CAFFE["mean"]), tuple(CAFFE["std"])),
    "dlcv.safetensors": Preprocessing(80, 48, tuple(CAFFE["mean"]), tuple(CAFFE["std"])),
}


def read(path: Path) -> weights.Weights:
    """Read a local file as the weights of vgg16_mini."""
    return weights.read_weights(weights.locate_weights(str(path), MINI))


def run_head(run: Run, split: Path, source: object, output: Path, *more: object) -> Any:
    """Run `vgg head` for one epoch of vgg16_mini from these weights."""
    return run(
        "vgg", "head", split, "--arch", "vgg16_mini", "--epochs", 1, "--threads", 1,
        "--weights", source, "-o", output, *more,
    )  # fmt: skip


def list_files_below(folder: Path) -> list[Path]:
    """Return every file below a folder."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_read(tmp_path: Path, kind: str) -> None:
    """Names, numbers and preprocessing of each kind of file are read as written."""
    tensors = draw_state()
    KINDS[kind](tensors, tmp_path / kind)
    loaded = read(tmp_path / kind)
    assert {name: t.dtype for name, t in loaded.tensors.items()} == dict.fromkeys(tensors, torch.float32)
    assert all(torch.equal(loaded.tensors[name], t) for name, t in tensors.items())
    assert loaded.preprocessing == PREPROCESSING.get(kind, MINI.preprocessing)


@pytest.mark.parametrize("kind", ["legacy.pth", "wrapped.pth", "caffe.safetensors", "dlcv.safetensors"])
def test_head_starts_from_the_weights(run: Run, split_file: Path, tmp_path: Path, kind: str) -> None:
    """`vgg head` keeps all layers but the head, and records the preprocessing of the weights."""
    tensors, output = draw_state(), tmp_path / "head.safetensors"
    KINDS[kind](tensors, tmp_path / kind)
    result = run_head(run, split_file, tmp_path / kind, output)
    assert result.exit_code == 0, result.stderr
    assert "30 tensors fit, classifier.6 is new; unused: classifier.6" in result.stderr
    stored = files.read(output, files.CHECKPOINT)
    for name, tensor in tensors.items():
        if name.startswith("classifier.6."):
            assert stored.arrays[name].shape[0] == 3
        else:
            assert torch.equal(torch.from_numpy(stored.arrays[name]), tensor), name
    assert Preprocessing.from_json(stored.metadata["preprocessing"]) == PREPROCESSING.get(kind, MINI.preprocessing)
    source = stored.metadata["inputs"]["weights"]
    assert source == {"path": kind, "sha256": hashlib.sha256((tmp_path / kind).read_bytes()).hexdigest()}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", ["zip.pth", "plain.safetensors"])
def test_other_precisions_become_float32(tmp_path: Path, kind: str, dtype: torch.dtype) -> None:
    """Weights in half or double precision are read as float32."""
    tensors = {name: t.to(dtype) for name, t in draw_state().items()}
    KINDS[kind](tensors, tmp_path / kind)
    loaded = read(tmp_path / kind).tensors
    assert all(
        torch.equal(loaded[name], t.float()) and loaded[name].dtype == torch.float32 for name, t in tensors.items()
    )


class Evil:
    """An object that creates a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_code_in_pickles_does_not_run(run: Run, split_file: Path, tmp_path: Path, new: bool) -> None:
    """A .pth with code to run when unpickled is refused, and the code does not run."""
    bad, folder = tmp_path / "evil.pth", tmp_path / "ran"
    torch.save({**draw_state(), "evil": Evil(folder)}, bad, _use_new_zipfile_serialization=new)
    assert_refused(run_head(run, split_file, bad, tmp_path / "out" / "head.safetensors"), "evil.pth")
    assert not folder.exists()
    assert list(tmp_path.rglob("head.*")) == []
    torch.load(bad, weights_only=False)
    assert folder.exists(), "the file is as hostile as the test says"


def write_start(kind: str, size: float) -> Callable[[Path], None]:
    """Return a function that writes the first part of a valid file of this kind."""

    def write(path: Path) -> None:
        KINDS[kind](draw_state(), path)
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * size)])

    return write


def write_entry(name: str, value: Any) -> Callable[[Path], None]:
    """Return a function that writes a valid .pth with one entry replaced."""
    return lambda path: torch.save({**draw_state(), name: value}, path)


def write_text(preprocessing: str) -> Callable[[Path], None]:
    """Return a function that writes a valid .safetensors with this text as its preprocessing."""
    return lambda path: safetensors.torch.save_file(draw_state(), path, {"preprocessing": preprocessing})


NAN = torch.full((8,), float("nan"))
BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda p: None, "no such file of weights; known by name for this network: drawn"),
    "empty": (lambda p: p.touch(), "is empty"),
    "folder": (lambda p: p.mkdir(), "is not a file"),
    "text": (lambda p: p.write_text("not weights\n" * 99), "neither PyTorch nor safetensors"),
    "three bytes": (lambda p: p.write_bytes(b"PK\x03"), "neither PyTorch nor safetensors"),
    "garbage after PK": (lambda p: p.write_bytes(b"PK\x03\x04" + bytes(range(256)) * 9), "cannot be read as PyTorch"),
    "garbage after legacy": (lambda p: p.write_bytes(b"\x80\x02\x8a\x0a" + bytes(range(256)) * 9), "cannot be read"),
    "short zip": (write_start("zip.pth", 0.5), "cannot be read as PyTorch"),
    "short legacy": (write_start("legacy.pth", 0.5), "cannot be read as PyTorch"),
    "short safetensors": (write_start("plain.safetensors", 0.9), "damaged"),
    "short header": (write_start("plain.safetensors", 0.0004), "damaged"),
    "tensor": (lambda p: torch.save(torch.zeros(3), p), "holds no dictionary of dense tensors"),
    "no tensors": (lambda p: torch.save({}, p), "holds no dictionary of dense tensors"),
    "list": (lambda p: torch.save(list(draw_state().values()), p), "holds no dictionary of dense tensors"),
    "number": (write_entry("features.0.bias", 1.5), "holds no dictionary of dense tensors"),
    "nan": (write_entry("features.0.bias", NAN), "features.0.bias has numbers that are not finite"),
    "sparse": (write_entry("features.0.bias", torch.zeros(8).to_sparse()), ""),
    "meta": (write_entry("features.0.bias", torch.zeros(8, device="meta")), ""),
    "no std": (write_text('{"mean": [0, 0, 0]}'), "std needs three numbers"),
    "std of zero": (write_text('{"mean": [0, 0, 0], "std": [1, 0, 1]}'), "std needs positive numbers"),
    "huge mean": (
        write_text('{"mean": [1e999, 0, 0], "std": [1, 1, 1]}'),
        "mean needs finite numbers below a million",
    ),
    "huge whole mean": (write_text(f'{{"mean": [1{"0" * 400}, 0, 0], "std": [1, 1, 1]}}'), ""),
    "not json": (write_text("mean 0"), "is no image network's weights, or damaged"),
    "json nan": (write_text('{"mean": [NaN, 0, 0], "std": [1, 1, 1]}'), "NaN is no JSON number"),
    "json list": (write_text("[]"), "mean needs three numbers"),
}


@pytest.mark.filterwarnings("ignore:Validating sparse tensor")  # torch's own, when it loads one
@pytest.mark.parametrize("kind", BAD)
def test_bad_weights_are_refused(run: Run, split_file: Path, tmp_path: Path, kind: str) -> None:
    """A file without usable weights is refused in one line that names it."""
    write, words = BAD[kind]
    path = tmp_path / "bad.pth"
    write(path)
    before = list_files_below(tmp_path)
    assert_refused(run_head(run, split_file, path, tmp_path / "out" / "head.safetensors"), "bad.pth", words)
    assert list_files_below(tmp_path) == before


@pytest.mark.parametrize("change", ["missing", "misshapen"])
def test_missing_layers_need_partial(run: Run, split_file: Path, tmp_path: Path, change: str) -> None:
    """Weights that lack more than the head are refused with the names, unless --partial is set."""
    tensors, output = draw_state(), tmp_path / "head.safetensors"
    if change == "missing":
        del tensors["features.0.weight"]
    else:
        tensors["features.0.weight"] = torch.zeros(8, 1, 3, 3)
    torch.save(tensors, tmp_path / "w.pth")
    result = run_head(run, split_file, tmp_path / "w.pth", output)
    assert result.exit_code == 1
    last = result.stderr.splitlines()[-1]
    assert "w.pth: does not fit vgg16_mini: it lacks features.0.weight (1 in all)" in last
    assert "--partial" in last
    assert not output.exists()
    result = run_head(run, split_file, tmp_path / "w.pth", output, "--partial")
    assert result.exit_code == 0, result.stderr
    assert "missing: features.0.weight" in result.stderr
    arrays = files.read(output, files.CHECKPOINT).arrays
    assert torch.equal(torch.from_numpy(arrays["features.2.weight"]), tensors["features.2.weight"])
    assert arrays["features.0.weight"].std() > 0


@pytest.mark.parametrize("more", [(), ("--partial",)])
def test_weights_that_fit_nowhere_are_refused(
    run: Run, split_file: Path, tmp_path: Path, more: tuple[str, ...]
) -> None:
    """Weights that fit no layer are refused, even with --partial, with advice."""
    torch.save({"conv1.weight": torch.zeros(3)}, tmp_path / "resnet.pth")
    result = run_head(run, split_file, tmp_path / "resnet.pth", tmp_path / "head.safetensors", *more)
    assert result.exit_code == 1
    last = result.stderr.splitlines()[-1]
    assert "resnet.pth: does not fit vgg16_mini" in last
    assert "choose another --arch" in last
    assert "--partial" not in last
    assert not (tmp_path / "head.safetensors").exists()


def test_sequence_checkpoint_is_refused(run: Run, split_file: Path, tmp_path: Path) -> None:
    """A dlcv file that is no image checkpoint is refused."""
    path = tmp_path / "gru.safetensors"
    files.write(path, files.CHECKPOINT, {"head.bias": draw_state()["features.0.bias"].numpy()}, {"stage": "seq.train"})
    assert_refused(run_head(run, split_file, path, tmp_path / "head.safetensors"), "gru.safetensors")


# ---------------------------------------------------------------------------------------------------------- download


class Server(http.server.ThreadingHTTPServer):
    """A server that returns `content` for every path, and counts the requests."""

    content = b""
    served = 0


class Handler(http.server.BaseHTTPRequestHandler):
    """Answer GET of any path but those below /gone/."""

    server: Server

    def do_GET(self) -> None:
        self.server.served += 1
        if self.path.startswith("/gone/"):
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.server.content)))
        self.end_headers()
        self.wfile.write(self.server.content)

    def log_message(self, *args: object) -> None:
        """Print nothing."""


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Path]:
    """Yield an empty cache folder for torch.hub."""
    before = torch.hub.get_dir()
    torch.hub.set_dir(tmp_path / "hub")
    yield tmp_path / "hub" / "checkpoints"
    torch.hub.set_dir(before)


@pytest.fixture
def server(cache: Path, tmp_path: Path) -> Iterator[Server]:
    """Yield a local server of the weights of vgg16_mini."""
    torch.save(draw_state(), tmp_path / "served.pth")
    with Server(("127.0.0.1", 0), Handler) as served:
        served.content = (tmp_path / "served.pth").read_bytes()
        thread = threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield served
        served.shutdown()
        thread.join()


def make_url(server: Server, digest: str | None = None, folder: str = "") -> str:
    """Return the URL of the served file, whose name ends in its hash or in `digest`."""
    digest = digest or hashlib.sha256(server.content).hexdigest()[:8]
    return f"http://127.0.0.1:{server.server_port}{folder}/vgg16_mini-{digest}.pth"


class Notes(Reporter):
    """A reporter that collects notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        """Collect a note."""
        self.notes.append(text)


def test_download(server: Server, cache: Path) -> None:
    """The file is downloaded into torch's cache with a note, can be read, and is not downloaded again."""
    url, notes = make_url(server), Notes()
    path = cache / url.rpartition("/")[2]
    assert weights.download(url, path, notes) == hashlib.sha256(server.content).hexdigest()
    assert path.read_bytes() == server.content
    assert notes.notes == [f"downloading {url}"]
    assert set(read(path).tensors) == set(draw_state())
    weights.download(url, path, Reporter())
    assert server.served == 1


def test_download_with_wrong_hash_is_refused(server: Server, cache: Path) -> None:
    """A download without the hash of its name is refused and deleted."""
    url = make_url(server, "0123abcd")
    with pytest.raises(DlcvError, match=rf"could not be downloaded .*hash.*: download {url} with a browser"):
        weights.download(url, cache / "w.pth", Reporter())
    assert list(cache.iterdir()) == []


def test_damaged_cached_file_is_refused(server: Server, cache: Path) -> None:
    """A cached file without the hash of its name is refused, and the message says to delete it."""
    path = cache / "w.pth"
    weights.download(make_url(server), path, Reporter())
    path.write_bytes(server.content[:-1])
    with pytest.raises(FileError, match=r"is damaged \(its sha256 does not begin with .*delete it"):
        weights.download(make_url(server), path, Reporter())
    path.unlink()
    weights.download(make_url(server), path, Reporter())
    assert path.read_bytes() == server.content


def test_download_of_missing_file(server: Server, cache: Path) -> None:
    """If the server lacks the file, the message has its response and the manual way."""
    with pytest.raises(DlcvError, match=r"404.*with a browser and give its path to --weights"):
        weights.download(make_url(server, folder="/gone"), cache / "w.pth", Reporter())
    assert list(cache.iterdir()) == []


def test_download_from_unreachable_server(cache: Path) -> None:
    """If the server cannot be reached, the message has the reason and the manual way."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/vgg16_mini-0123abcd.pth"
        with pytest.raises(DlcvError, match=rf"could not be downloaded \(.+\): download {url} with a browser"):
            weights.download(url, cache / "w.pth", Reporter())


@pytest.mark.parametrize(
    "response",
    [
        b"what?\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\nshort",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nshort",
        b"",
    ],
    ids=["no HTTP", "chunk cut short", "body cut short", "hangs up"],
)
def test_download_from_a_broken_server(cache: Path, response: bytes) -> None:
    """If the server fails, the message has the reason and the manual way, and no file remains."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(response)

        thread = threading.Thread(target=serve)
        thread.start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/vgg16_mini-0123abcd.pth"
        with pytest.raises(DlcvError, match="with a browser"):
            weights.download(url, cache / "w.pth", Reporter())
        thread.join()
    assert list(cache.iterdir()) == []


# 20 bytes whose sha256 begins with the digits in the name of torchvision's file, from a search of a billion texts
NOT_VGG16 = b"not VGG16: 1053327662"


@pytest.mark.parametrize("right", [True, False])
def test_download_of_vgg16_by_its_real_name(
    run: Run, split_file: Path, server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch, right: bool
) -> None:
    """`vgg head` downloads torchvision's file of VGG16, and accepts what has the hash that its name says."""
    entry = VGG16_Weights.IMAGENET1K_V1
    assert entry.url.endswith("/models/vgg16-397923af.pth")
    url = f"http://127.0.0.1:{server.server_port}/models/vgg16-397923af.pth"
    monkeypatch.setattr(models, "get_model_weights", lambda _: {entry.name: replace(entry.value, url=url)})
    server.content = NOT_VGG16 if right else b"other bytes"
    result = run("vgg", "head", split_file, "-o", split_file.parent / "head.safetensors")
    assert (result.exit_code, server.served) == (1, 1)
    assert f"downloading {url}" in result.stderr
    file = cache / "vgg16-397923af.pth"
    if right:
        assert file.read_bytes() == NOT_VGG16
        assert f"{file}: is neither PyTorch nor safetensors" in result.stderr
    else:
        assert list(cache.iterdir()) == []
        assert f"download {url} with a browser and give its path to --weights" in result.stderr


KNOWN = [(arch, name) for arch in sorted(set(ARCHITECTURES) - {"vgg16_mini"}) for name in ARCHITECTURES[arch].weights]


@pytest.mark.parametrize(("arch", "name"), KNOWN)
def test_torchvision_weights_have_their_hash_in_the_name(cache: Path, arch: str, name: str) -> None:
    """Named weights are torchvision's, in torch's cache, checked by their name."""
    file = weights.locate_weights(name, ARCHITECTURES[arch])
    assert file.path.parent == cache
    assert file.url
    match = re.search(rf"/{arch}(?:-owt|_rwightman)?-([0-9a-f]{{8}})\.pth$", file.url)
    assert match
    assert file.is_published_as(match[1] + "0" * 56)
    assert not file.is_published_as("x" * 64)


@pytest.mark.parametrize(("arch", "name"), KNOWN)
def test_preprocessing_is_what_torchvision_records(cache: Path, arch: str, name: str) -> None:
    """Named weights have torchvision's transform; that of the first is the entry's."""
    entry = get_model_weights(arch)[ARCHITECTURES[arch].weights[name]].transforms()
    preprocessing = weights.locate_weights(name, ARCHITECTURES[arch]).preprocessing
    assert ([preprocessing.resize], [preprocessing.crop]) == (entry.resize_size, entry.crop_size)
    assert (preprocessing.mean, preprocessing.std) == (tuple(entry.mean), tuple(entry.std))
    assert preprocessing.interpolation == entry.interpolation.value
    assert Preprocessing.from_json(json.loads(json.dumps(preprocessing.to_json()))) == preprocessing
    if name == next(iter(ARCHITECTURES[arch].weights)):
        assert preprocessing == ARCHITECTURES[arch].preprocessing


def test_the_first_name_is_the_default(cache: Path) -> None:
    """Without --weights, the first name of the network's entry is used."""
    for arch in ("squeezenet1_1", "resnet50", "vgg16_mini"):
        default, named = (
            weights.locate_weights(name, ARCHITECTURES[arch])
            for name in (None, next(iter(ARCHITECTURES[arch].weights)))
        )
        assert default == named


def test_file_is_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of weights is hashed once, however often it is used."""
    KINDS["zip.pth"](draw_state(), tmp_path / "w.pth")
    hashed = []
    monkeypatch.setattr(weights, "hash_file", lambda path: hashed.append(path) or "0" * 64)
    file = weights.locate_weights(str(tmp_path / "w.pth"), MINI)
    assert {file.fetch(Reporter()) for _ in range(3)} == {"0" * 64}
    weights.read_weights(file)
    assert len(hashed) == 1


# ------------------------------------------------------------------------------------------------ before the download


@pytest.fixture
def no_download(cache: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Make downloads of weights fail, and return the list of attempted URLs."""
    tried: list[str] = []

    def refuse(url: str, *_: object, **__: object) -> None:
        tried.append(url)
        raise OSError("no network in tests")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    return tried


@pytest.mark.parametrize(
    ("change", "words"),
    [("split", "none.split.json"), ("output", "must end in .safetensors"), ("device", "--device mps: this machine")],
)
def test_cheap_checks_come_before_the_download(
    run: Run, split_file: Path, tmp_path: Path, no_download: list[str], change: str, words: str
) -> None:
    """A bad split, output name or device is refused before any download."""
    split = tmp_path / "none.split.json" if change == "split" else split_file
    output = tmp_path / ("head.pth" if change == "output" else "head.safetensors")
    device = "mps" if change == "device" else "cpu"
    command = ("vgg", "head", split, "--arch", "squeezenet1_1", "-o", output)
    assert_refused(run(*command, "--device", device), words)
    assert no_download == []
    if change == "device":
        result = run(*command, "--device", "cpu")
        assert (result.exit_code, len(no_download)) == (1, 1), "otherwise it would have been tried"


def test_output_is_checked_before_the_download(
    run: Run, split_file: Path, tmp_path: Path, no_download: list[str], cache: Path
) -> None:
    """An output is up to date, or refused for other settings, without a download."""
    url = get_model_weights("squeezenet1_1").IMAGENET1K_V1.url
    prefix = url.rpartition("-")[2].removesuffix(".pth")
    output = tmp_path / "head.safetensors"
    command = ("vgg", "head", split_file, "--arch", "squeezenet1_1", "--epochs", 1, "--threads", 1, "-o", output)
    content = build_random_network(ARCHITECTURES["squeezenet1_1"], 1000, 0).state_dict()
    cache.mkdir(parents=True)
    torch.save(content, cache / url.rpartition("/")[2])
    with pytest.MonkeyPatch.context() as patch:  # as if this file had the published sha256
        patch.setattr(weights, "hash_file", lambda path: prefix + "0" * 56)
        assert run(*command).exit_code == 0
    (cache / url.rpartition("/")[2]).unlink()
    result = run(*command)
    assert (result.exit_code, no_download) == (0, [])
    assert "up to date" in result.stdout
    assert_refused(run(*command, "--lr", 0.5), "lr was 0.005, now 0.5")
    assert no_download == []


def test_snapshot_is_checked_before_the_download(
    run: Run, split_file: Path, tmp_path: Path, no_download: list[str]
) -> None:
    """A snapshot of another training is refused with the difference, without a download."""
    output = tmp_path / "head.safetensors"
    recipe = Recipe("vgg.head", HeadConfig(arch="squeezenet1_1", lr=0.5), {"split": Input("0" * 64, split_file)})
    files.write(output.with_suffix(".snapshot"), files.SNAPSHOT, {}, recipe.to_json(tmp_path))
    command = ("vgg", "head", split_file, "--arch", "squeezenet1_1", "-o", output)
    assert_refused(run(*command), "head.snapshot belongs to a different training: --lr was 0.5, now 0.005", "--force")
    assert no_download == []


@pytest.mark.parametrize("crop", [1, 100])
def test_weights_for_impossible_image_size_are_refused(
    run: Run, split_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crop: int
) -> None:
    """Weights whose preprocessing gives an impossible image size are refused."""
    shrink_networks(monkeypatch)
    path = tmp_path / "vit.safetensors"
    network = build_random_network(ARCHITECTURES["vit_b_16"], 3, 0)
    arrays = {name: t.numpy() for name, t in network.state_dict().items()}
    preprocessing = Preprocessing(resize=100, crop=crop).to_json()
    files.write(path, files.CHECKPOINT, arrays, {"stage": "vgg.scratch", "preprocessing": preprocessing})
    output = tmp_path / "head.safetensors"
    result = run("vgg", "head", split_file, "--arch", "vit_b_16", "--weights", path, "-o", output, "--threads", 1)
    assert result.exit_code == 1
    problem = f"does not fit vit_b_16: the network cannot take images of {crop} x {crop} pixels"
    assert f"dlcv: {path}: {problem}" in result.stderr.splitlines()[-1]
    assert not output.exists()
