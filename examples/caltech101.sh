#!/bin/sh
# The published Caltech101 study: split, head, finetune, scratch, comparison.
#
#   sh examples/caltech101.sh [FOLDER [RESULTS [ARCH]]]
#
# FOLDER holds Caltech101, or is where it is downloaded to. RESULTS is where the stages write; ARCH is the network.
# Run it again after any failure: finished stages say "up to date", and the others continue.
# WEIGHTS=file uses local ImageNet weights instead of a download. HEAD, FINETUNE and SCRATCH hold further options of these
# stages, for example HEAD="--lr 0.001".
set -eu

data=${1:-caltech101}
out=${2:-runs/caltech101}
arch=${3:-vgg16}

mkdir -p "$data"
dlcv data split "$data" --dataset caltech101 --download -o "$out/caltech101.split.json"
dlcv data show "$out/caltech101.split.json"

# shellcheck disable=SC2086  # options are meant to be split
{
    dlcv vgg head "$out/caltech101.split.json" --arch "$arch" ${WEIGHTS:+--weights "$WEIGHTS"} ${HEAD:-} \
        -o "$out/head.safetensors"
    dlcv vgg finetune "$out/caltech101.split.json" --from "$out/head.safetensors" ${FINETUNE:-} \
        -o "$out/finetune.safetensors"
    dlcv vgg scratch "$out/caltech101.split.json" --arch "$arch" ${SCRATCH:-} -o "$out/scratch.safetensors"
}

dlcv eval --compare "$out/head.safetensors" "$out/finetune.safetensors" "$out/scratch.safetensors"
