/*
 * Votes and dynamic routing of bytes with RISC-V's vectors: the kernels of dense_votes.c and routing_bytes.c. Pairs of
 * votes, or rows, lie side by side in a vector.
 */
#include "fixed.h"

#ifdef CAPLET_RVV
static inline vint8m1_t codes_of(const caplet_dense_votes_op *op, vint32m4_t sums, size_t n)
{
    const vint32m4_t codes = __riscv_vmin_vx_i32m4(__riscv_vmax_vx_i32m4(sums, op->out.low, n), op->out.high, n);
    return __riscv_vncvt_x_x_w_i8m1(__riscv_vncvt_x_x_w_i16m2(codes, n), n);
}

/* Sums of votes, lifted, then shifted to codes. */
static inline vint32m4_t shifted(vint32m4_t sums, vuint8m1_t lifts, uint32_t half, uint32_t right, size_t n)
{
    const vint32m4_t lifted = __riscv_vsll_vv_i32m4(sums, __riscv_vzext_vf4_u32m4(lifts, n), n);
    return __riscv_vsra_vx_i32m4(__riscv_vadd_vx_i32m4(lifted, (int32_t)half, n), right, n);
}

void caplet_vote_pairs(const caplet_dense_votes_op *op, const caplet_source *source, const int16_t *x, const int8_t *w,
                       uint32_t dim, uint32_t pairs, const uint8_t *lifts, uint8_t *row)
{
    const int32_t shift = source->acc.product_frac - op->out.frac;
    const uint32_t half = op->out.rounding == CAPLET_NEAREST;
    const uint32_t bits = op->carried_bits;
    size_t n;
    for (; pairs > 0; pairs -= (uint32_t)n, w += 2 * n * dim, row += 2 * n) {
        vint32m4_t first, second;
        uint32_t k;
        n = __riscv_vsetvl_e8m1(pairs);
        first = second = __riscv_vmv_v_x_i32m4(lifts == NULL ? (int32_t)((half << shift) >> 1) : 0, n);
        for (k = 0; k < dim; k++) {
            const vint8m1x2_t f = __riscv_vlsseg2e8_v_i8m1x2(w + 2 * k, (ptrdiff_t)(2 * dim), n);
            const vint16m2_t f0 = __riscv_vsext_vf2_i16m2(__riscv_vget_v_i8m1x2_i8m1(f, 0), n);
            const vint16m2_t f1 = __riscv_vsext_vf2_i16m2(__riscv_vget_v_i8m1x2_i8m1(f, 1), n);
            first = __riscv_vwmacc_vx_i32m4(first, x[k], f0, n);
            second = __riscv_vwmacc_vx_i32m4(second, x[k], f1, n);
        }
        if (lifts == NULL) {
            first = __riscv_vsra_vx_i32m4(first, (size_t)shift, n);
            second = __riscv_vsra_vx_i32m4(second, (size_t)shift, n);
        } else {
            const vuint8m1x2_t s = __riscv_vlseg2e8_v_u8m1x2(lifts, n);
            first = shifted(first, __riscv_vget_v_u8m1x2_u8m1(s, 0), half << bits >> 1, bits, n);
            second = shifted(second, __riscv_vget_v_u8m1x2_u8m1(s, 1), half << bits >> 1, bits, n);
            lifts += 2 * n;
        }
        __riscv_vsseg2e8_v_i8m1x2((int8_t *)row,
                                  __riscv_vcreate_v_i8m1x2(codes_of(op, first, n), codes_of(op, second, n)), n);
    }
}

