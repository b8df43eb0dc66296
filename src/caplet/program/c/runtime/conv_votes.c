/* Votes of a convolutional capsule layer: every input capsule type is convolved with one shared kernel. */
#include "fixed.h"

void caplet_conv_votes(const caplet_conv_op *op, const void *x, uint32_t input, void *row, void *scratch)
{
    const uint32_t votes = op->out_rows * op->out_columns * op->out_channels;
    caplet_convolve(op, x, input * op->depth, 0, op->out_channels, row, input * votes, scratch);
}

void caplet_make_conv_votes(const caplet_votes *votes, uint32_t input, void *row)
{
    caplet_conv_votes((const caplet_conv_op *)votes->op, votes->x[0], input, row, votes->scratch);
}
