"""`dlcv calibrate`, and `predict --abstain`: temperature and thresholds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Run, assert_refused, run_dlcv
from numpy.typing import NDArray
from scipy.stats import binomtest

from dlcv_cli.files import tensors
from dlcv_cli.statistics.calibration import Reliability, fit_temperature, measure_reliability
from dlcv_cli.statistics.metrics import score_logits


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with digits, a head on them, and the head calibrated. Tests must not change it."""
    folder = tmp_path_factory.mktemp("calibrated")
    run_dlcv("data", "digits", "-o", folder / "photos")
    run_dlcv(
        "data", "split", folder / "photos", "-o", folder / "photos.split.json", "--train-per-class", 10,
        "--val-per-class", 12, "--test-per-class", 3,
    )  # fmt: skip
    run_dlcv(
        "image", "head", folder / "photos.split.json", "--arch", "vgg16_mini", "--threads", 1, "--epochs", 3,
        "--batch-size", 8, "-o", folder / "head.safetensors",
    )  # fmt: skip
    run_dlcv("calibrate", folder / "head.safetensors")
    return folder


def read_metadata(checkpoint: Path) -> dict[str, object]:
    """Return what a checkpoint says beside its tensors."""
    return tensors.read_metadata(checkpoint, tensors.CHECKPOINT)


def draw_labels(logits: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Return a label for each row, drawn with the probabilities that the logits (N, K) say."""
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return np.array([rng.choice(len(row), p=row) for row in shares])


def test_temperature_is_where_torch_has_the_lowest_loss() -> None:
    """The temperature has the loss that L-BFGS on torch's cross-entropy ends with, and undoes a known factor."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (4000, 5))
    labels, known = draw_labels(logits, rng), 2.5
    fitted = fit_temperature((known * logits).astype(np.float32), labels)
    assert fitted == pytest.approx(known, rel=0.05)
    log = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log], line_search_fn="strong_wolfe", tolerance_grad=1e-10)

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = torch.nn.functional.cross_entropy(torch.tensor(known * logits) / log.exp(), torch.tensor(labels))
        value.backward()
        return value

    optimizer.step(loss)
    assert fitted == pytest.approx(float(log.detach().exp()), rel=1e-4)


def test_no_temperature_where_all_is_right() -> None:
    """Where every answer is right, the loss has no minimum, which is an error and not a temperature of almost 0."""
    with pytest.raises(ValueError, match="every answer is right"):
        fit_temperature(np.eye(3, dtype=np.float32).repeat(20, 0), np.arange(3).repeat(20))


@pytest.mark.parametrize("error", [0.02, 0.05, 0.1, 0.3])
def test_threshold_answers_as_much_as_the_limit_allows(error: float) -> None:
    """No other threshold answers more with an upper limit, by scipy's binomial test, of at most the stated error."""
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 2.5, (400, 4))
    logits = logits.round(1)  # equal probabilities
    scores = score_logits(logits, draw_labels(logits, rng))
    chosen = measure_reliability(scores).choose_threshold(error)
    allowed = []
    for threshold in (0.0, *scores.confidences):
        answered = scores.confidences > threshold
        wrong = int((answered & ~scores.right).sum())
        if answered.any():
            limit = binomtest(wrong, int(answered.sum()), alternative="less").proportion_ci(0.95).high
            if limit <= error:
                allowed.append((int(answered.sum()), wrong))
    assert bool(chosen) == bool(allowed)
    if chosen:
        assert (chosen.answered, chosen.wrong) == max(allowed)
        answered = scores.confidences > chosen.probability
        assert (chosen.answered, chosen.wrong) == (answered.sum(), (answered & ~scores.right).sum())


def test_stated_error_holds_on_new_examples() -> None:
    """Among the answers to new examples, more are wrong than stated in few of 200 repetitions, though not in none."""
    rng, beyond = np.random.default_rng(2), 0
    for _ in range(200):
        confidences = rng.beta(4, 1, 1000)
        right = rng.random(1000) < confidences
        order = np.argsort(-confidences)
        wrong = [(float(confidences[i]), place) for place, i in enumerate(order) if not right[i]]
        chosen = Reliability(1000, wrong).choose_threshold(0.1)
        assert chosen
        new = rng.beta(4, 1, 100_000)
        beyond += (1 - new[new > chosen.probability]).mean() > 0.1
    assert 0 < beyond <= 20


def test_without_wrong_answers_few_examples_show_little() -> None:
    """Ten right answers show an error below 26 %, by 1 - 0.05 ** (1 / 10), and none below that."""
    reliability = Reliability(10, [])
    assert reliability.lowest_error == pytest.approx(1 - 0.05**0.1)
    assert reliability.choose_threshold(0.25) is None
    assert reliability.choose_threshold(0.26)


