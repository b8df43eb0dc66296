/*
 * Windows of a convolution, gathered so that every element takes part in several products. A patch is int16_t
 * (taps / 2, CAPLET_POSITIONS, 2): elements in pairs; or of bytes, where vectors multiply codes and weights of bytes.
 */
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
        FOUR_OF(EVEN, ODD, x0, to); FOUR_OF(EVEN, ODD, x1, to + 2);                               \
        FOUR_OF(EVEN, ODD, x2, to + 4); FOUR_OF(EVEN, ODD, x3, to + 6);                           \
        to += 4 * CAPLET_POSITIONS;                                                                      \
    }
#else
#define FOURS(EVEN, ODD)
#endif

/* The same n elements of all windows, as elements k .. k + n - 1 of a patch in pairs. from: where each window's are. */
#define DEFINE_SPREAD(NAME, T, FAST)                                                                        \
    void NAME(const void *const *from, uint32_t n, void *patch, uint32_t k, uint32_t taps)                  \
    {                                                                                                       \
        int16_t *to = (int16_t *)patch + (k >> 1) * (2 * CAPLET_POSITIONS);                                 \
        const T *x0 = (const T *)from[0], *x1 = (const T *)from[1];                                         \
        const T *x2 = (const T *)from[2], *x3 = (const T *)from[3];                                         \
        (void)taps;                                                                                         \
        if ((k & 1u) && n > 0) {                                                                            \
            to[1] = (int16_t)*x0++, to[3] = (int16_t)*x1++, to[5] = (int16_t)*x2++, to[7] = (int16_t)*x3++; \
            to += 2 * CAPLET_POSITIONS, n--;                                                                \
        }                                                                                                   \
        FAST                                                                                                \
        for (; n >= 2; n -= 2) {                                                                            \
            PAIR_OF(x0, to), PAIR_OF(x1, to + 2), PAIR_OF(x2, to + 4), PAIR_OF(x3, to + 6);                 \
            to += 2 * CAPLET_POSITIONS;                                                                     \
        }                                                                                                   \
        if (n > 0) {                                                                                        \
            to[0] = (int16_t)*x0, to[2] = (int16_t)*x1, to[4] = (int16_t)*x2, to[6] = (int16_t)*x3;         \
        }                                                                                                   \
    }
#define UNSIGNED_FOURS FOURS(caplet_unsigned_02, caplet_unsigned_13)
#define SIGNED_FOURS FOURS(caplet_signed_02, caplet_signed_13)
DEFINE_SPREAD(caplet_widen_unsigned, uint8_t, UNSIGNED_FOURS)
DEFINE_SPREAD(caplet_widen_signed, int8_t, SIGNED_FOURS)
DEFINE_SPREAD(caplet_spread_words, int16_t, )

#ifndef CAPLET_VECTORS
DEFINE_SPREAD(caplet_spread_unsigned, uint8_t, UNSIGNED_FOURS)
DEFINE_SPREAD(caplet_spread_signed, int8_t, SIGNED_FOURS)
#else
/* A patch of bytes. flip: 128 makes signed codes of unsigned ones, less 128. */
CAPLET_COPIED void copy(const void *const *from, uint32_t n, void *patch, uint32_t k, uint32_t taps, uint8_t flip)
#ifdef CAPLET_RVV
{
    uint8_t *to = (uint8_t *)patch + k;
    uint32_t p, e, some;
    for (e = 0; e < n; e += some) {
        some = (uint32_t)__riscv_vsetvl_e8m8(n - e);
        for (p = 0; p < CAPLET_POSITIONS; p++) {
            const vuint8m8_t codes = __riscv_vle8_v_u8m8((const uint8_t *)from[p] + e, some);
            __riscv_vse8_v_u8m8(to + p * taps + e, __riscv_vxor_vx_u8m8(codes, flip, some), some);
        }
    }
}
#else
{
    const uint8x16_t flips = vdupq_n_u8(flip);
    uint8_t *to = (uint8_t *)patch + k;
    uint32_t p, e;
    for (e = 0; e + 16 <= n; e += 16) {
        CAPLET_UNROLL
        for (p = 0; p < CAPLET_POSITIONS; p++) {
            vstrbq_u8(to + p * taps, veorq_u8(vldrbq_u8((const uint8_t *)from[p] + e), flips));
        }
        to += 16;
    }
    if (e < n) {
        const mve_pred16_t some = vctp8q(n - e);
        CAPLET_UNROLL
        for (p = 0; p < CAPLET_POSITIONS; p++, to += taps) {
            vstrbq_p_u8(to, veorq_u8(vldrbq_z_u8((const uint8_t *)from[p] + e, some), flips), some);
        }
    }
}
#endif

