/* Squash of bytes for PCs: the factors of short capsules come from a table. */
#include "host_tile.h"

#if CAPLET_LANES

CAPLET_COPIED void squash(const caplet_host_squash *op, const int8_t *from, int8_t *to, uint32_t dim)
{
    const caplet_format *out = &op->squash.out;
    const uint32_t truncate = out->rounding == CAPLET_TRUNCATE;
    uint32_t capsule;
    for (capsule = 0; capsule < op->squash.count; capsule++) {
        uint32_t length = 0;
        uint32_t d;
        for (d = 0; d < dim; d++) {
            length += (uint32_t)(from[d] * from[d]);
        }
        if (length < op->lengths) {
            const caplet_squash_factor by = op->factors[length];
            const int32_t term = truncate ? 0 : (int32_t)1 << (by.right - 1);
            int32_t codes[64];
            for (d = 0; d < dim; d++) {
                const int32_t high = (int32_t)(((int64_t)caplet_left32(from[d], by.left) * by.multiplier) >> 32);
                codes[d] = caplet_clip32((high + term) >> by.right, out->low, out->high);
            }
            for (d = 0; d < dim; d++) {
                to[d] = (int8_t)codes[d];
            }
        } else {
            caplet_squash_op one = op->squash;
            one.count = 1;
            caplet_squash_bytes(&one, from, to, 0);
        }
        from += dim;
        to += dim;
    }
}

void caplet_host_squash_bytes(const caplet_host_squash *op, const void *x, void *y)
{
    switch (op->squash.dim) { /* compilers make straight code for these */
    case 4: squash(op, x, y, 4); break;
    case 8: squash(op, x, y, 8); break;
    default: squash(op, x, y, op->squash.dim); break;
    }
}

#endif
