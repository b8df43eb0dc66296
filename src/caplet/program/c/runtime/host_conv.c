/*
 * Convolution for PCs. The input is copied once with its border, and tiles read their windows in the copy: word by
 * word, at offsets that are the same for every window. Filters are taken in panels, and windows of several images
 * together, so that a part of a panel's weights stays in the cache while all of them are multiplied with it.
 */
#include "host_tile.h"

#if CAPLET_LANES

/* Windows whose sums are made together, and words of them at a time. */
enum { WINDOWS = 40 * CAPLET_TILE, WORDS = 512 };

/* A function of its own for each number of vectors; those beyond CAPLET_PANEL are never called. */
#define DEFINE_TILES(VECTORS)                                                                                        \
    static CAPLET_APART void pairs_##VECTORS(const uint8_t *const *x, const uint32_t *taps, const int32_t *w,        \
                                             uint32_t words, int32_t *sums)                                          \
    {                                                                                                                \
        caplet_sum_tile(x, taps, w, words, sums, VECTORS < CAPLET_PANEL ? VECTORS : CAPLET_PANEL, 0);                \
    }                                                                                                                \
    static CAPLET_APART void bytes_##VECTORS(const uint8_t *const *x, const uint32_t *taps, const int32_t *w,        \
                                             uint32_t words, int32_t *sums)                                          \
    {                                                                                                                \
        caplet_sum_tile(x, taps, w, words, sums, VECTORS < CAPLET_PANEL ? VECTORS : CAPLET_PANEL, 1);                \
    }

DEFINE_TILES(1)
DEFINE_TILES(2)
DEFINE_TILES(3)
DEFINE_TILES(4)

caplet_tile *caplet_tile_of(uint32_t vectors, uint32_t of_bytes)
{
    static caplet_tile *const tiles[2][4] = {{pairs_1, pairs_2, pairs_3, pairs_4},
                                             {bytes_1, bytes_2, bytes_3, bytes_4}};
    return tiles[of_bytes][vectors - 1];
}

void caplet_scale_panel(const caplet_accumulator *acc, const caplet_format *out, uint32_t first, uint32_t count,
                        caplet_panel_scale *scale)
{
    uint32_t f;
    memset(scale, 0, sizeof *scale);
    for (f = 0; f < count; f++) {
        const caplet_scale one = caplet_scale_of(acc, out, first + f, first + f);
        scale->left[f] = (int32_t)one.left;
        scale->right[f] = (int32_t)one.right;
        scale->add[f] = (int32_t)(one.add + caplet_rounding_term(out, one.right, 0));
    }
}

/* A run of n elements, as the tiles take them. */
static void copy_run(const caplet_host_conv *op, const void *from, void *to, uint32_t n)
{
    const uint8_t *bytes = (const uint8_t *)from;
    int16_t *words = (int16_t *)to;
    const uint8_t flip = op->flipped ? 0x80 : 0;
    uint32_t k;
    if (op->method == CAPLET_BYTES) {
        for (k = 0; k < n; k++) {
            ((uint8_t *)to)[k] = bytes[k] ^ flip;
        }
    } else if (op->conv.in_type == CAPLET_INT16) {
        memcpy(to, from, (size_t)n * sizeof *words);
    } else if (op->conv.in_type == CAPLET_UINT8) {
        for (k = 0; k < n; k++) {
            words[k] = bytes[k];
        }
    } else {
        for (k = 0; k < n; k++) {
            words[k] = ((const int8_t *)from)[k];
        }
    }
}

/* The input with its border of codes 0, as the tiles take it. */
static void copy_map(const caplet_host_conv *op, const void *x, uint8_t *map)
{
    const caplet_conv_op *conv = &op->conv;
    const uint32_t bytes = conv->in_channels * (op->method == CAPLET_BYTES ? 1u : 2u); /* of a position */
    const uint32_t fit = op->columns - conv->padding;
    const uint32_t columns = conv->in_columns < fit ? conv->in_columns : fit;
    uint32_t row;
    if (conv->padding > 0 || conv->in_rows < op->rows || columns < op->columns) {
        memset(map, op->flipped ? 0x80 : 0, (size_t)op->rows * op->columns * bytes);
    }
    for (row = 0; row < conv->in_rows && row + conv->padding < op->rows; row++) {
        copy_run(op, caplet_at(x, conv->in_type, row * conv->in_columns * conv->in_channels),
                 map + ((size_t)(row + conv->padding) * op->columns + conv->padding) * bytes,
                 columns * conv->in_channels);
    }
}

/* Codes of one window's sums, where they take 64 bits or noise. element: of the first one. */
static void store_slowly(const caplet_conv_op *conv, const int32_t *sums, uint32_t filter, uint32_t count, void *y,
                         uint32_t element)
{
    uint32_t f;
    for (f = 0; f < count; f++) {
        const caplet_scale scale = caplet_scale_of(&conv->acc, &conv->out, filter + f, filter + f);
        caplet_store(y, conv->out.type, f,
                     conv->acc.wide ? caplet_requantize64(sums[f], &scale, &conv->out, element + f)
                                    : caplet_requantize32(sums[f], &scale, &conv->out, element + f));
    }
}

