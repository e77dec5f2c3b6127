#!/bin/sh
# The published study of the adding problem: 10,000 sequences, four networks, one comparison.
#
#   sh examples/adding-problem.sh [RESULTS [SEED]]
#
# After a failure, run it again: finished stages say "up to date", and a stopped training continues.
set -eu

out=${1:-runs/adding-problem}
seed=${2:-0}

dlcv seq gen --seed "$seed" -o "$out/adding.safetensors"
for cell in elman lstm gru baseline; do
    dlcv seq train "$out/adding.safetensors" --cell "$cell" --seed "$seed" -o "$out/$cell.safetensors"
done
dlcv eval --compare "$out/elman.safetensors" "$out/lstm.safetensors" "$out/gru.safetensors" "$out/baseline.safetensors"
