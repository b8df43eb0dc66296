/*
 * Inner loops: dot products and multiples of rows, for every pair of element types. Plain loops over contiguous runs,
 * which compilers vectorise.
 */
#include "fixed.h"

#define DOT(TX, TW, ACC)                                                 \
    do {                                                                 \
        const TX *restrict a = (const TX *)x;                            \
        const TW *restrict b = (const TW *)w;                            \
        for (k = 0; k < n; k++) {                                        \
            sum += (ACC)a[k] * (ACC)b[k];                                \
        }                                                                \
    } while (0)

#define DOT_BY_WEIGHT(TX, ACC)              \
    do {                                    \
        if (w_type == CAPLET_INT8) {        \
            DOT(TX, int8_t, ACC);           \
        } else if (w_type == CAPLET_INT16) {\
            DOT(TX, int16_t, ACC);          \
        } else {                            \
            DOT(TX, uint16_t, ACC);         \
        }                                   \
    } while (0)

#define DOT_32(TX) DOT_BY_WEIGHT(TX, int32_t)
#define DOT_64(TX) DOT_BY_WEIGHT(TX, int64_t)

int32_t caplet_dot32(const void *x, uint8_t x_type, const void *w, uint8_t w_type, uint32_t n)
{
    int32_t sum = 0;
    uint32_t k;
    CAPLET_WITH_TYPE(x_type, DOT_32)
    return sum;
}

int64_t caplet_dot64(const void *x, uint8_t x_type, const void *w, uint8_t w_type, uint32_t n)
{
    int64_t sum = 0;
    uint32_t k;
    CAPLET_WITH_TYPE(x_type, DOT_64)
    return sum;
}

/* Pointers that move keep the registers of small processors free. */
#define DOT_FOUR(TX, TW)                                                                                \
    do {                                                                                                \
        const TX *a = (const TX *)x;                                                                    \
        const TX *const end = a + n;                                                                    \
        const TW *w0 = (const TW *)w, *w1 = w0 + stride, *w2 = w1 + stride, *w3 = w2 + stride;          \
        int32_t s0 = sums[0], s1 = sums[1], s2 = sums[2], s3 = sums[3];                                 \
        while (a < end) {                                                                               \
            const int32_t code = *a++;                                                                  \
            s0 += code * *w0++;                                                                         \
            s1 += code * *w1++;                                                                         \
            s2 += code * *w2++;                                                                         \
            s3 += code * *w3++;                                                                         \
        }                                                                                               \
        sums[0] = s0, sums[1] = s1, sums[2] = s2, sums[3] = s3;                                         \
    } while (0)

uint8_t caplet_dot_four(const void *x, uint8_t x_type, const void *w, uint8_t w_type, uint32_t stride, uint32_t n,
                        int32_t *restrict sums)
{
    if (x_type == CAPLET_UINT8 && w_type == CAPLET_INT8) {
        DOT_FOUR(uint8_t, int8_t);
    } else if (x_type == CAPLET_INT8 && w_type == CAPLET_INT8) {
        DOT_FOUR(int8_t, int8_t);
    } else if (x_type == CAPLET_INT16 && w_type == CAPLET_INT16) {
        DOT_FOUR(int16_t, int16_t);
    } else {
        return 0;
    }
    return 1;
}

void caplet_clear_sums(void *sums, uint8_t wide, uint32_t count)
{
    const uint32_t words = wide ? 2u * count : count;
    uint32_t j;
    for (j = 0; j < words; j++) {
        ((int32_t *)sums)[j] = 0;
    }
}

/* Four rows at a time, so that a sum is loaded and stored once for all of them; then the rest one by one. */
#define AXPY(TW, ACC)                                                                             \
    do {                                                                                          \
        const TW *restrict w0 = (const TW *)w;                                                    \
        ACC *restrict sums = acc;                                                                 \
        for (; rows >= 4; rows -= 4) {                                                            \
            const TW *restrict w1 = w0 + n, *restrict w2 = w1 + n, *restrict w3 = w2 + n;         \
            const ACC x0 = x[0], x1 = x[1], x2 = x[2], x3 = x[3];                                 \
            for (j = 0; j < n; j++) {                                                             \
                sums[j] += x0 * (ACC)w0[j] + x1 * (ACC)w1[j] + x2 * (ACC)w2[j] + x3 * (ACC)w3[j]; \
            }                                                                                     \
            w0 = w3 + n;                                                                          \
            x += 4;                                                                               \
        }                                                                                         \
        for (; rows > 0; rows--) {                                                                \
            const ACC x0 = *x++;                                                                  \
            for (j = 0; j < n; j++) {                                                             \
                sums[j] += x0 * (ACC)w0[j];                                                       \
            }                                                                                     \
            w0 += n;                                                                              \
        }                                                                                         \
    } while (0)

#define AXPY_BY_WEIGHT(ACC)                                              \
    do {                                                                 \
        uint32_t j;                                                      \
        if (w_type == CAPLET_INT8) {                                     \
            AXPY(int8_t, ACC);                                           \
        } else if (w_type == CAPLET_INT16) {                             \
            AXPY(int16_t, ACC);                                          \
        } else {                                                         \
            AXPY(uint16_t, ACC);                                         \
        }                                                                \
    } while (0)

void caplet_axpy32(int32_t *acc, const int32_t *x, const void *w, uint8_t w_type, uint32_t rows, uint32_t n)
{
    AXPY_BY_WEIGHT(int32_t);
}

void caplet_axpy64(int64_t *acc, const int32_t *x, const void *w, uint8_t w_type, uint32_t rows, uint32_t n)
{
    AXPY_BY_WEIGHT(int64_t);
}

uint64_t caplet_squared_length(const void *x, uint8_t type, uint32_t dim)
{
    uint32_t d;
    uint64_t sum = 0;
    if (type == CAPLET_INT8) {
        /* At most 64 * 2^14. */
        return (uint64_t)(uint32_t)caplet_dot32(x, type, x, type, dim);
    }
    for (d = 0; d < dim; d++) {
        const int32_t code = caplet_load(x, type, d);
        const uint32_t magnitude = code < 0 ? (uint32_t)-code : (uint32_t)code;
        sum += magnitude * magnitude; /* at most 65535^2, below 2^32 */
    }
    return sum;
}
