/* Maximum over square windows; positions outside the input do not count. */
#include "fixed.h"

/* One axis: the window at `start` (counted from `padding` before the input) meets positions *first .. *end - 1. */
static void clip_window(uint32_t start, uint32_t padding, uint32_t kernel, uint32_t size, uint32_t *first,
                        uint32_t *end)
{
    *first = start < padding ? 0u : start - padding;
    *end = start + kernel < padding + size ? start + kernel - padding : size;
}

void caplet_max_pool2d(const caplet_max_pool2d_op *op, const void *x, void *y)
{
    const caplet_scale scale = caplet_plain_scale(op->right);
    uint32_t index = 0;
    uint32_t row;
    uint32_t column;
    uint32_t channel;
    for (row = 0; row < op->out_rows; row++) {
        uint32_t top;
        uint32_t bottom;
        clip_window(row * op->stride, op->padding, op->kernel, op->in_rows, &top, &bottom);
        for (column = 0; column < op->out_columns; column++) {
            uint32_t left;
            uint32_t right;
            clip_window(column * op->stride, op->padding, op->kernel, op->in_columns, &left, &right);
            for (channel = 0; channel < op->channels; channel++) {
                int32_t largest = INT32_MIN;
                uint32_t i;
                uint32_t j;
                for (i = top; i < bottom; i++) {
                    for (j = left; j < right; j++) {
                        const uint32_t from = (i * op->in_columns + j) * op->channels + channel;
                        const int32_t code = caplet_load(x, op->in_type, from);
                        largest = code > largest ? code : largest;
                    }
                }
                largest = op->wide ? caplet_requantize64(largest, &scale, &op->out, index)
                                   : caplet_requantize32(largest, &scale, &op->out, index);
                caplet_store(y, op->out.type, index, largest);
                index++;
            }
        }
    }
}
