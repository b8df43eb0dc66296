/*
 * Convolution. The windows of four output positions are gathered as int16_t, so that an element of the input and a
 * weight each take part in several products; filters lie in pairs. Filters and windows are taken in the blocks and
 * chunks that the exporter chose for the memory at hand.
 */
#include "fixed.h"

enum { POSITIONS = CAPLET_POSITIONS };

/* How the sums of a filter become codes: as caplet_scale. add: with the rounding term, where that is no noise. */
typedef struct {
    int32_t add;
    uint8_t left;
    uint8_t right;
} channel_scale;

/*
 * Scratch. patch: int16_t (taps / 2, POSITIONS, 2), elements of the windows in pairs. sums: (block, POSITIONS), where
 * windows are gathered in several chunks. scales: (block). held: the whole filters; NULL where chunks of two are
 * unpacked one by one, into filters.
 */
typedef struct {
    int16_t *patch;
    int32_t *sums;
    channel_scale *scales;
    void *filters;
    const void *held;
} workspace;

/* sums (POSITIONS) += the products of a patch x with one filter w (taps). */
#define MULTIPLY_ONE(TW)                                                     \
    do {                                                                     \
        const TW *v = (const TW *)w;                                         \
        for (k = 0; k < taps; k++) {                                         \
            const int32_t weight = v[k];                                     \
            sums[0] += weight * x[0];                                        \
            sums[1] += weight * x[2];                                        \
            sums[2] += weight * x[4];                                        \
            sums[3] += weight * x[6];                                        \
            x += k & 1u ? 2 * POSITIONS - 1 : 1;                             \
        }                                                                    \
    } while (0)

static void multiply_patch(const caplet_conv_op *op, const void *w, uint32_t filters, const int16_t *x, uint32_t taps,
                           uint32_t fresh, int32_t *sums)
{
    uint32_t k;
    if (filters == CAPLET_PAIR) {
        op->multiply(w, x, taps, fresh, sums);
        return;
    }
    for (k = 0; fresh && k < POSITIONS; k++) {
        sums[k] = 0;
    }
    if (caplet_constant_type(&op->weight) == CAPLET_INT8) {
        MULTIPLY_ONE(int8_t);
    } else {
        MULTIPLY_ONE(int16_t);
    }
}

#define STORE_CODES(T, CODE_OF)                                                                  \
    do {                                                                                         \
        T *to = (T *)y + index;                                                                  \
        for (; sums < end; sums++) {                                                             \
            const int32_t code = (caplet_left32(*sums, left) + add) >> right;                    \
            *to = (T)(CODE_OF);                                                                  \
            to += step;                                                                          \
        }                                                                                        \
    } while (0)

/* The codes of one filter at some positions, where one scale does for all. index: of the first one in y. */
static CAPLET_APART void store_codes(const caplet_conv_op *op, const int32_t *sums, const channel_scale *scale,
                                     uint32_t positions, void *y, uint32_t index)
{
    const int32_t *const end = sums + positions;
    const uint32_t step = op->out_channels;
    const uint32_t left = scale->left;
    const uint32_t right = scale->right;
    const int32_t add = scale->add;
    const int32_t low = op->out.low;
    const int32_t high = op->out.high;
    if (caplet_is_signed_byte(&op->out)) {
        STORE_CODES(uint8_t, caplet_signed_byte(code));
    } else if (caplet_is_unsigned_byte(&op->out)) {
        STORE_CODES(uint8_t, caplet_unsigned_byte(code));
    } else if (op->out.type <= CAPLET_UINT8) {
        STORE_CODES(uint8_t, caplet_clip32(code, low, high));
    } else {
        STORE_CODES(uint16_t, caplet_clip32(code, low, high));
    }
}

