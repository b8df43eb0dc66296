/* A batch of images through a Program whose steps are described at run time. */
#include "host.h"

#include <string.h>

#include "fixed.h"

static void *place(void *arena, uint64_t offset)
{
    return offset == CAPLET_NOWHERE ? NULL : (uint8_t *)arena + offset;
}

static void run_routing(const caplet_host_step *step, void *arena)
{
    const caplet_votes votes = {place(arena, step->inputs[0]), NULL, NULL, NULL, NULL, NULL, step->count};
    const caplet_routing_memory memory = {
        place(arena, step->memory[0]), place(arena, step->memory[1]), place(arena, step->output),
        place(arena, step->memory[3]), (uint16_t *)place(arena, step->memory[2]),
        (uint32_t *)place(arena, step->memory[4])};
    caplet_routing((const caplet_routing_op *)step->op, &votes, &memory);
}

static void run_dense_votes(const caplet_host_step *step, void *arena)
{
    const caplet_dense_votes_op *op = (const caplet_dense_votes_op *)step->op;
    const void **sources = (const void **)place(arena, step->memory[0]);
    uint8_t *row = (uint8_t *)place(arena, step->output);
    uint32_t i;
    for (i = 0; i < step->input_count; i++) {
        sources[i] = place(arena, step->inputs[i]);
    }
    for (i = 0; i < step->count; i++) {
        if (step->kind == CAPLET_STEP_HOST_VOTES) {
            caplet_host_dense_votes(op, sources, i, row, place(arena, step->memory[1]), place(arena, step->memory[2]));
        } else {
            caplet_dense_votes(op, sources, i, row, place(arena, step->memory[1]));
        }
        row += step->row_bytes;
    }
}

static void run_conv(const caplet_host_step *step, void *arena)
{
    const caplet_host_conv *op = (const caplet_host_conv *)step->op;
    const uint32_t elements = op->conv.out_rows * op->conv.out_columns * op->conv.out_channels;
    uint8_t *row = (uint8_t *)place(arena, step->output);
    uint32_t i;
    if (step->kind == CAPLET_STEP_CONV2D && op->conv.depth < op->conv.in_channels) { /* in groups */
        caplet_conv2d(&op->conv, place(arena, step->inputs[0]), row, place(arena, step->memory[0]));
        return;
    }
    for (i = 0; i < op->conv.types; i++) {
        caplet_host_convolve(op, place(arena, step->inputs[0]), i * op->conv.depth, row, i * elements,
                             place(arena, step->memory[0]), place(arena, step->memory[1]));
        row += step->row_bytes;
    }
}

static void run_step(const caplet_host_step *step, void *arena)
{
    const void *x = place(arena, step->inputs[0]);
    void *y = place(arena, step->output);
    switch (step->kind) {
    case CAPLET_STEP_INPUT_QUANTIZE: caplet_input_quantize(step->op, (const uint8_t *)x, y); break;
    case CAPLET_STEP_CONV2D: run_conv(step, arena); break;
    case CAPLET_STEP_CONV_VOTES: run_conv(step, arena); break;
    case CAPLET_STEP_MAX_POOL2D: caplet_max_pool2d(step->op, x, y); break;
    case CAPLET_STEP_CHANNEL_AFFINE: caplet_channel_affine(step->op, x, y); break;
    case CAPLET_STEP_LEAKY_RELU: caplet_leaky_relu(step->op, x, y); break;
    case CAPLET_STEP_LISTING: caplet_listing(step->op, x, y); break;
    case CAPLET_STEP_SQUASH: caplet_squash(step->op, x, y, 0); break;
    case CAPLET_STEP_ADD: caplet_add(step->op, x, place(arena, step->inputs[1]), y); break;
    case CAPLET_STEP_HOST_VOTES:
    case CAPLET_STEP_DENSE_VOTES: run_dense_votes(step, arena); break;
    case CAPLET_STEP_ROUTING: run_routing(step, arena); break;
    default: caplet_lengths(step->op, x, y); break;
    }
}

void caplet_host_run(const caplet_host_step *steps, uint32_t count, void *arena, const uint8_t *images,
                     uint64_t image_count, uint64_t image_bytes, uint64_t input, uint64_t output,
                     uint64_t capsule_bytes, void *capsules, uint64_t lengths, uint64_t length_bytes, void *squared)
{
    uint64_t image;
    uint32_t i;
    for (image = 0; image < image_count; image++) {
        memcpy(place(arena, input), images + image * image_bytes, image_bytes);
        for (i = 0; i < count; i++) {
            run_step(&steps[i], arena);
        }
        memcpy((uint8_t *)capsules + image * capsule_bytes, place(arena, output), capsule_bytes);
        memcpy((uint8_t *)squared + image * length_bytes, place(arena, lengths), length_bytes);
    }
}

typedef void function(void);

typedef struct {
    const char *name;
    function *address;
} kernel;

#define KERNEL(NAME) {#NAME, (function *)NAME}

void *caplet_host_kernel(const char *name)
{
    static const kernel kernels[] = {
        KERNEL(caplet_spread_signed), KERNEL(caplet_spread_unsigned), KERNEL(caplet_spread_words),
        KERNEL(caplet_add_bytes),     KERNEL(caplet_update_bytes_6), KERNEL(caplet_update_bytes_16),
        KERNEL(caplet_unpack),        KERNEL(caplet_multiply_bytes), KERNEL(caplet_multiply_words),
        KERNEL(caplet_convolve_any),  KERNEL(caplet_store_any),      KERNEL(caplet_squash_bytes),
        KERNEL(caplet_squash_any),    KERNEL(caplet_vote_any),       KERNEL(caplet_vote_bytes),
        KERNEL(caplet_vote_bytes_4),  KERNEL(caplet_vote_bytes_8),   KERNEL(caplet_weigh_any),
        KERNEL(caplet_weigh_bytes),   KERNEL(caplet_update_any),     KERNEL(caplet_update_bytes),
        KERNEL(caplet_exponentials),
    };
    void *found = NULL;
    size_t i;
    for (i = 0; i < sizeof kernels / sizeof *kernels; i++) {
        if (strcmp(kernels[i].name, name) == 0) {
            memcpy(&found, &kernels[i].address, sizeof found);
        }
    }
    return found;
}
