/* Squash: every capsule s becomes s * |s| / (1 + |s|^2), with one square root and one division per capsule. */
#include "fixed.h"

/* The factor of a capsule: multiplier * 2^-shift. multiplier: below 2^31; shift: 5..62. */
typedef struct {
    uint32_t multiplier;
    uint32_t shift;
} factor;

/* length: squared length in codes, 1 or more. The exporter checked that the squares below stay under 2^62. */
static factor factor_of(uint64_t length, int16_t in_frac, int16_t out_frac)
{
    const uint32_t up = in_frac < 0 ? (uint32_t)-in_frac : 0u;
    const uint32_t down = in_frac > 0 ? (uint32_t)in_frac : 0u;
    const uint64_t units = length << (2u * up);
    const uint64_t divisor = units + ((uint64_t)1 << (2u * down));
    const uint32_t lift = (62u - caplet_bit_length(units)) >> 1;
    const uint32_t root = caplet_isqrt(units << (2u * lift)); /* 2^30 .. 2^31 - 1 */
    const uint32_t bits = caplet_bit_length(divisor);
    const uint64_t normal = bits >= 31u ? divisor >> (bits - 31u) : divisor << (31u - bits); /* 2^30 .. 2^31 - 1 */
    const int32_t shift = 30 + (int32_t)lift + ((int32_t)bits - 31) - (int32_t)up - out_frac;
    const factor result = {(uint32_t)(((uint64_t)root << 30) / normal), shift < 62 ? (uint32_t)shift : 62u};
    return result;
}

void caplet_squash(const caplet_squash_op *op, const void *x, void *y, uint32_t element)
{
    const uint32_t noisy = op->out.rounding == CAPLET_STOCHASTIC;
    uint32_t capsule;
    uint32_t d;
    for (capsule = 0; capsule < op->count; capsule++) {
        const uint32_t first = capsule * op->dim;
        const void *codes = caplet_at(x, op->in_type, first);
        void *out = caplet_at_writable(y, op->out.type, first);
        const uint64_t length = caplet_squared_length(codes, op->in_type, op->dim);
        /* A zero capsule has any factor: its products are zero. */
        const factor by = factor_of(length > 0 ? length : 1u, op->in_frac, op->out.frac);
        const int64_t term = noisy ? 0 : caplet_rounding_term(&op->out, by.shift, 0);
        for (d = 0; d < op->dim; d++) {
            int64_t product = (int64_t)caplet_load(codes, op->in_type, d) * (int64_t)by.multiplier; /* below 2^47 */
            product += noisy ? caplet_rounding_term(&op->out, by.shift, element + first + d) : term;
            caplet_store(out, op->out.type, d, caplet_clip64(product >> by.shift, op->out.low, op->out.high));
        }
    }
}
