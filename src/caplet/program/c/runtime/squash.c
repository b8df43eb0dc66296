/* Squash: every capsule s becomes s * |s| / (1 + |s|^2), with one square root and one division per capsule. */
#include "fixed.h"

/* The factor of a capsule: multiplier * 2^-shift. multiplier: below 2^31; shift: 5..62. */
typedef struct {
    uint32_t multiplier, shift;
} factor;

/*
 * length: squared length in codes, 1 or more; divisor: length + 1, in the same units, below 2^31. The root's square has
 * zeros below its upper 32 bits, as it is shifted up by 32 bits or more: shifts of 32 bits do for everything.
 */
static factor short_factor_of(uint32_t length, uint32_t divisor, int32_t out_frac)
{
    const uint32_t lift = (62u - caplet_bit_length(length)) >> 1, bits = caplet_bit_length(divisor);
    const uint32_t root = caplet_isqrt((uint64_t)(length << (2u * lift - 30u)) << 30);
    const int32_t shift = (int32_t)lift + (int32_t)bits - 1 - out_frac;
    const factor result = {caplet_divide((uint64_t)root << 30, divisor << (31u - bits)),
                           shift < 62 ? (uint32_t)shift : 62u};
    return result;
}

/* Any length, 1 or more. The exporter checked that the squares below stay under 2^62. */
static CAPLET_COLD factor factor_of(uint64_t length, int16_t in_frac, int16_t out_frac)
{
    const uint32_t up = in_frac < 0 ? (uint32_t)-in_frac : 0u;
    const uint32_t down = in_frac > 0 ? (uint32_t)in_frac : 0u;
    const uint64_t units = length << (2u * up), divisor = units + ((uint64_t)1 << (2u * down));
    const uint32_t lift = (62u - caplet_bit_length(units)) >> 1;
    const uint32_t root = caplet_isqrt(units << (2u * lift)); /* 2^30 .. 2^31 - 1 */
    const uint32_t bits = caplet_bit_length(divisor);
    const uint64_t normal = bits >= 31u ? divisor >> (bits - 31u) : divisor << (31u - bits); /* 2^30 .. 2^31 - 1 */
    const int32_t shift = 30 + (int32_t)lift + ((int32_t)bits - 31) - (int32_t)up - out_frac;
    const factor result = {caplet_divide((uint64_t)root << 30, (uint32_t)normal), shift < 62 ? (uint32_t)shift : 62u};
    return result;
}

#ifdef CAPLET_HELIUM
static inline uint32_t length_of(const int8_t *x, uint32_t dim)
{
    int8x16_t codes = vldrbq_z_s8(x, vctp8q(dim));
    int32_t length = vmladavq_s8(codes, codes);
    uint32_t d;
    for (d = 16; d < dim; d += 16) {
        codes = vldrbq_z_s8(x + d, vctp8q(dim - d)), length = vmladavaq_s8(length, codes, codes);
    }
    return (uint32_t)length;
}

/* y = (x * 2^left * multiplier / 2^32 + term) / 2^right. */
static inline void scale_bytes(const int8_t *x, int8_t *y, uint32_t dim, uint32_t left, int32_t multiplier,
                               int32_t term, uint32_t right, const caplet_format *out)
{
    const int32x4_t by = vdupq_n_s32(multiplier), low = vdupq_n_s32(out->low), high = vdupq_n_s32(out->high);
    int32x4_t codes;
#define SCALED(CODES) \
    vshlq_r_s32(vaddq_n_s32(vmulhq_s32(vshlq_r_s32(CODES, (int32_t)left), by), term), -(int32_t)right)
    for (; dim >= 4; dim -= 4, x += 4, y += 4) {
        codes = SCALED(vldrbq_s32(x));
        vstrbq_s32(y, vminq_s32(vmaxq_s32(codes, low), high));
    }
    if (dim > 0) {
        const mve_pred16_t some = vctp32q(dim);
        codes = SCALED(vldrbq_z_s32(x, some));
        vstrbq_p_s32(y, vminq_s32(vmaxq_s32(codes, low), high), some);
    }
}
#else
#define length_of(x, dim) ((uint32_t)caplet_squared_length(x, CAPLET_INT8, dim))

/* y = (x * 2^left * multiplier / 2^32 + term) / 2^right. */
static inline void scale_bytes(const int8_t *x, int8_t *y, uint32_t dim, uint32_t left, int32_t multiplier,
                               int32_t term, uint32_t right, const caplet_format *out)
{
    const int32_t low = out->low, high = out->high;
    for (; dim > 0; dim--) {
        const int32_t product = (int32_t)(((int64_t)caplet_left32(*x++, left) * multiplier) >> 32);
        *y++ = (int8_t)caplet_clip32((product + term) >> right, low, high);
    }
}
#endif

/*
 * Codes are shifted up so that products are shifted down by 33 or more: their low halves, and the rounding term's, then
 * change nothing. The multiplier's shift is 10 or more, as a length has at most 20 bits and out.frac is at most 11.
 */
void caplet_squash_bytes(const caplet_squash_op *op, const void *x, void *y, uint32_t element)
{
    const uint32_t dim = op->dim, one = (uint32_t)1 << (2 * op->in_frac);
    const uint32_t nearest = op->out.rounding != CAPLET_TRUNCATE;
    const int8_t *from = (const int8_t *)x;
    int8_t *to = (int8_t *)y;
    uint32_t capsule;
    (void)element;
    for (capsule = op->count; capsule > 0; capsule--) {
        uint32_t length = length_of(from, dim); /* at most 64 * 2^14 */
        uint32_t left;
        factor by;
        length += length == 0 ? 1u : 0u; /* a zero capsule has any factor */
        by = short_factor_of(length, length + one, op->out.frac);
        left = by.shift < 33u ? 33u - by.shift : 0u; /* at most 23: codes stay below 2^31 */
        by.shift += left - 32u;
        scale_bytes(from, to, dim, left, (int32_t)by.multiplier, (int32_t)(nearest << by.shift >> 1), by.shift,
                    &op->out);
        from += dim, to += dim;
    }
}

CAPLET_COLD void caplet_squash_any(const caplet_squash_op *op, const void *x, void *y, uint32_t element)
{
    const uint32_t noisy = op->out.rounding == CAPLET_STOCHASTIC;
    uint32_t capsule, d;
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
