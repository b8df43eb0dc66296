/*
 * Dynamic routing by agreement. One pass over the input capsules per iteration, a block of rows at a time: the rows of
 * votes are read (or made) once, update their logits with the activation of the iteration before, become rows of
 * coupling, and are added to the weighted sums.
 */
#include "fixed.h"

/* Rows of votes that are weighed together: each sum is loaded and stored once for all of them. */
enum { TOGETHER = 4 };

/* Capsules of 16 dimensions are common; where compilers know the length of a loop, they make straight code of it. */
#define WITH_DIM(CALL)       \
    do {                     \
        if (op->dim == 16) { \
            CALL(16);        \
        } else {             \
            CALL(op->dim);   \
        }                    \
    } while (0)

/* sums[d] += the sum of weights[r] * v[r * row + d] over TOGETHER rows. */
static inline void weigh_four(int32_t *restrict sums, const int32_t *restrict weights, const int8_t *restrict v,
                              uint32_t row, uint32_t dim)
{
    const int8_t *restrict v1 = v + row;
    const int8_t *restrict v2 = v1 + row;
    const int8_t *restrict v3 = v2 + row;
    uint32_t d;
    CAPLET_WHOLE_LOOP
    for (d = 0; d < dim; d++) {
        sums[d] += weights[0] * v[d] + weights[1] * v1[d] + weights[2] * v2[d] + weights[3] * v3[d];
    }
}

/* sum over d of a[d] * v[d]. */
static inline int32_t dot_bytes(const int8_t *restrict a, const int8_t *restrict v, uint32_t dim)
{
    int32_t sum = 0;
    uint32_t d;
    CAPLET_WHOLE_LOOP
    for (d = 0; d < dim; d++) {
        sum += a[d] * v[d];
    }
    return sum;
}

/* acc[g, d] += coupling[g] * votes[g, d]. */
#define WEIGH(T, ACC)                                                                  \
    do {                                                                               \
        const T *restrict v = (const T *)votes;                                        \
        ACC *restrict sums = (ACC *)acc;                                               \
        for (g = 0; g < op->outputs; g++) {                                            \
            const ACC weight = (ACC)caplet_load(coupling, op->coupling.type, g);        \
            for (d = 0; d < dim; d++) {                                                \
                sums[d] += weight * (ACC)v[d];                                          \
            }                                                                          \
            sums += dim;                                                               \
            v += dim;                                                                  \
        }                                                                              \
    } while (0)

#define WEIGH_32(T) WEIGH(T, int32_t)
#define WEIGH_64(T) WEIGH(T, int64_t)

/* acc[g, d] += sum over r of coupling[r, g] * votes[r, g, d], r < rows. */
static void weigh(const caplet_routing_op *op, const void *rows_of_votes, const void *couplings, uint32_t rows,
                  void *acc)
{
    const uint32_t dim = op->dim;
    const uint32_t row = op->outputs * dim;
    uint32_t r = 0;
    uint32_t g;
    uint32_t d;
    if (!op->acc.wide && op->votes_type == CAPLET_INT8) {
        for (; r + TOGETHER <= rows; r += TOGETHER) {
            const int8_t *votes = (const int8_t *)rows_of_votes + r * row;
            int32_t *sums = (int32_t *)acc;
            for (g = 0; g < op->outputs; g++) {
                int32_t weights[TOGETHER];
                for (d = 0; d < TOGETHER; d++) {
                    weights[d] = caplet_load(couplings, op->coupling.type, (r + d) * op->outputs + g);
                }
#define WEIGH_FOUR(DIM) weigh_four(sums, weights, votes, row, DIM)
                WITH_DIM(WEIGH_FOUR);
                votes += dim;
                sums += dim;
            }
        }
    }
    for (; r < rows; r++) {
        const void *votes = caplet_at(rows_of_votes, op->votes_type, r * row);
        const void *coupling = caplet_at(couplings, op->coupling.type, r * op->outputs);
        if (op->acc.wide) {
            CAPLET_WITH_TYPE(op->votes_type, WEIGH_64)
        } else {
            CAPLET_WITH_TYPE(op->votes_type, WEIGH_32)
        }
    }
}

/* sum over d of activation[g, d] * votes[g, d]. */
static int64_t agreement_of(const caplet_routing_op *op, const void *activation, const void *votes, uint32_t g)
{
    const uint32_t first = g * op->dim;
    int64_t wide = 0;
    int32_t sum = 0;
    uint32_t d;
    if (op->agreement_wide) {
        for (d = 0; d < op->dim; d++) {
            wide += (int64_t)caplet_load(activation, op->activation.type, first + d) *
                    caplet_load(votes, op->votes_type, first + d);
        }
        return wide;
    }
    for (d = 0; d < op->dim; d++) {
        sum += caplet_load(activation, op->activation.type, first + d) * caplet_load(votes, op->votes_type, first + d);
    }
    return sum;
}

/* The agreements of rows of bytes: agreements (rows, outputs). */
static void agree_bytes(const caplet_routing_op *op, const int8_t *activation, const int8_t *votes, uint32_t rows,
                        int32_t *agreements)
{
    uint32_t r;
    uint32_t g;
    for (r = 0; r < rows; r++) {
        for (g = 0; g < op->outputs; g++) {
#define AGREE(DIM) *agreements++ = dot_bytes(activation + g * (DIM), votes, DIM)
            WITH_DIM(AGREE);
            votes += op->dim;
        }
    }
}

