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
