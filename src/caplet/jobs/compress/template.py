"""The commented settings file that ``caplet init`` writes."""

from __future__ import annotations

import json

from caplet.jobs.compress.settings import CompressSettings, Limits, Pruning, Quantizing, Verifying

TEMPLATE = """\
# Settings of `caplet compress`. What is commented out shows the default.

# What to compress: a trained model's file, or a recipe to train first (`caplet train --help` lists them).
{source}

# The data it was trained on: mnist, fashion-mnist, cifar10, svhn, digits, or the path of an image folder.
data = {data}
# root = "data"                # where the dataset's files already are; without it they are downloaded
# size = 28                    # resize images to this side
# channels = 1                 # 1 for gray, 3 for RGB
# calibration_size = 5000      # images cut from the training split; every decision is made on them

# host, or cortex-m4: firmware is built, and run in an emulator where there is one
# target = "{settings.target}"
# seed = {settings.seed}

[limits]
# accepted loss of accuracy against the float model, in percentage points
max_drop = {limits.max_drop}
# flash = "256KB"              # the whole firmware: packed weights, tables, code
# ram = "64KB"                 # the arena
# macs = "12M"                 # multiply-accumulates of one image

[prune]
# auto: as far as the measured trade-off says, which may be not at all; yes: at least to the largest of probes; no
# use = "{prune.use}"
# score = "{prune.score}"             # how capsules are ranked: docs/pruning.md
# precision = "{prune.precision}"         # of fine-tuning: bfloat16 where the processor has it, or float32
# epochs = {prune.epochs}                   # of fine-tuning after pruning, distilled from the float model
# least_steps = {prune.least_steps}           # but at least so many steps
# lr = {prune.lr}                   # peak learning rate
# probes = {probes}   # fractions of the multiply-accumulates at which the trade-off is measured
# probe_steps = {prune.probe_steps}            # steps of fine-tuning at every such point

[quantize]
# method = "{quantize.method}"               # ilp, progressive or qcapsnets
# probes = {widths}     # widths at which the trade-off is measured
# reconstruct = {parts}   # fit weights and biases to the plans found: docs/reconstruction.md
# narrow = true                # lower widths further while the fitted network keeps the target
# finetune_lr = {quantize.finetune_lr}         # peak learning rate of quantization-aware training
# finetune = "{quantize.finetune}"            # quantization-aware training: auto is where the search misses a limit

[verify]
# images = {verify.images}                 # compared code by code on every engine
# device_images = {verify.device_images}            # on the emulated device
# timed = {verify.timed}                  # images per turn, when speed is measured
"""


def settings_template(model: str | None = None, recipe: str = "digits", data: str = "digits") -> str:
    """A settings file for a trained ``model``, or for a ``recipe`` where there is none; every default is shown."""
    source = f'recipe = {json.dumps(recipe)}\n# model = "model.safetensors"'
    if model is not None:
        source = f"model = {json.dumps(model)}\n# recipe = {json.dumps(recipe)}"
    return TEMPLATE.format(
        source=source,
        data=json.dumps(data),
        settings=CompressSettings(),
        limits=Limits(),
        prune=Pruning(),
        probes=list(Pruning().probes),
        widths=list(Quantizing().probes),
        quantize=Quantizing(),
        parts=json.dumps([*map(str, Quantizing().reconstruct)]),
        verify=Verifying(),
    )
