/*
 * Convolution for PCs. Windows are gathered into zero-padded patches, and tiles of 4 positions x 4 filters are summed
 * at once, so that every loaded vector takes part in four products. Filters are taken in blocks of 16 and patches in
 * chunks that stay in the cache.
 */
#include <string.h>

#include "host.h"
#include "fixed.h"

enum { TILE = 4, BLOCK = 16, CHUNK = 2304 };

/*
 * sums[p * BLOCK + f] += sum over k < n of x[p, k] * w[f, k], p, f < TILE. stride: elements from one position, and from
 * one filter, to the next. n: a multiple of 32. TP holds every product; gcc needs to be told that those of bytes fit 16
 * bits, or some sums miss the processor's dot-product instruction.
 */
typedef void tile(const void *x, const void *w, size_t stride, size_t n, int32_t *sums);

#define MULTIPLY(P, TP)                     \
    s##P##0 += (TP)(x##P[k] * w0[k]);       \
    s##P##1 += (TP)(x##P[k] * w1[k]);       \
    s##P##2 += (TP)(x##P[k] * w2[k]);       \
    s##P##3 += (TP)(x##P[k] * w3[k]);

#define ADD_SUMS(P)                                  \
    sums[P * BLOCK + 0] += s##P##0;                  \
    sums[P * BLOCK + 1] += s##P##1;                  \
    sums[P * BLOCK + 2] += s##P##2;                  \
    sums[P * BLOCK + 3] += s##P##3;

#define DEFINE_TILE(NAME, TX, TW, TP)                                                      \
    static void NAME(const void *x, const void *w, size_t stride, size_t n, int32_t *sums) \
    {                                                                                      \
        const TX *restrict x0 = (const TX *)x, *restrict x1 = x0 + stride;                 \
        const TX *restrict x2 = x1 + stride, *restrict x3 = x2 + stride;                   \
        const TW *restrict w0 = (const TW *)w, *restrict w1 = w0 + stride;                 \
        const TW *restrict w2 = w1 + stride, *restrict w3 = w2 + stride;                   \
        int32_t s00 = 0, s01 = 0, s02 = 0, s03 = 0, s10 = 0, s11 = 0, s12 = 0, s13 = 0;    \
        int32_t s20 = 0, s21 = 0, s22 = 0, s23 = 0, s30 = 0, s31 = 0, s32 = 0, s33 = 0;    \
        const size_t end = n & ~(size_t)31;                                                \
        size_t k;                                                                          \
        for (k = 0; k < end; k++) {                                                        \
            MULTIPLY(0, TP)                                                                \
            MULTIPLY(1, TP)                                                                \
            MULTIPLY(2, TP)                                                                \
            MULTIPLY(3, TP)                                                                \
        }                                                                                  \
        ADD_SUMS(0)                                                                        \
        ADD_SUMS(1)                                                                        \
        ADD_SUMS(2)                                                                        \
        ADD_SUMS(3)                                                                        \
    }

DEFINE_TILE(tile_bytes, uint8_t, int8_t, int16_t)
DEFINE_TILE(tile_words, int16_t, int16_t, int32_t)

/* Copy one run of n elements of the input into a patch. */
static void copy_run(const caplet_host_conv *op, const void *from, void *patch, uint32_t at, uint32_t n)
{
    const uint8_t *bytes = (const uint8_t *)from;
    uint8_t *to = (uint8_t *)patch + at;
    int16_t *words = (int16_t *)patch + at;
    uint32_t k;
    if (op->method == CAPLET_WORDS && op->conv.in_type == CAPLET_INT16) {
        memcpy(words, from, (size_t)n * sizeof *words);
    } else if (op->method == CAPLET_WORDS && op->conv.in_type == CAPLET_UINT8) {
        for (k = 0; k < n; k++) {
            words[k] = bytes[k];
        }
    } else if (op->method == CAPLET_WORDS) {
        for (k = 0; k < n; k++) {
            words[k] = ((const int8_t *)from)[k];
        }
    } else if (op->method == CAPLET_BYTES) {
        memcpy(to, from, n);
    } else {
        for (k = 0; k < n; k++) {
            to[k] = (uint8_t)(bytes[k] ^ 0x80u);
        }
    }
}

