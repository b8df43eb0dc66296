/* Dynamic routing of bytes with vectors: the kernels of routing_bytes.c. */
#include "fixed.h"

#ifdef CAPLET_HELIUM
/*
 * acc (dim) += the products of votes with the coupling codes of one output capsule, over eight rows if `eight`, and
 * then over `some` others. places: where the next rows begin.
 */
CAPLET_COPIED void weigh_rows(const int8_t *v, const uint16_t *coupling, uint16x8_t places, uint32_t row,
                              uint32_t dim, uint32_t eight, mve_pred16_t some, int32_t *acc)
{
    int16x8_t first = vdupq_n_s16(0), others;
    if (eight) {
        first = vldrhq_s16((const int16_t *)coupling), coupling += 8;
    }
    others = vldrhq_z_s16((const int16_t *)coupling, some);
    for (; dim > 0; dim--) {
        int32_t sum = *acc;
        if (eight) {
            sum = vmladavaq_s16(sum, vldrbq_gather_offset_s16(v, places), first);
        }
        sum = vmladavaq_s16(sum, vldrbq_gather_offset_z_s16(v + (eight ? 8 * row : 0u), places, some), others);
        *acc++ = sum, v++;
    }
}

void caplet_weigh_bytes(const caplet_routing_op *op, const void *votes, const uint16_t *coupling, uint32_t rows,
                        void *acc)
{
    const uint32_t dim = op->dim, outputs = op->outputs, stride = op->rows, row = outputs * dim;
    const uint16x8_t places = vmulq_n_u16(vidupq_n_u16(0, 1), (uint16_t)row);
    const int8_t *v = (const int8_t *)votes;
    uint32_t g;
    for (g = 0; g < outputs; g++) {
        if (rows >= 8) {
            weigh_rows(v, coupling, places, row, dim, 1, vctp16q(rows - 8), (int32_t *)acc + g * dim);
        } else {
            weigh_rows(v, coupling, places, row, dim, 0, vctp16q(rows), (int32_t *)acc + g * dim);
        }
        v += dim, coupling += stride;
    }
}

void caplet_weigh_bytes_6(const caplet_routing_op *op, const void *votes, const uint16_t *coupling, uint32_t rows,
                          void *acc)
{
    caplet_weigh_bytes(op, votes, coupling, rows, acc);
}

void caplet_add_bytes(const caplet_routing_op *op, const void *votes, uint32_t rows, void *acc)
{
    const uint32_t row = op->outputs * op->dim;
    int32_t *sums = (int32_t *)acc;
    uint32_t j, k;
    for (j = 0; j < row; j += 16) {
        const mve_pred16_t some = vctp8q(row - j);
        const int8_t *v = (const int8_t *)votes + j;
        int16x8x2_t pairs;
        int16_t found[16];
        pairs.val[0] = pairs.val[1] = vdupq_n_s16(0);
#define ADD_ROWS(LOAD)                                                      \
    for (k = rows; k > 0; k--, v += row) {                                  \
        const int8x16_t codes = LOAD;                                       \
        pairs.val[0] = vaddq_s16(pairs.val[0], vmovlbq_s8(codes));          \
        pairs.val[1] = vaddq_s16(pairs.val[1], vmovltq_s8(codes));          \
    }
        if (row - j >= 16) {
            ADD_ROWS(vldrbq_s8(v))
        } else {
            ADD_ROWS(vldrbq_z_s8(v, some))
        }
        vst2q_s16(found, pairs);
        for (k = 0; k < 16 && j + k < row; k += 4, sums += 4) {
            const mve_pred16_t lanes = vctp32q(row - j - k);
            vstrwq_p_s32(sums, vaddq_s32(vldrwq_z_s32(sums, lanes), vldrhq_s32(found + k)), lanes);
        }
    }
}

/* What the agreements with one output capsule need. a: the capsule, whose first 16 components are `codes`. */
typedef struct {
    const int8_t *a;
    int8x16_t codes;
    uint32x4_t places; /* of logits */
    int32_t start;
    int32_t shift; /* negative: to the right */
    int32_t low, high;
} agreement;

