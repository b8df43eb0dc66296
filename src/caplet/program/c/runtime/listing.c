/* A map as a list of its elements, channel by channel. */
#include "fixed.h"

void caplet_listing(const caplet_listing_op *op, const void *x, void *y)
{
    uint32_t i;
    for (i = 0; i < op->pixels * op->channels; i++) {
        const uint32_t from = i % op->pixels * op->channels + i / op->pixels;
        caplet_store(y, op->in_type, i, caplet_load(x, op->in_type, from));
    }
}
