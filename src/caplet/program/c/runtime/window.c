/*
 * Convolution. Filters are the outer loop, a few at a time, so that each is unpacked once and an element of the input
 * is loaded once for all of them; a window is read in contiguous runs, and positions outside the input are skipped
 * rather than stored as zeros.
 */
#include "fixed.h"

/* Filters that are taken together. */
enum { FILTERS = 4 };

/* Where a window meets the input. */
typedef struct {
    uint32_t row;    /* first input row */
    uint32_t column; /* first input column */
    uint32_t rows;
    uint32_t columns;
    uint32_t skipped_rows; /* kernel rows above the input */
    uint32_t skipped_columns;
} overlap;

/*
 * Sums of products of one window and `count` filters of `size` elements each, one after the other.
 * sums: of FILTERS filters; wide_products chooses the accumulator.
 */
static void window_sums(const caplet_conv_op *op, const void *x, uint32_t first_channel, const void *filters,
                        uint8_t filter_type, uint32_t size, uint32_t count, const overlap *at, int64_t *sums)
{
    const uint32_t whole = op->depth == op->in_channels; /* then a kernel row is one contiguous run */
    const uint32_t length = whole ? at->columns * op->depth : op->depth;
    const uint32_t runs = whole ? 1u : at->columns;
    int32_t sums32[FILTERS] = {0, 0, 0, 0};
    uint32_t row;
    uint32_t run;
    uint32_t f;
    for (f = 0; f < FILTERS; f++) {
        sums[f] = 0;
    }
    for (row = 0; row < at->rows; row++) {
        uint32_t from = ((at->row + row) * op->in_columns + at->column) * op->in_channels + first_channel;
        uint32_t weight = ((at->skipped_rows + row) * op->kernel_columns + at->skipped_columns) * op->depth;
        for (run = 0; run < runs; run++) {
            const void *a = caplet_at(x, op->in_type, from);
            const void *b = caplet_at(filters, filter_type, weight);
            if (op->acc.wide_products) {
                for (f = 0; f < count; f++) {
                    sums[f] += caplet_dot64(a, op->in_type, caplet_at(b, filter_type, f * size), filter_type, length);
                }
            } else if (count < FILTERS || !caplet_dot_four(a, op->in_type, b, filter_type, size, length, sums32)) {
                for (f = 0; f < count; f++) {
                    sums32[f] += caplet_dot32(a, op->in_type, caplet_at(b, filter_type, f * size), filter_type, length);
                }
            }
            from += op->in_channels;
            weight += op->depth;
        }
    }
    for (f = 0; f < FILTERS; f++) {
        sums[f] += sums32[f];
    }
}

/* The filters of the output channels channel .. channel + count - 1. count: 1..FILTERS. */
static void convolve_filters(const caplet_conv_op *op, const void *x, uint32_t first_channel, uint32_t channel,
                             uint32_t count, void *y, uint32_t element, void *filter)
{
    const uint32_t size = op->kernel_rows * op->kernel_columns * op->depth;
    const uint8_t filter_type = caplet_constant_type(&op->weight);
    const void *weights = caplet_row(&op->weight, channel * size, count * size, filter);
    caplet_scale scales[FILTERS];
    uint32_t index = channel;
    uint32_t row;
    uint32_t column;
    uint32_t f;
    for (f = 0; f < count; f++) {
        scales[f] = caplet_scale_of(&op->acc, &op->out, channel + f, channel + f);
    }
    for (row = 0; row < op->out_rows; row++) {
        overlap at;
        caplet_clip_axis(row * op->stride, op->padding, op->kernel_rows, op->in_rows, &at.row, &at.rows,
                         &at.skipped_rows);
        for (column = 0; column < op->out_columns; column++) {
            int64_t sums[FILTERS];
            caplet_clip_axis(column * op->stride, op->padding, op->kernel_columns, op->in_columns, &at.column,
                             &at.columns, &at.skipped_columns);
            window_sums(op, x, first_channel, weights, filter_type, size, count, &at, sums);
            for (f = 0; f < count; f++) {
                const uint32_t place = element + index + f;
                const int32_t code = op->acc.wide ? caplet_requantize64(sums[f], &scales[f], &op->out, place)
                                                  : caplet_requantize32((int32_t)sums[f], &scales[f], &op->out, place);
                caplet_store(y, op->out.type, index + f, code);
            }
            index += op->out_channels;
        }
    }
}

void caplet_convolve(const caplet_conv_op *op, const void *x, uint32_t first_channel, uint32_t channel, uint32_t count,
                     void *y, uint32_t element, void *filter)
{
    const uint32_t end = channel + count;
    uint32_t some;
    for (; channel < end; channel += some) {
        some = end - channel < op->together ? end - channel : op->together;
        convolve_filters(op, x, first_channel, channel, some, y, element, filter);
    }
}
