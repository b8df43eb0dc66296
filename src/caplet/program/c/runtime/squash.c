/* Squash: every capsule s becomes s * |s| / (1 + |s|^2), with one square root and one division per capsule. */
#include "fixed.h"

/* The factor of a capsule: multiplier * 2^-shift. multiplier: below 2^31; shift: 5..62. */
typedef struct {
    uint32_t multiplier;
    uint32_t shift;
} factor;

/*
 * length: squared length in codes, 1 or more; divisor: length + 1, in the same units, below 2^31. The root's square has
 * zeros below its upper 32 bits, as it is shifted up by 32 bits or more: shifts of 32 bits do for everything.
 */
static factor short_factor_of(uint32_t length, uint32_t divisor, int32_t out_frac)
{
    const uint32_t lift = (62u - caplet_bit_length(length)) >> 1;
    const uint32_t bits = caplet_bit_length(divisor);
    const uint32_t root = caplet_isqrt((uint64_t)(length << (2u * lift - 30u)) << 30);
    const int32_t shift = (int32_t)lift + (int32_t)bits - 1 - out_frac;
    const factor result = {caplet_divide((uint64_t)root << 30, divisor << (31u - bits)),
                           shift < 62 ? (uint32_t)shift : 62u};
    return result;
}

/* Any length, 1 or more. The exporter checked that the squares below stay under 2^62. */
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
    const factor result = {caplet_divide((uint64_t)root << 30, (uint32_t)normal), shift < 62 ? (uint32_t)shift : 62u};
    return result;
}

/*
 * Codes are shifted up so that products are shifted down by 33 or more: their low halves, and the rounding term's, then
 * change nothing. The multiplier's shift is 10 or more, as a length has at most 20 bits and out.frac is at most 11.
 */
void caplet_squash_bytes(const caplet_squash_op *op, const void *x, void *y, uint32_t element)
{
    const uint32_t dim = op->dim;
    const uint32_t one = (uint32_t)1 << (2 * op->in_frac);
    const uint32_t truncate = op->out.rounding == CAPLET_TRUNCATE;
    const int8_t *from = (const int8_t *)x;
    int8_t *to = (int8_t *)y;
    uint32_t capsule;
    (void)element;
    for (capsule = 0; capsule < op->count; capsule++) {
        uint32_t length = 0; /* at most 64 * 2^14 */
        uint32_t left;
        uint32_t d;
        int32_t term;
        factor by;
        for (d = 0; d < dim; d++) {
            length += (uint32_t)(from[d] * from[d]);
        }
        length += length == 0 ? 1u : 0u; /* a zero capsule has any factor */
        by = short_factor_of(length, length + one, op->out.frac);
        left = by.shift < 33u ? 33u - by.shift : 0u; /* at most 23: codes stay below 2^31 */
        by.shift += left - 32u;
        term = truncate ? 0 : (int32_t)1 << (by.shift - 1u);
        for (d = 0; d < dim; d++) {
            const int32_t high = (int32_t)(((int64_t)caplet_left32(*from++, left) * (int32_t)by.multiplier) >> 32);
            *to++ = (int8_t)caplet_clip32((high + term) >> by.shift, op->out.low, op->out.high);
        }
    }
}

void caplet_squash_any(const caplet_squash_op *op, const void *x, void *y, uint32_t element)
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

void caplet_squash(const caplet_squash_op *op, const void *x, void *y, uint32_t element)
{
    op->kernel(op, x, y, element);
}