/* One chunk of the windows at `positions` output positions from `position` on, for a block of filters. */
static void convolve_chunk(const caplet_conv_op *op, uint32_t channel, uint32_t filters, const workspace *work,
                           const caplet_chunk *part, uint32_t position, uint32_t positions, void *y, uint32_t element)
{
    const uint32_t size = op->kernel_rows * op->kernel_columns * op->depth;
    const uint32_t fresh = part->first == 0;
    const uint32_t last = part->first + part->count == size;
    const uint8_t type = caplet_constant_type(&op->weight);
    const channel_scale *scale = work->scales;
    const uint32_t next = caplet_element_bytes(type) * CAPLET_PAIR * size; /* bytes from one pair to the next */
    const uint8_t *held = (const uint8_t *)work->held;
    int32_t few[CAPLET_PAIR * POSITIONS];
    int32_t *sums = part->count < size ? work->sums : few;
    uint32_t index = position * op->out_channels + channel;
    uint32_t f;
    uint32_t g;
    for (f = 0; f < filters; f += CAPLET_PAIR) {
        const uint32_t some = filters - f < CAPLET_PAIR ? 1u : CAPLET_PAIR;
        const uint32_t from = part->first * some;
        const void *w = work->held != NULL ? caplet_at(held, type, from)
                                           : caplet_row(&op->weight, op->unpack, (channel + f) * size + from,
                                                        part->count * some, work->filters);
        multiply_patch(op, w, some, work->patch, part->count, fresh, sums);
        for (g = 0; g < some && last; g++) {
            if (op->store != NULL) {
                op->store(op, sums + g * POSITIONS, channel + f + g, positions, y, index, element);
            } else {
                store_codes(op, sums + g * POSITIONS, scale, positions, y, index);
            }
            index++;
            scale++;
        }
        held += held != NULL ? next : 0u;
        sums += sums != few ? CAPLET_PAIR * POSITIONS : 0;
    }
}

static void convolve_block(const caplet_conv_op *op, const void *x, uint32_t first_channel, uint32_t channel,
                           uint32_t filters, const workspace *work, void *y, uint32_t element)
{
    const uint32_t total = op->out_rows * op->out_columns;
    const uint32_t size = op->kernel_rows * op->kernel_columns * op->depth;
    const uint32_t length = caplet_run_length(op);
    uint32_t position;
    uint32_t f;
    for (f = 0; f < filters; f++) {
        const caplet_scale scale = caplet_scale_of(&op->acc, &op->out, channel + f, channel + f);
        const uint32_t noisy = op->out.rounding == CAPLET_STOCHASTIC;
        const int64_t add = scale.add + (noisy ? 0 : caplet_rounding_term(&op->out, scale.right, 0));
        const channel_scale narrow = {(int32_t)add, (uint8_t)scale.left, (uint8_t)scale.right};
        work->scales[f] = narrow;
    }
    for (position = 0; position < total; position += POSITIONS) {
        const uint32_t positions = total - position < POSITIONS ? total - position : POSITIONS;
        caplet_chunk part = {0, 0, 0, 0};
        for (; part.first < size; part.first += part.count) {
            part.count = size - part.first < op->taps ? size - part.first : op->taps;
            part.run = part.first / length;
            part.within = part.first - part.run * length;
            caplet_gather(op, x, first_channel, position, positions, &part, work->patch);
            convolve_chunk(op, channel, filters, work, &part, position, positions, y, element);
        }
    }
}

void caplet_convolve(const caplet_conv_op *op, const void *x, uint32_t first_channel, uint32_t channel, uint32_t count,
                     void *y, uint32_t element, void *scratch)
{
    const uint32_t size = op->kernel_rows * op->kernel_columns * op->depth;
    const uint32_t block = op->block < count ? op->block : count;
    const uint32_t end = channel + count;
    workspace work;
    uint32_t some;
    if (op->any != NULL) {
        op->any(op, x, first_channel, channel, count, y, element);
        return;
    }
    work.patch = (int16_t *)scratch;
    work.scales = (channel_scale *)(void *)(work.patch + ((op->taps + 1u) & ~1u) * POSITIONS);
    work.sums = (int32_t *)(void *)(work.scales + block);
    work.filters = work.sums + (op->taps < size ? block * POSITIONS : 0u);
    for (; channel < end; channel += some) {
        some = end - channel < block ? end - channel : block;
        work.held = op->held ? caplet_row(&op->weight, op->unpack, channel * size, some * size, work.filters) : NULL;
        convolve_block(op, x, first_channel, channel, some, &work, y, element);
    }
}
