#!/bin/sh
# The adding problem as it was posed in 1997 (Hochreiter & Schmidhuber, experiment 4), with minimal time lag T.
#
#   sh examples/adding-1997.sh [T [RESULTS [CELL]]]
#
# Trains on 16,200 sequences of T to T + T/10 steps, each seen once, 16 per step; tests on 2,000 others. The paper called the
# task solved when 2,000 sequences in a row were predicted within 0.04; that took 74,000 training sequences at T = 100, and
# 209,000 at T = 500.
#
# After a failure, run it again: finished stages say "up to date", and a stopped training continues.
set -eu

steps=${1:-100}
out=${2:-runs/adding-1997-$steps}
cell=${3:-gru}

dlcv seq gen --task adding-1997 --min-length "$steps" --max-length $((steps + steps / 10)) \
    --count 20000 --test-fraction 0.1 --val-fraction 0.1 -o "$out/adding.safetensors"
dlcv seq train "$out/adding.safetensors" --cell "$cell" --epochs 1 --batch-size 16 --lr 0.01 --clip-norm 1 \
    --chrono "$steps" --record-every 50 -o "$out/$cell.safetensors"
dlcv eval --compare "$out/$cell.safetensors"
