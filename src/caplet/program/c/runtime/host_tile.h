/*
 * Tiles of sums for PCs: the products of the windows at six positions with a panel of filters, in the vectors that the
 * compiler says the processor has. Vectors hold 32-bit words, and a word two int16_t or four bytes. Without the vectors
 * of GNU C, or with CAPLET_PORTABLE, CAPLET_LANES is 0 and nothing here exists: ops are computed as on a device.
 * With CAPLET_EMULATE_DOT, vectors have 16 lanes and their products are in plain C, as AVX-512 VNNI computes them.
 */
#ifndef CAPLET_HOST_TILE_H
#define CAPLET_HOST_TILE_H

#include <string.h>

#include "fixed.h"
#include "host.h"

#if !defined(__GNUC__) || defined(CAPLET_SMALL_CODE) || defined(CAPLET_PORTABLE) || !defined(__BYTE_ORDER__)
#define CAPLET_LANES 0
#elif __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#define CAPLET_LANES 0
#elif defined(__AVX512BW__) || defined(CAPLET_EMULATE_DOT)
#define CAPLET_LANES 16
#elif defined(__AVX2__)
#define CAPLET_LANES 8
#else
#define CAPLET_LANES 4
#endif

#if CAPLET_LANES

#if defined(__SSE2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

/* Windows of a tile; vectors of its filters, as many as leave registers for the sums. */
#if CAPLET_LANES == 16 || defined(__aarch64__)
#define CAPLET_PANEL 4
#else
#define CAPLET_PANEL 2
#endif
enum { CAPLET_TILE = 6, CAPLET_WIDTH = CAPLET_PANEL * CAPLET_LANES };

/* Before a loop that shall become straight code, and before one that shall stay one. */
#if defined(__clang__)
#define CAPLET_STRAIGHT _Pragma("clang loop unroll(full)")
#define CAPLET_ROLLED _Pragma("clang loop unroll(disable)")
#else
#define CAPLET_STRAIGHT _Pragma("GCC unroll 8")
#define CAPLET_ROLLED _Pragma("GCC unroll 1")
#endif

typedef int32_t caplet_lanes __attribute__((vector_size(4 * CAPLET_LANES)));
typedef int32_t caplet_loose __attribute__((vector_size(4 * CAPLET_LANES), aligned(1), may_alias));

CAPLET_COPIED caplet_lanes caplet_load_lanes(const void *from)
{
    return *(const caplet_loose *)from;
}

CAPLET_COPIED void caplet_store_lanes(void *to, caplet_lanes x)
{
    *(caplet_loose *)to = x;
}

/* acc + the products of the two int16_t of every lane; sums wrap around. */
CAPLET_COPIED caplet_lanes caplet_dot_pairs(caplet_lanes acc, caplet_lanes a, caplet_lanes b)
{
#if defined(CAPLET_EMULATE_DOT) || !(defined(__SSE2__) || (defined(__aarch64__) && defined(__ARM_NEON)))
    return acc + ((a << 16) >> 16) * ((b << 16) >> 16) + (a >> 16) * (b >> 16);
#elif defined(__AVX512VNNI__) && CAPLET_LANES == 16
    return (caplet_lanes)_mm512_dpwssd_epi32((__m512i)acc, (__m512i)a, (__m512i)b);
#elif CAPLET_LANES == 16
    return acc + (caplet_lanes)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVXVNNI__) && CAPLET_LANES == 8
    return (caplet_lanes)_mm256_dpwssd_avx_epi32((__m256i)acc, (__m256i)a, (__m256i)b);
#elif CAPLET_LANES == 8
    return acc + (caplet_lanes)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
    return acc + (caplet_lanes)_mm_madd_epi16((__m128i)a, (__m128i)b);
#else
    const int16x8_t x = (int16x8_t)a, y = (int16x8_t)b;
    return acc + (caplet_lanes)vpaddq_s32(vmull_s16(vget_low_s16(x), vget_low_s16(y)), vmull_high_s16(x, y));
#endif
}

/*
 * acc + the products of the four bytes of every lane of a and b, those of b signed, those of a as CAPLET_DOT_BYTES
 * says: one of host.h. Where they are chained, also those of c and d, in 16 bits before they are added to acc.
 */
