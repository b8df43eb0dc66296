/* Scales of accumulators, and rows of accumulators to codes. */
#include "fixed.h"

caplet_scale caplet_scale_of(const caplet_accumulator *acc, const caplet_format *out, uint32_t channel, uint32_t bias)
{
    const int32_t product = acc->product_frac + (acc->channel_shifts != NULL ? acc->channel_shifts[channel] : 0);
    const int32_t common = acc->bias.data != NULL && acc->bias_frac > product ? acc->bias_frac : product;
    caplet_scale scale = caplet_plain_scale(common - out->frac);
    if (acc->bias.data != NULL) {
        scale.add = caplet_left64(caplet_code(&acc->bias, bias), (uint32_t)(common - acc->bias_frac) + scale.left);
    }
    scale.left += (uint32_t)(common - product);
    return scale;
}

#define STORE(T)                        \
    do {                                \
        T *restrict codes = (T *)y;     \
        for (j = 0; j < count; j++) {   \
            codes[j] = (T)sums[j];      \
        }                               \
    } while (0)

/* The common case: int32_t, and one scale for the whole row. Two loops, as the first is vectorised best by itself. */
static void requantize_evenly(const caplet_scale *scale, const caplet_format *out, int32_t *restrict sums,
                              uint32_t count, void *y)
{
    const int32_t add = (int32_t)caplet_rounding_term(out, scale->right, 0);
    const uint32_t left = scale->left;
    const uint32_t right = scale->right;
    const int32_t low = out->low;
    const int32_t high = out->high;
    uint32_t j;
    for (j = 0; j < count; j++) {
        sums[j] = caplet_clip32((caplet_left32(sums[j], left) + add) >> right, low, high);
    }
    CAPLET_WITH_TYPE(out->type, STORE)
}

void caplet_requantize_row(const caplet_accumulator *acc, const caplet_format *out, void *sums, uint32_t count, void *y,
                           uint32_t element)
{
    uint32_t j;
    if (!acc->wide && acc->channel_shifts == NULL && out->rounding != CAPLET_STOCHASTIC) {
        const caplet_scale scale = caplet_scale_of(acc, out, 0, 0);
        requantize_evenly(&scale, out, (int32_t *)sums, count, y);
        return;
    }
    for (j = 0; j < count; j++) {
        const caplet_scale scale = caplet_scale_of(acc, out, j, 0);
        caplet_store(y, out->type, j, caplet_requantize(sums, acc->wide, j, &scale, out, element + j));
    }
}
