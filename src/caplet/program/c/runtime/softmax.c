/* Coupling coefficients: a softmax with base-2 exponentials from a table and one division per row. */
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

#define DISTANCES(T)                                                \
    do {                                                            \
        const T *codes = (const T *)logits;                         \
        for (r = 0; r < rows; r++) {                                \
            T largest = codes[0];                                   \
            for (g = 1; g < count; g++) {                           \
                largest = codes[g] > largest ? codes[g] : largest;  \
            }                                                       \
            for (g = 0; g < count; g++) {                           \
                distances[g] = (uint32_t)(largest - codes[g]);      \
            }                                                       \
            codes += count;                                         \
            distances += count;                                     \
        }                                                           \
    } while (0)

/* How far every logit lies below the largest of its row. */
static void distances_of(const void *logits, uint8_t type, uint32_t rows, uint32_t count, uint32_t *restrict distances)
{
    uint32_t r;
    uint32_t g;
    CAPLET_WITH_TYPE(type, DISTANCES)
}

/* product: below 2^56; right: 34..55. */
static void store_coupling(uint64_t product, uint32_t right, const caplet_format *out, void *coupling, uint32_t index,
                           uint32_t element)
{
    const uint64_t sum = product + (uint64_t)caplet_rounding_term(out, right, element + index);
    const int32_t code = (int32_t)((uint32_t)(sum >> 32) >> (right - 32));
    caplet_store(coupling, out->type, index, code < out->high ? code : out->high);
}

void caplet_softmax(const void *logits, uint8_t type, int16_t frac, uint32_t rows, uint32_t count, uint8_t scale_bits,
                    uint32_t *exponentials, const caplet_format *out, void *coupling, uint32_t element)
{
    const uint32_t one = (uint32_t)1 << scale_bits;
    const uint64_t dividend = (uint64_t)1 << (scale_bits + 31);
    const uint32_t right = (uint32_t)(scale_bits + 31 - out->frac); /* 34..55 */
    const uint32_t simple = out->type == CAPLET_UINT8 && out->rounding != CAPLET_STOCHASTIC;
    const uint64_t term = simple ? (uint64_t)caplet_rounding_term(out, right, 0) : 0u;
    const uint32_t most = (uint32_t)out->high;
    uint32_t first = 0; /* of this row */
    uint32_t r;
    uint32_t g;
    if (logits == NULL) {
        for (g = 0; g < rows * count; g++) {
            store_coupling(one * (dividend / (count * one)), right, out, coupling, g, element);
        }
        return;
    }
    distances_of(logits, type, rows, count, exponentials);
    negative_exponentials(exponentials, rows * count, frac, scale_bits);
    for (r = 0; r < rows; r++) {
        uint32_t sum = exponentials[first]; /* then 2^scale_bits .. 2^31 */
        uint32_t reciprocal;
        for (g = 1; g < count; g++) {
            sum += exponentials[first + g];
        }
        reciprocal = (uint32_t)(dividend / sum); /* at most 2^31 */
        if (simple) {
            uint8_t *restrict codes = (uint8_t *)coupling + first;
            for (g = 0; g < count; g++) {
                const uint64_t product = (uint64_t)exponentials[first + g] * reciprocal + term;
                const uint32_t code = (uint32_t)(product >> 32) >> (right - 32);
                codes[g] = (uint8_t)(code < most ? code : most);
            }
        } else {
            for (g = 0; g < count; g++) {
                const uint64_t product = (uint64_t)exponentials[first + g] * reciprocal;
                store_coupling(product, right, out, coupling, first + g, element);
            }
        }
        first += count;
    }
}