/* The window of one output position as one run; positions outside the input are code 0. */
static void gather(const caplet_host_conv *op, const void *x, uint32_t first_channel, uint32_t position, void *patch)
{
    const caplet_conv_op *conv = &op->conv;
    const int64_t top = (int64_t)(position / conv->out_columns * conv->stride) - conv->padding;
    const int64_t left = (int64_t)(position % conv->out_columns * conv->stride) - conv->padding;
    const int64_t first = left < 0 ? -left : 0;
    const int64_t beyond = (int64_t)conv->in_columns - left;
    const int64_t last = beyond < conv->kernel_columns ? beyond : conv->kernel_columns; /* exclusive */
    const size_t bytes = op->method == CAPLET_WORDS ? 2 : 1;
    const uint32_t whole = conv->depth == conv->in_channels;
    const uint32_t filled = conv->kernel_rows * conv->kernel_columns * conv->depth;
    const int outside = op->method == CAPLET_FLIPPED ? 0x80 : 0;
    int64_t row;
    int64_t column;
    if (top < 0 || left < 0 || top + conv->kernel_rows > conv->in_rows || beyond < conv->kernel_columns) {
        memset(patch, outside, bytes * filled);
    }
    memset((uint8_t *)patch + bytes * filled, 0, bytes * (op->patch - filled));
    for (row = 0; row < conv->kernel_rows; row++) {
        const int64_t y = top + row;
        if (y < 0 || y >= conv->in_rows) {
            continue;
        }
        for (column = first; column < last; column += whole ? last - first : 1) {
            const uint32_t from = (uint32_t)((y * conv->in_columns + left + column) * conv->in_channels);
            const uint32_t at = (uint32_t)((row * conv->kernel_columns + column) * conv->depth);
            copy_run(op, caplet_at(x, conv->in_type, from + first_channel), patch, at,
                     whole ? (uint32_t)(last - first) * conv->depth : conv->depth);
        }
    }
}

/* sums (positions, BLOCK) of the filters from `filter` on. count: filters, at most BLOCK. */
static void multiply(const caplet_host_conv *op, const void *patches, uint32_t positions, uint32_t filter,
                     uint32_t count, int32_t *sums)
{
    /* Called by address: inlined here, the sixteen sums and eight rows run out of registers. */
    tile *const sum_tile = op->method == CAPLET_WORDS ? tile_words : tile_bytes;
    const size_t bytes = op->method == CAPLET_WORDS ? 2 : 1;
    uint32_t start;
    uint32_t p;
    uint32_t f;
    for (p = 0; p < positions; p++) {
        memcpy(sums + (size_t)p * BLOCK, op->start + filter, BLOCK * sizeof *sums);
    }
    for (start = 0; start < op->patch; start += CHUNK) {
        const uint32_t n = op->patch - start < CHUNK ? op->patch - start : CHUNK;
        for (p = 0; p < positions; p += TILE) {
            const uint8_t *x = (const uint8_t *)patches + ((size_t)p * op->patch + start) * bytes;
            for (f = 0; f < count; f += TILE) {
                const uint8_t *w = (const uint8_t *)op->weights + ((size_t)(filter + f) * op->patch + start) * bytes;
                sum_tile(x, w, op->patch, n, sums + (size_t)p * BLOCK + f);
            }
        }
    }
}

/* What makes codes of the sums of one filter of a block. */
typedef struct {
    int32_t left[BLOCK];
    int32_t right[BLOCK];
    int32_t add[BLOCK];
} block_scale;

/* Codes of one position; a loop of its own, so that it is vectorised as one of int32_t. */
static inline void requantize_position(const block_scale *restrict scale, const int32_t *restrict sums, int32_t low,
                                       int32_t high, int32_t *restrict codes)
{
    uint32_t f;
    CAPLET_WHOLE_LOOP
    for (f = 0; f < BLOCK; f++) {
        const int32_t sum = (int32_t)(((uint32_t)sums[f] << scale->left[f]) + (uint32_t)scale->add[f]);
        codes[f] = caplet_clip32(sum >> scale->right[f], low, high);
    }
}

