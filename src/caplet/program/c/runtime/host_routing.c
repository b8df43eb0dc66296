/*
 * Dynamic routing of votes of bytes for PCs, with logits of at most 12 bits. Votes are transposed to
 * (outputs * dim, inputs), so that weighted sums, agreements and softmax all run along the input capsules, whatever the
 * dimension.
 */
#include "host_tile.h"

#if CAPLET_LANES

/* Input capsules of a vector, and those whose coupling is made together. */
enum { ALONG = 2 * CAPLET_LANES, GROUP = 64 };

/* Columns of votes that are transposed together. */
enum { COLUMNS = 32 };
typedef uint64_t columns __attribute__((vector_size(COLUMNS)));
typedef uint64_t loose_columns __attribute__((vector_size(COLUMNS), aligned(1), may_alias));

typedef int8_t narrow_codes __attribute__((vector_size(ALONG), aligned(1), may_alias));
typedef int16_t codes_16 __attribute__((vector_size(2 * ALONG)));

/* The scratch of a routing; stride: input capsules, rounded up. */
typedef struct {
    int8_t *votes;    /* (outputs * dim, stride), zero beyond the inputs */
    int16_t *logits;  /* (outputs, stride) */
    int16_t *coupling;
    uint32_t *exponentials; /* (outputs, GROUP) */
    int32_t *bias;          /* (types * dim), with the rounding term */
    uint32_t stride;
} routing_room;

/* ALONG bytes as int16_t. */
CAPLET_COPIED caplet_lanes widen(const int8_t *from)
{
    return (caplet_lanes)__builtin_convertvector(*(const narrow_codes *)from, codes_16);
}

/*
 * Eight rows of COLUMNS bytes to columns: swaps of the halves of every eight bytes, of their quarters and of single
 * bytes, between rows.
 */
static inline void transpose_8(const int8_t *from, size_t from_row, int8_t *to, size_t to_row)
{
    static const uint64_t masks[3] = {0x00000000FFFFFFFFu, 0x0000FFFF0000FFFFu, 0x00FF00FF00FF00FFu};
    columns rows[8];
    uint32_t r, step, block;
    for (r = 0; r < 8; r++) {
        rows[r] = *(const loose_columns *)(from + r * from_row);
    }
    CAPLET_STRAIGHT
    for (step = 0; step < 3; step++) {
        const uint32_t distance = 4u >> step;
        CAPLET_STRAIGHT
        for (r = 0; r < 8; r++) {
            if (!(r & distance)) {
                const columns low = rows[r];
                const columns high = rows[r + distance];
                rows[r] = (low & masks[step]) | (high & masks[step]) << (8 * distance);
                rows[r + distance] = (low >> (8 * distance) & masks[step]) | (high & ~masks[step]);
            }
        }
    }
    for (block = 0; block < COLUMNS / 8; block++) {
        for (r = 0; r < 8; r++) {
            const uint64_t column = rows[r][block];
            memcpy(to + (8 * block + r) * to_row, &column, sizeof column);
        }
    }
}

static void transpose_votes(const int8_t *votes, uint32_t inputs, uint32_t count, int8_t *to, uint32_t stride)
{
    const uint32_t whole = count < COLUMNS ? 0 : inputs & ~7u;
    uint32_t i, j;
    for (i = 0; i < whole; i += 8) {
        for (j = 0; j < count; j += COLUMNS) {
            const uint32_t first = count - j < COLUMNS ? count - COLUMNS : j; /* some columns once more */
            transpose_8(votes + (size_t)i * count + first, count, to + (size_t)first * stride + i, stride);
        }
    }
    for (j = 0; j < count; j++) {
        int8_t *row = to + (size_t)j * stride;
        for (i = whole; i < inputs; i++) {
            row[i] = votes[(size_t)i * count + j];
        }
        memset(row + inputs, 0, stride - inputs);
    }
}

