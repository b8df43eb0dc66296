/* Squared lengths of capsules, and the longest one. */
#include "fixed.h"

CAPLET_COLD void caplet_lengths(const caplet_lengths_op *op, const void *x, void *y)
{
    uint32_t i;
    for (i = 0; i < op->count; i++) {
        const uint64_t length = caplet_squared_length(caplet_at(x, op->in_type, i * op->dim), op->in_type, op->dim);
        if (op->wide) {
            ((uint64_t *)y)[i] = length;
        } else {
            ((uint32_t *)y)[i] = (uint32_t)length;
        }
    }
}

uint32_t caplet_longest(const void *y, uint32_t count, uint8_t wide)
{
    uint32_t best = 0, i;
    for (i = 1; i < count; i++) {
        const uint32_t longer = wide ? ((const uint64_t *)y)[i] > ((const uint64_t *)y)[best]
                                     : ((const uint32_t *)y)[i] > ((const uint32_t *)y)[best];
        if (longer) {
            best = i;
        }
    }
    return best;
}
