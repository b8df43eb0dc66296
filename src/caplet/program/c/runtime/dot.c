/*
 * Inner loops: dot products and multiples of rows, for every pair of element types. Plain loops over contiguous runs,
 * which compilers vectorise.
 */
#include "fixed.h"

#define DOT(TX, TW, ACC)                                                 \
    do {                                                                 \
        const TX *restrict a = (const TX *)x;                            \
        const TW *restrict b = (const TW *)w;                            \
        ACC sum = 0;                                                     \
        for (k = 0; k < n; k++) {                                        \
            sum += (ACC)a[k] * (ACC)b[k];                                \
        }                                                                \
        return sum;                                                      \
    } while (0)

#define DOT_BY_WEIGHT(TX, ACC)             \
    do {                                   \
        if (w_type == CAPLET_INT8) {       \
            DOT(TX, int8_t, ACC);          \
        }                                  \
        if (w_type == CAPLET_INT16) {      \
            DOT(TX, int16_t, ACC);         \
        }                                  \
        DOT(TX, uint16_t, ACC);            \
    } while (0)

#define DOT_BY_TYPES(ACC)                  \
    do {                                   \
        uint32_t k;                        \
        switch (x_type) {                  \
        case CAPLET_INT8:                  \
            DOT_BY_WEIGHT(int8_t, ACC);    \
        case CAPLET_UINT8:                 \
            DOT_BY_WEIGHT(uint8_t, ACC);   \
        case CAPLET_INT16:                 \
            DOT_BY_WEIGHT(int16_t, ACC);   \
        default:                           \
            DOT_BY_WEIGHT(uint16_t, ACC);  \
        }                                  \
    } while (0)

int32_t caplet_dot32(const void *x, uint8_t x_type, const void *w, uint8_t w_type, uint32_t n)
{
    DOT_BY_TYPES(int32_t);
}

int64_t caplet_dot64(const void *x, uint8_t x_type, const void *w, uint8_t w_type, uint32_t n)
{
    DOT_BY_TYPES(int64_t);
}

/* Four rows at a time, so that a sum is loaded and stored once for all of them; then the rest one by one. */
#define AXPY(TW, ACC)                                                                        \
    do {                                                                                     \
        ACC *restrict sums = acc;                                                            \
        for (; row + 4 <= rows; row += 4) {                                                  \
            const TW *restrict w0 = (const TW *)w + (size_t)row * n, *restrict w1 = w0 + n;  \
            const TW *restrict w2 = w1 + n, *restrict w3 = w2 + n;                           \
            const ACC x0 = x[row], x1 = x[row + 1], x2 = x[row + 2], x3 = x[row + 3];        \
            for (j = 0; j < n; j++) {                                                        \
                sums[j] += x0 * (ACC)w0[j] + x1 * (ACC)w1[j] + x2 * (ACC)w2[j] + x3 * (ACC)w3[j]; \
            }                                                                                \
        }                                                                                    \
        for (; row < rows; row++) {                                                          \
            const TW *restrict w0 = (const TW *)w + (size_t)row * n;                         \
            const ACC x0 = x[row];                                                           \
            for (j = 0; j < n; j++) {                                                        \
                sums[j] += x0 * (ACC)w0[j];                                                  \
            }                                                                                \
        }                                                                                    \
    } while (0)

#define AXPY_BY_WEIGHT(ACC)                                              \
    do {                                                                 \
        uint32_t row = 0;                                                \
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
