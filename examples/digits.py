"""The image study on handwritten digits, from Python, in cells that an editor or Jupyter runs one by one.

python examples/digits.py
"""

# %% Ten training images of each digit, and a context: where to compute, and where to cache features.
from pathlib import Path

import matplotlib.pyplot as plt

import dlcv_cli as dlcv

runs = Path("runs/digits-python")
context = dlcv.Context(cache=runs / "cache")

dlcv.write_digits(runs / "digits", context=context)
few = dlcv.SplitConfig(train_per_class=10, val_per_class=20, test_per_class=30)
split = dlcv.write_split(runs / "digits", runs / "digits.split.json", few, context=context).output

# %% A new last layer on pretrained features, then more layers, then the same network from random weights.
head = runs / "head.safetensors"
dlcv.train_head(split, head, dlcv.HeadConfig(arch="vgg16_mini", batch_size=10), context=context)

finetune = runs / "finetune.safetensors"
dlcv.train_finetune(split, finetune, dlcv.FinetuneConfig(batch_size=10, epochs=4, lr=3e-4), start=head, context=context)

scratch = runs / "scratch.safetensors"
dlcv.train_scratch(
    split, scratch, dlcv.ScratchConfig(arch="vgg16_mini", batch_size=10, epochs=5, lr=1e-3), context=context
)

# %% Which is better on images that none of them has seen, and is the difference more than luck?
checkpoints = {"head": head, "finetune": finetune, "scratch": scratch}
evaluated = {name: dlcv.evaluate(path, dlcv.EvalConfig(), context=context) for name, path in checkpoints.items()}
comparison = dlcv.compare([(name, result.output) for name, result in evaluated.items()])
print(dlcv.render(comparison, "plain"))

# %% How they learned.
for name, path in checkpoints.items():
    records = dlcv.open_checkpoint(path).metrics.records
    plt.plot([record.step for record in records], [record.val_accuracy or 0 for record in records], label=name)
plt.xlabel("epoch")
plt.ylabel("validation accuracy")
plt.legend()
plt.savefig(runs / "learning.png")

# %% What the best of them says of single images.
model = dlcv.open_checkpoint(finetune)
images = sorted((runs / "digits" / "8").iterdir())[:5]
for prediction in model.predict(images, top=2, context=context):
    top = ", ".join(f"{one['class']} {one['probability']:.0%}" for one in prediction.values["top"])
    print(f"{prediction.file.name}: {top}")
