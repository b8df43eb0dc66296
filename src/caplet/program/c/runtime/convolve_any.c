/* Convolutions of any types, and those whose sums need 64 bits or noise. */
#include "fixed.h"

void caplet_store_any(const caplet_conv_op *op, const int32_t *sums, uint32_t channel, uint32_t positions, void *y,
                      uint32_t index, uint32_t element)
{
    const caplet_scale scale = caplet_scale_of(&op->acc, &op->out, channel, channel);
    uint32_t p;
    for (p = 0; p < positions; p++) {
        const int32_t code = op->acc.wide ? caplet_requantize64(sums[p], &scale, &op->out, element + index)
                                          : caplet_requantize32(sums[p], &scale, &op->out, element + index);
        caplet_store(y, op->out.type, index, code);
        index += op->out_channels;
    }
}

/* The sums as they are written down. filters: 2 in a pair, 1 for a last one without. */
static void convolve_one(const caplet_conv_op *op, const void *x, uint32_t first_channel, uint32_t channel,
                         uint32_t filters, uint32_t f, void *y, uint32_t element)
{
    const uint32_t size = op->kernel_rows * op->kernel_columns * op->depth;
    const caplet_scale scale = caplet_scale_of(&op->acc, &op->out, channel + f, channel + f);
    uint32_t index = channel + f, position;
    for (position = 0; position < op->out_rows * op->out_columns; position++) {
        const int32_t top = (int32_t)(position / op->out_columns * op->stride) - (int32_t)op->top;
        const int32_t left = (int32_t)(position % op->out_columns * op->stride) - (int32_t)op->padding;
        int64_t sum = 0;
        uint32_t k;
        for (k = 0; k < size; k++) {
            const int32_t row = top + (int32_t)(k / op->depth / op->kernel_columns);
            const int32_t column = left + (int32_t)(k / op->depth % op->kernel_columns);
            if (row >= 0 && row < (int32_t)op->in_rows && column >= 0 && column < (int32_t)op->in_columns) {
                const uint32_t at = ((uint32_t)row * op->in_columns + (uint32_t)column) * op->in_channels;
                sum += (int64_t)caplet_load(x, op->in_type, at + first_channel + k % op->depth) *
                       caplet_code(&op->weight, channel * size + k * filters + f);
            }
        }
        caplet_store(y, op->out.type, index,
                     op->acc.wide ? caplet_requantize64(sum, &scale, &op->out, element + index)
                                  : caplet_requantize32((int32_t)sum, &scale, &op->out, element + index));
        index += op->out_channels;
    }
}

void caplet_convolve_any(const caplet_conv_op *op, const void *x, uint32_t first_channel, uint32_t channel,
                         uint32_t filters, void *y, uint32_t element)
{
    uint32_t f;
    for (f = 0; f < filters; f++) {
        const uint32_t pair = f & ~1u;
        convolve_one(op, x, first_channel, channel + pair, filters - pair < CAPLET_PAIR ? 1u : CAPLET_PAIR, f - pair, y,
                     element);
    }
}
