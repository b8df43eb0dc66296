/*
 * Dense votes for PCs: weights are (inputs, in_dim, votes), and the loop over the votes, which compilers vectorise, is
 * the inner one.
 */
#include "host.h"
#include "fixed.h"

/* Components of an input capsule, and rows of weights, that are taken together. */
enum { ROWS = 4 };

/* Four rows at a time, so that a sum is loaded and stored once for all of them; then the rest one by one. */
#define AXPY(TW, ACC)                                                                             \
    do {                                                                                          \
        const TW *restrict w0 = (const TW *)w;                                                    \
        ACC *restrict sums = acc;                                                                 \
        for (; rows >= 4; rows -= 4) {                                                            \
            const TW *restrict w1 = w0 + n, *restrict w2 = w1 + n, *restrict w3 = w2 + n;         \
            const ACC x0 = x[0], x1 = x[1], x2 = x[2], x3 = x[3];                                 \
            for (j = 0; j < n; j++) {                                                             \
                sums[j] += x0 * (ACC)w0[j] + x1 * (ACC)w1[j] + x2 * (ACC)w2[j] + x3 * (ACC)w3[j]; \
            }                                                                                     \
            w0 = w3 + n;                                                                          \
            x += 4;                                                                               \
        }                                                                                         \
        for (; rows > 0; rows--) {                                                                \
            const ACC x0 = *x++;                                                                  \
            for (j = 0; j < n; j++) {                                                             \
                sums[j] += x0 * (ACC)w0[j];                                                       \
            }                                                                                     \
            w0 += n;                                                                              \
        }                                                                                         \
    } while (0)

#define AXPY_BY_WEIGHT(ACC)                                              \
    do {                                                                 \
        uint32_t j;                                                      \
        if (w_type == CAPLET_INT8) {                                     \
            AXPY(int8_t, ACC);                                           \
        } else if (w_type == CAPLET_INT16) {                             \
            AXPY(int16_t, ACC);                                          \
        } else {                                                         \
            AXPY(uint16_t, ACC);                                         \
        }                                                                \
    } while (0)

static void axpy32(int32_t *acc, const int32_t *x, const void *w, uint8_t w_type, uint32_t rows, uint32_t n)
{
    AXPY_BY_WEIGHT(int32_t);
}

static void axpy64(int64_t *acc, const int32_t *x, const void *w, uint8_t w_type, uint32_t rows, uint32_t n)
{
    AXPY_BY_WEIGHT(int64_t);
}

#define STORE(T)                        \
    do {                                \
        T *restrict codes = (T *)y;     \
        for (j = 0; j < count; j++) {   \
            codes[j] = (T)sums[j];      \
        }                               \
    } while (0)

/* The common case: int32_t, and one scale for the whole row. Two loops, as the first is vectorised best by itself. */
static void requantize_evenly(const caplet_scale *scale, const caplet_format *out, int32_t *restrict sums,
                              uint32_t count, void *y)
{
    const int32_t add = (int32_t)caplet_rounding_term(out, scale->right, 0);
    const uint32_t left = scale->left;
    const uint32_t right = scale->right;
    const int32_t low = out->low;
    const int32_t high = out->high;
    uint32_t j;
    for (j = 0; j < count; j++) {
        sums[j] = caplet_clip32((caplet_left32(sums[j], left) + add) >> right, low, high);
    }
    CAPLET_WITH_TYPE(out->type, STORE)
}

/*
 * A row of accumulators of channels 0..count - 1, without bias -> codes. sums: int32_t, or int64_t where acc->wide; not
 * kept. element: noise index of the first one.
 */
static void requantize_row(const caplet_accumulator *acc, const caplet_format *out, void *sums, uint32_t count, void *y,
                           uint32_t element)
{
    uint32_t j;
    if (!acc->wide && acc->channel_shifts == NULL && out->rounding != CAPLET_STOCHASTIC) {
        const caplet_scale scale = caplet_scale_of(acc, out, 0, 0);
        requantize_evenly(&scale, out, (int32_t *)sums, count, y);
        return;
    }
    for (j = 0; j < count; j++) {
        const caplet_scale scale = caplet_scale_of(acc, out, j, 0);
        caplet_store(y, out->type, j, caplet_requantize(sums, acc->wide, j, &scale, out, element + j));
    }
}

void caplet_host_dense_votes(const caplet_dense_votes_op *op, const void *const *x, uint32_t input, void *row,
                             void *acc, void *weights)
{
    const uint8_t weight_type = caplet_constant_type(&op->weight);
    uint32_t first;
    const caplet_source *source = caplet_source_of(op, &x, input, &first);
    uint32_t rows;
    uint32_t j;
    uint32_t k;
    caplet_clear_sums(acc, source->acc.wide, op->votes);
    for (k = 0; k < op->in_dim; k += rows) {
        int32_t codes[ROWS];
        const void *from;
        rows = op->in_dim - k < ROWS ? op->in_dim - k : ROWS;
        for (j = 0; j < rows; j++) {
            codes[j] = caplet_load(*x, source->type, first + k + j);
        }
        from = caplet_row(&op->weight, op->unpack, (input * op->in_dim + k) * op->votes, rows * op->votes, weights);
        if (source->acc.wide) {
            axpy64((int64_t *)acc, codes, from, weight_type, rows, op->votes);
        } else {
            axpy32((int32_t *)acc, codes, from, weight_type, rows, op->votes);
        }
    }
    requantize_row(&source->acc, &op->out, acc, op->votes, row, input * op->votes);
}
