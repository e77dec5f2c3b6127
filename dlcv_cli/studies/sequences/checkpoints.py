"""What checkpoints of cells and sequence files say of each other."""

from __future__ import annotations

from dlcv_cli.errors import FileError
from dlcv_cli.files import tensors
from dlcv_cli.files.sequences import SequenceFile
from dlcv_cli.sequences.cells import Parameters
from dlcv_cli.sequences.engines import ENGINES
from dlcv_cli.sequences.tasks import TASKS, Task

# engine -> the packages whose versions its results depend on
PACKAGES = {name: (engine.package, "numpy", "safetensors") for name, engine in ENGINES.items()}


def look_up_task(file: SequenceFile) -> Task:
    """Return a file's task. FileError: this version lacks it, or the sequences have another width."""
    if file.task not in TASKS:
        raise FileError(file.path, f"is of the task {file.task!r}, which this version does not know")
    task, width = TASKS[file.task], file.parts["train"].inputs.shape[1]
    if width != task.inputs:
        raise FileError(file.path, f"damaged: {width} inputs per step, but {file.task} has {task.inputs}")
    return task


def read_runs(file: tensors.Tensors) -> dict[int, Parameters]:
    """Return the weights of each run of a checkpoint, by seed. ValueError: they are not all in it."""
    seeds = file.metadata.get("seeds", [0])
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int for seed in seeds):
        raise ValueError("its metadata lists no seeds")
    if len(seeds) == 1:
        return {seeds[0]: file.arrays}
    if any(array.shape[:1] != (len(seeds),) for array in file.arrays.values()):
        raise ValueError(f"its tensors are not those of {len(seeds)} runs")
    return {seed: {name: array[k] for name, array in file.arrays.items()} for k, seed in enumerate(seeds)}