/* Sum of votes[i] * coupling[i] along the input capsules, or of the votes where coupling is NULL. */
CAPLET_COPIED int32_t sum_along(const int8_t *votes, const int16_t *coupling, uint32_t stride)
{
    const caplet_lanes zero = {0};
    caplet_lanes acc = zero;
    int32_t sums[CAPLET_LANES];
    int32_t sum = 0;
    uint32_t i;
    for (i = 0; i < stride; i += ALONG) {
        const caplet_lanes by = coupling != NULL ? caplet_load_lanes(coupling + i) : zero + 0x10001;
        acc = caplet_dot_pairs(acc, widen(votes + i), by);
    }
    caplet_store_lanes(sums, acc);
    for (i = 0; i < CAPLET_LANES; i++) {
        sum += sums[i];
    }
    return sum;
}

/* acc (outputs, dim) = the votes weighted by coupling, or where it is NULL all by `factor`. */
static void weigh_along(const caplet_routing_op *op, const routing_room *room, const int16_t *coupling, int32_t factor,
                        int32_t *acc)
{
    const uint32_t stride = room->stride;
    uint32_t j;
    for (j = 0; j < op->outputs * op->dim; j++) {
        const int8_t *votes = room->votes + (size_t)j * stride;
        acc[j] = coupling != NULL ? sum_along(votes, coupling + (size_t)(j / op->dim) * stride, stride)
                                  : factor * sum_along(votes, NULL, stride);
    }
}

/* Adds the rounded agreements to the logits. The even input capsules of a vector are summed apart from the odd ones. */
static void agree_along(const caplet_routing_op *op, const void *activation, const routing_room *room)
{
    const uint32_t right = (uint32_t)op->agreement_shift;
    const int32_t term = (int32_t)caplet_rounding_term(&op->logits, right, 0);
    const int32_t most = 1 << 13; /* a longer step leads to the end of any logits' range, which has at most 12 bits */
    const caplet_lanes zero = {0};
    const codes_16 none = {0};
    uint32_t g, i, d;
    for (g = 0; g < op->outputs; g++) {
        const int8_t *votes = room->votes + (size_t)g * op->dim * room->stride;
        int16_t *logits = room->logits + (size_t)g * room->stride;
        for (i = 0; i < room->stride; i += ALONG) {
            caplet_lanes even = zero + term;
            caplet_lanes odd = even;
            codes_16 sums;
            codes_16 beyond;
            for (d = 0; d < op->dim; d++) {
                const caplet_lanes v = widen(votes + (size_t)d * room->stride + i);
                const int32_t a = caplet_load(activation, op->activation.type, g * op->dim + d);
                even = caplet_dot_pairs(even, v, zero + (a & 0xFFFF));
                odd = caplet_dot_pairs(odd, v, zero + (int32_t)((uint32_t)a << 16));
            }
            even = caplet_clip_lanes(even >> right, -most, most);
            odd = caplet_clip_lanes(odd >> right, -most, most);
            sums = (codes_16)((even & 0xFFFF) | (odd << 16)) + (codes_16)caplet_load_lanes(logits + i);
            beyond = sums < (int16_t)op->logits.low;
            sums = (sums & ~beyond) | ((none + (int16_t)op->logits.low) & beyond);
            beyond = sums > (int16_t)op->logits.high;
            sums = (sums & ~beyond) | ((none + (int16_t)op->logits.high) & beyond);
            caplet_store_lanes(logits + i, (caplet_lanes)sums);
        }
    }
}

/* Coupling of `count` input capsules from `first` on, at most GROUP. */
static void soften(const caplet_routing_op *op, const routing_room *room, uint32_t first, uint32_t count)
{
    const caplet_format *out = &op->coupling;
    const uint32_t right = (uint32_t)(op->scale_bits + 31 - out->frac); /* 34..55 */
    const uint32_t term = (uint32_t)(caplet_rounding_term(out, right, 0) >> 32);
    const uint32_t most = (uint32_t)out->high;
    int16_t largest[GROUP];
    uint32_t sums[GROUP];
    uint32_t g, i;
    memcpy(largest, room->logits + first, sizeof largest);
    for (g = 1; g < op->outputs; g++) {
        const int16_t *logits = room->logits + (size_t)g * room->stride + first;
        for (i = 0; i < count; i++) {
            largest[i] = logits[i] > largest[i] ? logits[i] : largest[i];
        }
    }
    memset(sums, 0, sizeof sums);
    for (g = 0; g < op->outputs; g++) {
        const int16_t *logits = room->logits + (size_t)g * room->stride + first;
        uint32_t *e = room->exponentials + g * GROUP;
        for (i = 0; i < count; i++) {
            e[i] = op->exponentials[largest[i] - logits[i]];
            sums[i] += e[i];
        }
    }
    for (i = 0; i < count; i++) { /* their reciprocals */
        sums[i] = caplet_divide((uint64_t)1 << (op->scale_bits + 31), sums[i]);
    }
    for (g = 0; g < op->outputs; g++) {
        const uint32_t *restrict e = room->exponentials + g * GROUP;
        int16_t *restrict codes = room->coupling + (size_t)g * room->stride + first;
        for (i = 0; i < count; i++) {
            const uint32_t code = ((uint32_t)(((uint64_t)e[i] * sums[i]) >> 32) + term) >> (right - 32);
            codes[i] = (int16_t)(code < most ? code : most);
        }
    }
}

