#!/bin/sh
# The records of the integer runtime, one after the other: speed, device, flash, random ops, Q7 at 8 bits.
# For a machine that does nothing else.   sh benchmarks/run_native.sh ../shared
set -e
shared=${1:?usage: sh benchmarks/run_native.sh FOLDER_WITH_MODELS_AND_DATA}
unset OMP_NUM_THREADS
for threads in 1 2; do
    caplet bench speed "$shared/models/shallow_fmnist.pt" --threads $threads --turns 9 --json \
        > "benchmarks/records/$(date +%F)-speed-shallow-8-threads-$threads.json"
done
python benchmarks/device_runs.py --shared "$shared"
python benchmarks/op_equality.py
python benchmarks/reconstruction.py "$shared/models/q7_mnist.h5" mnist --root "$shared/data" \
    --widths weights=8,activations=8 --parts tune exponents,bias,rounding --ship exponents,bias,rounding --name q7_mnist-8
