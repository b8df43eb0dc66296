/* Dynamic routing of any types: the weighted sums, and the agreements. */
#include "fixed.h"

/* acc[g, d] += coupling[g, row] * votes[g, d]. */
#define WEIGH(T, ACC)                                                                  \
    do {                                                                               \
        const T *restrict v = (const T *)votes;                                        \
        ACC *restrict sums = (ACC *)acc;                                               \
        for (g = 0; g < op->outputs; g++) {                                            \
            const ACC weight = (ACC)coupling[g * op->rows];                            \
            for (d = 0; d < dim; d++) {                                                \
                sums[d] += weight * (ACC)v[d];                                          \
            }                                                                          \
            sums += dim;                                                               \
            v += dim;                                                                  \
        }                                                                              \
    } while (0)

#define WEIGH_32(T) WEIGH(T, int32_t)
#define WEIGH_64(T) WEIGH(T, int64_t)

void caplet_weigh_any(const caplet_routing_op *op, const void *rows_of_votes, const uint16_t *coupling, uint32_t rows,
                      void *acc)
{
    const uint32_t dim = op->dim;
    uint32_t r, g;
    uint32_t d;
    for (r = 0; r < rows; r++) {
        const void *votes = caplet_at(rows_of_votes, op->votes_type, r * op->outputs * dim);
        if (op->acc.wide) {
            CAPLET_WITH_TYPE(op->votes_type, WEIGH_64)
        } else {
            CAPLET_WITH_TYPE(op->votes_type, WEIGH_32)
        }
        coupling++;
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

void caplet_update_any(const caplet_routing_op *op, const void *activation, const void *votes, uint32_t rows,
                       void *logits, uint32_t element)
{
    const uint32_t extra = op->agreement_shift < 0 ? (uint32_t)-op->agreement_shift : 0u;
    const uint32_t right = op->agreement_shift < 0 ? 0u : (uint32_t)op->agreement_shift;
    uint32_t r, g;
    uint32_t e = 0;
    for (r = 0; r < rows; r++) {
        const void *row = caplet_at(votes, op->votes_type, r * op->outputs * op->dim);
        for (g = 0; g < op->outputs; g++) {
            int64_t step = caplet_left64(agreement_of(op, activation, row, g), extra);
            step = (step + caplet_rounding_term(&op->logits, right, element + e)) >> right;
            step += caplet_load(logits, op->logits.type, e);
            caplet_store(logits, op->logits.type, e, caplet_clip64(step, op->logits.low, op->logits.high));
            e++;
        }
    }
}
