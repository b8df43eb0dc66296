/*
 * Dynamic routing by agreement. One pass over the input capsules per iteration: the row of votes of an input capsule is
 * read (or made) once, updates its logits with the activation of the iteration before, becomes a row of coupling, and
 * is added to the weighted sum.
 */
#include "fixed.h"

/* Codes of one byte in capsules of whole eights are the common case; a fixed inner count lets compilers vectorise it. */
enum { LANES = 8 };

/* sums[d] += share * v[d]. */
static void weigh_bytes(int32_t *restrict sums, int32_t share, const int8_t *restrict v, uint32_t dim)
{
    uint32_t d;
    uint32_t lane;
    for (d = 0; d < dim; d += LANES) {
        for (lane = 0; lane < LANES; lane++) {
            sums[d + lane] += share * v[d + lane];
        }
    }
}

/* sum over d of a[d] * v[d]. */
static int32_t dot_bytes(const int8_t *restrict a, const int8_t *restrict v, uint32_t dim)
{
    int32_t sums[LANES] = {0};
    int32_t sum = 0;
    uint32_t d;
    uint32_t lane;
    for (d = 0; d < dim; d += LANES) {
        for (lane = 0; lane < LANES; lane++) {
            sums[lane] += a[d + lane] * v[d + lane];
        }
    }
    for (lane = 0; lane < LANES; lane++) {
        sum += sums[lane];
    }
    return sum;
}

/* acc[g, d] += coupling[g] * votes[g, d]. */
#define WEIGH(T, ACC)                                                                  \
    do {                                                                               \
        const T *restrict v = (const T *)votes;                                        \
        ACC *restrict sums = (ACC *)acc;                                               \
        for (g = 0; g < op->outputs; g++) {                                            \
            const ACC share = (ACC)caplet_load(coupling, op->coupling.type, g);        \
            for (d = 0; d < dim; d++) {                                                \
                sums[d] += share * (ACC)v[d];                                          \
            }                                                                          \
            sums += dim;                                                               \
            v += dim;                                                                  \
        }                                                                              \
    } while (0)

#define WEIGH_BY_TYPE(ACC)                 \
    do {                                   \
        switch (op->votes_type) {          \
        case CAPLET_INT8:                  \
            WEIGH(int8_t, ACC);            \
            break;                         \
        case CAPLET_UINT8:                 \
            WEIGH(uint8_t, ACC);           \
            break;                         \
        case CAPLET_INT16:                 \
            WEIGH(int16_t, ACC);           \
            break;                         \
        default:                           \
            WEIGH(uint16_t, ACC);          \
            break;                         \
        }                                  \
    } while (0)

static void weigh(const caplet_routing_op *op, const void *votes, const void *coupling, void *acc)
{
    const uint32_t dim = op->dim;
    uint32_t g;
    uint32_t d;
    if (!op->acc.wide && op->votes_type == CAPLET_INT8 && dim % LANES == 0) {
        for (g = 0; g < op->outputs; g++) {
            const int32_t share = caplet_load(coupling, op->coupling.type, g);
            weigh_bytes((int32_t *)acc + g * dim, share, (const int8_t *)votes + g * dim, dim);
        }
    } else if (op->acc.wide) {
        WEIGH_BY_TYPE(int64_t);
    } else {
        WEIGH_BY_TYPE(int32_t);
    }
}

