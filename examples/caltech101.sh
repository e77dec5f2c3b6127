#!/bin/sh
# The published Caltech101 study: split, head, finetune, scratch, comparison.
#
#   sh examples/caltech101.sh [FOLDER [RESULTS [ARCH]]]
#
# FOLDER holds Caltech101, which is downloaded there if it is missing; the stages write to RESULTS. ARCH is the network.
# WEIGHTS=FILE uses ImageNet weights from a file instead of downloading them. HEAD, FINETUNE and SCRATCH hold further
# options for these stages, for example HEAD="--lr 0.001".
#
# After a failure, run it again: finished stages say "up to date", and a stopped training continues.
set -eu

data=${1:-caltech101}
out=${2:-runs/caltech101}
arch=${3:-vgg16}

mkdir -p "$data"
dlcv data split "$data" --dataset caltech101 --download -o "$out/caltech101.split.json"
dlcv data show "$out/caltech101.split.json"

# shellcheck disable=SC2086  # splits the options on purpose
{
    dlcv image head "$out/caltech101.split.json" --arch "$arch" ${WEIGHTS:+--weights "$WEIGHTS"} ${HEAD:-} \
        -o "$out/head.safetensors"
    dlcv image finetune "$out/caltech101.split.json" --from "$out/head.safetensors" ${FINETUNE:-} \
        -o "$out/finetune.safetensors"
    dlcv image scratch "$out/caltech101.split.json" --arch "$arch" ${SCRATCH:-} -o "$out/scratch.safetensors"
}

dlcv eval --compare "$out/head.safetensors" "$out/finetune.safetensors" "$out/scratch.safetensors"
