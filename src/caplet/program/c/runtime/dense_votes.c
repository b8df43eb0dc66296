/* Votes of a fully connected capsule layer. The weights of two votes lie next to each other, component by component. */
#include "fixed.h"

enum { MOST_COMPONENTS = 64 };

/* Sums of two votes, from weights w (dim, 2) of bytes. x: the capsule's components, as int16_t. */
CAPLET_COPIED void sum_two(const int8_t *w, const uint32_t *x, uint32_t dim, int32_t *first, int32_t *second)
{
    uint32_t k = 0;
#ifdef CAPLET_DSP
    if (dim >= 2) {
        const uint32_t word = caplet_load4(w);
        *first = caplet_multiply_pairs_from(caplet_signed_02(word), x[0], *first);
        *second = caplet_multiply_pairs_from(caplet_signed_13(word), x[0], *second), k = 2;
    }
    for (; k + 2 <= dim; k += 2) {
        const uint32_t word = caplet_load4(w + 2 * k);
        *first = caplet_multiply_pairs(caplet_signed_02(word), x[k >> 1], *first);
        *second = caplet_multiply_pairs(caplet_signed_13(word), x[k >> 1], *second);
    }
#endif
    for (; k < dim; k++) {
        const int32_t code = ((const int16_t *)(const void *)x)[k];
        *first += w[2 * k] * code, *second += w[2 * k + 1] * code;
    }
}

typedef union {
    int16_t one[MOST_COMPONENTS];
    uint32_t two[MOST_COMPONENTS / 2];
} capsule_codes;

/* The components of a capsule of bytes, each times 2^lift. */
CAPLET_COPIED void load_capsule(const caplet_source *source, const void *capsule, uint32_t dim, uint32_t lift,
                                capsule_codes *x)
{
    uint32_t k;
    CAPLET_UNROLL
    for (k = 0; k < dim; k++) {
        const int32_t code = source->type == CAPLET_INT8 ? ((const int8_t *)capsule)[k] : ((const uint8_t *)capsule)[k];
        x->one[k] = (int16_t)caplet_left32(code, lift);
    }
}

/*
 * `count` votes from weights of bytes, two by two. full: they take all of int8_t. Compilers make straight code of it
 * where dim and full are known.
 */
CAPLET_COPIED void vote_bytes(const caplet_dense_votes_op *op, const caplet_source *source, const void *capsule,
                              const int8_t *w, uint32_t dim, uint32_t count, uint32_t full, uint8_t *row)
{
    uint32_t right = (uint32_t)(source->acc.product_frac - op->out.frac);
    const uint32_t lift = full && source->type == CAPLET_INT8 && right - 8u <= 8u ? 16u - right : 0u;
    const int32_t low = op->out.low, high = op->out.high;
    const uint8_t *const end = row + (count & ~1u);
    capsule_codes x;
    int32_t add;
#ifdef CAPLET_RVV
    load_capsule(source, capsule, dim, 0, &x);
    caplet_vote_pairs(op, source, x.one, w, dim, count >> 1, NULL, row);
    row += count & ~1u, w += (count & ~1u) * dim;
    if (!(count & 1u)) {
        return;
    }
#endif
    load_capsule(source, capsule, dim, lift, &x);
    right += lift;
    add = right > 0 && op->out.rounding == CAPLET_NEAREST ? (int32_t)1 << (right - 1) : 0;
#define VOTE_TWO(PAIR, CODE_OF)                                                     \
    do {                                                                            \
        int32_t first = add;                                                        \
        int32_t second = add;                                                       \
        sum_two(w + 2 * (PAIR) * dim, x.two, dim, &first, &second);            \
        row[2 * (PAIR)] = (uint8_t)CODE_OF(first);                                  \
        row[2 * (PAIR) + 1] = (uint8_t)CODE_OF(second);                             \
    } while (0)
#define CLIPPED(SUM) (full ? caplet_signed_byte((SUM) >> right) : caplet_clip32((SUM) >> right, low, high))
    /* Sums of a few products of bytes are below 2^17: lifted, their upper halves are the codes. */
    for (; full && right == 16 && row + 4 <= end; row += 4) { /* twice the code, where speed was asked for */
        VOTE_TWO(0, caplet_upper_byte);
        VOTE_TWO(1, caplet_upper_byte);
        w += 4 * dim;
    }
    for (; row < end; row += 2) {
        VOTE_TWO(0, CLIPPED);
        w += 2 * dim;
    }
    if (count & 1u) {
        int32_t sum = add;
        uint32_t k;
        for (k = 0; k < dim; k++) {
            sum += w[k] * x.one[k];
        }
        *row = (uint8_t)CLIPPED(sum);
    }
}

