/* A map as a list of its elements, channel by channel. */
#include "fixed.h"

void caplet_listing(const caplet_listing_op *op, const void *x, void *y)
{
    uint32_t place = 0;
    uint32_t channel;
    uint32_t pixel;
    for (channel = 0; channel < op->channels; channel++) {
        for (pixel = 0; pixel < op->pixels; pixel++) {
            caplet_store(y, op->in_type, place, caplet_load(x, op->in_type, pixel * op->channels + channel));
            place++;
        }
    }
}
