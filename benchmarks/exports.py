"""How often an ONNX export answers as its checkpoint does in float32, on the image files of a part of its split.

Example: python benchmarks/exports.py head.safetensors head.onnx --split photos.split.json
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from dlcv_cli.files import splits
from dlcv_cli.studies.images.predictor import open_checkpoint
from dlcv_cli.vision.images import read_image_file
from dlcv_cli.vision.inference import FeatureExtractor
from dlcv_cli.vision.models import Classifier
from dlcv_cli.vision.transforms import decode, resize


def main() -> None:
    """Print the shares of equal answers and of probabilities within 0.001, and the largest difference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("export", type=Path)
    parser.add_argument("--split", type=Path, required=True)
    parser.add_argument("--part", default="test")
    arguments = parser.parse_args()
    stored, split = open_checkpoint(arguments.checkpoint), splits.read(arguments.split)
    classifier = Classifier(stored.network, stored.temperature)
    normalise = FeatureExtractor([], stored.preprocessing, torch.device("cpu"), "float32")
    session = onnxruntime.InferenceSession(arguments.export, providers=["CPUExecutionProvider"])
    same, differences = 0, []
    for example in split.parts[arguments.part]:
        image = decode(read_image_file(split.root / example.path))
        with torch.no_grad():
            expected = classifier(normalise(resize(image, stored.preprocessing)[None]))[0].numpy()
        answer = session.run(["probabilities"], {"images": image.permute(1, 2, 0)[None].contiguous().numpy()})[0]
        same += int(answer.argmax() == expected.argmax())
        differences.append(float(np.abs(answer - expected).max()))
    count, close = len(differences), np.mean(np.array(differences) <= 1e-3)
    print(
        f"{arguments.export}: same answer {same} of {count} ({100 * same / count:.2f} %), probabilities within 0.001 "
        f"{100 * close:.2f} %, largest difference {max(differences):.2g}"
    )


if __name__ == "__main__":
    main()
