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
    uint8_t left, right;
} channel_scale;

/*
 * Scratch. patch: of the windows. sums: (block, POSITIONS), where
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

/* Elements of a chunk of one filter or a pair, `filter` and the next one of the block. */
static const void *weights_of(const caplet_conv_op *op, const workspace *work, uint32_t channel, uint32_t filter,
                              uint32_t filters, const caplet_chunk *part)
{
    const uint32_t size = op->kernel_rows * op->kernel_columns * op->depth;
    const uint32_t from = filter * size + part->first * filters;
    if (work->held != NULL) {
        return caplet_at(work->held, caplet_constant_type(&op->weight), from);
    }
    return caplet_row(&op->weight, op->unpack, channel * size + from, part->count * filters, work->filters);
}

#ifdef CAPLET_VECTORS
/* Patches of unsigned codes hold those less 128, so that their sums lack 128 times the filters'. */
static void correct_scales(const caplet_conv_op *op, const workspace *work, uint32_t channel, uint32_t filters)
{
    const uint32_t size = op->kernel_rows * op->kernel_columns * op->depth;
    uint32_t f;
    for (f = 0; f < filters; f += CAPLET_PAIR) {
        const uint32_t some = filters - f < CAPLET_PAIR ? 1u : CAPLET_PAIR;
        caplet_chunk part = {0, 0, 0, 0};
        /* Of a pair, every second weight is the first filter's. */
#ifdef CAPLET_HELIUM
        const int8x16_t firsts = some < CAPLET_PAIR ? vdupq_n_s8(1) : vreinterpretq_s8_s16(vdupq_n_s16(1));
        int8x16_t weights;
#endif
        int32_t first = 0, all = 0;
        uint32_t k;
        for (; part.first < size; part.first += part.count) {
            const int8_t *w;
            part.count = size - part.first < op->taps ? size - part.first : op->taps;
            w = (const int8_t *)weights_of(op, work, channel, f, some, &part);
#ifdef CAPLET_RVV
            for (k = part.count; k > 0; k--, w += some) {
                first += w[0], all += w[0] + (some < CAPLET_PAIR ? 0 : w[1]);
            }
#else
            for (k = part.count * some; k >= 16; k -= 16, w += 16) {
                weights = vldrbq_s8(w);
                first = vmladavaq_s8(first, weights, firsts), all = vaddvaq_s8(all, weights);
            }
            weights = vldrbq_z_s8(w, vctp8q(k));
            first = vmladavaq_s8(first, weights, firsts), all = vaddvaq_s8(all, weights);
#endif
        }
        for (k = 0; k < some; k++) {
            channel_scale *scale = work->scales + f + k;
            const uint32_t sum = (uint32_t)(k > 0 ? all - first : first);
            scale->add = (int32_t)((uint32_t)scale->add + (sum << (7u + scale->left)));
        }
    }
}
#endif

#ifdef CAPLET_HELIUM
/* How codes of up to four positions are stored. */
typedef struct {
    uint32x4_t places;
    int32x4_t low, high;
    mve_pred16_t some;
} storage;

static inline storage storage_of(const caplet_conv_op *op, uint32_t positions)
{
    const storage result = {vmulq_n_u32(vidupq_n_u32(0, 1), op->out_channels), vdupq_n_s32(op->out.low),
                            vdupq_n_s32(op->out.high), vctp32q(positions)};
    return result;
}

static inline int32x4_t codes_of(const int32_t *sums, const channel_scale *scale, const storage *to)
{
    const int32x4_t sum = vaddq_n_s32(vshlq_r_s32(vldrwq_s32(sums), scale->left), scale->add);
    return vminq_s32(vmaxq_s32(vshlq_r_s32(sum, -(int32_t)scale->right), to->low), to->high);
}

/* The codes of `filters` filters at some positions, where one scale each does. index: of the first one in y. */
static inline void store_codes(const caplet_conv_op *op, const int32_t *sums, const channel_scale *scale,
                               uint32_t filters, const storage *to, void *y, uint32_t index)
{
#define STORE(T, SCATTER)                                                                                 \
    do {                                                                                                  \
        T *codes = (T *)y + index;                                                                        \
        SCATTER(codes, to->places, codes_of(sums, scale, to), to->some);                                  \
        if (filters > 1) {                                                                                \
            SCATTER(codes + 1, to->places, codes_of(sums + POSITIONS, scale + 1, to), to->some);          \
        }                                                                                                 \
    } while (0)
    if (op->out.type <= CAPLET_UINT8) {
        STORE(int8_t, vstrbq_scatter_offset_p_s32);
    } else {
        STORE(int16_t, vstrhq_scatter_shifted_offset_p_s32);
    }
}
#else
#define STORE_CODES(T, CODE_OF)                                                  \
    for (; sums < end; sums++, to += step * sizeof(T)) {                         \
        const int32_t code = (caplet_left32(*sums, left) + add) >> right;        \
        *(T *)(void *)to = (T)(CODE_OF);                                         \
    }

