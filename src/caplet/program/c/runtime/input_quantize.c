/* Raw pixels to codes, by a table of 256 codes per channel. */
#include "fixed.h"

CAPLET_COLD void caplet_input_quantize(const caplet_input_quantize_op *op, const uint8_t *x, void *y)
{
    const uint8_t *table = (const uint8_t *)op->table.data;
    const uint32_t channels = op->channels, count = op->pixels * channels;
    uint32_t channel = 0, index = 0;
    for (; index < count && op->table.bits != 8; index++) {
        caplet_store(y, op->out.type, index, caplet_code(&op->table, channel * 256u + x[index]));
        channel = channel + 1 < channels ? channel + 1 : 0u;
    }
    for (; index < count; index++) { /* codes as they are stored */
        ((uint8_t *)y)[index] = table[channel * 256u + x[index]];
        channel = channel + 1 < channels ? channel + 1 : 0u;
    }
}
