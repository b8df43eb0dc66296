/* Convolution of some of the input's channels. Internal to the runtime. */
#ifndef CAPLET_WINDOW_H
#define CAPLET_WINDOW_H

#include "fixed.h"

/*
 * The convolution of channels first_channel .. first_channel + depth - 1 of x with the filters of the output channels
 * channel .. channel + count - 1, `together` at a time. y: out.type (out_rows, out_columns, out_channels). element:
 * noise index of y's first element.
 */
void caplet_convolve(const caplet_conv_op *op, const void *x, uint32_t first_channel, uint32_t channel, uint32_t count,
                     void *y, uint32_t element, void *filter);

#endif
