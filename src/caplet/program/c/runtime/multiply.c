/*
 * Products of gathered windows with one filter or a pair of them: the inner loop of a convolution. w: (taps, filters);
 * sums: int32_t (filters, CAPLET_POSITIONS), which start at 0 where `fresh`. patch: see patch.c.
 */
#include "fixed.h"

/* One element of each window, and of both filters. */
#define TAP(X, W)                                                                               \
    a0 += (W)[0] * (X)[0], b0 += (W)[1] * (X)[0], a1 += (W)[0] * (X)[2], b1 += (W)[1] * (X)[2], \
    a2 += (W)[0] * (X)[4], b2 += (W)[1] * (X)[4], a3 += (W)[0] * (X)[6], b3 += (W)[1] * (X)[6]
#define LOAD_SUMS                                                       \
    int32_t a0 = 0, a1 = 0, a2 = 0, a3 = 0, b0 = 0, b1 = 0, b2 = 0, b3 = 0;                                         \
    if (!fresh) {                                                                                    \
        a0 = sums[0], a1 = sums[1], a2 = sums[2], a3 = sums[3];                                      \
        b0 = sums[4], b1 = sums[5], b2 = sums[6], b3 = sums[7];                                      \
    }
#define STORE_SUMS \
    sums[0] = a0, sums[1] = a1, sums[2] = a2, sums[3] = a3, sums[4] = b0, sums[5] = b1, sums[6] = b2, sums[7] = b3;

/* A last filter without another. */
#define DEFINE_MULTIPLY_ONE(NAME, TW)                                                                         \
    static CAPLET_APART void NAME(const TW *w, const int16_t *x, uint32_t taps, uint32_t fresh, int32_t *sums) \
    {                                                                                                         \
        uint32_t k;                                                                                           \
        for (k = 0; fresh && k < CAPLET_POSITIONS; k++) {                                                     \
            sums[k] = 0;                                                                                      \
        }                                                                                                     \
        for (k = 0; k < taps; k++) {                                                                          \
            const int32_t weight = w[k];                                                                      \
            sums[0] += weight * x[0], sums[1] += weight * x[2];                                               \
            sums[2] += weight * x[4], sums[3] += weight * x[6];                                               \
            x += k & 1u ? 2 * CAPLET_POSITIONS - 1 : 1;                                                       \
        }                                                                                                     \
    }
DEFINE_MULTIPLY_ONE(multiply_one_of_bytes, int8_t)
DEFINE_MULTIPLY_ONE(multiply_one_of_words, int16_t)
#define MULTIPLIER(NAME) \
    void NAME(const void *weights, const void *patch, uint32_t taps, uint32_t filters, uint32_t fresh, int32_t *sums)

#define DEFINE_MULTIPLY(NAME, TW, ONE)                                  \
    MULTIPLIER(NAME)                                                    \
    {                                                                   \
        const TW *w = (const TW *)weights;                              \
        const TW *const end = w + CAPLET_PAIR * (taps & ~1u);           \
        const int16_t *p = (const int16_t *)patch;                      \
        if (filters < CAPLET_PAIR) {                                    \
            ONE(w, p, taps, fresh, sums);                               \
        } else {                                                        \
            LOAD_SUMS                                                   \
            while (w < end) {                                           \
                TAP(p, w), TAP(p + 1, w + CAPLET_PAIR);                 \
                w += 2 * CAPLET_PAIR, p += 2 * CAPLET_POSITIONS;        \
            }                                                           \
            if (taps & 1u) {                                            \
                TAP(p, w);                                              \
            }                                                           \
            STORE_SUMS                                                  \
        }                                                               \
    }
