/*
 * Convolution for PCs. Windows are gathered into zero-padded patches, and tiles of 4 positions x 4 filters are summed
 * at once, so that every loaded vector takes part in four products. Filters are taken in blocks of 16 and patches in
 * chunks that stay in the cache.
 */
#include <string.h>

#include "host.h"
#include "window.h"

enum { TILE = 4, BLOCK = 16, CHUNK = 2304 };

/* sums[p * BLOCK + f] += sum over k < n of x[p, k] * w[f, k], p, f < 4. n: a multiple of 32. */
#define DEFINE_TILE(NAME, TX, TW)                                                                                  \
    static void NAME(const TX *restrict x, const TW *restrict w, size_t stride, size_t n, int32_t *restrict sums) \
    {                                                                                                              \
        const TX *restrict x0 = x, *restrict x1 = x + stride;                                                      \
        const TX *restrict x2 = x1 + stride, *restrict x3 = x2 + stride;                                           \
        const TW *restrict w0 = w, *restrict w1 = w + stride;                                                      \
        const TW *restrict w2 = w1 + stride, *restrict w3 = w2 + stride;                                           \
        int32_t s00 = 0, s01 = 0, s02 = 0, s03 = 0, s10 = 0, s11 = 0, s12 = 0, s13 = 0;                            \
        int32_t s20 = 0, s21 = 0, s22 = 0, s23 = 0, s30 = 0, s31 = 0, s32 = 0, s33 = 0;                            \
        const size_t end = n & ~(size_t)31;                                                                        \
        size_t k;                                                                                                  \
        for (k = 0; k < end; k++) {                                                                                \
            s00 += x0[k] * w0[k];                                                                                  \
            s01 += x0[k] * w1[k];                                                                                  \
            s02 += x0[k] * w2[k];                                                                                  \
            s03 += x0[k] * w3[k];                                                                                  \
            s10 += x1[k] * w0[k];                                                                                  \
            s11 += x1[k] * w1[k];                                                                                  \
            s12 += x1[k] * w2[k];                                                                                  \
            s13 += x1[k] * w3[k];                                                                                  \
            s20 += x2[k] * w0[k];                                                                                  \
            s21 += x2[k] * w1[k];                                                                                  \
            s22 += x2[k] * w2[k];                                                                                  \
            s23 += x2[k] * w3[k];                                                                                  \
            s30 += x3[k] * w0[k];                                                                                  \
            s31 += x3[k] * w1[k];                                                                                  \
            s32 += x3[k] * w2[k];                                                                                  \
            s33 += x3[k] * w3[k];                                                                                  \
        }                                                                                                          \
        sums[0] += s00;                                                                                            \
        sums[1] += s01;                                                                                            \
        sums[2] += s02;                                                                                            \
        sums[3] += s03;                                                                                            \
        sums += BLOCK;                                                                                             \
        sums[0] += s10;                                                                                            \
        sums[1] += s11;                                                                                            \
        sums[2] += s12;                                                                                            \
        sums[3] += s13;                                                                                            \
        sums += BLOCK;                                                                                             \
        sums[0] += s20;                                                                                            \
        sums[1] += s21;                                                                                            \
        sums[2] += s22;                                                                                            \
        sums[3] += s23;                                                                                            \
        sums += BLOCK;                                                                                             \
        sums[0] += s30;                                                                                            \
        sums[1] += s31;                                                                                            \
        sums[2] += s32;                                                                                            \
        sums[3] += s33;                                                                                            \
    }

DEFINE_TILE(tile_bytes, uint8_t, int8_t)
DEFINE_TILE(tile_words, int16_t, int16_t)

