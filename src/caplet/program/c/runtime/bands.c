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

/* Make room in the output of a stage: rows that are read no more give way. */
static CAPLET_COLD void drop_rows(const caplet_stage *stages, uint32_t i, progress *at, uint8_t *memory)
{
    const caplet_stage *stage = stages + i;
    const uint32_t row = stage->out_row_bytes;
    uint32_t first = at->done[i], bytes, r;
    const uint8_t *from = memory + stage->output;
    uint8_t *to = memory + stage->output;
    for (r = 0; r < 2 && stage->readers[r] > 0; r++) {
        const uint32_t reader = stage->readers[r] - 1u, done = at->done[reader];
        const caplet_stage *next = stages + reader;
        const uint32_t needed = next->input == stage->output ? first_row(next, done) : done;
        first = needed < first ? needed : first;
    }
    if (r == 0) {
        return;
    }
    from += (first - at->base[i]) * row;
    bytes = from == to ? 0u : (at->done[i] - first) * row;
    for (; bytes > 0; bytes--) {
        *to++ = *from++;
    }
    at->base[i] = first;
}

static CAPLET_COLD void run_stage(const caplet_stage *stages, uint32_t i, uint32_t end, progress *at, uint8_t *memory,
                                  const uint8_t *image)
{
    const caplet_stage *stage = stages + i;
    const uint32_t done = at->done[i], first = first_row(stage, done), start = done * stage->stride;
    const uint32_t base = stage->source > 0 ? at->base[stage->source - 1u] : 0u;
    const uint32_t other = done - (stage->second > 0 ? at->base[stage->second - 1u] : 0u);
    const uint8_t *x = stage->input == CAPLET_IMAGE ? image : memory + stage->input;
    caplet_rows rows;
    if (stage->in_place) {
        at->base[i] = base;
    } else {
        drop_rows(stages, i, at, memory);
    }
    rows.all = stage->out_rows;
    rows.in_rows = end_row(stage, end) - first;
    rows.out_rows = end - done;
    rows.top = start < stage->padding ? stage->padding - start : 0u;
    stage->run(stage->op, &rows, x + (first - base) * stage->in_row_bytes,
               memory + stage->other + other * stage->other_row_bytes,
               memory + stage->output + (done - at->base[i]) * stage->out_row_bytes, memory + stage->scratch);
    at->done[i] = end;
}

CAPLET_COLD void caplet_run_bands(const caplet_stage *stages, uint32_t count, uint32_t rows, uint8_t *memory,
                                  const uint8_t *image)
{
    progress at;
    uint32_t i, next, end = 0;
    for (i = 0; i < count; i++) {
        at.base[i] = at.done[i] = 0;
    }
    while (at.done[count - 1u] < stages[count - 1u].out_rows) {
        for (next = count; next > 0;) { /* the last stage that has what it reads */
            const caplet_stage *stage = stages + (i = next - 1u);
            end = at.done[i] + rows < stage->out_rows ? at.done[i] + rows : stage->out_rows;
            next = 0;
            if (stage->source > 0 && at.done[stage->source - 1u] < end_row(stage, end)) {
                next = stage->source;
            } else if (stage->second > 0 && at.done[stage->second - 1u] < end) {
                next = stage->second;
            }
        }
        run_stage(stages, i, end, &at, memory, image);
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