#if defined(CAPLET_EMULATE_DOT) || (defined(__AVX512VNNI__) && CAPLET_LANES == 16) || \
    (defined(__AVXVNNI__) && CAPLET_LANES == 8)
#define CAPLET_DOT_BYTES CAPLET_UNSIGNED_BYTES
#elif CAPLET_LANES == 8
#define CAPLET_DOT_BYTES CAPLET_CHAINED_BYTES
#elif defined(__aarch64__) && defined(__ARM_FEATURE_DOTPROD)
#define CAPLET_DOT_BYTES CAPLET_SIGNED_BYTES
#else
#define CAPLET_DOT_BYTES CAPLET_NO_BYTES
#endif

CAPLET_COPIED caplet_lanes caplet_dot_bytes(caplet_lanes acc, caplet_lanes a, caplet_lanes b, caplet_lanes c,
                                            caplet_lanes d)
{
    (void)c, (void)d;
#if defined(CAPLET_EMULATE_DOT)
    acc += (a & 255) * ((b << 24) >> 24) + ((a >> 8) & 255) * ((b << 16) >> 24);
    return acc + ((a >> 16) & 255) * ((b << 8) >> 24) + ((a >> 24) & 255) * (b >> 24);
#elif defined(__AVX512VNNI__) && CAPLET_LANES == 16
    return (caplet_lanes)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)a, (__m512i)b);
#elif defined(__AVXVNNI__) && CAPLET_LANES == 8
    return (caplet_lanes)_mm256_dpbusd_avx_epi32((__m256i)acc, (__m256i)a, (__m256i)b);
#elif CAPLET_LANES == 8
    return acc + (caplet_lanes)_mm256_madd_epi16(
                     _mm256_set1_epi16(1), _mm256_add_epi16(_mm256_maddubs_epi16((__m256i)a, (__m256i)b),
                                                            _mm256_maddubs_epi16((__m256i)c, (__m256i)d)));
#elif defined(__aarch64__) && defined(__ARM_FEATURE_DOTPROD)
    return (caplet_lanes)vdotq_s32((int32x4_t)acc, (int8x16_t)a, (int8x16_t)b);
#else
    (void)a, (void)b;
    return acc;
#endif
}

/* Windows of a tile of bytes, and words that it takes at once. */
enum { CAPLET_CHAIN = CAPLET_DOT_BYTES == CAPLET_CHAINED_BYTES ? 2 : 1, CAPLET_BYTE_TILE = CAPLET_CHAIN > 1 ? 4 : 6 };

/* The word at `from` in every lane. */
CAPLET_COPIED caplet_lanes caplet_spread_word(const uint8_t *from)
{
    const caplet_lanes zero = {0};
    int32_t word;
    memcpy(&word, from, sizeof word);
    return zero + word;
}

/*
 * sums (windows, vectors * CAPLET_LANES) += the products of windows and filters. x: the windows' places; taps: for each
 * word its offset in bytes; w: (words, vectors * CAPLET_LANES) words of the filters. windows: CAPLET_TILE, or
 * CAPLET_BYTE_TILE `of_bytes`; words is then a multiple of CAPLET_CHAIN.
 */