/* Windows first .. first + windows - 1 of the images' maps, for one input capsule type, with all filters. */
static void convolve_windows(const caplet_host_conv *op, const uint8_t *maps, uint32_t first, uint32_t windows,
                             uint32_t type, uint8_t *y, uint64_t next_image, uint32_t row_bytes)
{
    const caplet_conv_op *conv = &op->conv;
    const uint32_t total = conv->out_rows * conv->out_columns;
    const uint32_t bytes = op->method == CAPLET_BYTES ? 1u : 2u;
    const uint32_t tile = op->method == CAPLET_BYTES ? CAPLET_BYTE_TILE : CAPLET_TILE;
    const uint32_t *taps = op->taps;
    const uint32_t slowly = conv->acc.wide || conv->out.rounding == CAPLET_STOCHASTIC;
    const uint8_t *x[WINDOWS];
    uint8_t *to[WINDOWS];
    int32_t sums[WINDOWS * CAPLET_WIDTH];
    caplet_panel_scale scale;
    uint32_t filter, count, p;
    for (p = 0; p < WINDOWS; p++) {
        const uint32_t window = p < windows ? first + p : first; /* a tile may be left with some */
        const uint32_t position = window % total;
        const uint32_t place = position / conv->out_columns * op->columns + position % conv->out_columns;
        x[p] = maps + (size_t)(window / total) * op->map_bytes + (size_t)type * conv->depth * bytes;
        x[p] += (size_t)place * conv->stride * conv->in_channels * bytes;
        to[p] = y + window / total * next_image + (size_t)type * row_bytes;
        to[p] = (uint8_t *)caplet_at_writable(to[p], conv->out.type, position * conv->out_channels);
        if (p >= windows + CAPLET_TILE) {
            break;
        }
    }
    for (filter = 0; filter < conv->out_channels; filter += count) {
        const uint32_t left = conv->out_channels - filter;
        const uint32_t vectors = left < CAPLET_WIDTH ? (left + CAPLET_LANES - 1) / CAPLET_LANES : CAPLET_PANEL;
        const uint32_t width = vectors * CAPLET_LANES;
        const int32_t *weights = (const int32_t *)op->weights + (size_t)filter * op->words;
        caplet_tile *const sum_tile = caplet_tile_of(vectors, op->method == CAPLET_BYTES);
        uint32_t k;
        count = left < CAPLET_WIDTH ? left : CAPLET_WIDTH;
        for (p = 0; p < windows * width; p += CAPLET_LANES) {
            caplet_store_lanes(sums + p, caplet_load_lanes(op->start + filter + p % width));
        }
        for (k = 0; k < op->words; k += WORDS) {
            const uint32_t words = op->words - k < WORDS ? op->words - k : WORDS;
            for (p = 0; p < windows; p += tile) {
                sum_tile(x + p, taps + k, weights + (size_t)k * width, words, sums + p * width);
            }
        }
        taps += op->panel_taps;
        if (!slowly) {
            caplet_scale_panel(&conv->acc, &conv->out, filter, count, &scale);
        }
        for (p = 0; p < windows; p++) {
            uint8_t *codes = (uint8_t *)caplet_at_writable(to[p], conv->out.type, filter);
            if (slowly) {
                const uint32_t element = (type * total + (first + p) % total) * conv->out_channels + filter;
                store_slowly(conv, sums + p * width, filter, count, codes, element);
            } else {
                caplet_store_panel(&scale, &conv->out, sums + p * width, vectors, count, codes);
            }
        }
    }
}

void caplet_host_convolve(const caplet_host_conv *op, const void *x, void *y, uint64_t next_image, uint32_t images,
                          uint32_t row_bytes, void *scratch)
{
    const uint32_t windows = images * op->conv.out_rows * op->conv.out_columns;
    const uint32_t blocks = (windows + WINDOWS - 1) / WINDOWS;
    const uint32_t tiles = (windows + CAPLET_TILE - 1) / CAPLET_TILE;
    const uint32_t most = (tiles + blocks - 1) / blocks * CAPLET_TILE; /* about as many in each */
    uint32_t image, type, first;
    for (image = 0; image < images; image++) {
        copy_map(op, (const uint8_t *)x + image * next_image, (uint8_t *)scratch + (size_t)image * op->map_bytes);
    }
    for (type = 0; type < op->conv.types; type++) {
        for (first = 0; first < windows; first += most) {
            convolve_windows(op, (const uint8_t *)scratch, first, windows - first < most ? windows - first : most, type,
                             (uint8_t *)y, next_image, row_bytes);
        }
    }
}

#endif
