/* Raw pixels to codes, by a table of 256 codes per channel. */
#include "fixed.h"

void caplet_input_quantize(const caplet_input_quantize_op *op, const uint8_t *x, void *y)
{
    uint32_t index = 0;
    uint32_t pixel;
    uint32_t channel;
    for (pixel = 0; pixel < op->pixels; pixel++) {
        for (channel = 0; channel < op->channels; channel++) {
            caplet_store(y, op->out.type, index, caplet_code(&op->table, channel * 256u + x[index]));
            index++;
        }
    }
}