#ifdef CAPLET_HELIUM
#define CAPLET_APART_FROM_VECTORS CAPLET_APART

/*
 * `count` votes, an even number of at least 16, of a capsule x of four components above -128: then two products fit 16
 * bits together, as does half the sum of all. right: at least 2, after rounding to nearest.
 */
CAPLET_COPIED void vote_sixteens(const int8_t *w, const int8_t *x, uint32_t count, uint32_t right, int8_t *row)
{
    const int16_t x0 = x[0], x1 = x[1], x2 = x[2], x3 = x[3];
    const int32_t shift = 1 - (int32_t)right;
    uint32_t step = count & 15u ? count & 15u : 16u; /* the first ones are partly made again */
    uint32_t blocks;
    for (blocks = (count + 15u) >> 4; blocks > 0; blocks--, w += 4 * step, row += step, step = 16) {
        const int16x8x4_t f = vld4q_s16((const int16_t *)(const void *)w); /* component by component */
        const int8x16_t w0 = vreinterpretq_s8_s16(f.val[0]), w1 = vreinterpretq_s8_s16(f.val[1]);
        const int8x16_t w2 = vreinterpretq_s8_s16(f.val[2]), w3 = vreinterpretq_s8_s16(f.val[3]);
        int16x8_t even = vmlaq_n_s16(vmulq_n_s16(vmovlbq_s8(w0), x0), vmovlbq_s8(w1), x1);
        int16x8_t odd = vmlaq_n_s16(vmulq_n_s16(vmovltq_s8(w0), x0), vmovltq_s8(w1), x1);
        even = vhaddq_s16(even, vmlaq_n_s16(vmulq_n_s16(vmovlbq_s8(w2), x2), vmovlbq_s8(w3), x3));
        odd = vhaddq_s16(odd, vmlaq_n_s16(vmulq_n_s16(vmovltq_s8(w2), x2), vmovltq_s8(w3), x3));
        even = vrshlq_n_s16(even, shift);
        vstrbq_s8(row, vqmovntq_s16(vqmovnbq_s16(vreinterpretq_s8_s16(even), even), vrshlq_n_s16(odd, shift)));
    }
}

/* Makes votes of four components that take all of int8_t, or says that it does not. */
CAPLET_COPIED uint32_t vote_vectors(const caplet_dense_votes_op *op, const caplet_source *source, const int8_t *x,
                                    const int8_t *w, uint32_t dim, uint32_t count, int8_t *row)
{
    const uint32_t right = (uint32_t)(source->acc.product_frac - op->out.frac);
    if (dim != 4 || count < 16 || count % 2 > 0 || source->type != CAPLET_INT8 || op->out.rounding != CAPLET_NEAREST ||
        right - 2u > 14u || x[0] == -128 || x[1] == -128 || x[2] == -128 || x[3] == -128) {
        return 0;
    }
    vote_sixteens(w, x, count, right, row);
    return 1;
}
#else
#define CAPLET_APART_FROM_VECTORS inline
#define vote_vectors(op, source, x, w, dim, count, row) 0u
#endif

/* On vectors if they do, else by a function of its own. */
#define DEFINE_VOTE(NAME, DIM, FULL)                                                                                  \
    static CAPLET_APART_FROM_VECTORS void NAME##_others(const caplet_dense_votes_op *op, const caplet_source *source, \
                                                        const void *x, const int8_t *w, uint32_t count, uint8_t *row) \
    {                                                                                                                 \
        vote_bytes(op, source, x, w, DIM, count, FULL, row);                                                          \
    }                                                                                                                 \
    void NAME(const caplet_dense_votes_op *op, const caplet_source *source, const void *capsule, const void *w,       \
              uint32_t first, uint32_t count, void *row, uint32_t element, void *carried)                             \
    {                                                                                                                 \
        (void)element, (void)carried;                                                                                 \
        if (!FULL || !vote_vectors(op, source, (const int8_t *)capsule, (const int8_t *)w, DIM, count,                \
                                   (int8_t *)row + first)) {                                                          \
            NAME##_others(op, source, capsule, (const int8_t *)w, count, (uint8_t *)row + first);                     \
        }                                                                                                             \
    }
DEFINE_VOTE(caplet_vote_bytes_4, 4, 1)
DEFINE_VOTE(caplet_vote_bytes_8, 8, 1)
DEFINE_VOTE(caplet_vote_bytes, op->in_dim, 0)