#define DEFINE_COPY(NAME, FLIP)                                                            \
    void NAME(const void *const *from, uint32_t n, void *patch, uint32_t k, uint32_t taps) \
    {                                                                                      \
        copy(from, n, patch, k, taps, FLIP);                                               \
    }
DEFINE_COPY(caplet_spread_unsigned, 128)
DEFINE_COPY(caplet_spread_signed, 0)
#endif

/* What lies outside the input. */
enum { ZEROS = 32 };
static const int16_t zeros[ZEROS];

void caplet_gather(const caplet_conv_op *op, const void *x, uint32_t first_channel, uint32_t position,
                   uint32_t positions, const caplet_chunk *part, void *patch)
{
    const uint32_t whole = op->depth == op->in_channels, length = caplet_run_length(op);
    const int32_t bytes = (int32_t)caplet_element_bytes(op->in_type);
    int32_t tops[CAPLET_POSITIONS], lefts[CAPLET_POSITIONS], starts[CAPLET_POSITIONS]; /* of windows; bytes from x */
    uint32_t within = part->within;
    uint32_t row = whole ? part->run : part->run / op->kernel_columns;
    uint32_t column = whole ? 0u : part->run % op->kernel_columns;
    uint32_t inside = 1, k, n, p;
    int32_t top = (int32_t)(position / op->out_columns * op->stride) - (int32_t)op->top;
    int32_t left = (int32_t)(position % op->out_columns * op->stride) - (int32_t)op->padding;
    const int32_t last = left + (int32_t)((op->out_columns - 1u - position % op->out_columns) * op->stride);
    for (p = 0; p < CAPLET_POSITIONS; p++) {
        tops[p] = top, lefts[p] = left;
        starts[p] = (top * (int32_t)op->in_columns + left) * (int32_t)op->in_channels + (int32_t)first_channel;
        starts[p] *= bytes;
        inside = inside && top >= 0 && top + (int32_t)op->kernel_rows <= (int32_t)op->in_rows && left >= 0 &&
                 left + (int32_t)op->kernel_columns <= (int32_t)op->in_columns;
        if (p + 1 >= positions) { /* a last patch repeats a position */
            continue;
        }
        left += (int32_t)op->stride;
        if (left > last) {
            left = -(int32_t)op->padding, top += (int32_t)op->stride;
        }
    }
    for (k = 0; k < part->count; k += n) {
        const int32_t offset = (int32_t)((row * op->in_columns + column) * op->in_channels + within) * bytes;
        const void *from[CAPLET_POSITIONS];
        n = length - within < part->count - k ? length - within : part->count - k;
        for (p = 0; p < CAPLET_POSITIONS && inside; p++) {
            from[p] = (const uint8_t *)x + (starts[p] + offset);
        }
        for (p = 0; p < CAPLET_POSITIONS && !inside; p++) {
            /* Elements begin .. end - 1 of the run lie within the input; others are 0. */
            const uint32_t y = (uint32_t)(tops[p] + (int32_t)row);
            const int32_t z = lefts[p] + (int32_t)column;
            const int32_t columns = (int32_t)(whole ? op->kernel_columns : 1u);
            const int32_t room = (int32_t)op->in_columns - z < columns ? (int32_t)op->in_columns - z : columns;
            const uint32_t begin = z < 0 ? (uint32_t)-z * op->depth : 0u;
            const uint32_t end = y < op->in_rows && room > 0 ? (uint32_t)room * op->depth : 0u;
            const uint32_t zero = within < begin || within >= end;
            uint32_t rest = zero ? (within < begin ? begin - within : n) : end - within; /* as far as that is so */
            rest = zero && rest > ZEROS ? ZEROS : rest;
            n = rest < n ? rest : n;
            from[p] = zero ? (const uint8_t *)zeros : (const uint8_t *)x + (starts[p] + offset);
        }
        op->spread(from, n, patch, k, part->count);
        within += n;
        if (within == length) {
            within = 0, column++;
            if (whole || column == op->kernel_columns) {
                column = 0, row++;
            }
        }
    }
}
