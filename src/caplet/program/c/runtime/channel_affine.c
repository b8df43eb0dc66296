/* Per-channel affine: batch normalisation after a ReLU. */
#include "fixed.h"

void caplet_channel_affine(const caplet_channel_affine_op *op, const void *x, void *y)
{
    uint32_t channel, pixel;
    for (channel = 0; channel < op->channels; channel++) {
        const int32_t factor = caplet_code(&op->scale, channel);
        const caplet_scale scale = caplet_scale_of(&op->acc, &op->out, channel, channel);
        uint32_t index = channel;
        for (pixel = 0; pixel < op->pixels; pixel++) {
            const int32_t code = caplet_load(x, op->in_type, index);
            const int32_t result = op->acc.wide ? caplet_requantize64((int64_t)code * factor, &scale, &op->out, index)
                                                : caplet_requantize32(code * factor, &scale, &op->out, index);
            caplet_store(y, op->out.type, index, result);
            index += op->channels;
        }
    }
}
