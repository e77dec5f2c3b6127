"""`card`: a checkpoint in, a model card in Markdown out, from the files alone. Folders of its maker stay out of it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dlcv_cli.errors import DlcvError, list_names
from dlcv_cli.files import tensors
from dlcv_cli.files.disk import JSON, as_object, replace_ending
from dlcv_cli.results.evaluation import AnyEvaluation
from dlcv_cli.settings import name_stage
from dlcv_cli.stages.compare import compare
from dlcv_cli.stages.lineage import Source
from dlcv_cli.stages.show import Described, describe, get_figures
from dlcv_cli.studies import study_of

MOST_CLASSES = 200  # that are listed
HUB_NAMES = {"top1_accuracy": "accuracy"}  # of metrics, where hubs have another name


def write_card(checkpoint: Path) -> str:
    """Return a checkpoint's model card: YAML for hubs, then what it is, what it achieves, how it was made and used.

    Figures come from the evaluations that lie beside the checkpoint and are of it.

    Raises:
        FileError: it is no checkpoint, or a damaged one.
    """
    metadata = tensors.read_metadata(checkpoint, tensors.CHECKPOINT)
    study = study_of(checkpoint, metadata)
    described = describe(checkpoint)
    name = checkpoint.name.removesuffix(".safetensors")
    head = [
        "---",
        *_list_yaml(_build_yaml(name, study.classifies, described, _name_data(described, study.data_role))),
        "---",
    ]
    body = _list_sections(name, study.classifies, described, _name_data(described, study.data_role))
    return "\n".join([*head, "", *body]) + "\n"


def _name_data(described: Described, role: str) -> str:
    """Return the name of the data that a checkpoint was trained with: `photos` for photos.split.json."""
    name = next((source.name for source in described.sources if source.role == role), "unknown")
    return name.removesuffix(".split.json").removesuffix(".safetensors")


def _build_yaml(name: str, classifies: bool, described: Described, data: str) -> JSON:
    """Return what hubs read: tags, and the metrics of each evaluated part."""
    task = "image-classification" if classifies else "tabular-regression"
    results = []
    for part, evaluation in _select_evaluations(described).items():
        results.append(
            {
                "task": {"type": task},
                "dataset": {"name": data, "type": data, "split": part},
                "metrics": [
                    {
                        "type": "accuracy" if column.key == "top1_accuracy" else column.key,
                        "value": value,
                        "name": column.noun,
                    }
                    for column, value in get_figures(evaluation)
                ],
            }
        )
    entry: JSON = {"name": name, "results": results}
    base = {"library_name": "dlcv", "pipeline_tag": task, "tags": [task, "dlcv"]}
    return {**base, **({"model-index": [entry]} if results else {})}


def _select_evaluations(described: Described) -> dict[str, AnyEvaluation]:
    """Return the evaluations that say something of new examples, the test part first."""
    return {part: described.evaluations[part] for part in ("test", "val") if part in described.evaluations}


def _list_yaml(value: Any, indent: str = "") -> Iterator[str]:
    """Yield the lines of a value as YAML. Texts are quoted as in JSON, which YAML contains."""
    entries = [("- ", item) for item in value] if isinstance(value, list) else [(f"{k}: ", v) for k, v in value.items()]
    for label, item in entries:
        if not isinstance(item, dict | list) or not item:
            yield f"{indent}{label}{json.dumps(item)}"
        elif isinstance(value, list):
            first, *others = _list_yaml(item, f"{indent}  ")
            yield f"{indent}- {first.lstrip()}"
            yield from others
        else:
            yield f"{indent}{label.rstrip()}"
            yield from _list_yaml(item, f"{indent}  " if isinstance(item, dict) else indent)


def _list_sections(name: str, classifies: bool, described: Described, data: str) -> Iterator[str]:
    document = described.document
    network = document.get("arch") or f"{as_object(document.get('config')).get('cell')} cell"
    yield f"# {name}"
    yield ""
    stage = name_stage(as_object(document.get("training")).get("stage") or document.get("stage"))
    yield f"A {network}, trained on {data} by `dlcv {stage}`; {described.parameters:,} parameters."
    if isinstance(classes := document.get("classes"), list):
        yield f"It tells {len(classes)} classes apart: {list_names(map(str, classes), MOST_CLASSES)}."
    yield from _list_results(name, described)
    yield from ("", "## Training", "")
    changed = [
        f"`{own.name}` {own.value}" for own in described.settings if not own.is_default and own.value is not None
    ]
    yield f"Settings that differ from the defaults: {', '.join(changed) or 'none'}."
    if tries := document.get("tries"):
        whose = (
            "They" if "chosen" in (document.get("training") or document) else "Those of the checkpoint it starts from"
        )
        yield f"{whose} are the best of {tries} that were tried on the validation part."
    if calibration := as_object(document.get("calibration")):
        yield (
            f"Its logits are divided by {calibration['temperature']:.4g}, a temperature that was fitted to the "
            f"{calibration['n']:,} examples of the validation part."
        )
    if described.sources:
        yield from ("", "Made from:", "")
        yield from _list_sources(described.sources, "")
    yield from _list_uses(name, classifies, document)


def _list_results(name: str, described: Described) -> Iterator[str]:
    yield from ("", "## Results")
    if not (evaluations := _select_evaluations(described)):
        yield from ("", "Not evaluated yet: `dlcv eval` writes the figures that belong here.")
    for part, evaluation in evaluations.items():
        yield from ("", f"On {evaluation.data.n:,} examples of the {part} part, with 95 % intervals over them:")
        yield from ("", "| metric | value | interval |", "|---|---|---|")
        for column, value in get_figures(evaluation):
            interval = evaluation.intervals.get(column.key)
            ends = column.format_interval(interval) if interval else ""
            yield f"| {column.noun}{', %' if column.percent else ''} | {column.format(value)} | {ends} |"
        yield ""
        yield from (f"- {line}" for line in _list_verdicts(name, part, described, evaluation))


def _list_verdicts(name: str, part: str, described: Described, evaluation: AnyEvaluation) -> Iterator[str]:
    """Yield what the tests against the baselines say, and what limits the figures."""
    with contextlib.suppress(DlcvError):  # the predictions were not handed over
        comparison = compare([(name, replace_ending(described.path, f".{part}.eval.json"))])
        yield from (pair.sentence for pair in comparison.pairs if pair.metric == comparison.metric)
    if evaluation.collapse.collapsed:
        yield f"It has collapsed: {evaluation.collapse.why}."
    if evaluation.contamination.leaks:
        yield "It was trained on some of these examples: the figures do not hold for new ones."
    if part == "val":
        yield "The validation part chose the weights, so its figures are too good."


def _list_sources(sources: tuple[Source, ...], indent: str) -> Iterator[str]:
    for source in sources:
        if source.name != source.role:  # else it is known by its content alone
            yield f"{indent}- {source.role} `{source.name}`, sha256 `{source.sha256[:16]}`"
        yield from _list_sources(source.sources, f"{indent}  ")


def _list_uses(name: str, classifies: bool, document: JSON) -> Iterator[str]:
    yield from ("", "## Use", "", "```sh")
    if classifies:
        yield f"dlcv predict {name}.safetensors photo.jpg"
        yield f"dlcv export {name}.safetensors -o {name}.onnx"
    else:
        yield f"dlcv predict {name}.safetensors sequences.csv"
    yield "```"
    if preprocessing := as_object(document.get("preprocessing")):
        fit = preprocessing.get("fit", "crop")
        how = {
            "crop": f"short side resized to {preprocessing.get('resize')} pixels, middle {preprocessing.get('crop')}",
            "squash": f"resized to {preprocessing.get('crop')} x {preprocessing.get('crop')} pixels",
            "pad": f"long side resized to {preprocessing.get('crop')} pixels, padded with the mean colour",
        }
        yield ""
        mean, std = (", ".join(f"{x:.4g}" for x in preprocessing.get(key, ())) for key in ("mean", "std"))
        yield f"Without dlcv, prepare images like this: {how.get(str(fit))}; scaled to 0..1; mean {mean}; std {std}."
