/* Dynamic routing of bytes: the weighted sums, and the agreements. */
#include "fixed.h"

enum { MOST_DIM = 64 };

#ifndef CAPLET_VECTORS
/* Rows of votes that are weighed, and whose agreements are made, together. */
enum { TOGETHER = 4 };

#ifdef CAPLET_DSP
/* s0, s1 += weight * the bytes 0 and 2, and 1 and 3, of a word: components of two rows. */
#define WEIGH_TWO(WORD, S0, S1)                                             \
    do {                                                                    \
        const uint32_t word = WORD;                                         \
        S0 = caplet_multiply_pairs(caplet_signed_02(word), weight, S0);     \
        S1 = caplet_multiply_pairs(caplet_signed_13(word), weight, S1);     \
    } while (0)

/*
 * sums[d] += weight * v[r * row + d] over an even number of rows, whose weights lie in pairs up to `end`. six: dim is
 * 6, which takes one loop.
 */
CAPLET_COPIED void weigh_rows(int32_t *restrict sums, const uint32_t *restrict weights, const uint32_t *end,
                              const int8_t *restrict v, uint32_t row, uint32_t dim, uint32_t six)
{
    const int8_t *from;
    const uint32_t *w;
    for (; dim >= 4; dim -= 4) {
        int32_t s0 = sums[0], s1 = sums[1], s2 = sums[2], s3 = sums[3];
        from = v, w = weights;
        if (six) {
            int32_t s4 = sums[4], s5 = sums[5];
            do {
                const uint32_t a = caplet_load4(from), b = caplet_load4(from + row), weight = *w++;
                WEIGH_TWO(caplet_low_halves(a, b), s0, s1);
                WEIGH_TWO(caplet_high_halves(a, b), s2, s3);
                WEIGH_TWO(caplet_low_halves(caplet_load2(from + 4), caplet_load2(from + row + 4)), s4, s5);
                from += 2 * row;
            } while (w < end);
            sums[0] = s0, sums[1] = s1, sums[2] = s2, sums[3] = s3, sums[4] = s4, sums[5] = s5;
            return;
        }
        do {
            const uint32_t a = caplet_load4(from), b = caplet_load4(from + row), weight = *w++;
            WEIGH_TWO(caplet_low_halves(a, b), s0, s1);
            WEIGH_TWO(caplet_high_halves(a, b), s2, s3);
            from += 2 * row;
        } while (w < end);
        sums[0] = s0, sums[1] = s1, sums[2] = s2, sums[3] = s3, v += 4, sums += 4;
    }
    for (; dim > 0; dim--) {
        int32_t sum = *sums;
        from = v++, w = weights;
        do {
            sum = caplet_multiply_pairs(caplet_low_halves((uint32_t)from[0], (uint32_t)from[row]), *w++, sum);
            from += 2 * row;
        } while (w < end);
        *sums++ = sum;
    }
}

/* Weighs an even number of rows, which it returns. */
CAPLET_COPIED uint32_t weigh_pairs(const caplet_routing_op *op, const int8_t *votes, const uint16_t *coupling,
                                   uint32_t rows, uint32_t six, int32_t *acc)
{
    const uint32_t outputs = op->outputs, dim = six ? 6u : op->dim;
    uint32_t g;
    if (rows < 2 || (op->rows & 1u)) {
        return 0;
    }
    for (g = 0; g < outputs; g++) {
        const uint32_t *weights = (const uint32_t *)(const void *)coupling;
        weigh_rows(acc, weights, weights + rows / 2, votes, outputs * dim, dim, six);
        votes += dim, acc += dim, coupling += op->rows;
    }
    return rows & ~1u;
}

/*
 * Adds the agreements with one output capsule, shifted, to its logits, which lie `outputs` apart. a: the capsule; v:
 * its votes by the first of `rows` input capsules; format: of the logits, NULL where they take all of int8_t. Compilers
 * make straight code of it where dim is known.
 */