void caplet_weigh_bytes(const caplet_routing_op *op, const void *votes, const uint16_t *coupling, uint32_t rows,
                        void *acc)
{
    const uint32_t dim = op->dim, row = op->outputs * dim;
    const int8_t *v = (const int8_t *)votes;
    int32_t *sums = (int32_t *)acc;
    uint32_t g, d, r;
    size_t n;
    for (g = 0; g < op->outputs; g++, coupling += op->rows) {
        for (d = 0; d < dim; d++, v++, sums++) {
            vint32m1_t sum = __riscv_vmv_s_x_i32m1(*sums, 1);
            for (r = 0; r < rows; r += (uint32_t)n) {
                n = __riscv_vsetvl_e8m1(rows - r);
                {
                    const vint16m2_t codes = __riscv_vle16_v_i16m2((const int16_t *)coupling + r, n);
                    const vint8m1_t some = __riscv_vlse8_v_i8m1(v + r * row, (ptrdiff_t)row, n);
                    const vint32m4_t products = __riscv_vwmul_vv_i32m4(__riscv_vsext_vf2_i16m2(some, n), codes, n);
                    sum = __riscv_vredsum_vs_i32m4_i32m1(products, sum, n);
                }
            }
            *sums = __riscv_vmv_x_s_i32m1_i32(sum);
        }
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
    uint32_t j, r;
    size_t n;
    for (j = 0; j < row; j += (uint32_t)n, sums += n) {
        const int8_t *v = (const int8_t *)votes + j;
        vint16m4_t some; /* of at most 128 bytes */
        n = __riscv_vsetvl_e8m2(row - j), some = __riscv_vmv_v_x_i16m4(0, n);
        for (r = 0; r < rows; r++, v += row) {
            some = __riscv_vwadd_wv_i16m4(some, __riscv_vle8_v_i8m2(v, n), n);
        }
        __riscv_vse32_v_i32m8(sums, __riscv_vwadd_wv_i32m8(__riscv_vle32_v_i32m8(sums, n), some, n), n);
    }
}

void caplet_update_bytes(const caplet_routing_op *op, const void *activation, const void *votes, uint32_t rows,
                         void *logits, uint32_t element)
{
    const uint32_t outputs = op->outputs, dim = op->dim, row = outputs * dim, right = (uint32_t)op->agreement_shift;
    const int32_t term = (int32_t)caplet_rounding_term(&op->logits, right, 0);
    const int8_t *a = (const int8_t *)activation;
    uint32_t g, d, r;
    size_t n;
    (void)element;
    for (g = 0; g < outputs; g++, a += dim) {
        for (r = 0; r < rows; r += (uint32_t)n) {
            const int8_t *v = (const int8_t *)votes + r * row + g * dim;
            int8_t *to = (int8_t *)logits + r * outputs + g;
            vint32m4_t sums;
            n = __riscv_vsetvl_e8m1(rows - r), sums = __riscv_vmv_v_x_i32m4(term, n);
            for (d = 0; d < dim; d++) {
                const vint8m1_t some = __riscv_vlse8_v_i8m1(v + d, (ptrdiff_t)row, n);
                sums = __riscv_vwmacc_vx_i32m4(sums, a[d], __riscv_vsext_vf2_i16m2(some, n), n);
            }
            sums = __riscv_vsra_vx_i32m4(sums, right, n);
            sums = __riscv_vadd_vv_i32m4(
                sums, __riscv_vsext_vf4_i32m4(__riscv_vlse8_v_i8m1(to, (ptrdiff_t)outputs, n), n), n);
            sums = __riscv_vmin_vx_i32m4(__riscv_vmax_vx_i32m4(sums, op->logits.low, n), op->logits.high, n);
            __riscv_vsse8_v_i8m1(to, (ptrdiff_t)outputs,
                                 __riscv_vncvt_x_x_w_i8m1(__riscv_vncvt_x_x_w_i16m2(sums, n), n), n);
        }
    }
}

void caplet_update_bytes_6(const caplet_routing_op *op, const void *activation, const void *votes, uint32_t rows,
                           void *logits, uint32_t element)
{
    caplet_update_bytes(op, activation, votes, rows, logits, element);
}

void caplet_update_bytes_16(const caplet_routing_op *op, const void *activation, const void *votes, uint32_t rows,
                            void *logits, uint32_t element)
{
    caplet_update_bytes(op, activation, votes, rows, logits, element);
}
#endif
