/* Integer square root, bit length, and the scales of accumulators. */
#include "fixed.h"

uint32_t caplet_bit_length(uint64_t n)
{
    uint32_t bits = 0;
    uint32_t step;
    for (step = 32; step > 0; step >>= 1) {
        if (n >> step) {
            n >>= step;
            bits += step;
        }
    }
    return bits + (uint32_t)n;
}

uint32_t caplet_isqrt(uint64_t n)
{
    uint32_t root = 0;
    uint32_t bit;
    for (bit = (uint32_t)1 << 30; bit > 0; bit >>= 1) {
        const uint32_t trial = root | bit;
        if ((uint64_t)trial * trial <= n) {
            root = trial;
        }
    }
    return root;
}

caplet_scale caplet_scale_of(const caplet_accumulator *acc, const caplet_format *out, uint32_t channel, uint32_t bias)
{
    int32_t product = acc->product_frac;
    int32_t common;
    int32_t right;
    uint32_t extra;
    caplet_scale scale;
    if (acc->channel_shifts != NULL) {
        product += acc->channel_shifts[channel];
    }
    common = product;
    if (acc->bias.data != NULL && acc->bias_frac > common) {
        common = acc->bias_frac;
    }
    right = common - out->frac;
    extra = right < 0 ? (uint32_t)-right : 0u;
    scale.left = (uint32_t)(common - product) + extra;
    scale.right = right < 0 ? 0u : (uint32_t)right;
    scale.add = 0;
    if (acc->bias.data != NULL) {
        scale.add = caplet_left64(caplet_code(&acc->bias, bias), (uint32_t)(common - acc->bias_frac) + extra);
    }
    return scale;
}