/* sum over d of activation[g, d] * votes[g, d]. */
static int64_t agreement_of(const caplet_routing_op *op, const void *activation, const void *votes, uint32_t g)
{
    const uint32_t first = g * op->dim;
    int64_t wide = 0;
    int32_t sum = 0;
    uint32_t d;
    if (op->activation.type == CAPLET_INT8 && op->votes_type == CAPLET_INT8 && op->dim % LANES == 0) {
        return dot_bytes((const int8_t *)activation + first, (const int8_t *)votes + first, op->dim); /* below 2^21 */
    }
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

/* Add the rounded agreements of one input capsule to its logits; fresh: they are zero and not stored yet. */
static void update_logits(const caplet_routing_op *op, const void *activation, const void *votes, void *logits,
                          uint32_t fresh, uint32_t element)
{
    const uint32_t extra = op->agreement_shift < 0 ? (uint32_t)-op->agreement_shift : 0u;
    const uint32_t right = op->agreement_shift < 0 ? 0u : (uint32_t)op->agreement_shift;
    uint32_t g;
    for (g = 0; g < op->outputs; g++) {
        int64_t step = caplet_left64(agreement_of(op, activation, votes, g), extra);
        step = (step + caplet_rounding_term(&op->logits, right, element + g)) >> right;
        if (!fresh) {
            step += caplet_load(logits, op->logits.type, g);
        }
        caplet_store(logits, op->logits.type, g, caplet_clip64(step, op->logits.low, op->logits.high));
    }
}

/* preactivation = the weighted sums with bias (g % types, d). */
static void narrow_sums(const caplet_routing_op *op, const caplet_routing_memory *memory, uint32_t iteration)
{
    const uint32_t count = op->outputs * op->dim;
    const uint32_t biases = op->types * op->dim;
    uint32_t j;
    for (j = 0; j < count; j++) {
        const caplet_scale scale = caplet_scale_of(&op->acc, &op->preactivation, 0, j % biases);
        const uint32_t element = iteration * count + j;
        int32_t code;
        if (op->acc.wide) {
            code = caplet_narrow64(((const int64_t *)memory->acc)[j], &scale, &op->preactivation, element);
        } else {
            code = caplet_narrow32(((const int32_t *)memory->acc)[j], &scale, &op->preactivation, element);
        }
        caplet_store(memory->preactivation, op->preactivation.type, j, code);
    }
}

static void clear_sums(const caplet_routing_op *op, void *acc)
{
    const uint32_t count = op->outputs * op->dim;
    uint32_t j;
    for (j = 0; j < count; j++) {
        if (op->acc.wide) {
            ((int64_t *)acc)[j] = 0;
        } else {
            ((int32_t *)acc)[j] = 0;
        }
    }
}

void caplet_routing(const caplet_routing_op *op, const caplet_votes *votes, const caplet_routing_memory *memory)
{
    const uint32_t row_elements = op->outputs * op->dim;
    /* All zero logits give one row of coupling, the same for every input capsule unless its rounding draws noise. */
    const uint32_t uniform = op->coupling.rounding != CAPLET_STOCHASTIC;
    caplet_squash_op squash;
    uint32_t iteration;
    uint32_t input;
    squash.out = op->activation;
    squash.count = op->outputs;
    squash.dim = op->dim;
    squash.in_frac = op->preactivation.frac;
    squash.in_type = op->preactivation.type;
    for (iteration = 0; iteration < op->iterations; iteration++) {
        clear_sums(op, memory->acc);
        for (input = 0; input < op->inputs; input++) {
            const uint32_t first = input * op->outputs; /* of this row of logits and coupling */
            const uint32_t element = iteration * op->inputs * op->outputs + first;
            void *logits = NULL;
            const void *row = votes->row;
            if (input < votes->kept) {
                row = caplet_at(votes->stored, op->votes_type, input * row_elements);
            } else {
                votes->make(votes, input, votes->row);
            }
            if (iteration > 0) {
                logits = caplet_at_writable(memory->logits, op->logits.type, first);
                update_logits(op, memory->activation, row, logits, iteration == 1,
                              element - op->inputs * op->outputs);
            }
            if (iteration > 0 || input == 0 || !uniform) {
                caplet_softmax(logits, op->logits.type, op->logits.frac, op->outputs, op->scale_bits,
                               memory->exponentials, &op->coupling, memory->coupling, element);
            }
            weigh(op, row, memory->coupling, memory->acc);
        }
        narrow_sums(op, memory, iteration);
        caplet_squash(&squash, memory->preactivation, memory->activation, iteration * row_elements);
    }
}