/* The sum of vote j of `count`. */
static int64_t sum_any(const caplet_dense_votes_op *op, const caplet_source *source, const void *capsule, const void *w,
                       uint32_t j, uint32_t count)
{
    const uint8_t type = caplet_constant_type(&op->weight);
    const uint32_t paired = (j | 1u) < count;
    const uint32_t at = (j & ~1u) * op->in_dim + (paired ? j & 1u : 0u);
    int64_t sum = 0;
    uint32_t k;
    for (k = 0; k < op->in_dim; k++) {
        const int32_t weight = caplet_load(w, type, at + (paired ? CAPLET_PAIR * k : k));
        sum += (int64_t)caplet_load(capsule, source->type, k) * weight;
    }
    return sum;
}

/* The right shift of a vote that carries; negative: left. */
static inline int32_t carried_shift(const caplet_dense_votes_op *op, const caplet_source *source, uint32_t vote)
{
    const int8_t *shifts = source->acc.channel_shifts;
    return op->carry_frac - op->out.frac + (shifts != NULL ? shifts[vote] : 0);
}

void caplet_vote_carried_any(const caplet_dense_votes_op *op, const caplet_source *source, const void *capsule,
                             const void *w, uint32_t first, uint32_t count, void *row, uint32_t element, void *carried)
{
    const uint32_t left = (uint32_t)(op->carry_frac - source->acc.product_frac);
    uint32_t j;
    (void)element;
    for (j = 0; j < count; j++) {
        const int32_t shift = carried_shift(op, source, first + j);
        int64_t sum = caplet_left64(sum_any(op, source, capsule, w, j, count), left);
        if (shift <= 0) {
            sum = caplet_left64(sum, (uint32_t)-shift);
        } else {
            const int64_t half = (int64_t)1 << (shift - 1);
            int64_t rest;
            sum += half + (source->acc.wide ? ((int64_t *)carried)[first + j] : ((int32_t *)carried)[first + j]);
            rest = (int64_t)((uint64_t)sum & (((uint64_t)1 << shift) - 1)) - half;
            if (source->acc.wide) {
                ((int64_t *)carried)[first + j] = rest;
            } else {
                ((int32_t *)carried)[first + j] = (int32_t)rest;
            }
            sum >>= shift;
        }
        caplet_store(row, op->out.type, first + j, caplet_clip64(sum, op->out.low, op->out.high));
    }
}

/*
 * Votes of int8_t from weights of bytes, each with a shift of its own. Sums are lifted until a code of 8 bits begins at
 * bit 16, also where votes have fewer: then the lowest bits of its byte are part of the remainder, below bit
 * op->carried_bits. carried: of each vote, where remainders are carried on to the next input capsule.
 */
CAPLET_COPIED void vote_lifted(const caplet_dense_votes_op *op, const caplet_source *source, const void *capsule,
                               const int8_t *w, uint32_t dim, uint32_t first, uint32_t count, int8_t *row,
                               uint32_t carries, uint32_t *carried)
{
    const uint32_t right = op->carried_bits - 16u, one = (uint32_t)1 << op->carried_bits;
    const uint32_t half = op->out.rounding == CAPLET_NEAREST ? one >> 1 : 0u;
    const uint8_t *lifts = op->lifts + first;
    const int8_t *end;
    capsule_codes x;
    load_capsule(source, capsule, dim, (uint32_t)(op->carry_frac - source->acc.product_frac), &x);
#ifdef CAPLET_RVV
    if (!carries) {
        const uint32_t even = count & ~1u;
        caplet_vote_pairs(op, source, x.one, w, dim, count >> 1, lifts, (uint8_t *)row);
        lifts += even, w += even * dim, row += even, count -= even;
    }
#endif
    end = row + (count & ~1u);
#define LIFTED(VOTE, SUM)                                                                              \
    do {                                                                                               \
        const uint32_t lifted = ((uint32_t)(SUM) << lifts[VOTE]) + (carries ? carried[VOTE] : half);   \
        if (carries) {                                                                                 \
            carried[VOTE] = lifted & (one - 1u);                                                       \
        }                                                                                              \
        row[VOTE] = (int8_t)(caplet_upper_byte((int32_t)lifted) >> right);                             \
    } while (0)
    for (; row < end; lifts += 2, w += 2 * dim, row += 2) {
        int32_t sum = 0;
        int32_t other = 0;
        sum_two(w, x.two, dim, &sum, &other);
        LIFTED(0, sum);
        LIFTED(1, other);
        carried += carries ? 2 : 0;
    }
    if (count & 1u) {
        int32_t sum = 0;
        uint32_t k;
        for (k = 0; k < dim; k++) {
            sum += w[k] * x.one[k];
        }
        LIFTED(0, sum);
    }
}

