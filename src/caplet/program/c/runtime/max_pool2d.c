/* Maximum over square windows; positions outside the input do not count. */
#include "fixed.h"

void caplet_max_pool2d(const caplet_max_pool2d_op *op, const void *x, void *y)
{
    const caplet_scale scale = caplet_plain_scale(op->right);
    uint32_t index = 0, row, column, channel;
    for (row = 0; row < op->out_rows; row++) {
        uint32_t top, left, rows, columns, skipped;
        caplet_clip_axis(row * op->stride, op->top, op->kernel, op->in_rows, &top, &rows, &skipped);
        for (column = 0; column < op->out_columns; column++) {
            caplet_clip_axis(column * op->stride, op->padding, op->kernel, op->in_columns, &left, &columns, &skipped);
            for (channel = 0; channel < op->channels; channel++) {
                int32_t largest = INT32_MIN;
                uint32_t i, j;
                for (i = top; i < top + rows; i++) {
                    for (j = left; j < left + columns; j++) {
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
