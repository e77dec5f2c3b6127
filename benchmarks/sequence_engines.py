"""Iterations a second of training at batch size 1: dlcv's kernels, torch.nn, and JAX where it is installed.

    python benchmarks/sequence_engines.py --rounds 3

One thread on one core for each, in one run, the engines one after the other in every round; medians. The data are the
default study's 6,400 sequences of 2 to 10 steps. JAX (an extra: pip install jax) runs an epoch as one jitted lax.scan
over the iterations, each a lax.scan over 10 steps, shorter sequences masked, for its shapes are fixed. "first" is the
first call, with compiling; dlcv compiles once for all cells and sizes, here into an empty folder, so the first line has
it all. GFLOP/s counts the matrix products alone: 6 G D (F + D) operations a step.
"""

from __future__ import annotations

import os

os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from tabulate import tabulate

os.environ["NUMBA_CACHE_DIR"] = tempfile.mkdtemp()

from dlcv_cli.config import GenConfig, SeqTrainConfig
from dlcv_cli.sequences.cells import CELLS, draw_parameters
from dlcv_cli.sequences.engines.compiled import Compiled
from dlcv_cli.sequences.engines.reference import Reference
from dlcv_cli.sequences.tasks import generate

DATA = generate(GenConfig(), 6400, 0)
ORDER = np.random.default_rng((0, 0)).permutation(6400)
CONFIG = SeqTrainConfig()
STEPS = 10

Run = Callable[[], int]  # trains a while; gives the number of iterations


def dlcv(cell: str, hidden: int) -> Run:
    engine = Compiled(CELLS[cell], draw_parameters(CELLS[cell], 2, hidden, 1.0, 0), CONFIG, DATA)
    return lambda: engine.advance(ORDER)[1]


def torch(cell: str, hidden: int) -> Run:
    engine = Reference(CELLS[cell], draw_parameters(CELLS[cell], 2, hidden, 1.0, 0), CONFIG, DATA)
    return lambda: engine.advance(ORDER[:400])[1]


def jax(cell: str, hidden: int) -> Run:
    import jax
    import jax.numpy as jnp

    inputs = np.zeros((6400, STEPS, 2), np.float32)
    for n, x in enumerate(np.split(DATA.inputs, np.cumsum(DATA.lengths)[:-1])):
        inputs[n, : len(x)] = x
    inputs, lengths, targets, order = map(jnp.asarray, (inputs, DATA.lengths, DATA.targets, ORDER))
    start = draw_parameters(CELLS[cell], 2, hidden, 1.0, 0)
    params = {name.rpartition(".")[2]: jnp.asarray(a.T) for name, a in start.items() if "rnn" in name}
    params |= {"head": jnp.asarray(start["head.weight"][0]), "bias": jnp.asarray(start["head.bias"][0])}

    def step(p: Any, h: Any, c: Any, x: Any) -> tuple[Any, Any]:
        gx, gh = x @ p["weight_ih_l0"] + p["bias_ih_l0"], h @ p["weight_hh_l0"] + p["bias_hh_l0"]
        if cell == "elman":
            return jnp.tanh(gx + gh), c
        if cell == "gru":
            r, z = jnp.split(jax.nn.sigmoid(gx[: 2 * hidden] + gh[: 2 * hidden]), 2)
            n = jnp.tanh(gx[2 * hidden :] + r * gh[2 * hidden :])
            return n + z * (h - n), c
        i, f, g, o = jnp.split(gx + gh, 4)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        return jax.nn.sigmoid(o) * jnp.tanh(c), c

    def loss(p: Any, x: Any, length: Any, target: Any) -> Any:
        def body(state: Any, at: Any) -> tuple[Any, None]:
            t, now = at
            new = step(p, *state, now)
            return jax.tree.map(lambda a, b: jnp.where(t < length, a, b), new, state), None

        zero = jnp.zeros(hidden)
        (h, _), _ = jax.lax.scan(body, (zero, zero), (jnp.arange(STEPS), x))
        return (h @ p["head"] + p["bias"] - target) ** 2

    def iteration(state: Any, i: Any) -> tuple[Any, Any]:
        p, m, v, t = state
        value, g = jax.value_and_grad(loss)(p, inputs[i], lengths[i], targets[i])
        t = t + 1
        m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, g)
        v = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, v, g)
        rate = CONFIG.lr / (1 - 0.9**t)
        p = jax.tree.map(lambda p, m, v: p - rate * m / (jnp.sqrt(v / (1 - 0.999**t)) + 1e-8), p, m, v)
        return (p, m, v, t), value

    epoch = jax.jit(lambda state, order: jax.lax.scan(iteration, state, order))
    zeros = jax.tree.map(jnp.zeros_like, params)
    state = [(params, zeros, zeros, jnp.float32(0))]

    def run() -> int:
        state[0], losses = epoch(state[0], order)
        losses.block_until_ready()
        return len(ORDER)

    return run


def matrix_rate() -> float:
    """GFLOP/s of a product of two 1,024 x 1,024 matrices in float32, the median of 7."""
    a, seconds = np.random.default_rng(0).random((1024, 1024), np.float32), []
    for _ in range(7):
        begun = time.perf_counter()
        a @ a
        seconds.append(time.perf_counter() - begun)
    return 2 * 1024**3 / statistics.median(seconds) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--hidden", type=int, nargs="+", default=[16, 32, 64, 128])
    parser.add_argument("--cells", nargs="+", default=["gru", "lstm", "elman"])
    args = parser.parse_args()
    engines: dict[str, Callable[[str, int], Run]] = {"dlcv": dlcv, "torch": torch}
    try:
        import jax as installed

        engines["jax"] = jax
        print(f"jax {installed.__version__}")
    except ImportError:
        print("jax is not installed: left out")
    print(f"one core's matrix product in float32: {matrix_rate():.0f} GFLOP/s\n")
    rows = []
    for cell in args.cells:
        for hidden in args.hidden:
            runs = {name: make(cell, hidden) for name, make in engines.items()}
            first, speeds = {}, {name: [] for name in engines}
            for name, run in runs.items():
                begun = time.perf_counter()
                run()
                first[name] = time.perf_counter() - begun
            for _ in range(args.rounds):
                for name, run in runs.items():
                    begun = time.perf_counter()
                    count = run()
                    speeds[name].append(count / (time.perf_counter() - begun))
            speed = {name: statistics.median(actual) for name, actual in speeds.items()}
            gates, steps = CELLS[cell].gates, DATA.lengths.mean()
            rate = 6 * gates * hidden * (2 + hidden) * steps * speed["dlcv"] / 1e9
            others = [f"{speed['dlcv'] / speed[name]:.1f}" for name in engines if name != "dlcv"]
            rows.append([cell, hidden, *(f"{s:,.0f}" for s in speed.values()), *others, f"{rate:.0f}"]
                        + [f"{seconds:.1f}" for seconds in first.values()])  # fmt: skip
            print(" ".join(map(str, rows[-1])), flush=True)
    headers = ["cell", "D", *(f"{name} it/s" for name in engines), *(f"/ {n}" for n in engines if n != "dlcv")]
    headers += ["GFLOP/s", *(f"first {name} s" for name in engines)]
    print("\n" + tabulate(rows, headers=headers, disable_numparse=True))


if __name__ == "__main__":
    main()
