/*
 * Products of gathered windows with a pair of filters: the inner loop of a convolution. x: a patch, int16_t
 * (taps / 2, CAPLET_POSITIONS, 2); w: (taps, 2); sums: int32_t (2, CAPLET_POSITIONS), which start at 0 where `fresh`.
 */
#include "fixed.h"

/* One element of each window, and of both filters. */
#define TAP(X, W)                                                                                         \
    a0 += (W)[0] * (X)[0], b0 += (W)[1] * (X)[0], a1 += (W)[0] * (X)[2], b1 += (W)[1] * (X)[2],           \
    a2 += (W)[0] * (X)[4], b2 += (W)[1] * (X)[4], a3 += (W)[0] * (X)[6], b3 += (W)[1] * (X)[6]

#define LOAD_SUMS                                                                                               \
    int32_t a0 = 0, a1 = 0, a2 = 0, a3 = 0, b0 = 0, b1 = 0, b2 = 0, b3 = 0;    \
    if (!fresh) {                                                              \
        a0 = sums[0], a1 = sums[1], a2 = sums[2], a3 = sums[3];                \
        b0 = sums[4], b1 = sums[5], b2 = sums[6], b3 = sums[7];                \
    }

#define STORE_SUMS \
    sums[0] = a0, sums[1] = a1, sums[2] = a2, sums[3] = a3, sums[4] = b0, sums[5] = b1, sums[6] = b2, sums[7] = b3;

/* sums (PAIR, POSITIONS) += or, where `fresh`, = products of the patch x with a pair of filters w (taps, PAIR). */
#define DEFINE_MULTIPLY_PAIR(NAME, TW)                                                                         \
    void NAME(const void *weights, const int16_t *x, uint32_t taps, uint32_t fresh, int32_t *sums) \
    {                                                                                              \
        const TW *w = (const TW *)weights;                                                         \
        const TW *const end = w + CAPLET_PAIR * (taps & ~1u);                                      \
        LOAD_SUMS                                                                                              \
        while (w < end) {                                                                                      \
            TAP(x, w);                                                                                         \
            TAP(x + 1, w + CAPLET_PAIR);                                                                       \
            w += 2 * CAPLET_PAIR;                                                                              \
            x += 2 * CAPLET_POSITIONS;                                                                                \
        }                                                                                                      \
        if (taps & 1u) {                                                                                       \
            TAP(x, w);                                                                                         \
        }                                                                                                      \
        STORE_SUMS                                                                                             \
    }

DEFINE_MULTIPLY_PAIR(caplet_multiply_words, int16_t)

#ifdef CAPLET_DSP

/* Two elements of both filters (a word), at four positions. */
#define PAIRS(WORD)                                                                                     \
    do {                                                                                                \
        const uint32_t word = caplet_load4(w + 4 * (WORD));                                             \
        const uint32_t even = caplet_signed_02(word), odd = caplet_signed_13(word);                     \
        uint32_t p0, p1;                                                                                \
        caplet_load_two(pairs + 4 * (WORD), &p0, &p1);                                                  \
        a0 = caplet_multiply_pairs(even, p0, a0), b0 = caplet_multiply_pairs(odd, p0, b0);              \
        a1 = caplet_multiply_pairs(even, p1, a1), b1 = caplet_multiply_pairs(odd, p1, b1);              \
        caplet_load_two(pairs + 4 * (WORD) + 2, &p0, &p1);                                              \
        a2 = caplet_multiply_pairs(even, p0, a2), b2 = caplet_multiply_pairs(odd, p0, b2);              \
        a3 = caplet_multiply_pairs(even, p1, a3), b3 = caplet_multiply_pairs(odd, p1, b3);              \
    } while (0)

/* The same, two elements of each filter at a time. */
void caplet_multiply_bytes(const void *weights, const int16_t *x, uint32_t taps, uint32_t fresh, int32_t *sums)
{
    const int8_t *w = (const int8_t *)weights;
    const uint32_t *pairs = (const uint32_t *)(const void *)x;
    const int8_t *volatile whole = w + CAPLET_PAIR * (taps & ~15u); /* in memory: the sums need the registers */
    LOAD_SUMS
    while (w < whole) {
        PAIRS(0);
        PAIRS(1);
        PAIRS(2);
        PAIRS(3);
        PAIRS(4);
        PAIRS(5);
        PAIRS(6);
        PAIRS(7);
        w += 32;
        pairs += 32;
    }
    for (taps &= 15u; taps >= 2; taps -= 2) {
        PAIRS(0);
        w += 4;
        pairs += 4;
    }
    if (taps > 0) {
        x = (const int16_t *)(const void *)pairs;
        TAP(x, w);
    }
    STORE_SUMS
}

#else

DEFINE_MULTIPLY_PAIR(caplet_multiply_bytes, int8_t)

#endif