#define REQUANTIZE(T)                                                             \
    do {                                                                      \
        T *restrict to = (T *)y;                                              \
        for (p = 0; p < positions; p++) {                                     \
            int32_t codes[BLOCK];                                             \
            requantize_position(&scale, sums, low, high, codes);                  \
            if (count == BLOCK) {                                             \
                CAPLET_WHOLE_LOOP                                             \
                for (f = 0; f < BLOCK; f++) {                                 \
                    to[f] = (T)codes[f];                                      \
                }                                                             \
            } else {                                                          \
                for (f = 0; f < count; f++) {                                 \
                    to[f] = (T)codes[f];                                      \
                }                                                             \
            }                                                                 \
            to += conv->out_channels;                                         \
            sums += BLOCK;                                                    \
        }                                                                     \
    } while (0)

/*
 * Sums (positions, BLOCK) of the filters filter .. filter + count - 1 to codes. y: the first position's code of the
 * first filter. element: its noise index.
 */
static void requantize_block(const caplet_conv_op *conv, const int32_t *restrict sums, uint32_t positions,
                             uint32_t filter, uint32_t count, void *y, uint32_t element)
{
    caplet_scale scales[BLOCK];
    block_scale scale;
    const int32_t low = conv->out.low;
    const int32_t high = conv->out.high;
    uint32_t p;
    uint32_t f;
    memset(&scale, 0, sizeof scale);
    for (f = 0; f < count; f++) {
        scales[f] = caplet_scale_of(&conv->acc, &conv->out, filter + f, filter + f);
        scale.left[f] = (int32_t)scales[f].left;
        scale.right[f] = (int32_t)scales[f].right;
    }
    if (conv->acc.wide || conv->out.rounding == CAPLET_STOCHASTIC) {
        for (p = 0; p < positions; p++) {
            for (f = 0; f < count; f++) {
                const uint32_t index = p * conv->out_channels + f;
                const int32_t sum = sums[(size_t)p * BLOCK + f];
                caplet_store(y, conv->out.type, index,
                             conv->acc.wide ? caplet_requantize64(sum, &scales[f], &conv->out, element + index)
                                            : caplet_requantize32(sum, &scales[f], &conv->out, element + index));
            }
        }
        return;
    }
    for (f = 0; f < count; f++) {
        scale.add[f] = (int32_t)(scales[f].add + caplet_rounding_term(&conv->out, scales[f].right, 0));
    }
    CAPLET_WITH_TYPE(conv->out.type, REQUANTIZE)
}

void caplet_host_convolve(const caplet_host_conv *op, const void *x, uint32_t first_channel, void *y, uint32_t element,
                          void *device, void *scratch)
{
    const caplet_conv_op *conv = &op->conv;
    const uint32_t total = conv->out_rows * conv->out_columns;
    const size_t patch_bytes = (size_t)op->patch * (op->method == CAPLET_WORDS ? 2u : 1u);
    int32_t *sums;
    uint32_t first;
    uint32_t p;
    uint32_t f;
    if (op->method == CAPLET_AS_DEVICE) {
        caplet_convolve(conv, x, first_channel, 0, conv->out_channels, y, element, device);
        return;
    }
    sums = (int32_t *)((uint8_t *)scratch + op->positions * patch_bytes);
    for (first = 0; first < total; first += op->positions) {
        const uint32_t positions = total - first < op->positions ? total - first : op->positions;
        const uint32_t rounded = (positions + TILE - 1u) / TILE * TILE;
        for (p = 0; p < positions; p++) {
            gather(op, x, first_channel, first + p, (uint8_t *)scratch + p * patch_bytes);
        }
        memset((uint8_t *)scratch + positions * patch_bytes, 0, (rounded - positions) * patch_bytes);
        for (f = 0; f < conv->out_channels; f += BLOCK) {
            const uint32_t count = conv->out_channels - f < BLOCK ? conv->out_channels - f : BLOCK;
            const uint32_t index = first * conv->out_channels + f;
            multiply(op, scratch, rounded, f, count, sums);
            requantize_block(conv, sums, positions, f, count, caplet_at_writable(y, conv->out.type, index),
                             element + index);
        }
    }
}
