/* 2-D convolution in groups of channels; ReLU and its upper limit are part of the output's range. */
#include "window.h"

void caplet_grouped_conv2d(const caplet_conv_op *op, const void *x, void *y, void *filter)
{
    const uint32_t filters = op->out_channels / (op->in_channels / op->depth); /* of one group */
    uint32_t channel;
    uint32_t count;
    for (channel = 0; channel < op->out_channels; channel += count) {
        const uint32_t left = filters - channel % filters; /* in this group */
        count = left < op->together ? left : op->together;
        caplet_convolve_filters(op, x, channel / filters * op->depth, channel, count, y, 0, filter);
    }
}
