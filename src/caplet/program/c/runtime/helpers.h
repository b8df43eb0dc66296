/*
 * Functions that many ops share. fixed.h includes them, inline, where that makes speed, and fixed.c where small code
 * matters more.
 */
#ifndef CAPLET_HELPERS_H
#define CAPLET_HELPERS_H

#include "fixed.h"

#define CAPLET_LOAD(T) return ((const T *)x)[index]
#define CAPLET_STORE(T) ((T *)x)[index] = (T)code

/* Element `index`: -32768..65535. */
CAPLET_HELPER int32_t caplet_load(const void *x, uint8_t type, uint32_t index)
{
    CAPLET_WITH_TYPE(type, CAPLET_LOAD)
}

/* code: within the range of `type`. */
CAPLET_HELPER void caplet_store(void *x, uint8_t type, uint32_t index, int32_t code)
{
    CAPLET_WITH_TYPE(type, CAPLET_STORE)
}

/* The 32 random bits of an element: two rounds of the finalizer of MurmurHash3, a bijection of uint32_t. */
static inline uint32_t caplet_mix32(uint32_t x)
{
    x ^= x >> 16;
    x *= 0x85EBCA6Bu;
    x ^= x >> 13;
    x *= 0xC2B2AE35u;
    return x ^ (x >> 16);
}

static CAPLET_COLD uint32_t caplet_noise(const caplet_format *format, uint32_t element)
{
    return caplet_mix32(caplet_mix32(element + format->noise_a) ^ format->noise_b);
}

/* What a rounding shift by `right` (0..62) adds before shifting: half, nothing, or the top bits of the noise. */
CAPLET_HELPER int64_t caplet_rounding_term(const caplet_format *format, uint32_t right, uint32_t element)
{
    if (right == 0 || format->rounding == CAPLET_TRUNCATE) {
        return 0;
    }
    if (format->rounding == CAPLET_NEAREST) {
        return (int64_t)1 << (right - 1);
    }
    if (right <= 32) {
        return (int64_t)(caplet_noise(format, element) >> (32 - right));
    }
    return (int64_t)((uint64_t)caplet_noise(format, element) << (right - 32));
}

/* The code of a sum of products: int32_t, or int64_t where the accumulator is wide. */
CAPLET_HELPER int32_t caplet_requantize32(int32_t acc, const caplet_scale *scale, const caplet_format *out,
                                          uint32_t element)
{
    int32_t sum = caplet_left32(acc, scale->left) + (int32_t)scale->add;
    sum += (int32_t)caplet_rounding_term(out, scale->right, element);
    return caplet_clip32(sum >> scale->right, out->low, out->high);
}

CAPLET_HELPER int32_t caplet_requantize64(int64_t acc, const caplet_scale *scale, const caplet_format *out,
                                          uint32_t element)
{
    int64_t sum = caplet_left64(acc, scale->left) + scale->add;
    sum += caplet_rounding_term(out, scale->right, element);
    return caplet_clip64(sum >> scale->right, out->low, out->high);
}

/* The code of sum `index` of a row of int32_t, or of int64_t where `wide`. */
CAPLET_HELPER int32_t caplet_requantize(const void *sums, uint8_t wide, uint32_t index, const caplet_scale *scale,
                                        const caplet_format *out, uint32_t element)
{
    return wide ? caplet_requantize64(((const int64_t *)sums)[index], scale, out, element)
                : caplet_requantize32(((const int32_t *)sums)[index], scale, out, element);
}
#endif
