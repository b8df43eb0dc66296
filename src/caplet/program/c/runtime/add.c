/* Sum of two tensors of one shape. */
#include "fixed.h"

void caplet_add(const caplet_add_op *op, const void *a, const void *b, void *y)
{
    const uint32_t extra = op->right < 0 ? (uint32_t)-op->right : 0u;
    const uint32_t right = op->right < 0 ? 0u : (uint32_t)op->right;
    uint32_t i;
    for (i = 0; i < op->count; i++) {
        const int32_t left_code = caplet_load(a, op->a_type, i);
        const int32_t right_code = caplet_load(b, op->b_type, i);
        int32_t code;
        if (op->wide) {
            int64_t sum = caplet_left64(left_code, op->a_left + extra) + caplet_left64(right_code, op->b_left + extra);
            sum += caplet_rounding_term(&op->out, right, i);
            code = caplet_clip64(sum >> right, op->out.low, op->out.high);
        } else {
            int32_t sum = caplet_left32(left_code, op->a_left + extra) + caplet_left32(right_code, op->b_left + extra);
            sum += (int32_t)caplet_rounding_term(&op->out, right, i);
            code = caplet_clip32(sum >> right, op->out.low, op->out.high);
        }
        caplet_store(y, op->out.type, i, code);
    }
}