def test_only_probabilities_change(run: Run, trained: Path) -> None:
    """A calibrated checkpoint has the tensors of the other one, its logits divided, and a lower validation loss."""
    plain, calibrated = trained / "head.safetensors", trained / "head.calibrated.safetensors"
    first, second = (tensors.read(path, tensors.CHECKPOINT) for path in (plain, calibrated))
    assert {n: a.tobytes() for n, a in first.arrays.items()} == {n: a.tobytes() for n, a in second.arrays.items()}
    for path in (plain, calibrated):
        assert run("eval", path, "--part", "val").exit_code == 0
    documents = [json.loads(path.with_suffix(".val.eval.json").read_text("utf-8")) for path in (plain, calibrated)]
    logits = [
        tensors.read(path.with_suffix(".val.predictions.safetensors"), tensors.PREDICTIONS).arrays["logits"]
        for path in (plain, calibrated)
    ]
    calibration = second.metadata["calibration"]
    assert logits[1] == pytest.approx(logits[0] / calibration["temperature"], rel=1e-6)
    for name, document in zip(("before", "after"), documents, strict=True):
        for key in ("loss", "expected_calibration_error"):
            assert document["metrics"][key] == pytest.approx(calibration[name][key], rel=1e-5)
    assert calibration["after"]["loss"] <= calibration["before"]["loss"]
    assert documents[0]["metrics"]["top1_accuracy"] == documents[1]["metrics"]["top1_accuracy"]


def test_predictions_have_the_temperature(run: Run, trained: Path) -> None:
    """`predict` gives the softmax of the logits divided by the temperature."""
    image = trained / "photos" / "3" / "0003.png"
    rows = []
    for name in ("head", "head.calibrated"):
        result = run("predict", trained / f"{name}.safetensors", image, "--top", 10, "--format", "json")
        [row] = json.loads(result.stdout)
        rows.append({one["class"]: one["probability"] for one in row["top"]})
    calibration = read_metadata(trained / "head.calibrated.safetensors")["calibration"]
    assert isinstance(calibration, dict)
    powers = {name: share ** (1 / calibration["temperature"]) for name, share in rows[0].items()}
    for name, power in powers.items():
        assert rows[1][name] == pytest.approx(power / sum(powers.values()), rel=1e-4)


def test_second_run_is_up_to_date(run: Run, trained: Path) -> None:
    """Calibrating again writes nothing, and says the same."""
    before = (trained / "head.calibrated.safetensors").read_bytes()
    result = run("calibrate", trained / "head.safetensors", "--json")
    document = json.loads(result.stdout)
    assert (document["status"], document["n"]) == ("up to date", 120)
    assert (trained / "head.calibrated.safetensors").read_bytes() == before


def test_calibrated_is_refused(run: Run, trained: Path, tmp_path: Path) -> None:
    """A calibrated checkpoint is not calibrated again: that would hide what its temperature was fitted to."""
    result = run("calibrate", trained / "head.calibrated.safetensors", "-o", tmp_path / "again.safetensors")
    assert result.exit_code == 2
    assert "calibrated already" in result.stderr


