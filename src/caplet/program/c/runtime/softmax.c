/*
 * Coupling coefficients: a softmax with one division per row. Exponentials of short logits come from the exporter's
 * table of all of them, others from a table of base-2 exponentials.
 */
#include "fixed.h"

/* round(2^24 * 2^(-i/128)), i = 0..128. */
static const uint32_t exp2_table[129] = {
    16777216u, 16686609u, 16596492u, 16506861u, 16417715u, 16329050u, 16240863u, 16153153u, 16065917u, 15979152u,
    15892855u, 15807025u, 15721658u, 15636752u, 15552304u, 15468313u, 15384775u, 15301688u, 15219050u, 15136859u,
    15055111u, 14973805u, 14892937u, 14812507u, 14732511u, 14652947u, 14573813u, 14495106u, 14416824u, 14338964u,
    14261526u, 14184505u, 14107901u, 14031710u, 13955931u, 13880561u, 13805598u, 13731039u, 13656884u, 13583129u,
    13509772u, 13436812u, 13364245u, 13292070u, 13220286u, 13148888u, 13077877u, 13007249u, 12937002u, 12867135u,
    12797645u, 12728530u, 12659789u, 12591419u, 12523418u, 12455784u, 12388516u, 12321610u, 12255067u, 12188882u,
    12123055u, 12057584u, 11992466u, 11927700u, 11863283u, 11799215u, 11735492u, 11672114u, 11609078u, 11546382u,
    11484025u, 11422004u, 11360319u, 11298967u, 11237946u, 11177254u, 11116891u, 11056853u, 10997140u, 10937749u,
    10878679u, 10819928u, 10761494u, 10703375u, 10645571u, 10588079u, 10530897u, 10474024u, 10417458u, 10361198u,
    10305242u, 10249587u, 10194234u, 10139179u, 10084422u, 10029960u, 9975792u, 9921917u, 9868333u, 9815039u,
    9762032u, 9709311u, 9656875u, 9604722u, 9552851u, 9501261u, 9449948u, 9398913u, 9348154u, 9297668u,
    9247455u, 9197514u, 9147842u, 9098438u, 9049301u, 9000430u, 8951823u, 8903477u, 8855394u, 8807569u,
    8760003u, 8712694u, 8665641u, 8618841u, 8572295u, 8525999u, 8479954u, 8434157u, 8388608u,
};

/*
 * exp(-distance * 2^-frac) with scale_bits (19..24) fraction bits, at most 2^24, for every element: distances, below
 * 2^16, in, exponentials out.
 */
static void negative_exponentials(uint32_t *restrict values, uint32_t count, int16_t frac, uint8_t scale_bits)
{
    const uint32_t limit = (uint32_t)1 << 25;
    const uint32_t right = frac < 5 ? 0u : frac - 5 < 31 ? (uint32_t)(frac - 5) : 31u;
    const uint32_t left = frac >= 5 ? 0u : 5 - frac < 25 ? (uint32_t)(5 - frac) : 25u;
    const uint32_t most = limit >> left, spare = 24u - scale_bits;
    uint32_t e;
    for (e = 0; e < count; e++) {
        const uint32_t p = values[e] * 47274u >> right; /* log2(e) with 15 fraction bits; below 2^32 */
        const uint32_t t = (p < most ? p : most) << left; /* the exponent with 20 fraction bits, at most 32 */
        const uint32_t i = (t >> 13) & 127u;
        const uint32_t y = exp2_table[i] - (((exp2_table[i] - exp2_table[i + 1]) * (t & 8191u) + 4096u) >> 13);
        const uint32_t shift = (t >> 20) + spare;
        const uint32_t by = shift < 26u ? shift : 26u; /* y <= 2^24: nothing is left */
        values[e] = (y + (((uint32_t)1 << by) >> 1)) >> by;
    }
}

/* The coupling code of a product, below 2^56. right: 34..55. */
static uint16_t code_of(uint64_t product, uint32_t right, const caplet_format *out, uint32_t element)
{
    const uint64_t sum = product + (uint64_t)caplet_rounding_term(out, right, element);
    const uint32_t code = (uint32_t)(sum >> 32) >> (right - 32);
    return (uint16_t)(code < (uint32_t)out->high ? code : (uint32_t)out->high);
}

/* The largest of count logits of bytes. */
static inline int32_t largest_byte(const int8_t *logits, uint32_t count)
{
    int32_t largest = logits[0];
    uint32_t g;
#ifdef CAPLET_DSP
    if (count >= 4) {
        uint32_t most = caplet_load4(logits + count - 4); /* words may overlap */
        for (g = 0; g + 4 < count; g += 4) {
            most = caplet_largest_bytes(most, caplet_load4(logits + g));
        }
        most = caplet_largest_bytes(most, most >> 16 | most << 16);
        return (int8_t)(caplet_largest_bytes(most, most >> 8 | most << 24) & 255u);
    }
#endif
    for (g = 1; g < count; g++) {
        largest = logits[g] > largest ? logits[g] : largest;
    }
    return largest;
}