/* The codes of one filter at some positions, where one scale does for all. index: of the first one in y. */
static CAPLET_APART void store_one(const caplet_conv_op *op, const int32_t *sums, const channel_scale *scale,
                                   uint32_t positions, void *y, uint32_t index)
{
    const int32_t *const end = sums + positions;
    uint8_t *to = (uint8_t *)caplet_at_writable(y, op->out.type, index);
    const uint32_t step = op->out_channels, left = scale->left, right = scale->right;
    const int32_t add = scale->add, low = op->out.low, high = op->out.high;
    if (caplet_is_signed_byte(&op->out)) {
        STORE_CODES(uint8_t, caplet_signed_byte(code))
    } else if (caplet_is_unsigned_byte(&op->out)) {
        STORE_CODES(uint8_t, caplet_unsigned_byte(code))
    } else if (op->out.type <= CAPLET_UINT8) {
        STORE_CODES(uint8_t, caplet_clip32(code, low, high))
    } else {
        STORE_CODES(uint16_t, caplet_clip32(code, low, high))
    }
}

typedef uint32_t storage;
#define storage_of(op, positions) (positions)

static inline void store_codes(const caplet_conv_op *op, const int32_t *sums, const channel_scale *scale,
                               uint32_t filters, const storage *positions, void *y, uint32_t index)
{
    uint32_t f;
    for (f = 0; f < filters; f++) {
        store_one(op, sums + f * POSITIONS, scale + f, *positions, y, index + f);
    }
}
#endif

static CAPLET_APART void store_each(const caplet_conv_op *op, const int32_t *sums, uint32_t channel, uint32_t filters,
                                      uint32_t positions, void *y, uint32_t index, uint32_t element)
{
    uint32_t f;
    for (f = 0; f < filters; f++) {
        op->store(op, sums + f * POSITIONS, channel + f, positions, y, index + f, element);
    }
}

/* One chunk of the windows at `positions` output positions from `position` on, for a block of filters. */
static CAPLET_HOT void convolve_chunk(const caplet_conv_op *op, uint32_t channel, uint32_t filters,
                                      const workspace *work, const caplet_chunk *part, uint32_t position,
                                      uint32_t positions, void *y, uint32_t element)
{
    const uint32_t size = op->kernel_rows * op->kernel_columns * op->depth, fresh = part->first == 0;
    const uint32_t count = part->count, last = part->first + count == size, fast = last && op->store == NULL;
    const uint32_t bytes = caplet_element_bytes(caplet_constant_type(&op->weight));
    const uint32_t next = work->held != NULL ? CAPLET_PAIR * bytes * size : 0u;
    const uint32_t offset = bytes * part->first;
    const uint32_t step = count < size ? CAPLET_PAIR * POSITIONS : 0u;
    const storage to = storage_of(op, positions);
    const uint8_t *held = (const uint8_t *)work->held;
    int32_t few[CAPLET_PAIR * POSITIONS];
    int32_t *sums = count < size ? work->sums : few;
    uint32_t index = position * op->out_channels + channel, at = 0, f;
    for (f = 0; f < filters; f += CAPLET_PAIR) {
        const uint32_t some = filters - f < CAPLET_PAIR ? 1u : CAPLET_PAIR;
        const void *w = next > 0 ? held + at + offset * some : weights_of(op, work, channel, f, some, part);
        op->multiply(w, work->patch, count, some, fresh, sums);
        if (fast) {
            store_codes(op, sums, work->scales + f, some, &to, y, index);
        } else if (last) {
            store_each(op, sums, channel + f, some, positions, y, index, element);
        }
        at += next, sums += step, index += CAPLET_PAIR;
    }
}

static void convolve_block(const caplet_conv_op *op, const void *x, uint32_t first_channel, uint32_t channel,
                           uint32_t filters, const workspace *work, void *y, uint32_t element)
{
    const uint32_t total = op->out_rows * op->out_columns;
    const uint32_t size = op->kernel_rows * op->kernel_columns * op->depth, length = caplet_run_length(op);
    uint32_t position, f;
    for (f = 0; f < filters; f++) {
        const caplet_scale scale = caplet_scale_of(&op->acc, &op->out, channel + f, channel + f);
        const uint32_t noisy = op->out.rounding == CAPLET_STOCHASTIC;
        const int64_t add = scale.add + (noisy ? 0 : caplet_rounding_term(&op->out, scale.right, 0));
        const channel_scale narrow = {(int32_t)add, (uint8_t)scale.left, (uint8_t)scale.right};
        work->scales[f] = narrow;
    }
#ifdef CAPLET_VECTORS
    if (op->in_type == CAPLET_UINT8 && caplet_constant_type(&op->weight) == CAPLET_INT8 && op->store == NULL) {
        correct_scales(op, work, channel, filters);
    }
#endif
    for (position = 0; position < total; position += POSITIONS) {
        const uint32_t positions = total - position < POSITIONS ? total - position : POSITIONS;
        caplet_chunk part = {0, 0, 0, 0};
        for (; part.first < size; part.first += part.count) {
            part.count = size - part.first < op->taps ? size - part.first : op->taps;
            part.run = part.first / length, part.within = part.first - part.run * length;
            caplet_gather(op, x, first_channel, position, positions, &part, work->patch);
            convolve_chunk(op, channel, filters, work, &part, position, positions, y, element);
        }
    }
}

CAPLET_COLD void caplet_convolve(const caplet_conv_op *op, const void *x, uint32_t first_channel, uint32_t channel,
                                 uint32_t count, void *y, uint32_t element, void *scratch)
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