#ifdef CAPLET_DSP
MULTIPLIER(caplet_multiply_words)
{
    const int8_t *w = (const int8_t *)weights; /* one weight of each filter, at any even address */
    const uint32_t *pairs = (const uint32_t *)patch;
    if (filters < CAPLET_PAIR) {
        multiply_one_of_words((const int16_t *)weights, (const int16_t *)patch, taps, fresh, sums);
        return;
    }
    LOAD_SUMS
    for (; taps >= 2; taps -= 2, w += 8, pairs += CAPLET_POSITIONS) {
        const uint32_t first = caplet_load4(w), second = caplet_load4(w + 4);
        const uint32_t even = caplet_low_halves(first, second), odd = caplet_high_halves(first, second);
        uint32_t p0, p1;
        caplet_load_two(pairs, &p0, &p1);
        a0 = caplet_multiply_pairs(even, p0, a0), b0 = caplet_multiply_pairs(odd, p0, b0);
        a1 = caplet_multiply_pairs(even, p1, a1), b1 = caplet_multiply_pairs(odd, p1, b1);
        caplet_load_two(pairs + 2, &p0, &p1);
        a2 = caplet_multiply_pairs(even, p0, a2), b2 = caplet_multiply_pairs(odd, p0, b2);
        a3 = caplet_multiply_pairs(even, p1, a3), b3 = caplet_multiply_pairs(odd, p1, b3);
    }
    if (taps > 0) {
        const int16_t *x = (const int16_t *)(const void *)pairs;
        TAP(x, (const int16_t *)(const void *)w);
    }
    STORE_SUMS
}
#else
DEFINE_MULTIPLY(caplet_multiply_words, int16_t, multiply_one_of_words)
#endif

/* Weights of bytes by codes of 16 bits. Without vectors of bytes, codes that are bytes come so, too. */
#ifdef CAPLET_VECTORS
#define BY_WORDS caplet_multiply_mixed
#else
#define BY_WORDS caplet_multiply_bytes
MULTIPLIER(caplet_multiply_mixed)
{
    caplet_multiply_bytes(weights, patch, taps, filters, fresh, sums);
}
#endif
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

MULTIPLIER(BY_WORDS)
{
    const int8_t *w = (const int8_t *)weights;
    const uint32_t *pairs = (const uint32_t *)patch;
    const int8_t *volatile whole = w + CAPLET_PAIR * (taps & ~15u); /* in memory: the sums need the registers */
    if (filters < CAPLET_PAIR) {
        multiply_one_of_bytes(w, (const int16_t *)patch, taps, fresh, sums);
        return;
    }
    LOAD_SUMS
    while (w < whole) {
        PAIRS(0); PAIRS(1); PAIRS(2); PAIRS(3);
        PAIRS(4); PAIRS(5); PAIRS(6); PAIRS(7);
        w += 32, pairs += 32;
    }
    for (taps &= 15u; taps >= 2; taps -= 2) {
        PAIRS(0);
        w += 4, pairs += 4;
    }
    if (taps > 0) {
        const int16_t *x = (const int16_t *)(const void *)pairs;
        TAP(x, w);
    }
    STORE_SUMS
}
#else
DEFINE_MULTIPLY(BY_WORDS, int8_t, multiply_one_of_bytes)
#endif
#ifdef CAPLET_HELIUM
/* patch: (CAPLET_POSITIONS, taps). */
MULTIPLIER(caplet_multiply_bytes)
{
    const int8_t *x = (const int8_t *)patch;
    const mve_pred16_t some = vctp8q(taps & 15u);
    uint32_t p, k;
    if (filters == CAPLET_PAIR) {
        for (p = CAPLET_POSITIONS; p > 0; p -= 2) { /* two windows at a time */
            const int8_t *w = (const int8_t *)weights;
            const int8_t *y = x + taps;
            int32_t a0 = 0, a1 = 0, b0 = 0, b1 = 0;
            if (!fresh) {
                a0 = sums[0], a1 = sums[1], b0 = sums[4], b1 = sums[5];
            }
            for (k = taps >> 4; k > 0; k--, w += 32, x += 16, y += 16) {
                const int8x16x2_t f = vld2q_s8(w);
                const int8x16_t u = vldrbq_s8(x), v = vldrbq_s8(y);
                a0 = vmladavaq_s8(a0, f.val[0], u), b0 = vmladavaq_s8(b0, f.val[1], u);
                a1 = vmladavaq_s8(a1, f.val[0], v), b1 = vmladavaq_s8(b1, f.val[1], v);
            }
            if (taps & 15u) {
                const uint8x16_t places = vidupq_n_u8(0, 2);
                const int8x16_t f = vldrbq_gather_offset_z_s8(w, places, some);
                const int8x16_t g = vldrbq_gather_offset_z_s8(w + 1, places, some);
                const int8x16_t u = vldrbq_z_s8(x, some), v = vldrbq_z_s8(y, some);
                a0 = vmladavaq_s8(a0, f, u), b0 = vmladavaq_s8(b0, g, u);
                a1 = vmladavaq_s8(a1, f, v), b1 = vmladavaq_s8(b1, g, v);
            }
            sums[0] = a0, sums[1] = a1, sums[4] = b0, sums[5] = b1, sums += 2, x = y + (taps & 15u);
        }
        return;
    }
    for (p = 0; p < CAPLET_POSITIONS; p++) {
        const int8_t *w = (const int8_t *)weights;
        int32_t sum = fresh ? 0 : *sums;
        for (k = taps >> 4; k > 0; k--) {
            sum = vmladavaq_s8(sum, vldrbq_s8(w), vldrbq_s8(x)), w += 16, x += 16;
        }
        *sums++ = vmladavaq_s8(sum, vldrbq_z_s8(w, some), vldrbq_z_s8(x, some)), x += taps & 15u;
    }
}
#endif
#ifdef CAPLET_RVV
/* The sum of products of two vectors of bytes, added to the first element of acc. */
static inline vint32m1_t add_products(vint32m1_t acc, vint8m2_t a, vint8m2_t b, size_t n)
{
    return __riscv_vwredsum_vs_i16m4_i32m1(__riscv_vwmul_vv_i16m4(a, b, n), acc, n);
}

