/* Windows of a convolution, gathered as int16_t so that every element takes part in several products. */
#include "fixed.h"

/* Two elements that lie one after the other, as a pair of a patch. */
#define PAIR_OF(X, TO) (TO)[0] = (int16_t)(X)[0], (TO)[1] = (int16_t)(X)[1], (X) += 2

/* Four of them, where the rest is left to others. */
#ifdef CAPLET_DSP
#define FOUR_OF(EVEN, ODD, X, TO)                                                                 \
    do {                                                                                          \
        const uint32_t word = caplet_load4(X), even = EVEN(word), odd = ODD(word);                \
        ((uint32_t *)(void *)(TO))[0] = caplet_low_halves(even, odd);                             \
        ((uint32_t *)(void *)(TO))[CAPLET_POSITIONS] = caplet_high_halves(even, odd);                    \
        (X) += 4;                                                                                 \
    } while (0)
#define FOURS(EVEN, ODD)                                                                          \
    for (; n >= 4; n -= 4) {                                                                      \
        FOUR_OF(EVEN, ODD, x0, to);                                                               \
        FOUR_OF(EVEN, ODD, x1, to + 2);                                                           \
        FOUR_OF(EVEN, ODD, x2, to + 4);                                                           \
        FOUR_OF(EVEN, ODD, x3, to + 6);                                                           \
        to += 4 * CAPLET_POSITIONS;                                                                      \
    }
#else
#define FOURS(EVEN, ODD)
#endif

/* The same n elements of all windows, as elements k .. k + n - 1 of the patch. from: where each window's lie in x. */
#define DEFINE_SPREAD(NAME, T, FAST)                                                                       \
    void NAME(const void *x, const uint32_t *from, uint32_t n, int16_t *patch, uint32_t k)                 \
    {                                                                                                      \
        int16_t *to = patch + (k >> 1) * (2 * CAPLET_POSITIONS);                                           \
        const T *x0 = (const T *)x + from[0], *x1 = (const T *)x + from[1];                                \
        const T *x2 = (const T *)x + from[2], *x3 = (const T *)x + from[3];                                \
        if ((k & 1u) && n > 0) {                                                                           \
            to[1] = (int16_t)*x0++, to[3] = (int16_t)*x1++, to[5] = (int16_t)*x2++, to[7] = (int16_t)*x3++; \
            to += 2 * CAPLET_POSITIONS;                                                                    \
            n--;                                                                                           \
        }                                                                                                  \
        FAST                                                                                               \
        for (; n >= 2; n -= 2) {                                                                           \
            PAIR_OF(x0, to);                                                                               \
            PAIR_OF(x1, to + 2);                                                                           \
            PAIR_OF(x2, to + 4);                                                                           \
            PAIR_OF(x3, to + 6);                                                                           \
            to += 2 * CAPLET_POSITIONS;                                                                    \
        }                                                                                                  \
        if (n > 0) {                                                                                       \
            to[0] = (int16_t)*x0, to[2] = (int16_t)*x1, to[4] = (int16_t)*x2, to[6] = (int16_t)*x3;        \
        }                                                                                                  \
    }

DEFINE_SPREAD(caplet_spread_unsigned, uint8_t, FOURS(caplet_unsigned_02, caplet_unsigned_13))
DEFINE_SPREAD(caplet_spread_signed, int8_t, FOURS(caplet_signed_02, caplet_signed_13))
DEFINE_SPREAD(caplet_spread_words, int16_t, )

void caplet_gather(const caplet_conv_op *op, const void *x, uint32_t first_channel, uint32_t position,
                   uint32_t positions, const caplet_chunk *part, int16_t *patch)
{
    const uint32_t whole = op->depth == op->in_channels;
    const uint32_t length = caplet_run_length(op);
    int32_t tops[CAPLET_POSITIONS];
    int32_t lefts[CAPLET_POSITIONS];
    uint32_t within = part->within;
    uint32_t row = whole ? part->run : part->run / op->kernel_columns;
    uint32_t column = whole ? 0u : part->run % op->kernel_columns;
    uint32_t inside = 1;
    uint32_t k;
    uint32_t p;
    for (p = 0; p < CAPLET_POSITIONS; p++) {
        const uint32_t at = p < positions ? position + p : position; /* a last patch repeats a position */
        tops[p] = (int32_t)(at / op->out_columns * op->stride) - (int32_t)op->padding;
        lefts[p] = (int32_t)(at % op->out_columns * op->stride) - (int32_t)op->padding;
        inside = inside && tops[p] >= 0 && tops[p] + (int32_t)op->kernel_rows <= (int32_t)op->in_rows &&
                 lefts[p] >= 0 && lefts[p] + (int32_t)op->kernel_columns <= (int32_t)op->in_columns;
    }
    for (k = 0; k < part->count;) {
        const uint32_t n = length - within < part->count - k ? length - within : part->count - k;
        uint32_t from[CAPLET_POSITIONS];
        for (p = 0; p < CAPLET_POSITIONS; p++) {
            const int32_t y = tops[p] + (int32_t)row;
            const int32_t z = lefts[p] + (int32_t)column;
            from[p] = (uint32_t)((y * (int32_t)op->in_columns + z) * (int32_t)op->in_channels) + first_channel + within;
        }
        if (inside) {
            op->spread(x, from, n, patch, k);
        } else {
            /* Elements begin .. end - 1 of the run lie within the input; others are 0. */
            for (p = 0; p < CAPLET_POSITIONS; p++) {
                const uint32_t y = (uint32_t)(tops[p] + (int32_t)row);
                const int32_t z = lefts[p] + (int32_t)column;
                const int32_t columns = (int32_t)(whole ? op->kernel_columns : 1u);
                const int32_t room = (int32_t)op->in_columns - z < columns ? (int32_t)op->in_columns - z : columns;
                const uint32_t begin = z < 0 ? (uint32_t)-z * op->depth : 0u;
                const uint32_t end = y < op->in_rows && room > 0 ? (uint32_t)room * op->depth : 0u;
                uint32_t e;
                for (e = 0; e < n; e++) {
                    const uint32_t at = within + e;
                    patch[((k + e) >> 1) * (2 * CAPLET_POSITIONS) + 2 * p + ((k + e) & 1u)] =
                        at >= begin && at < end ? (int16_t)caplet_load(x, op->in_type, from[p] + e) : 0;
                }
            }
        }
        k += n;
        within = 0;
        column++;
        if (whole || column == op->kernel_columns) {
            column = 0;
            row++;
        }
    }
}