#define DEFINE_VOTE_LIFTED(NAME, DIM, CARRIES)                                                                  \
    void NAME(const caplet_dense_votes_op *op, const caplet_source *source, const void *capsule, const void *w, \
              uint32_t first, uint32_t count, void *row, uint32_t element, void *carried)                       \
    {                                                                                                           \
        (void)element;                                                                                          \
        vote_lifted(op, source, capsule, (const int8_t *)w, DIM, first, count, (int8_t *)row + first, CARRIES,  \
                    CARRIES ? (uint32_t *)carried + first : NULL);                                              \
    }
DEFINE_VOTE_LIFTED(caplet_vote_channels_4, 4, 0)
DEFINE_VOTE_LIFTED(caplet_vote_channels_8, 8, 0)
DEFINE_VOTE_LIFTED(caplet_vote_channels, op->in_dim, 0)
DEFINE_VOTE_LIFTED(caplet_vote_carried_4, 4, 1)
DEFINE_VOTE_LIFTED(caplet_vote_carried_8, 8, 1)
DEFINE_VOTE_LIFTED(caplet_vote_carried, op->in_dim, 1)

void caplet_vote_any(const caplet_dense_votes_op *op, const caplet_source *source, const void *capsule, const void *w,
                     uint32_t first, uint32_t count, void *row, uint32_t element, void *carried)
{
    uint32_t j;
    (void)carried;
    for (j = 0; j < count; j++) {
        const caplet_scale scale = caplet_scale_of(&source->acc, &op->out, first + j, 0);
        const int64_t sum = sum_any(op, source, capsule, w, j, count);
        caplet_store(row, op->out.type, first + j,
                     source->acc.wide ? caplet_requantize64(sum, &scale, &op->out, element + first + j)
                                      : caplet_requantize32((int32_t)sum, &scale, &op->out, element + first + j));
    }
}

static inline const caplet_source *source_of(const caplet_dense_votes_op *op, const void *const **x, uint32_t input,
                                             uint32_t *first)
{
    const caplet_source *source = op->sources;
    uint32_t local = op->selected != NULL ? op->selected[input] : input;
    uint32_t positions = source->rows * source->columns, type;
    while (local >= source->types * positions) {
        local -= source->types * positions, source++;
        ++*x;
        positions = source->rows * source->columns;
    }
    /* Capsule (type * rows + row) * columns + column of a map (rows, columns, types * in_dim). */
    type = local / positions;
    *first = ((local - type * positions) * source->types + type) * op->in_dim;
    return source;
}

const caplet_source *caplet_source_of(const caplet_dense_votes_op *op, const void *const **x, uint32_t input,
                                      uint32_t *first)
{
    return source_of(op, x, input, first);
}

CAPLET_COLD void caplet_dense_votes(const caplet_dense_votes_op *op, const void *const *x, uint32_t input, void *row,
                                    void *scratch)
{
    uint32_t first;
    const caplet_source *source = source_of(op, &x, input, &first);
    const void *capsule = caplet_at(*x, source->type, first);
    void *const carried = scratch;
    const uint32_t element = input * op->votes;
    uint32_t count, j;
    if (op->out.rounding == CAPLET_CARRY) {
        const uint32_t half = op->lifts != NULL ? (uint32_t)1 << (op->carried_bits - 1u) : 0u;
        for (j = input == 0 ? op->votes << source->acc.wide : 0u; j > 0; j--) {
            ((uint32_t *)carried)[j - 1] = half;
        }
        scratch = (uint8_t *)scratch + (size_t)op->votes * (source->acc.wide ? 8u : 4u);
    }
    if (op->unpack == NULL) {
        const void *w = caplet_row(&op->weight, NULL, element * op->in_dim, 0, NULL);
        op->kernel(op, source, capsule, w, 0, op->votes, row, element, carried);
        return;
    }
    for (j = 0; j < op->votes; j += count) {
        count = op->votes - j < op->block ? op->votes - j : op->block;
        op->unpack(&op->weight, (element + j) * op->in_dim, count * op->in_dim, scratch);
        op->kernel(op, source, capsule, scratch, j, count, row, element, carried);
    }
}

void caplet_make_dense_votes(const caplet_votes *votes, uint32_t input, void *row)
{
    caplet_dense_votes((const caplet_dense_votes_op *)votes->op, votes->x, input, row, votes->scratch);
}

void caplet_store_votes(const caplet_votes *votes, uint32_t first, uint32_t count, void *stored, uint32_t row_bytes)
{
    uint32_t i;
    for (i = 0; i < count; i++) {
        votes->make(votes, first + i, (uint8_t *)stored + (size_t)i * row_bytes);
    }
}
