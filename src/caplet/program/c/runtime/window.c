/*
 * Convolution. Filters are the outer loop, so that each is unpacked once; a window is read in contiguous runs, and
 * positions outside the input are skipped rather than stored as zeros.
 */
#include "window.h"

/* Where a window meets the input. */
typedef struct {
    uint32_t row;    /* first input row */
    uint32_t column; /* first input column */
    uint32_t rows;
    uint32_t columns;
    uint32_t skipped_rows; /* kernel rows above the input */
    uint32_t skipped_columns;
} overlap;

/* One axis: window at `start` (with padding before the input), kernel of `kernel`, input of `size` positions. */
static void clip_axis(uint32_t start, uint32_t padding, uint32_t kernel, uint32_t size, uint32_t *first,
                      uint32_t *count, uint32_t *skipped)
{
    const uint32_t end = start + kernel; /* both count from `padding` before the input */
    *skipped = start < padding ? padding - start : 0u;
    *first = start < padding ? 0u : start - padding;
    *count = (end < padding + size ? end : padding + size) - start - *skipped;
}

/* Sum of products of one window and one filter. wide_products chooses the accumulator of the dot products. */
static int64_t window_sum(const caplet_conv_op *op, const void *x, uint32_t first_channel, const void *filter,
                          uint8_t filter_type, const overlap *at)
{
    const uint32_t whole = op->depth == op->in_channels; /* then a kernel row is one contiguous run */
    const uint32_t length = whole ? at->columns * op->depth : op->depth;
    const uint32_t runs = whole ? 1u : at->columns;
    int64_t wide = 0;
    int32_t sum = 0;
    uint32_t row;
    uint32_t run;
    for (row = 0; row < at->rows; row++) {
        uint32_t from = ((at->row + row) * op->in_columns + at->column) * op->in_channels + first_channel;
        uint32_t weight = ((at->skipped_rows + row) * op->kernel_columns + at->skipped_columns) * op->depth;
        for (run = 0; run < runs; run++) {
            const void *a = caplet_at(x, op->in_type, from);
            const void *b = caplet_at(filter, filter_type, weight);
            if (op->acc.wide_products) {
                wide += caplet_dot64(a, op->in_type, b, filter_type, length);
            } else {
                sum += caplet_dot32(a, op->in_type, b, filter_type, length);
            }
            from += op->in_channels;
            weight += op->depth;
        }
    }
    return op->acc.wide_products ? wide : sum;
}

void caplet_convolve_filter(const caplet_conv_op *op, const void *x, uint32_t first_channel, uint32_t channel, void *y,
                            uint32_t element, void *filter)
{
    const uint32_t size = op->kernel_rows * op->kernel_columns * op->depth;
    const uint8_t filter_type = caplet_constant_type(&op->weight);
    const void *weights = caplet_row(&op->weight, channel * size, size, filter);
    const caplet_scale scale = caplet_scale_of(&op->acc, &op->out, channel, channel);
    uint32_t index = channel;
    uint32_t row;
    uint32_t column;
    for (row = 0; row < op->out_rows; row++) {
        overlap at;
        clip_axis(row * op->stride, op->padding, op->kernel_rows, op->in_rows, &at.row, &at.rows, &at.skipped_rows);
        for (column = 0; column < op->out_columns; column++) {
            int64_t sum;
            int32_t code;
            clip_axis(column * op->stride, op->padding, op->kernel_columns, op->in_columns, &at.column, &at.columns,
                      &at.skipped_columns);
            sum = window_sum(op, x, first_channel, weights, filter_type, &at);
            if (op->acc.wide) {
                code = caplet_narrow64(sum, &scale, &op->out, element + index);
            } else {
                code = caplet_narrow32((int32_t)sum, &scale, &op->out, element + index);
            }
            caplet_store(y, op->out.type, index, code);
            index += op->out_channels;
        }
    }
}

void caplet_convolve(const caplet_conv_op *op, const void *x, uint32_t first_channel, void *y, uint32_t element,
                     void *filter)
{
    uint32_t channel;
    for (channel = 0; channel < op->out_channels; channel++) {
        caplet_convolve_filter(op, x, first_channel, channel, y, element, filter);
    }
}