/* Adds agreements of `count` rows of votes, 1 to 4, to their logits. v: votes by the first of the rows. */
CAPLET_COPIED void agree(const agreement *by, const int8_t *v, uint32_t row, uint32_t dim, uint32_t count,
                         int8_t *logits)
{
    const int8_t *v1 = count > 1 ? v + row : v, *v2 = count > 2 ? v1 + row : v, *v3 = count > 3 ? v2 + row : v;
    const mve_pred16_t some = vctp8q(dim);
    int32_t s0 = vmladavq_s8(by->codes, vldrbq_z_s8(v, some));
    int32_t s1 = vmladavq_s8(by->codes, vldrbq_z_s8(v1, some));
    int32_t s2 = vmladavq_s8(by->codes, vldrbq_z_s8(v2, some));
    const int8x16_t votes = vldrbq_z_s8(v3, some);
    int32_t s3 = vmladavq_s8(by->codes, votes);
    int32x4_t sums = vreinterpretq_s32_s8(votes); /* all lanes will be set */
    uint32_t d;
    for (d = 16; d < dim; d += 16) {
        const mve_pred16_t others = vctp8q(dim - d);
        const int8x16_t a = vldrbq_z_s8(by->a + d, others);
        s0 = vmladavaq_s8(s0, a, vldrbq_z_s8(v + d, others)), s1 = vmladavaq_s8(s1, a, vldrbq_z_s8(v1 + d, others));
        s2 = vmladavaq_s8(s2, a, vldrbq_z_s8(v2 + d, others)), s3 = vmladavaq_s8(s3, a, vldrbq_z_s8(v3 + d, others));
    }
    sums = vsetq_lane_s32(s1, vsetq_lane_s32(s0, sums, 0), 1);
    sums = vsetq_lane_s32(s3, vsetq_lane_s32(s2, sums, 2), 3);
    sums = vshlq_r_s32(vaddq_n_s32(sums, by->start), by->shift);
    sums = vaddq_s32(sums, count == 4 ? vldrbq_gather_offset_s32(logits, by->places)
                                      : vldrbq_gather_offset_z_s32(logits, by->places, vctp32q(count)));
    sums = vminq_s32(vmaxq_s32(sums, vdupq_n_s32(by->low)), vdupq_n_s32(by->high));
    if (count == 4) {
        vstrbq_scatter_offset_s32(logits, by->places, sums);
    } else {
        vstrbq_scatter_offset_p_s32(logits, by->places, sums, vctp32q(count));
    }
}

/* Compilers make straight code of it where dim is known. */
CAPLET_COPIED void update(const caplet_routing_op *op, const void *activation, const void *votes, uint32_t rows,
                          uint32_t dim, void *logits)
{
    const uint32_t outputs = op->outputs, row = outputs * dim;
    const int8_t *first = (const int8_t *)votes;
    agreement by;
    uint32_t g;
    by.a = (const int8_t *)activation, by.places = vmulq_n_u32(vidupq_n_u32(0, 1), outputs);
    by.start = (int32_t)caplet_rounding_term(&op->logits, (uint32_t)op->agreement_shift, 0);
    by.shift = -op->agreement_shift, by.low = op->logits.low, by.high = op->logits.high;
    for (g = 0; g < outputs; g++, by.a += dim, first += dim) {
        const int8_t *v = first;
        int8_t *to = (int8_t *)logits + g;
        uint32_t rest = rows;
        by.codes = vldrbq_z_s8(by.a, vctp8q(dim));
        for (; rest >= 4; rest -= 4, v += 4 * row, to += 4 * outputs) {
            agree(&by, v, row, dim, 4, to);
        }
        if (rest > 0) {
            agree(&by, v, row, dim, rest, to);
        }
    }
}

#define DEFINE_UPDATE(NAME, DIM)                                                                                   \
    void NAME(const caplet_routing_op *op, const void *activation, const void *votes, uint32_t rows, void *logits, \
              uint32_t element)                                                                                    \
    {                                                                                                              \
        (void)element;                                                                                             \
        update(op, activation, votes, rows, DIM, logits);                                                          \
    }
DEFINE_UPDATE(caplet_update_bytes, op->dim)
DEFINE_UPDATE(caplet_update_bytes_6, 6)
DEFINE_UPDATE(caplet_update_bytes_16, 16)
#endif