CAPLET_COPIED void agree(const int8_t *a, const int8_t *v, uint32_t row, uint32_t rows, uint32_t dim, int32_t start,
                         uint32_t right, const caplet_format *format, int8_t *logits, uint32_t outputs)
{
    uint32_t even[MOST_DIM / 4], odd[MOST_DIM / 4];
    int32_t rest[4] = {0, 0, 0, 0};
    uint32_t d;
    CAPLET_UNROLL
    for (d = 0; d + 4 <= dim; d += 4) {
        const uint32_t word = caplet_load4(a + d);
        even[d / 4] = caplet_signed_02(word);
        odd[d / 4] = caplet_signed_13(word);
    }
    CAPLET_UNROLL
    for (; d < dim; d++) {
        rest[d & 3u] = a[d];
    }
    for (; rows > 0; rows--) {
        int32_t sum = start;
        CAPLET_UNROLL
        for (d = 0; d + 4 <= dim; d += 4) {
            const uint32_t word = caplet_load4(v + d);
            sum = caplet_multiply_pairs(caplet_signed_02(word), even[d / 4], sum);
            sum = caplet_multiply_pairs(caplet_signed_13(word), odd[d / 4], sum);
        }
        CAPLET_UNROLL
        for (; d < dim; d++) {
            sum += rest[d & 3u] * v[d];
        }
        sum = *logits + (sum >> right);
        *logits = (int8_t)(format == NULL ? caplet_signed_byte(sum) : caplet_clip32(sum, format->low, format->high));
        logits += outputs, v += row;
    }
}
#else
/* sums[d] += the sum of weights[r] * v[r * row + d] over TOGETHER rows. */
static inline void weigh_four(int32_t *restrict sums, const int32_t *restrict weights, const int8_t *restrict v,
                              uint32_t row, uint32_t dim)
{
    const int8_t *restrict v1 = v + row, *restrict v2 = v1 + row, *restrict v3 = v2 + row;
    uint32_t d;
    CAPLET_WHOLE_LOOP
    for (d = 0; d < dim; d++) {
        sums[d] += weights[0] * v[d] + weights[1] * v1[d] + weights[2] * v2[d] + weights[3] * v3[d];
    }
}

/* Weighs a multiple of TOGETHER rows, which it returns. */
CAPLET_COPIED uint32_t weigh_pairs(const caplet_routing_op *op, const int8_t *votes, const uint16_t *coupling,
                                   uint32_t rows, uint32_t six, int32_t *acc)
{
    const uint32_t dim = six ? 6u : op->dim, row = op->outputs * dim;
    uint32_t r, g;
    for (r = 0; r + TOGETHER <= rows; r += TOGETHER) {
        int32_t *sums = acc;
        for (g = 0; g < op->outputs; g++) {
            const uint16_t *codes = coupling + g * op->rows + r;
            const int32_t weights[TOGETHER] = {codes[0], codes[1], codes[2], codes[3]};
            weigh_four(sums, weights, votes, row, dim);
            votes += dim, sums += dim;
        }
        votes += (TOGETHER - 1) * row;
    }
    return r;
}

/* The same. */
CAPLET_COPIED void agree(const int8_t *restrict a, const int8_t *restrict v, uint32_t row, uint32_t rows, uint32_t dim,
                         int32_t start, uint32_t right, const caplet_format *format, int8_t *restrict logits,
                         uint32_t outputs)
{
    for (; rows > 0; rows--) {
        int32_t sum = start;
        uint32_t d;
        CAPLET_WHOLE_LOOP
        for (d = 0; d < dim; d++) {
            sum += a[d] * v[d];
        }
        sum = *logits + (sum >> right);
        *logits = (int8_t)(format == NULL ? caplet_signed_byte(sum) : caplet_clip32(sum, format->low, format->high));
        logits += outputs, v += row;
    }
}
#endif

/* Weighs the rows that are left. */
CAPLET_COLD static void weigh_rest(const caplet_routing_op *op, const int8_t *v, const uint16_t *coupling, uint32_t r,
                                   uint32_t rows, int32_t *acc)
{
    const uint32_t dim = op->dim;
    v += r * op->outputs * dim;
    for (; r < rows; r++) {
        int32_t *restrict sums = acc;
        uint32_t g, d;
        for (g = 0; g < op->outputs; g++) {
            const int32_t weight = coupling[g * op->rows + r];
            for (d = 0; d < dim; d++) {
                *sums++ += weight * *v++;
            }
        }
    }
}

#define DEFINE_WEIGH(NAME, SIX)                                                                                   \
    void NAME(const caplet_routing_op *op, const void *votes, const uint16_t *coupling, uint32_t rows, void *acc) \
    {                                                                                                             \
        const uint32_t r = weigh_pairs(op, (const int8_t *)votes, coupling, rows, SIX, (int32_t *)acc);           \
        weigh_rest(op, (const int8_t *)votes, coupling, r, rows, (int32_t *)acc);                                 \
    }
DEFINE_WEIGH(caplet_weigh_bytes, 0)
DEFINE_WEIGH(caplet_weigh_bytes_6, 1)