CAPLET_COPIED void caplet_sum_tile(const uint8_t *const *x, const uint32_t *taps, const int32_t *w, uint32_t words,
                                   int32_t *sums, uint32_t vectors, uint32_t of_bytes)
{
    const uint32_t windows = of_bytes ? CAPLET_BYTE_TILE : CAPLET_TILE;
    const uint32_t step = of_bytes ? CAPLET_CHAIN : 1;
    caplet_lanes s[CAPLET_TILE][CAPLET_PANEL];
    caplet_lanes f[2][CAPLET_PANEL];
    const uint8_t *at[CAPLET_TILE];
    uint32_t k, r, v;
    CAPLET_STRAIGHT
    for (r = 0; r < windows; r++) {
        at[r] = x[r];
        CAPLET_STRAIGHT
        for (v = 0; v < vectors; v++) {
            s[r][v] = caplet_load_lanes(sums + (r * vectors + v) * CAPLET_LANES);
        }
    }
    CAPLET_ROLLED
    for (k = 0; k < words; k += step) {
        CAPLET_STRAIGHT
        for (v = 0; v < step * vectors; v++) {
            f[v / vectors][v % vectors] = caplet_load_lanes(w + v * CAPLET_LANES);
        }
        CAPLET_STRAIGHT
        for (r = 0; r < windows; r++) {
            const caplet_lanes a = caplet_spread_word(at[r] + taps[k]);
            const caplet_lanes c = step > 1 ? caplet_spread_word(at[r] + taps[k + 1]) : a;
            CAPLET_STRAIGHT
            for (v = 0; v < vectors; v++) {
                s[r][v] = of_bytes ? caplet_dot_bytes(s[r][v], a, f[0][v], c, f[step - 1][v])
                                   : caplet_dot_pairs(s[r][v], a, f[0][v]);
            }
        }
        w += step * vectors * CAPLET_LANES;
    }
    CAPLET_STRAIGHT
    for (r = 0; r < windows; r++) {
        CAPLET_STRAIGHT
        for (v = 0; v < vectors; v++) {
            caplet_store_lanes(sums + (r * vectors + v) * CAPLET_LANES, s[r][v]);
        }
    }
}

typedef void caplet_tile(const uint8_t *const *x, const uint32_t *taps, const int32_t *w, uint32_t words,
                         int32_t *sums);

/* caplet_sum_tile for 1 .. CAPLET_PANEL vectors; of_bytes: 0 or 1. */
caplet_tile *caplet_tile_of(uint32_t vectors, uint32_t of_bytes);

/* How the sums of a panel of filters become codes: saturate(((sum << left) + add) >> right). */
typedef struct {
    int32_t left[CAPLET_WIDTH];
    int32_t right[CAPLET_WIDTH];
    int32_t add[CAPLET_WIDTH];
} caplet_panel_scale;

/*
 * Scales of the channels first .. first + count - 1, with the rounding term. bias: of the first one.
 */
void caplet_scale_panel(const caplet_accumulator *acc, const caplet_format *out, uint32_t first, uint32_t count,
                        caplet_panel_scale *scale);

CAPLET_COPIED caplet_lanes caplet_clip_lanes(caplet_lanes x, int32_t low, int32_t high)
{
    caplet_lanes beyond = x < low;
    x = (x & ~beyond) | (low & beyond);
    beyond = x > high;
    return (x & ~beyond) | (high & beyond);
}

/* Codes of the sums of one window. sums: `vectors` vectors; y: the first code of `count`, of out->type. */
CAPLET_COPIED void caplet_store_panel(const caplet_panel_scale *scale, const caplet_format *out, const int32_t *sums,
                                      uint32_t vectors, uint32_t count, void *y)
{
    int32_t codes[CAPLET_WIDTH];
    uint32_t f;
    for (f = 0; f < vectors * CAPLET_LANES; f += CAPLET_LANES) {
        const caplet_lanes left = caplet_load_lanes(scale->left + f);
        const caplet_lanes sum = (caplet_load_lanes(sums + f) << left) + caplet_load_lanes(scale->add + f);
        const caplet_lanes code = sum >> caplet_load_lanes(scale->right + f);
        caplet_store_lanes(codes + f, caplet_clip_lanes(code, out->low, out->high));
    }
#if defined(__AVX2__) && CAPLET_LANES == 8
    if (count == CAPLET_WIDTH && out->type <= CAPLET_UINT8) { /* compilers need thrice the instructions */
        const __m256i a = (__m256i)caplet_load_lanes(codes), b = (__m256i)caplet_load_lanes(codes + 8);
        const __m256i ordered = _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xD8);
        const __m128i first = _mm256_castsi256_si128(ordered), second = _mm256_extracti128_si256(ordered, 1);
        _mm_storeu_si128((__m128i *)y, out->type == CAPLET_INT8 ? _mm_packs_epi16(first, second)
                                                                : _mm_packus_epi16(first, second));
        return;
    }
#endif
#define CAPLET_STORE_CODES(T)             \
    do {                                  \
        for (f = 0; f < count; f++) {     \
            ((T *)y)[f] = (T)codes[f];    \
        }                                 \
    } while (0)
    CAPLET_WITH_TYPE(out->type, CAPLET_STORE_CODES)
}

#endif

#endif