#define SUM_OF(SUMS, P) __riscv_vmv_s_x_i32m1(fresh ? 0 : (SUMS)[P], 1)

/* patch: (CAPLET_POSITIONS, taps). */
MULTIPLIER(caplet_multiply_bytes)
{
    const int8_t *x = (const int8_t *)patch, *w = (const int8_t *)weights;
    uint32_t p, k;
    size_t n;
    if (filters == CAPLET_PAIR) {
        for (p = 0; p < CAPLET_POSITIONS; p += 2, x += 2 * taps, sums += 2) { /* two windows at a time */
            vint32m1_t a0 = SUM_OF(sums, 0), a1 = SUM_OF(sums, 1), b0 = SUM_OF(sums, 4), b1 = SUM_OF(sums, 5);
            for (k = 0; k < taps; k += (uint32_t)n) {
                n = __riscv_vsetvl_e8m2(taps - k);
                {
                    const vint8m2x2_t f = __riscv_vlseg2e8_v_i8m2x2(w + 2 * k, n);
                    const vint8m2_t u = __riscv_vle8_v_i8m2(x + k, n), v = __riscv_vle8_v_i8m2(x + taps + k, n);
                    const vint8m2_t first = __riscv_vget_v_i8m2x2_i8m2(f, 0);
                    const vint8m2_t second = __riscv_vget_v_i8m2x2_i8m2(f, 1);
                    a0 = add_products(a0, first, u, n), b0 = add_products(b0, second, u, n);
                    a1 = add_products(a1, first, v, n), b1 = add_products(b1, second, v, n);
                }
            }
            sums[0] = __riscv_vmv_x_s_i32m1_i32(a0), sums[1] = __riscv_vmv_x_s_i32m1_i32(a1);
            sums[4] = __riscv_vmv_x_s_i32m1_i32(b0), sums[5] = __riscv_vmv_x_s_i32m1_i32(b1);
        }
        return;
    }
    for (p = 0; p < CAPLET_POSITIONS; p++, x += taps) {
        vint32m1_t sum = SUM_OF(sums, p);
        for (k = 0; k < taps; k += (uint32_t)n) {
            n = __riscv_vsetvl_e8m2(taps - k);
            sum = add_products(sum, __riscv_vle8_v_i8m2(w + k, n), __riscv_vle8_v_i8m2(x + k, n), n);
        }
        sums[p] = __riscv_vmv_x_s_i32m1_i32(sum);
    }
}
#endif
