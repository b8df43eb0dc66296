/* Sum of two tensors of one shape. */
#include "fixed.h"

void caplet_add(const caplet_add_op *op, const void *a, const void *b, void *y)
{
    const caplet_scale scale = caplet_plain_scale(op->right);
    uint32_t i;
    for (i = 0; i < op->count; i++) {
        const int32_t x = caplet_load(a, op->a_type, i), z = caplet_load(b, op->b_type, i);
        int32_t code;
        if (op->wide) {
            const int64_t sum = caplet_left64(x, op->a_left) + caplet_left64(z, op->b_left);
            code = caplet_requantize64(sum, &scale, &op->out, i);
        } else {
            const int32_t sum = caplet_left32(x, op->a_left) + caplet_left32(z, op->b_left);
            code = caplet_requantize32(sum, &scale, &op->out, i);
        }
        caplet_store(y, op->out.type, i, code);
    }
}