/* Exponentials of a row of logits by the exporter's table, and their sum. */
static inline uint32_t look_up(const uint32_t *table, const int8_t *codes, uint32_t count,
                               uint32_t *restrict exponentials)
{
    uint32_t sum = 0;
    table += largest_byte(codes, count);
    CAPLET_UNROLL
    for (; count > 0; count--) {
        const uint32_t e = *(table - *codes++);
        *exponentials++ = e, sum += e;
    }
    return sum;
}
#define COUPLING(CODE)                                                                                      \
    for (; count > 0; count--) {                                                                            \
        const uint32_t code = ((uint32_t)(((uint64_t)*e++ * reciprocal) >> 32) + term) >> (right - 32);     \
        *codes = (uint16_t)(CODE);                                                                          \
        codes += stride;                                                                                    \
    }

/*
 * The codes of a row of exponentials, which lie `stride` apart. term: of rounding, without its low half, which is 0.
 * most: the largest code; UINT32_MAX where all are smaller anyway.
 */
static inline void couple(const uint32_t *e, uint32_t count, uint32_t reciprocal, uint32_t term, uint32_t right,
                          uint32_t most, uint16_t *codes, uint32_t stride)
{
    if (most == UINT32_MAX) {
        CAPLET_UNROLL
        COUPLING(code)
    }
    COUPLING(code < most ? code : most) /* none are left, or all */
}

uint32_t caplet_exponentials(const caplet_routing_op *op, const void *logits, uint32_t *exponentials)
{
    int32_t largest = caplet_load(logits, op->logits.type, 0);
    uint32_t sum = 0, g;
    for (g = 1; g < op->outputs; g++) {
        const int32_t code = caplet_load(logits, op->logits.type, g);
        largest = code > largest ? code : largest;
    }
    for (g = 0; g < op->outputs; g++) {
        exponentials[g] = (uint32_t)(largest - caplet_load(logits, op->logits.type, g));
    }
    negative_exponentials(exponentials, op->outputs, op->logits.frac, op->scale_bits);
    for (g = 0; g < op->outputs; g++) {
        sum += exponentials[g];
    }
    return sum;
}

/*
 * Floor of 2^(scale_bits + 31) / sum, sum: 2^scale_bits .. 2^31. A root of 16 digits by one division, then a step of
 * Newton's: less than the quotient by at most 2^-28 of it.
 */
static inline uint32_t reciprocal_of(uint32_t sum, uint32_t scale_bits)
{
    const uint32_t shift = 32u - caplet_bit_length(sum), normal = sum << shift;
    const uint32_t half = 0xFFFFFFFFu / ((normal >> 16) + 1u); /* 2^48 / normal: 16 bits of it */
    const uint32_t rest = (uint32_t)((((uint64_t)1 << 48) - (uint64_t)half * normal) >> 19);
    uint32_t quotient = ((half << 15) + (half * rest >> 14)) >> (32u - scale_bits - shift);
    uint32_t left = 0u - quotient * sum;
    for (; left >= sum; left -= sum) {
        quotient++;
    }
    return quotient;
}

#ifdef CAPLET_HELIUM
/* As reciprocal_of, of four sums. */
static inline uint32x4_t reciprocals_of(uint32x4_t sums, uint32_t scale_bits)
{
    const int32x4_t lift = vreinterpretq_s32_u32(vclzq_u32(sums));
    const uint32x4_t normal = vshlq_u32(sums, lift); /* 2^32 * d, 0.5 <= d < 1 */
    const int32x4_t down = vaddq_n_s32(lift, (int32_t)scale_bits - 31);
    /* 2^30 / d, first by the line 48 / 17 - 32 / 17 * d, then by Newton's steps. */
    uint32x4_t x = vsubq_u32(vdupq_n_u32(3031741620u), vmulhq_u32(normal, vdupq_n_u32(2021161080u)));
    uint32x4_t quotients, left;
    uint32_t step;
    for (step = 0; step < 3; step++) {
        x = vshlq_n_u32(vmulhq_u32(x, vsubq_u32(vdupq_n_u32(0x80000000u), vmulhq_u32(normal, x))), 2);
    }
    x = vsubq_n_u32(x, 8); /* surely too small */
    quotients = vshlq_u32(x, down), left = vsubq_u32(vdupq_n_u32(0), vmulq_u32(quotients, sums));
    x = vshlq_u32(vmulhq_u32(left, x), vsubq_n_s32(lift, 30)), quotients = vaddq_u32(quotients, x);
    left = vsubq_u32(left, vmulq_u32(x, sums));
    return vaddq_m_n_u32(quotients, quotients, 1, vcmpcsq_u32(left, sums));
}

