#!/usr/bin/env bash
# Capsules on a pretrained trunk, the whole way: frozen, fine-tuned, pruned to shares of its multiply-accumulates and
# fine-tuned again, searched for widths under a tolerance, exported, verified. One folder a step under OUT; started
# again, it goes on where it stopped. Every choice is made on images cut from the training split; each step opens the
# test split once, at its end.
#
#   WEIGHTS=efficientnet_lite0_imagenet.pth ROOT=~/data OUT=runs/lite0 benchmarks/pretrained_trunk.sh
#
# DATA may be an image folder (ROOT empty then); SIZE, TRUNK, EPOCHS (frozen, fine-tuned, pruned), MACS and TOLERANCE
# are other than these by request.
set -euo pipefail
: "${WEIGHTS:?a file with weights of the trunk}" "${OUT:?a folder for the runs}"
DATA=${DATA:-cifar10} ROOT=${ROOT:-} SIZE=${SIZE:-64} TRUNK=${TRUNK:-timm/tf_efficientnet_lite0@blocks_4_2}
read -r FROZEN TUNED PRUNED <<< "${EPOCHS:-10 12 6}"
MACS=${MACS:-0.5 0.25} TOLERANCE=${TOLERANCE:-0.5} TYPES=${TYPES:-32} THREADS=${THREADS:-1} CAPLET=${CAPLET:-caplet}
data=(--data "$DATA" ${ROOT:+--root "$ROOT"} --size "$SIZE")
mkdir -p "$OUT"

step() { # a run folder, then the command: once, or what is left of it
    local folder=$OUT/$1
    shift
    [ -f "$folder/metrics.json" ] || $CAPLET "$@" --out "$folder" $([ -f "$folder/settings.json" ] && echo --resume)
}

step frozen train --model "$TRUNK" --pretrained "$WEIGHTS" --freeze "${data[@]}" --features "$OUT/features" \
    --set epochs="$FROZEN" --set batch_size=64 --set overrides.primary_types="$TYPES" --set threads="$THREADS"
step tuned finetune "$OUT/frozen/model.safetensors" "${data[@]}" --set epochs="$TUNED" --set batch_size=64 \
    --set lr=1e-3 --set optimizer=adamw --set weight_decay=1e-2 --set warmup=0.1 --set shift=4 --set flip=true \
    --set ema=0.999 --set threads="$THREADS"
for share in $MACS; do
    step "pruned-$share" prune-backbone "$OUT/tuned/model.safetensors" "${data[@]}" --macs "$share" \
        --epochs "$PRUNED" --batch-size 64 --shift 4 --flip --threads "$THREADS"
done
for model in tuned $(printf "pruned-%s " $MACS); do
    step "$model-integers" quantize "$OUT/$model/model.safetensors" "${data[@]}" --tolerance "$TOLERANCE"
    integers=$OUT/$model-integers/model_satisfied.caplet
    [ -d "$OUT/$model-c" ] || $CAPLET export "$integers" --out "$OUT/$model-c"
    [ -f "$OUT/$model.onnx" ] || $CAPLET export "$integers" --to onnx --out "$OUT/$model.onnx" "${data[@]}"
    $CAPLET verify "$integers" "${data[@]}"
done