def test_works_where_a_checkpoint_does(run: Run, trained: Path, tmp_path: Path) -> None:
    """Show, report and fine-tuning take a calibrated checkpoint; the last starts without its temperature."""
    calibrated = trained / "head.calibrated.safetensors"
    shown = run("show", calibrated).stdout
    assert "temperature" in shown
    assert "* epochs 3" in shown
    report = run("report", trained / "head.safetensors", calibrated, "-o", tmp_path / "report.html")
    assert report.exit_code == 0, report.stderr
    result = run(
        "image", "finetune", trained / "photos.split.json", "--from", calibrated, "--epochs", 1, "-o",
        tmp_path / "finetune.safetensors",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert "calibration" not in read_metadata(tmp_path / "finetune.safetensors")


def test_abstains_below_the_threshold(run: Run, trained: Path) -> None:
    """An image whose probability is not above the threshold has no class, and in text is none of these."""
    calibrated = trained / "head.calibrated.safetensors"
    arguments = ("predict", calibrated, trained / "photos" / "8", "--abstain", 0.2)
    result = run(*arguments, "--format", "json")
    assert result.exit_code == 0, result.stderr
    threshold = float(result.stderr.partition("above ")[2].partition(":")[0])
    assert 0 < threshold < 1
    rows = json.loads(result.stdout)
    for row in rows:
        assert (row["class"] is None) == (row["probability"] <= threshold) or abs(row["probability"] - threshold) < 1e-3
    lines = run(*arguments).stdout.splitlines()
    assert [": none of these (" in line for line in lines] == [row["class"] is None for row in rows]


def test_abstaining_needs_calibration(run: Run, trained: Path) -> None:
    """Without a calibration, or for an error that the validation images cannot show, --abstain is refused."""
    for name, words, code in (("head", "dlcv calibrate", 2), ("head.calibrated", "they can show", 1)):
        result = run("predict", trained / f"{name}.safetensors", trained / "photos" / "8", "--abstain", 0.001)
        assert result.exit_code == code
        assert words in result.stderr


def test_calibrates_again_from_the_metrics(run: Run, trained: Path) -> None:
    """`--config` with the metrics of a calibration repeats it to the byte."""
    again = trained / "again.safetensors"
    result = run("calibrate", "--config", trained / "head.calibrated.metrics.json", "-o", again)
    assert result.exit_code == 0, result.stderr
    assert again.read_bytes() == (trained / "head.calibrated.safetensors").read_bytes()


def test_a_search_is_warned_of(run: Run, trained: Path, tmp_path: Path) -> None:
    """Where the validation images also chose the settings, abstaining warns that they promise too much."""
    stored = tensors.read(trained / "head.calibrated.safetensors", tensors.CHECKPOINT)
    metadata = {key: value for key, value in stored.metadata.items() if key not in ("schema", "sha256")}
    path = tmp_path / "searched.safetensors"
    tensors.write(path, tensors.CHECKPOINT, stored.arrays, {**metadata, "tries": 29})
    result = run("predict", path, trained / "photos" / "8", "--abstain", 0.2)
    assert "warning: the validation images also chose among 29 settings" in result.stderr


def test_damaged_calibration_is_named(run: Run, trained: Path, tmp_path: Path) -> None:
    """A temperature that is no positive number is refused, with the file's name."""
    stored = tensors.read(trained / "head.calibrated.safetensors", tensors.CHECKPOINT)
    metadata = {key: value for key, value in stored.metadata.items() if key not in ("schema", "sha256")}
    path = tmp_path / "damaged.safetensors"
    tensors.write(
        path, tensors.CHECKPOINT, stored.arrays,
        {**metadata, "calibration": {**metadata["calibration"], "temperature": 0}},
    )  # fmt: skip
    assert_refused(run("predict", path, trained / "photos"), path.name, "calibration")


def test_what_cannot_be_calibrated_is_not_written(
    run: Run, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a lowest loss, the command says how many validation images there are, and writes nothing."""
    monkeypatch.setattr("dlcv_cli.statistics.calibration.TEMPERATURES", (50, 100))
    output = tmp_path / "calibrated.safetensors"
    result = run("calibrate", trained / "head.safetensors", "-o", output)
    assert result.exit_code == 1
    assert "120 validation images give no temperature (the loss is lowest beyond" in result.stderr
    assert not [*tmp_path.iterdir()]


def test_few_validation_images_are_a_warning(
    run: Run, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With few validation images the checkpoint is written, and a warning says how many they are."""
    for few, warned in ((120, False), (121, True)):
        monkeypatch.setattr("dlcv_cli.stages.calibrate.FEW", few)
        result = run("calibrate", trained / "head.safetensors", "-o", tmp_path / f"{few}.safetensors")
        assert result.exit_code == 0
        assert ("warning: 120 validation images are few" in result.stderr) == warned


def test_sequences_have_no_probabilities(run: Run, tmp_path: Path) -> None:
    """A checkpoint of a cell cannot be calibrated."""
    run_dlcv("seq", "gen", "--count", 100, "-o", tmp_path / "adding.safetensors")
    run_dlcv("seq", "train", tmp_path / "adding.safetensors", "--cell", "baseline", "-o", tmp_path / "b.safetensors")
    result = run("calibrate", tmp_path / "b.safetensors")
    assert result.exit_code == 2
    assert "sequences" in result.stderr


def test_handed_over_alone(run: Run, trained: Path, tmp_path: Path) -> None:
    """A calibrated checkpoint without any other file predicts and abstains; the other one says what it lacks."""
    for name in ("head", "head.calibrated"):
        shutil.copy(trained / f"{name}.safetensors", tmp_path)
    result = run("predict", tmp_path / "head.calibrated.safetensors", trained / "photos" / "3", "--abstain", 0.2)
    assert result.exit_code == 0, result.stderr
    assert_refused(run("calibrate", tmp_path / "head.safetensors"), "photos.split.json", "--data")