/* The codes of four rows of int8_t logits, one row in each lane. */
static inline void codes_of_four(const caplet_routing_op *op, const int8_t *logits, uint16_t *coupling, uint32_t term,
                                 uint32_t right)
{
    const uint32_t *table = op->exponentials;
    const uint32_t count = op->outputs, stride = op->rows;
    const uint32x4_t places = vmulq_n_u32(vidupq_n_u32(0, 1), count), most = vdupq_n_u32((uint32_t)op->coupling.high);
    uint32x4_t at = places, sums = vdupq_n_u32(0), codes;
    int32x4_t largest = vdupq_n_s32(-128);
    uint32_t g;
#define DISTANCES vreinterpretq_u32_s32(vsubq_s32(largest, vldrbq_gather_offset_s32(logits, at)))
#define EXPONENTIALS vldrwq_gather_shifted_offset_u32(table, DISTANCES)
    for (g = count; g > 0; g--, at = vaddq_n_u32(at, 1)) {
        largest = vmaxq_s32(largest, vldrbq_gather_offset_s32(logits, at));
    }
    for (at = places, g = count; g > 0; g--, at = vaddq_n_u32(at, 1)) {
        sums = vaddq_u32(sums, EXPONENTIALS);
    }
    sums = reciprocals_of(sums, op->scale_bits);
    for (at = places, g = count; g > 0; g--, at = vaddq_n_u32(at, 1), coupling += stride) {
        codes = vshlq_r_u32(vaddq_n_u32(vmulhq_u32(EXPONENTIALS, sums), term), 32 - (int32_t)right);
        vstrhq_u32(coupling, vminq_u32(codes, most));
    }
}
#endif

CAPLET_HOT void caplet_couple(const caplet_routing_op *op, const void *logits, uint32_t rows, uint32_t *restrict e,
                              uint16_t *restrict coupling, uint32_t element)
{
    const uint32_t right = (uint32_t)(op->scale_bits + 31 - op->coupling.frac); /* 34..55 */
    /* Of rounding: its low half is 0. */
    const uint32_t term = (uint32_t)(caplet_rounding_term(&op->coupling, right, 0) >> 32);
    const uint8_t *row = (const uint8_t *)logits;
    const uint32_t *table = op->exponentials;
    const uint32_t count = op->outputs, stride = op->rows, scale_bits = op->scale_bits;
    const uint32_t most = (uint32_t)op->coupling.high, bytes = caplet_element_bytes(op->logits.type) * count;
#ifdef CAPLET_HELIUM
    for (; table != NULL && rows >= 4; rows -= 4, row += 4 * count, coupling += 4) {
        codes_of_four(op, (const int8_t *)row, coupling, term, right);
    }
#endif
    (void)element;
    for (; rows > 0; rows--, row += bytes, coupling++) {
        const uint32_t sum = table != NULL ? look_up(table, (const int8_t *)row, count, e) : op->compute(op, row, e);
        const uint32_t reciprocal = reciprocal_of(sum, scale_bits);
        /* The largest exponential is one: only if its code is too large can others be. */
        const uint32_t first = ((reciprocal >> (32u - scale_bits)) + term) >> (right - 32u);
        couple(e, count, reciprocal, term, right, first > most ? most : UINT32_MAX, coupling, stride);
    }
}

CAPLET_COLD void caplet_couple_any(const caplet_routing_op *op, const void *logits, uint32_t rows,
                                   uint32_t *exponentials, uint16_t *coupling, uint32_t element)
{
    const caplet_format *out = &op->coupling;
    const uint32_t count = op->outputs, one = (uint32_t)1 << op->scale_bits;
    const uint32_t right = (uint32_t)(op->scale_bits + 31 - out->frac); /* 34..55 */
    uint32_t r, g;
    for (r = 0; r < rows; r++) {
        uint32_t sum = count * one; /* 2^scale_bits .. 2^31 */
        uint32_t reciprocal; /* at most 2^31 */
        if (logits != NULL) {
            sum = op->compute(op, caplet_at(logits, op->logits.type, r * count), exponentials);
        }
        reciprocal = reciprocal_of(sum, op->scale_bits);
        for (g = 0; g < count; g++) {
            const uint64_t product = (uint64_t)(logits == NULL ? one : exponentials[g]) * reciprocal;
            coupling[r + g * op->rows] = code_of(product, right, out, element + r * count + g);
        }
    }
}