static void *take(uint8_t **scratch, size_t bytes)
{
    void *room = *scratch;
    *scratch += (bytes + 63) / 64 * 64;
    return room;
}

void caplet_host_route(const caplet_routing_op *op, const int8_t *votes, const caplet_routing_memory *memory,
                       void *scratch)
{
    const uint32_t count = op->outputs * op->dim;
    const uint32_t biases = op->types * op->dim;
    /* An odd number of cache lines, so that not all rows of a column meet in a few of them. */
    const uint32_t stride = ((op->inputs + GROUP - 1) / GROUP | 1u) * GROUP;
    const uint32_t noisy = op->preactivation.rounding == CAPLET_STOCHASTIC;
    const caplet_scale scale = caplet_scale_of(&op->acc, &op->preactivation, 0, 0);
    const caplet_squash_op squash = {op->squash, op->activation, op->outputs, op->dim, op->preactivation.frac,
                                     op->preactivation.type};
    uint8_t *rest = (uint8_t *)scratch;
    int32_t *acc = (int32_t *)memory->acc;
    routing_room room;
    uint32_t iteration, i, j, k;
    room.stride = stride;
    room.votes = (int8_t *)take(&rest, (size_t)count * stride);
    room.logits = (int16_t *)take(&rest, 2 * (size_t)op->outputs * stride);
    room.coupling = (int16_t *)take(&rest, 2 * (size_t)op->outputs * stride);
    room.exponentials = (uint32_t *)take(&rest, 4 * (size_t)op->outputs * GROUP);
    room.bias = (int32_t *)take(&rest, 4 * (size_t)biases);
    memset(room.logits, 0, 2 * (size_t)op->outputs * stride);
    transpose_votes(votes, op->inputs, count, room.votes, stride);
    for (j = 0; j < biases; j++) {
        room.bias[j] = (int32_t)(caplet_scale_of(&op->acc, &op->preactivation, 0, j).add +
                                 (noisy ? 0 : caplet_rounding_term(&op->preactivation, scale.right, 0)));
    }
    for (iteration = 0; iteration < op->iterations; iteration++) {
        if (iteration == 0) {
            weigh_along(op, &room, NULL, op->uniform, acc);
        } else {
            agree_along(op, memory->activation, &room);
            for (i = 0; i < op->inputs; i += GROUP) {
                soften(op, &room, i, op->inputs - i < GROUP ? op->inputs - i : GROUP);
            }
            weigh_along(op, &room, room.coupling, 1, acc);
        }
        for (j = 0; j < count; j += biases) {
            for (k = 0; k < biases; k++) {
                const uint32_t element = iteration * count + j + k;
                int32_t sum = caplet_left32(acc[j + k], scale.left) + room.bias[k];
                sum += noisy ? (int32_t)caplet_rounding_term(&op->preactivation, scale.right, element) : 0;
                caplet_store(memory->preactivation, op->preactivation.type, j + k,
                             caplet_clip32(sum >> scale.right, op->preactivation.low, op->preactivation.high));
            }
        }
        op->squash(&squash, memory->preactivation, memory->activation, iteration * count);
    }
    if (memory->logits != NULL) {
        for (i = 0; i < op->inputs; i++) {
            for (j = 0; j < op->outputs; j++) {
                const int32_t logit = room.logits[(size_t)j * stride + i];
                caplet_store(memory->logits, op->logits.type, i * op->outputs + j, logit);
            }
        }
    }
}

#endif
