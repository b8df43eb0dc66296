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
        *second = caplet_multiply_pairs_from(caplet_signed_13(word), x[0], *second);
        k = 2;
    }
    for (; k + 2 <= dim; k += 2) {
        const uint32_t word = caplet_load4(w + 2 * k);
        *first = caplet_multiply_pairs(caplet_signed_02(word), x[k >> 1], *first);
        *second = caplet_multiply_pairs(caplet_signed_13(word), x[k >> 1], *second);
    }
#endif
    for (; k < dim; k++) {
        const int32_t code = ((const int16_t *)(const void *)x)[k];
        *first += w[2 * k] * code;
        *second += w[2 * k + 1] * code;
    }
}

/*
 * `count` votes from weights of bytes, two by two. full: they take all of int8_t. Compilers make straight code of it
 * where dim and full are known.
 */
CAPLET_COPIED void vote_bytes(const caplet_dense_votes_op *op, const caplet_source *source, const void *capsule,
                              const int8_t *w, uint32_t dim, uint32_t count, uint32_t full, uint8_t *row)
{
    const uint32_t right = (uint32_t)(source->acc.product_frac - op->out.frac);
    const int32_t add = right > 0 && op->out.rounding == CAPLET_NEAREST ? (int32_t)1 << (right - 1) : 0;
    const int32_t low = op->out.low;
    const int32_t high = op->out.high;
    const uint8_t *const end = row + (count & ~1u);
    uint32_t components[MOST_COMPONENTS / 2]; /* int16_t, two to a word */
    int16_t *const x = (int16_t *)(void *)components;
    uint32_t k;
    CAPLET_UNROLL
    for (k = 0; k < dim; k++) {
        x[k] = source->type == CAPLET_INT8 ? ((const int8_t *)capsule)[k] : ((const uint8_t *)capsule)[k];
    }
#define VOTE_TWO(PAIR)                                                                                             \
    do {                                                                                                           \
        int32_t first = add;                                                                                       \
        int32_t second = add;                                                                                      \
        sum_two(w + 2 * (PAIR) * dim, components, dim, &first, &second);                                           \
        first >>= right;                                                                                           \
        second >>= right;                                                                                          \
        row[2 * (PAIR)] = (uint8_t)(full ? caplet_signed_byte(first) : caplet_clip32(first, low, high));           \
        row[2 * (PAIR) + 1] = (uint8_t)(full ? caplet_signed_byte(second) : caplet_clip32(second, low, high));     \
    } while (0)
    for (; full && row + 4 <= end; row += 4) { /* twice the code, where speed was asked for */
        VOTE_TWO(0);
        VOTE_TWO(1);
        w += 4 * dim;
    }
    for (; row < end; row += 2) {
        VOTE_TWO(0);
        w += 2 * dim;
    }
    if (count & 1u) {
        int32_t sum = add;
        for (k = 0; k < dim; k++) {
            sum += w[k] * x[k];
        }
        *row = (uint8_t)caplet_clip32(sum >> right, low, high);
    }
}

#define DEFINE_VOTE(NAME, DIM, FULL)                                                                                \
    void NAME(const caplet_dense_votes_op *op, const caplet_source *source, const void *capsule, const void *w,     \
              uint32_t first, uint32_t count, void *row, uint32_t element)                                          \
    {                                                                                                               \
        (void)element;                                                                                              \
        vote_bytes(op, source, capsule, (const int8_t *)w, DIM, count, FULL, (uint8_t *)row + first);               \
    }

DEFINE_VOTE(caplet_vote_bytes_4, 4, 1)
DEFINE_VOTE(caplet_vote_bytes_8, 8, 1)
DEFINE_VOTE(caplet_vote_bytes, op->in_dim, 0)

void caplet_vote_any(const caplet_dense_votes_op *op, const caplet_source *source, const void *capsule, const void *w,
                     uint32_t first, uint32_t count, void *row, uint32_t element)
{
    const uint8_t type = caplet_constant_type(&op->weight);
    uint32_t j;
    uint32_t k;
    for (j = 0; j < count; j++) {
        const uint32_t paired = (j | 1u) < count;
        const uint32_t at = (j & ~1u) * op->in_dim + (paired ? j & 1u : 0u);
        const caplet_scale scale = caplet_scale_of(&source->acc, &op->out, first + j, 0);
        int64_t sum = 0;
        for (k = 0; k < op->in_dim; k++) {
            const int32_t weight = caplet_load(w, type, at + (paired ? CAPLET_PAIR * k : k));
            sum += (int64_t)caplet_load(capsule, source->type, k) * weight;
        }
        caplet_store(row, op->out.type, first + j,
                     source->acc.wide ? caplet_requantize64(sum, &scale, &op->out, element + first + j)
                                      : caplet_requantize32((int32_t)sum, &scale, &op->out, element + first + j));
    }
}

const caplet_source *caplet_source_of(const caplet_dense_votes_op *op, const void *const **x, uint32_t input,
                                      uint32_t *first)
{
    const caplet_source *source = op->sources;
    uint32_t local = op->selected != NULL ? op->selected[input] : input;
    uint32_t positions = source->rows * source->columns;
    while (local >= source->types * positions) {
        local -= source->types * positions;
        source++;
        ++*x;
        positions = source->rows * source->columns;
    }
    /* Capsule (type * rows + row) * columns + column of a map (rows, columns, types * in_dim). */
    *first = (local % positions * source->types + local / positions) * op->in_dim;
    return source;
}

void caplet_dense_votes(const caplet_dense_votes_op *op, const void *const *x, uint32_t input, void *row, void *scratch)
{
    uint32_t first;
    const caplet_source *source = caplet_source_of(op, &x, input, &first);
    const void *capsule = caplet_at(*x, source->type, first);
    uint32_t count;
    uint32_t j;
    for (j = 0; j < op->votes; j += count) {
        const void *w;
        count = op->votes - j < op->block ? op->votes - j : op->block;
        w = caplet_row(&op->weight, op->unpack, (input * op->votes + j) * op->in_dim, count * op->in_dim, scratch);
        op->kernel(op, source, capsule, w, j, count, row, input * op->votes);
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
