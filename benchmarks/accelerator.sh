#!/usr/bin/env bash
# DeepCaps for CIFAR-10 at 64x64 on one large GPU within 25 minutes, then a search for widths on it.
#
# NOT YET RUN ON AN ACCELERATOR: no such machine was at hand. What was run is the small form below, on a CPU; the 25
# minutes are what it is made for, and whether they suffice is to be seen in train/train.csv (images_per_second).
#
#   ROOT=~/data OUT=runs/accelerator benchmarks/accelerator.sh
#   DEVICE=cpu RECIPE=digits DATA=digits SIZE= EPOCHS=1 BATCH=32 LIMIT=200 PRECISION=float32 TOLERANCE=20 \
#       OUT=/tmp/small benchmarks/accelerator.sh
#
# bfloat16 but for the routing; the whole training set is on the GPU as bytes (614 MB), and each batch is shifted and
# mirrored there. Batches are 16 times the recipe's, at 4 times its learning rate (the square root). There are neither
# CUDA graphs nor torch.compile, which does not work on these networks today (tried).
#
# Started again, it goes on where it stopped: training after its last whole epoch. The network is also written in parts
# of at most 15 MB, with the whole one's sum, and the line that joins them in parts/JOIN.
set -euo pipefail
: "${OUT:?a folder for the runs}"
RECIPE=${RECIPE:-deepcaps-cifar10} MODEL=${MODEL:-} DATA=${DATA:-cifar10} ROOT=${ROOT:-} SIZE=${SIZE-64}
EPOCHS=${EPOCHS:-110} BATCH=${BATCH:-512} LR=${LR:-2.8e-3} WARMUP=${WARMUP:-0.1} EMA=${EMA:-0.99}
PRECISION=${PRECISION:-bfloat16} DEVICE=${DEVICE:-cuda} TOLERANCE=${TOLERANCE:-0.2} LIMIT=${LIMIT:-}
PARTS=${PARTS:-15M} CAPLET=${CAPLET:-caplet}
data=(--data "$DATA" ${ROOT:+--root "$ROOT"} ${SIZE:+--size "$SIZE"})
mkdir -p "$OUT"

step() { # a run folder, then the command: once, or what is left of it
    local folder=$OUT/$1
    shift
    [ -f "$folder/metrics.json" ] || $CAPLET "$@" --out "$folder" --device "$DEVICE" \
        $([ -f "$folder/settings.json" ] && echo --resume)
}

step train train --recipe "$RECIPE" ${MODEL:+--model "$MODEL"} "${data[@]}" ${LIMIT:+--limit "$LIMIT"} \
    --set epochs="$EPOCHS" --set batch_size="$BATCH" --set lr="$LR" --set warmup="$WARMUP" --set ema="$EMA" \
    --set precision="$PRECISION" --set shift=4 --set flip="$([ "$DATA" = digits ] && echo false || echo true)"

parts=$OUT/parts
if [ ! -f "$parts/JOIN" ]; then
    mkdir -p "$parts"
    split -b "$PARTS" -d "$OUT/train/model.safetensors" "$parts/model.safetensors."
    (cd "$OUT/train" && sha256sum model.safetensors) > "$parts/SHA256SUM"
    echo 'cat model.safetensors.[0-9]* > model.safetensors && sha256sum -c SHA256SUM' > "$parts/JOIN"
fi
ls -l "$parts"

step integers quantize "$OUT/train/model.safetensors" "${data[@]}" --tolerance "$TOLERANCE"
