#!/bin/sh
# The Caltech101 study twice: by the published recipes, and by settings that were chosen on the validation part.
#
#   sh examples/caltech101.sh [FOLDER [RESULTS [ARCH]]]
#
# FOLDER holds Caltech101, which is downloaded there if it is missing; the stages write to RESULTS. ARCH is the network.
# WEIGHTS=FILE uses ImageNet weights from a file instead of downloading them. HEAD, FINETUNE and SCRATCH hold further
# options for the published stages, for example HEAD="--lr 0.001".
#
# After a failure, run it again: finished stages say "up to date", and a stopped training continues.
set -eu

data=${1:-caltech101}
out=${2:-runs/caltech101}
arch=${3:-vgg16}
split=$out/caltech101.split.json

mkdir -p "$data"
dlcv data split "$data" --dataset caltech101 --download -o "$split"
dlcv data show "$split"

# shellcheck disable=SC2086  # splits the options on purpose
{
    dlcv image head "$split" --arch "$arch" ${WEIGHTS:+--weights "$WEIGHTS"} ${HEAD:-} -o "$out/head.safetensors"
    dlcv image finetune "$split" --from "$out/head.safetensors" ${FINETUNE:-} -o "$out/finetune.safetensors"
    dlcv image scratch "$split" --arch "$arch" ${SCRATCH:-} -o "$out/scratch.safetensors"
}
dlcv image head "$split" --arch "$arch" ${WEIGHTS:+--weights "$WEIGHTS"} --recipe auto -o "$out/head-auto.safetensors"
dlcv image finetune "$split" --from "$out/head-auto.safetensors" -o "$out/finetune-auto.safetensors"
dlcv image scratch "$split" --recipe modern -o "$out/scratch-modern.safetensors"

compare() {
    dlcv eval --compare "$out/head.safetensors" "$out/finetune.safetensors" "$out/scratch.safetensors" \
        "$out/head-auto.safetensors" "$out/finetune-auto.safetensors" "$out/scratch-modern.safetensors" "$@"
}

compare --part val --format csv >"$out/val.csv"
compare --format csv >"$out/test.csv"
compare

# the published figures, of VGG16, beside the measured ones; in both files the second column is top-1 accuracy
awk -F, -v arch="$arch" '
    BEGIN {
        val["head"] = "91.79"; val["finetune"] = "92.87"; val["scratch"] = "9.58"
        test["finetune"] = "91.42"; test["scratch"] = "7.83"
        row = "%-16s %10s %10s %10s %10s\n"
        printf row, "top-1 %", "validation", "published", "test", "published"
    }
    FNR == 1 || /baseline/ { next }
    NR == FNR { measured[$1] = 100 * $2; next }
    { printf row, $1, sprintf("%.2f", measured[$1]), val[$1], sprintf("%.2f", 100 * $2), test[$1] }
' "$out/val.csv" "$out/test.csv"