#define ADD_AGREEMENTS(T)                                                           \
    do {                                                                            \
        T *restrict codes = (T *)logits;                                            \
        for (e = 0; e < count; e++) {                                               \
            const int32_t step = (caplet_left32(agreements[e], extra) + term) >> right; \
            codes[e] = (T)caplet_clip32(fresh ? step : codes[e] + step, low, high); \
        }                                                                           \
    } while (0)

/* Add `count` agreements to the logits, all in int32_t and with one rounding term. */
static void add_agreements(const caplet_routing_op *op, const int32_t *restrict agreements, uint32_t count,
                           void *logits, uint32_t extra, uint32_t right, uint32_t fresh)
{
    const int32_t term = (int32_t)caplet_rounding_term(&op->logits, right, 0);
    const int32_t low = op->logits.low;
    const int32_t high = op->logits.high;
    uint32_t e;
    CAPLET_WITH_TYPE(op->logits.type, ADD_AGREEMENTS)
}

/*
 * Add the rounded agreements of `rows` input capsules to their logits; fresh: they are zero and not stored yet.
 * agreements: scratch (rows, outputs). element: noise index of the first logit.
 */
static void update_logits(const caplet_routing_op *op, const void *activation, const void *votes, uint32_t rows,
                          void *logits, int32_t *agreements, uint32_t fresh, uint32_t element)
{
    const uint32_t extra = op->agreement_shift < 0 ? (uint32_t)-op->agreement_shift : 0u;
    const uint32_t right = op->agreement_shift < 0 ? 0u : (uint32_t)op->agreement_shift;
    const uint32_t count = rows * op->outputs;
    uint32_t r;
    uint32_t g;
    uint32_t e = 0;
    if (op->activation.type == CAPLET_INT8 && op->votes_type == CAPLET_INT8 && !op->agreement_wide &&
        op->logits.rounding != CAPLET_STOCHASTIC) {
        agree_bytes(op, (const int8_t *)activation, (const int8_t *)votes, rows, agreements);
        add_agreements(op, agreements, count, logits, extra, right, fresh);
        return;
    }
    for (r = 0; r < rows; r++) {
        const void *row = caplet_at(votes, op->votes_type, r * op->outputs * op->dim);
        for (g = 0; g < op->outputs; g++) {
            int64_t step = caplet_left64(agreement_of(op, activation, row, g), extra);
            step = (step + caplet_rounding_term(&op->logits, right, element + e)) >> right;
            if (!fresh) {
                step += caplet_load(logits, op->logits.type, e);
            }
            caplet_store(logits, op->logits.type, e, caplet_clip64(step, op->logits.low, op->logits.high));
            e++;
        }
    }
}

/* preactivation = the weighted sums with bias (g % types, d). */
static void requantize_sums(const caplet_routing_op *op, const caplet_routing_memory *memory, uint32_t iteration)
{
    const uint32_t count = op->outputs * op->dim;
    const uint32_t biases = op->types * op->dim;
    uint32_t j;
    for (j = 0; j < count; j++) {
        const caplet_scale scale = caplet_scale_of(&op->acc, &op->preactivation, 0, j % biases);
        const uint32_t element = iteration * count + j;
        caplet_store(memory->preactivation, op->preactivation.type, j,
                     caplet_requantize(memory->acc, op->acc.wide, j, &scale, &op->preactivation, element));
    }
}

void caplet_routing(const caplet_routing_op *op, const caplet_votes *votes, const caplet_routing_memory *memory)
{
    const uint32_t row_elements = op->outputs * op->dim;
    /* All zero logits give one row of coupling, the same for every input capsule unless its rounding draws noise. */
    const uint32_t uniform = op->coupling.rounding != CAPLET_STOCHASTIC;
    const caplet_squash_op squash = {op->activation, op->outputs, op->dim, op->preactivation.frac,
                                     op->preactivation.type};
    uint32_t iteration;
    uint32_t input;
    uint32_t rows;
    for (iteration = 0; iteration < op->iterations; iteration++) {
        caplet_clear_sums(memory->acc, op->acc.wide, row_elements);
        for (input = 0; input < op->inputs; input += rows) {
            const uint32_t first = input * op->outputs; /* of these rows of logits and coupling */
            const uint32_t element = iteration * op->inputs * op->outputs + first;
            void *logits = NULL;
            const void *block = votes->made;
            const uint32_t end = input < votes->stored_rows ? votes->stored_rows : op->inputs;
            rows = end - input < op->rows ? end - input : op->rows;
            if (input < votes->stored_rows) {
                block = caplet_at(votes->stored, op->votes_type, input * row_elements);
            } else {
                uint32_t r;
                for (r = 0; r < rows; r++) {
                    votes->make(votes, input + r, caplet_at_writable(votes->made, op->votes_type, r * row_elements));
                }
            }
            if (iteration > 0) {
                logits = caplet_at_writable(memory->logits, op->logits.type, first);
                update_logits(op, memory->activation, block, rows, logits, (int32_t *)memory->exponentials,
                              iteration == 1, element - op->inputs * op->outputs);
            }
            if (iteration > 0 || !uniform) {
                caplet_softmax(logits, op->logits.type, op->logits.frac, rows, op->outputs, op->scale_bits,
                               memory->exponentials, &op->coupling, memory->coupling, element);
            } else if (input == 0) {
                caplet_softmax(NULL, op->logits.type, op->logits.frac, op->rows, op->outputs, op->scale_bits, NULL,
                               &op->coupling, memory->coupling, element);
            }
            weigh(op, block, memory->coupling, rows, memory->acc);
        }
        requantize_sums(op, memory, iteration);
        caplet_squash(&squash, memory->preactivation, memory->activation, iteration * row_elements);
    }
}
