/*
 * Dynamic routing by agreement. One pass over the input capsules per iteration, a block of rows at a time: the rows of
 * votes are read (or made) once, update their logits with the activation of the iteration before, become rows of
 * coupling, and are added to the weighted sums.
 */
#include "fixed.h"

/* preactivation = the weighted sums with bias (g % types, d). */
static CAPLET_COLD void requantize_sums(const caplet_routing_op *op, const caplet_routing_memory *memory,
                                        uint32_t iteration)
{
    const uint32_t count = op->outputs * op->dim, biases = op->types * op->dim;
    caplet_scale scale = caplet_scale_of(&op->acc, &op->preactivation, 0, 0);
    uint32_t j;
    for (j = 0; j < count; j++) {
        const uint32_t element = iteration * count + j;
        if (op->acc.bias.data != NULL) {
            scale = caplet_scale_of(&op->acc, &op->preactivation, 0, j % biases);
        }
        caplet_store(memory->preactivation, op->preactivation.type, j,
                     caplet_requantize(memory->acc, op->acc.wide, j, &scale, &op->preactivation, element));
    }
}

CAPLET_COLD void caplet_routing(const caplet_routing_op *op, const caplet_votes *votes,
                                const caplet_routing_memory *memory)
{
    const uint32_t row_elements = op->outputs * op->dim;
    /* All zero logits give one row of coupling, the same for every input capsule unless its rounding draws noise. */
    const uint32_t uniform = op->coupling.rounding != CAPLET_STOCHASTIC;
    const caplet_squash_op squash = {op->squash, op->activation, op->outputs, op->dim, op->preactivation.frac,
                                     op->preactivation.type};
    uint32_t iteration, input;
    uint32_t rows;
    for (input = 0; input < op->outputs * op->rows && uniform; input++) {
        memory->coupling[input] = op->uniform;
    }
    if (memory->logits != NULL) {
        const uint32_t bytes = op->inputs * op->outputs * caplet_element_bytes(op->logits.type);
        caplet_clear_sums(memory->logits, 0, bytes / 4);
        for (input = bytes & ~3u; input < bytes; input++) {
            ((uint8_t *)memory->logits)[input] = 0;
        }
    }
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
                op->update(op, memory->activation, block, rows, logits, element - op->inputs * op->outputs);
            }
            if (iteration > 0 || !uniform) {
                op->couple(op, logits, rows, memory->exponentials, memory->coupling, element);
            }
            if (iteration == 0 && uniform && op->add != NULL) {
                op->add(op, block, rows, memory->acc);
            } else {
                op->weigh(op, block, memory->coupling, rows, memory->acc);
            }
        }
        if (iteration == 0 && uniform && op->add != NULL) {
            for (input = 0; input < row_elements; input++) {
                ((int32_t *)memory->acc)[input] *= op->uniform;
            }
        }
        requantize_sums(op, memory, iteration);
        op->squash(&squash, memory->preactivation, memory->activation, iteration * row_elements);
    }
}
