/* Rows of accumulators to codes. */
#include "fixed.h"

#define NARROW(T, ACC, LEFT, CLIP)                                                                   \
    do {                                                                                             \
        const ACC *restrict in = (const ACC *)sums;                                                  \
        T *restrict codes = (T *)y;                                                                  \
        const ACC add = (ACC)caplet_rounding_term(out, right, 0);                                    \
        for (j = 0; j < count; j++) {                                                                \
            codes[j] = (T)CLIP((ACC)((LEFT(in[j], left) + add) >> right), low, high);                \
        }                                                                                            \
    } while (0)

#define NARROW_BY_TYPE(ACC, LEFT, CLIP)                                  \
    do {                                                                 \
        switch (out->type) {                                             \
        case CAPLET_INT8:                                                \
            NARROW(int8_t, ACC, LEFT, CLIP);                             \
            break;                                                       \
        case CAPLET_UINT8:                                               \
            NARROW(uint8_t, ACC, LEFT, CLIP);                            \
            break;                                                       \
        case CAPLET_INT16:                                               \
            NARROW(int16_t, ACC, LEFT, CLIP);                            \
            break;                                                       \
        default:                                                         \
            NARROW(uint16_t, ACC, LEFT, CLIP);                           \
            break;                                                       \
        }                                                                \
    } while (0)

void caplet_narrow_row(const caplet_accumulator *acc, const caplet_format *out, const void *sums, uint32_t count,
                       void *y, uint32_t element)
{
    uint32_t j;
    if (acc->channel_shifts == NULL && out->rounding != CAPLET_STOCHASTIC) {
        /* One scale for the whole row. */
        const caplet_scale scale = caplet_scale_of(acc, out, 0, 0);
        const uint32_t left = scale.left;
        const uint32_t right = scale.right;
        const int32_t low = out->low;
        const int32_t high = out->high;
        if (acc->wide) {
            NARROW_BY_TYPE(int64_t, caplet_left64, caplet_clip64);
        } else {
            NARROW_BY_TYPE(int32_t, caplet_left32, caplet_clip32);
        }
        return;
    }
    for (j = 0; j < count; j++) {
        const caplet_scale scale = caplet_scale_of(acc, out, j, 0);
        int32_t code;
        if (acc->wide) {
            code = caplet_narrow64(((const int64_t *)sums)[j], &scale, out, element + j);
        } else {
            code = caplet_narrow32(((const int32_t *)sums)[j], &scale, out, element + j);
        }
        caplet_store(y, out->type, j, code);
    }
}
