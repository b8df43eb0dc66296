/* A batch of images through a Program whose steps are described at run time. */
#include <string.h>

#include "host_tile.h"

static void *place(void *arena, uint64_t offset)
{
    return offset == CAPLET_NOWHERE ? NULL : (uint8_t *)arena + offset;
}

/* The places of a step's inputs, in room for pointers. */
static const void **inputs_of(const caplet_host_step *step, void *arena)
{
    const void **inputs = (const void **)place(arena, step->memory[0]);
    uint32_t i;
    for (i = 0; i < step->input_count; i++) {
        inputs[i] = place(arena, step->inputs[i]);
    }
    return inputs;
}

static void run_votes(const caplet_host_step *step, void *arena)
{
    const void *x = place(arena, step->inputs[0]);
    const void *const *sources = step->kind == CAPLET_STEP_DENSE_VOTES ? inputs_of(step, arena) : NULL;
    uint8_t *row = (uint8_t *)place(arena, step->output);
    uint32_t i;
    for (i = 0; i < step->count; i++) {
        if (sources != NULL) {
            caplet_dense_votes(step->op, sources, i, row, place(arena, step->memory[1]));
        } else {
            caplet_conv_votes(step->op, x, i, row, place(arena, step->memory[0]));
        }
        row += step->row_bytes;
    }
}

static void run_routing(const caplet_host_step *step, void *arena, uint32_t traced, void *scratch)
{
    const caplet_votes votes = {place(arena, step->inputs[0]), NULL, NULL, NULL, NULL, NULL, step->count};
    caplet_routing_memory memory = {
        place(arena, step->memory[0]), place(arena, step->memory[1]), place(arena, step->output),
        place(arena, step->memory[3]), (uint16_t *)place(arena, step->memory[2]),
        (uint32_t *)place(arena, step->memory[4])};
#if CAPLET_LANES
    if (step->kind == CAPLET_STEP_HOST_ROUTING) {
        memory.logits = traced ? memory.logits : NULL;
        caplet_host_route(step->op, votes.stored, &memory, scratch);
        return;
    }
#endif
    (void)traced, (void)scratch;
    caplet_routing(step->op, &votes, &memory);
}

/* A step on one image. */
static void run_step(const caplet_host_step *step, void *arena, uint32_t traced, void *scratch)
{
    const void *x = place(arena, step->inputs[0]);
    void *y = place(arena, step->output);
    switch (step->kind) {
    case CAPLET_STEP_INPUT_QUANTIZE: caplet_input_quantize(step->op, (const uint8_t *)x, y); break;
    case CAPLET_STEP_CONV2D: caplet_conv2d(step->op, x, y, place(arena, step->memory[0])); break;
    case CAPLET_STEP_MAX_POOL2D: caplet_max_pool2d(step->op, x, y); break;
    case CAPLET_STEP_CHANNEL_AFFINE: caplet_channel_affine(step->op, x, y); break;
    case CAPLET_STEP_LEAKY_RELU: caplet_leaky_relu(step->op, x, y); break;
    case CAPLET_STEP_LISTING: caplet_listing(step->op, x, y); break;
    case CAPLET_STEP_SQUASH: caplet_squash(step->op, x, y, 0); break;
    case CAPLET_STEP_ADD: caplet_add(step->op, x, place(arena, step->inputs[1]), y); break;
#if CAPLET_LANES
    case CAPLET_STEP_HOST_SQUASH: caplet_host_squash_bytes(step->op, x, y); break;
#endif
    case CAPLET_STEP_CONV_VOTES:
    case CAPLET_STEP_DENSE_VOTES: run_votes(step, arena); break;
    case CAPLET_STEP_HOST_ROUTING:
    case CAPLET_STEP_ROUTING: run_routing(step, arena, traced, scratch); break;
    default: caplet_lengths(step->op, x, y); break;
    }
}

/* A step on the first images of the memory. */
static void run_together(const caplet_host_step *step, const caplet_host_memory *memory, uint32_t images)
{
    uint8_t *arena = (uint8_t *)memory->arenas;
    const uint64_t next_image = memory->arena_bytes;
    void *scratch = arena + memory->together * next_image;
    uint32_t image;
#if CAPLET_LANES
    const void *x = place(arena, step->inputs[0]);
    void *y = place(arena, step->output);
    if (step->kind == CAPLET_STEP_HOST_CONV) {
        caplet_host_convolve(step->op, x, y, next_image, images, step->row_bytes, scratch);
        return;
    }
    if (step->kind == CAPLET_STEP_HOST_VOTES) {
        caplet_host_dense_votes(step->op, inputs_of(step, arena), y, next_image, images, step->row_bytes, scratch);
        return;
    }
#endif
    for (image = 0; image < images; image++) {
        run_step(step, arena, memory->traced, scratch);
        arena += next_image;
    }
}

void caplet_host_run(const caplet_host_step *steps, uint32_t count, const caplet_host_memory *memory,
                     const uint8_t *images, uint64_t image_count, uint64_t image_bytes, uint64_t input,
                     uint64_t output, uint64_t capsule_bytes, void *capsules, uint64_t lengths, uint64_t length_bytes,
                     void *squared)
{
    uint8_t *const arenas = (uint8_t *)memory->arenas;
    const uint64_t size = memory->arena_bytes;
    uint64_t first;
    uint32_t i;
    for (first = 0; first < image_count; first += memory->together) {
        const uint64_t left = image_count - first;
        const uint32_t together = left < memory->together ? (uint32_t)left : memory->together;
        for (i = 0; i < together; i++) {
            memcpy(arenas + i * size + input, images + (first + i) * image_bytes, (size_t)image_bytes);
        }
        for (i = 0; i < count; i++) {
            run_together(&steps[i], memory, together);
        }
        for (i = 0; i < together; i++) {
            memcpy((uint8_t *)capsules + (first + i) * capsule_bytes, arenas + i * size + output,
                   (size_t)capsule_bytes);
            memcpy((uint8_t *)squared + (first + i) * length_bytes, arenas + i * size + lengths,
                   (size_t)length_bytes);
        }
    }
}

void caplet_host_traits(uint32_t *traits)
{
#if CAPLET_LANES
    traits[0] = CAPLET_LANES;
    traits[1] = CAPLET_WIDTH;
    traits[2] = CAPLET_DOT_BYTES;
#else
    memset(traits, 0, 3 * sizeof *traits);
#endif
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
        KERNEL(caplet_weigh_bytes_6),  KERNEL(caplet_couple),         KERNEL(caplet_couple_any),
        KERNEL(caplet_exponentials),   KERNEL(caplet_widen_signed),   KERNEL(caplet_widen_unsigned),
        KERNEL(caplet_multiply_mixed), KERNEL(caplet_update_mixed),  KERNEL(caplet_vote_channels),
        KERNEL(caplet_vote_channels_4), KERNEL(caplet_vote_channels_8), KERNEL(caplet_vote_carried),
        KERNEL(caplet_vote_carried_4), KERNEL(caplet_vote_carried_8), KERNEL(caplet_vote_carried_any),
        KERNEL(caplet_unpack_2),       KERNEL(caplet_unpack_3),      KERNEL(caplet_unpack_4),
        KERNEL(caplet_unpack_5),       KERNEL(caplet_unpack_6),      KERNEL(caplet_unpack_7),
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
