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
    const uint32_t most = limit >> left;
    const uint32_t spare = 24u - scale_bits;
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
static inline int32_t largest_of(const void *logits, uint8_t type, uint32_t count)
{
    int32_t largest = caplet_load(logits, type, 0);
    uint32_t g;
#ifdef CAPLET_DSP
    if (type == CAPLET_INT8 && count >= 4) {
        uint32_t most = caplet_load4((const int8_t *)logits + count - 4); /* words may overlap */
        for (g = 0; g + 4 < count; g += 4) {
            most = caplet_largest_bytes(most, caplet_load4((const int8_t *)logits + g));
        }
        most = caplet_largest_bytes(most, most >> 16 | most << 16);
        return (int8_t)(caplet_largest_bytes(most, most >> 8 | most << 24) & 255u);
    }
#endif
    for (g = 1; g < count; g++) {
        const int32_t code = caplet_load(logits, type, g);
        largest = code > largest ? code : largest;
    }
    return largest;
}

/* Exponentials of a row of logits by the exporter's table, and their sum. */
#define LOOK_UP(T)                                              \
    do {                                                        \
        const T *codes = (const T *)logits;                     \
        const T *const end = codes + count;                     \
        while (codes < end) {                                   \
            const uint32_t e = *(table - *codes++);             \
            *exponentials++ = e;                                \
            sum += e;                                           \
        }                                                       \
    } while (0)

static inline uint32_t look_up(const caplet_routing_op *op, const void *logits, uint32_t *restrict exponentials)
{
    const uint32_t count = op->outputs;
    const uint32_t *table = op->exponentials + largest_of(logits, op->logits.type, count);
    uint32_t sum = 0;
    if (op->logits.type == CAPLET_INT8) {
        LOOK_UP(int8_t);
    } else {
        LOOK_UP(uint8_t);
    }
    return sum;
}

uint32_t caplet_exponentials(const caplet_routing_op *op, const void *logits, uint32_t *exponentials)
{
    const int32_t largest = largest_of(logits, op->logits.type, op->outputs);
    uint32_t sum = 0;
    uint32_t g;
    for (g = 0; g < op->outputs; g++) {
        exponentials[g] = (uint32_t)(largest - caplet_load(logits, op->logits.type, g));
    }
    negative_exponentials(exponentials, op->outputs, op->logits.frac, op->scale_bits);
    for (g = 0; g < op->outputs; g++) {
        sum += exponentials[g];
    }
    return sum;
}

#define COUPLING(CODE)                                                                                         \
    do {                                                                                                       \
        for (g = count; g > 0; g--) {                                                                          \
            const uint32_t code = ((uint32_t)(((uint64_t)*e++ * reciprocal) >> 32) + term) >> (right - 32);    \
            *codes = (uint16_t)(CODE);                                                                         \
            codes += stride;                                                                                   \
        }                                                                                                      \
    } while (0)

void caplet_softmax(const caplet_routing_op *op, const void *logits, uint32_t rows, uint32_t *exponentials,
                    uint16_t *coupling, uint32_t element)
{
    const caplet_format *out = &op->coupling;
    const uint32_t count = op->outputs;
    const uint32_t stride = op->rows;
    const uint32_t one = (uint32_t)1 << op->scale_bits;
    const uint64_t dividend = (uint64_t)1 << (op->scale_bits + 31);
    const uint32_t right = (uint32_t)(op->scale_bits + 31 - out->frac); /* 34..55 */
    const uint32_t noisy = out->rounding == CAPLET_STOCHASTIC;
    /* The rounding term's low half is 0. */
    const uint32_t term = noisy ? 0u : (uint32_t)(caplet_rounding_term(out, right, 0) >> 32);
    const uint32_t most = (uint32_t)out->high;
    uint32_t r;
    uint32_t g;
    for (r = 0; r < rows; r++) {
        const void *row = logits == NULL ? NULL : caplet_at(logits, op->logits.type, r * count);
        const uint32_t *e = exponentials;
        uint16_t *codes = coupling + r;
        uint32_t sum = count * one; /* 2^scale_bits .. 2^31 */
        uint32_t reciprocal;
        if (logits != NULL) {
            sum = op->exponentials != NULL ? look_up(op, row, exponentials) : op->compute(op, row, exponentials);
        }
        reciprocal = caplet_divide(dividend, sum); /* at most 2^31 */
        if (logits == NULL || noisy) {
            for (g = 0; g < count; g++) {
                const uint64_t product = (uint64_t)(logits == NULL ? one : e[g]) * reciprocal;
                codes[g * stride] = code_of(product, right, out, element + r * count + g);
            }
            continue;
        }
        /* The largest exponential is one: only if its code is too large can others be. */
        if (((uint32_t)(((uint64_t)one * reciprocal) >> 32) + term) >> (right - 32) > most) {
            COUPLING(code < most ? code : most);
        } else {
            COUPLING(code);
        }
    }
}