#ifdef CAPLET_DSP
void caplet_add_bytes(const caplet_routing_op *op, const void *votes, uint32_t rows, void *acc)
{
    const uint32_t row = op->outputs * op->dim;
    const int8_t *v = (const int8_t *)votes;
    int32_t *sums = (int32_t *)acc;
    uint32_t j, r;
    for (j = 0; j + 4 <= row; j += 4) {
        uint32_t even = 0; /* sums of 16 bits of components 0 and 2, and 1 and 3 */
        uint32_t odd = 0;
        const int8_t *from = v;
        CAPLET_UNROLL
        for (r = rows; r > 0; r--) {
            const uint32_t word = caplet_load4(from);
            even = caplet_add_signed_02(even, word), odd = caplet_add_signed_13(odd, word);
            from += row;
        }
        sums[0] += caplet_low(even), sums[1] += caplet_low(odd), sums[2] += caplet_high(even);
        sums[3] += caplet_high(odd), v += 4, sums += 4;
    }
    for (; j < row; j++) {
        for (r = 0; r < rows; r++) {
            *sums += v[r * row];
        }
        v++, sums++;
    }
}
#else
void caplet_add_bytes(const caplet_routing_op *op, const void *votes, uint32_t rows, void *acc)
{
    const uint32_t row = op->outputs * op->dim;
    const int8_t *restrict v = (const int8_t *)votes;
    int32_t *restrict sums = (int32_t *)acc;
    uint32_t r = 0, j;
    for (; r + TOGETHER <= rows; r += TOGETHER) {
        for (j = 0; j < row; j++) {
            sums[j] += v[j] + v[row + j] + v[2 * row + j] + v[3 * row + j];
        }
        v += TOGETHER * row;
    }
    for (; r < rows; r++) {
        for (j = 0; j < row; j++) {
            sums[j] += *v++;
        }
    }
}
#endif

/* Agreements of every output capsule. */
CAPLET_COPIED void update(const caplet_routing_op *op, const void *activation, const void *votes, uint32_t rows,
                          uint32_t dim, const caplet_format *format, void *logits)
{
    const uint32_t right = (uint32_t)op->agreement_shift;
    const int32_t term = (int32_t)caplet_rounding_term(&op->logits, right, 0);
    const uint32_t outputs = op->outputs;
    const int8_t *a = (const int8_t *)activation;
    const int8_t *v = (const int8_t *)votes;
    uint32_t g;
    for (g = 0; g < outputs; g++) {
        agree(a, v, outputs * dim, rows, dim, term, right, format, (int8_t *)logits + g, outputs);
        a += dim, v += dim;
    }
}

#define DEFINE_UPDATE(NAME, DIM, FORMAT)                                                                           \
    void NAME(const caplet_routing_op *op, const void *activation, const void *votes, uint32_t rows, void *logits, \
              uint32_t element)                                                                                    \
    {                                                                                                              \
        (void)element;                                                                                             \
        update(op, activation, votes, rows, DIM, FORMAT, logits);                                                  \
    }
DEFINE_UPDATE(caplet_update_bytes, op->dim, &op->logits)
DEFINE_UPDATE(caplet_update_bytes_6, 6, NULL)
DEFINE_UPDATE(caplet_update_bytes_16, 16, NULL)
#endif

/* The place of component d of `dim` among pairs: of whole fours, 0 and 2, and 1 and 3, are pairs where those help. */
static inline uint32_t place_of(uint32_t d, uint32_t dim)
{
#ifdef CAPLET_DSP
    return (d | 3u) < dim && ((d ^ (d >> 1)) & 1u) ? d ^ 3u : d;
#else
    return (void)dim, d;
#endif
}

void caplet_update_mixed(const caplet_routing_op *op, const void *activation, const void *votes, uint32_t rows,
                         void *logits, uint32_t element)
{
    const uint32_t right = (uint32_t)op->agreement_shift, outputs = op->outputs, dim = op->dim, row = outputs * dim;
    const int32_t term = (int32_t)caplet_rounding_term(&op->logits, right, 0);
    const int32_t low = op->logits.low, high = op->logits.high;
    const uint32_t words = op->logits.type == CAPLET_INT16;
    union {
        int16_t one[MOST_DIM];
        uint32_t two[MOST_DIM / 2];
    } a;
    uint32_t g, r, d;
    (void)element;
    for (g = 0; g < outputs; g++) {
        const int8_t *v = (const int8_t *)votes + g * dim;
        int8_t *bytes = (int8_t *)logits + g;
        int16_t *codes = (int16_t *)logits + g;
        for (d = 0; d < dim; d++) {
            a.one[place_of(d, dim)] = (int16_t)caplet_load(activation, op->activation.type, g * dim + d);
        }
        for (r = rows; r > 0; r--) {
            int32_t sum = term;
            d = 0;
#ifdef CAPLET_DSP
            for (; d + 4 <= dim; d += 4) {
                const uint32_t word = caplet_load4(v + d);
                sum = caplet_multiply_pairs(caplet_signed_02(word), a.two[d / 2], sum);
                sum = caplet_multiply_pairs(caplet_signed_13(word), a.two[d / 2 + 1], sum);
            }
#endif
            for (; d < dim; d++) {
                sum += a.one[d] * v[d];
            }
            sum = caplet_clip32((words ? *codes : *bytes) + (sum >> right), low, high);
            if (words) {
                *codes = (int16_t)sum;
            } else {
                *bytes = (int8_t)sum;
            }
            v += row, codes += outputs, bytes += outputs;
        }
    }
}
