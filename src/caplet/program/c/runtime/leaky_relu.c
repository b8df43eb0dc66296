/* LeakyReLU of every element. */
#include "fixed.h"

void caplet_leaky_relu(const caplet_leaky_relu_op *op, const void *x, void *y)
{
    const caplet_scale scale = caplet_plain_scale(op->right);
    uint32_t i;
    for (i = 0; i < op->count; i++) {
        const int32_t code = caplet_load(x, op->in_type, i);
        const int32_t factor = code < 0 ? op->slope : (int32_t)1 << op->frac;
        const int32_t result = op->wide ? caplet_requantize64((int64_t)code * factor, &scale, &op->out, i)
                                        : caplet_requantize32(code * factor, &scale, &op->out, i);
        caplet_store(y, op->out.type, i, result);
    }
}
