/* 2-D convolution with bias; a ReLU is part of the output's range. */
#include "window.h"

void caplet_conv2d(const caplet_conv_op *op, const void *x, void *y, void *filter)
{
    caplet_convolve(op, x, 0, y, 0, filter);
}
