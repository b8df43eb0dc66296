/* Votes of a fully connected capsule layer. */
#include "fixed.h"

/* Components of an input capsule, and rows of weights, that are taken together. */
enum { ROWS = 4 };

void caplet_dense_votes(const caplet_dense_votes_op *op, const void *const *x, uint32_t input, void *row, void *acc,
                        void *weights)
{
    const uint8_t weight_type = caplet_constant_type(&op->weight);
    const caplet_source *source = op->sources;
    uint32_t local = op->selected != NULL ? op->selected[input] : input;
    uint32_t count = source->types * source->rows * source->columns;
    uint32_t first;
    uint32_t rows;
    uint32_t j;
    uint32_t k;
    while (local >= count) {
        local -= count;
        source++;
        x++;
        count = source->types * source->rows * source->columns;
    }
    /* Capsule (type * rows + row) * columns + column of a map (rows, columns, types * in_dim). */
    first = local % (source->rows * source->columns) * source->types + local / (source->rows * source->columns);
    first *= op->in_dim;
    caplet_clear_sums(acc, source->acc.wide, op->votes);
    for (k = 0; k < op->in_dim; k += rows) {
        int32_t codes[ROWS];
        const void *from;
        rows = op->in_dim - k < ROWS ? op->in_dim - k : ROWS;
        for (j = 0; j < rows; j++) {
            codes[j] = caplet_load(*x, source->type, first + k + j);
        }
        from = caplet_row(&op->weight, (input * op->in_dim + k) * op->votes, rows * op->votes, weights);
        if (source->acc.wide) {
            caplet_axpy64((int64_t *)acc, codes, from, weight_type, rows, op->votes);
        } else {
            caplet_axpy32((int32_t *)acc, codes, from, weight_type, rows, op->votes);
        }
    }
    caplet_requantize_row(&source->acc, &op->out, acc, op->votes, row, input * op->votes);
}

void caplet_make_dense_votes(const caplet_votes *votes, uint32_t input, void *row)
{
    caplet_dense_votes((const caplet_dense_votes_op *)votes->op, votes->x, input, row, votes->acc, votes->weights);
}

void caplet_store_votes(const caplet_votes *votes, uint32_t first, uint32_t count, void *stored, uint32_t row_bytes)
{
    uint32_t i;
    for (i = 0; i < count; i++) {
        votes->make(votes, first + i, (uint8_t *)stored + (size_t)i * row_bytes);
    }
}