/* Copy one run of n elements of the input into a patch. */
static void copy_run(const caplet_host_conv *op, const void *from, void *patch, uint32_t at, uint32_t n)
{
    uint32_t k;
    if (op->method == CAPLET_WORDS) {
        int16_t *to = (int16_t *)patch + at;
        if (op->conv.in_type == CAPLET_INT16) {
            memcpy(to, from, (size_t)n * sizeof *to);
        } else if (op->conv.in_type == CAPLET_UINT8) {
            const uint8_t *codes = (const uint8_t *)from;
            for (k = 0; k < n; k++) {
                to[k] = codes[k];
            }
        } else {
            const int8_t *codes = (const int8_t *)from;
            for (k = 0; k < n; k++) {
                to[k] = codes[k];
            }
        }
    } else if (op->method == CAPLET_BYTES) {
        memcpy((uint8_t *)patch + at, from, n);
    } else {
        const uint8_t *codes = (const uint8_t *)from;
        uint8_t *to = (uint8_t *)patch + at;
        for (k = 0; k < n; k++) {
            to[k] = (uint8_t)(codes[k] ^ 0x80u);
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
    int64_t row;
    int64_t column;
    memset(patch, op->method == CAPLET_FLIPPED ? 0x80 : 0, bytes * op->patch);
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
    uint32_t start;
    uint32_t p;
    uint32_t f;
    for (p = 0; p < positions; p++) {
        memcpy(sums + (size_t)p * BLOCK, op->start + filter, BLOCK * sizeof *sums);
    }
    for (start = 0; start < op->patch; start += CHUNK) {
        const uint32_t n = op->patch - start < CHUNK ? op->patch - start : CHUNK;
        for (p = 0; p < positions; p += TILE) {
            for (f = 0; f < count; f += TILE) {
                const size_t x = (size_t)p * op->patch + start;
                const size_t w = (size_t)(filter + f) * op->patch + start;
                int32_t *to = sums + (size_t)p * BLOCK + f;
                if (op->method == CAPLET_WORDS) {
                    tile_words((const int16_t *)patches + x, (const int16_t *)op->weights + w, op->patch, n, to);
                } else {
                    tile_bytes((const uint8_t *)patches + x, (const int8_t *)op->weights + w, op->patch, n, to);
                }
            }
        }
    }
}

#define STORE(T)                                                                       \
    do {                                                                               \
        T *restrict to = (T *)y + index;                                               \
        for (f = 0; f < count; f++) {                                                  \
            to[f] = (T)codes[f];                                                       \
        }                                                                              \
    } while (0)

/* Sums of `positions` positions, from position `first` on, to codes of the filters filter .. filter + count - 1. */
static void narrow_block(const caplet_conv_op *conv, const int32_t *sums, uint32_t first, uint32_t positions,
                         uint32_t filter, uint32_t count, void *y, uint32_t element)
{
    caplet_scale scales[BLOCK];
    int32_t left[BLOCK] = {0};
    int32_t right[BLOCK] = {0};
    int32_t add[BLOCK] = {0};
    int32_t codes[BLOCK];
    const uint32_t simple = !conv->acc.wide && conv->out.rounding != CAPLET_STOCHASTIC;
    const int32_t low = conv->out.low;
    const int32_t high = conv->out.high;
    uint32_t p;
    uint32_t f;
    for (f = 0; f < count; f++) {
        scales[f] = caplet_scale_of(&conv->acc, &conv->out, filter + f, filter + f);
        left[f] = (int32_t)scales[f].left;
        right[f] = (int32_t)scales[f].right;
        if (simple) {
            add[f] = (int32_t)(scales[f].add + caplet_rounding_term(&conv->out, scales[f].right, 0));
        }
    }
    for (p = 0; p < positions; p++) {
        const uint32_t index = (first + p) * conv->out_channels + filter;
        const int32_t *restrict in = sums + (size_t)p * BLOCK;
        if (simple) {
            for (f = 0; f < BLOCK; f++) {
                const int32_t sum = (int32_t)(((uint32_t)in[f] << left[f]) + (uint32_t)add[f]);
                codes[f] = caplet_clip32(sum >> right[f], low, high);
            }
        } else {
            for (f = 0; f < count; f++) {
                codes[f] = conv->acc.wide ? caplet_narrow64(in[f], &scales[f], &conv->out, element + index + f)
                                          : caplet_narrow32(in[f], &scales[f], &conv->out, element + index + f);
            }
        }
        switch (conv->out.type) {
        case CAPLET_INT8:
            STORE(int8_t);
            break;
        case CAPLET_UINT8:
            STORE(uint8_t);
            break;
        case CAPLET_INT16:
            STORE(int16_t);
            break;
        default:
            STORE(uint16_t);
            break;
        }
    }
}

void caplet_host_convolve(const caplet_host_conv *op, const void *x, uint32_t first_channel, void *y, uint32_t element,
                          void *filter, void *scratch)
{
    const caplet_conv_op *conv = &op->conv;
    const uint32_t total = conv->out_rows * conv->out_columns;
    const size_t patch_bytes = (size_t)op->patch * (op->method == CAPLET_WORDS ? 2u : 1u);
    int32_t *sums;
    uint32_t first;
    uint32_t p;
    uint32_t f;
    if (op->method == CAPLET_PORTABLE) {
        caplet_convolve(conv, x, first_channel, y, element, filter);
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
            multiply(op, scratch, rounded, f, count, sums);
            narrow_block(conv, sums, first, positions, f, count, y, element);
        }
    }
}
