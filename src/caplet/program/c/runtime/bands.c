/* Chains of ops in bands of rows, so that the maps between them are never whole. */
#include "bands.h"

#include "fixed.h"

/* The first row of its input that a stage reads for its row `row`, and the first that it does not read before `end`. */
static uint32_t first_row(const caplet_stage *stage, uint32_t row)
{
    const uint32_t start = row * stage->stride;
    const uint32_t first = start > stage->padding ? start - stage->padding : 0u;
    return first < stage->in_rows ? first : stage->in_rows;
}

static uint32_t end_row(const caplet_stage *stage, uint32_t end)
{
    const uint32_t last = (end - 1u) * stage->stride + stage->kernel; /* more than the padding */
    const uint32_t found = last - stage->padding;
    return found < stage->in_rows ? found : stage->in_rows;
}

/* base, done: of every stage's output, the first row in the arena and the first that is not computed yet. */
typedef struct {
    uint32_t base[CAPLET_STAGES];
    uint32_t done[CAPLET_STAGES];
} progress;

/* Make room in the output of a stage: its reader is the next stage that does not work in place. */
static void drop_rows(const caplet_stage *stages, uint32_t count, uint32_t stage, progress *at, uint8_t *memory)
{
    uint32_t next = stage + 1u, first, bytes;
    const uint8_t *from = memory + stages[stage].output;
    uint8_t *to = memory + stages[stage].output;
    while (next < count && stages[next].in_place) {
        next++;
    }
    if (next == count) { /* the last tensor is whole */
        return;
    }
    first = first_row(&stages[next], at->done[next]);
    first = first < at->done[stage] ? first : at->done[stage];
    from += (first - at->base[stage]) * stages[stage].out_row_bytes;
    bytes = from == to ? 0u : (at->done[stage] - first) * stages[stage].out_row_bytes;
    for (; bytes > 0; bytes--) {
        *to++ = *from++;
    }
    at->base[stage] = first;
}

static void run_stage(const caplet_stage *stages, uint32_t count, uint32_t i, uint32_t end, progress *at,
                      uint8_t *memory, const uint8_t *image)
{
    const caplet_stage *stage = stages + i;
    const uint32_t first = first_row(stage, at->done[i]), skipped = at->done[i] * stage->stride;
    caplet_rows rows;
    const uint8_t *x = stage->input == CAPLET_IMAGE ? image : memory + stage->input;
    uint8_t *y = memory + stage->output;
    if (!stage->in_place) {
        drop_rows(stages, count, i, at, memory);
    } else {
        at->base[i] = at->base[i - 1u];
    }
    rows.all = stage->out_rows;
    rows.in_rows = end_row(stage, end) - first;
    rows.out_rows = end - at->done[i];
    rows.top = skipped < stage->padding ? stage->padding - skipped : 0u;
    x += (first - (i > 0 ? at->base[i - 1u] : 0u)) * stage->in_row_bytes;
    y += (at->done[i] - at->base[i]) * stage->out_row_bytes;
    stage->run(stage->op, &rows, x, memory + stage->other + at->done[i] * stage->other_row_bytes, y,
               memory + stage->scratch);
    at->done[i] = end;
}

void caplet_run_bands(const caplet_stage *stages, uint32_t count, uint32_t rows, uint8_t *memory, const uint8_t *image)
{
    progress at;
    uint32_t i, end;
    for (i = 0; i < count; i++) {
        at.base[i] = at.done[i] = 0;
    }
    while (at.done[count - 1u] < stages[count - 1u].out_rows) {
        i = count;
        do { /* the last stage that has what it reads */
            i--;
            end = at.done[i] + rows < stages[i].out_rows ? at.done[i] + rows : stages[i].out_rows;
        } while (i > 0 && at.done[i - 1u] < end_row(&stages[i], end));
        run_stage(stages, count, i, end, &at, memory, image);
    }
}

#define DEFINE_ROWS(NAME, SET, CALL)                                                                              \
    void caplet_##NAME##_rows(const void *op, const caplet_rows *rows, const void *x, const void *other, void *y, \
                              void *scratch)                                                                      \
    {                                                                                                             \
        caplet_##NAME##_op part = *(const caplet_##NAME##_op *)op;                                                \
        (void)other, (void)scratch;                                                                               \
        SET;                                                                                                      \
        CALL;                                                                                                     \
    }
#define SET_WINDOWS part.in_rows = rows->in_rows, part.out_rows = rows->out_rows, part.top = rows->top
#define SET_COUNT(FIELD) part.FIELD = part.FIELD / rows->all * rows->out_rows

DEFINE_ROWS(input_quantize, SET_COUNT(pixels), caplet_input_quantize(&part, (const uint8_t *)x, y))
DEFINE_ROWS(max_pool2d, SET_WINDOWS, caplet_max_pool2d(&part, x, y))
DEFINE_ROWS(channel_affine, SET_COUNT(pixels), caplet_channel_affine(&part, x, y))
DEFINE_ROWS(leaky_relu, SET_COUNT(count), caplet_leaky_relu(&part, x, y))
DEFINE_ROWS(squash, SET_COUNT(count), caplet_squash(&part, x, y, 0))
DEFINE_ROWS(add, SET_COUNT(count), caplet_add(&part, x, other, y))

typedef caplet_conv_op caplet_conv2d_op;
DEFINE_ROWS(conv2d, SET_WINDOWS, caplet_conv2d(&part, x, y, scratch))
