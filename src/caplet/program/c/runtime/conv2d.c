/* 2-D convolution in groups of channels; ReLU and an upper limit are part of the output's range. */
#include "fixed.h"

void caplet_conv2d(const caplet_conv_op *op, const void *x, void *y, void *scratch)
{
    const uint32_t filters = op->out_channels / (op->in_channels / op->depth); /* of one group */
    uint32_t first = 0; /* channel of the input */
    uint32_t channel;
    for (channel = 0; channel < op->out_channels; channel += filters) {
        caplet_convolve(op, x, first, channel, filters, y, 0, scratch);
        first += op->depth;
    }
}
