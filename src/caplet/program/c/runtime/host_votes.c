/*
 * Dense votes for PCs: the capsules of several images are the windows of tiles, and an input capsule's weights their
 * filters. Components of capsules are int16_t, in pairs.
 */
#include "host_tile.h"

#if CAPLET_LANES

/* Components of all input capsules: int16_t (inputs, images, 2 * words), zero beyond in_dim. */
static void copy_capsules(const caplet_host_votes *op, const void *const *x, uint64_t next_image, uint32_t images,
                          int16_t *to)
{
    const uint32_t dim = op->votes.in_dim;
    uint32_t input, image, k;
    for (input = 0; input < op->inputs; input++) {
        const void *const *from = x;
        uint32_t first;
        const caplet_source *source = caplet_source_of(&op->votes, &from, input, &first);
        const uint8_t *codes = (const uint8_t *)caplet_at(*from, source->type, first);
        for (image = 0; image < images; image++) {
            for (k = 0; k < dim; k++) {
                to[k] = (int16_t)caplet_load(codes, source->type, k);
            }
            if (dim & 1u) {
                to[dim] = 0;
            }
            to += 2 * op->words;
            codes += next_image;
        }
    }
}

/* Codes of the sums of one window, whose remainders are carried on to the next input capsule's. */
CAPLET_COPIED void store_carried(const caplet_panel_scale *scale, const caplet_format *out, const int32_t *sums,
                                 uint32_t count, int32_t *carried, void *y)
{
    int32_t codes[CAPLET_WIDTH];
    uint32_t f;
    for (f = 0; f < count; f++) {
        const int32_t sum = sums[f] + carried[f], right = scale->right[f];
        carried[f] = sum & (int32_t)(((uint32_t)1 << right) - 1u);
        codes[f] = caplet_clip32(sum >> right, out->low, out->high);
    }
    CAPLET_WITH_TYPE(out->type, CAPLET_STORE_CODES)
}

void caplet_host_dense_votes(const caplet_host_votes *op, const void *const *x, void *y, uint64_t next_image,
                             uint32_t images, uint32_t row_bytes, void *scratch)
{
    const uint32_t panels = (op->votes.votes + CAPLET_WIDTH - 1) / CAPLET_WIDTH;
    const size_t capsule_bytes = (size_t)op->words * 4;
    const caplet_source *scaled = NULL;
    caplet_panel_scale *scales = (caplet_panel_scale *)scratch;
    uint8_t *from = (uint8_t *)(scales + panels);
    const int32_t *w = (const int32_t *)op->weights;
    const uint32_t carries = op->votes.out.rounding == CAPLET_CARRY;
    int32_t *carried = (int32_t *)(void *)(from + (size_t)op->inputs * images * capsule_bytes); /* (images, votes) */
    uint32_t input;
    copy_capsules(op, x, next_image, images, (int16_t *)(void *)from);
    for (input = 0; input < op->inputs; input++) {
        const void *const *unused = x;
        uint32_t image, first;
        const caplet_source *source = caplet_source_of(&op->votes, &unused, input, &first);
        for (first = 0; first < op->votes.votes; first += CAPLET_WIDTH) {
            const uint32_t left = op->votes.votes - first;
            const uint32_t count = left < CAPLET_WIDTH ? left : CAPLET_WIDTH;
            const uint32_t vectors = (count + CAPLET_LANES - 1) / CAPLET_LANES;
            caplet_panel_scale *scale = scales + first / CAPLET_WIDTH;
            if (source != scaled) {
                caplet_scale_panel(&source->acc, &op->votes.out, first, count, scale);
            }
            for (image = 0; image < images; image += CAPLET_TILE) {
                int32_t sums[CAPLET_TILE * CAPLET_WIDTH];
                const uint8_t *places[CAPLET_TILE];
                uint32_t p;
                const uint32_t end = images - image < CAPLET_TILE ? images - image : CAPLET_TILE;
                for (p = 0; p < CAPLET_TILE; p++) {
                    places[p] = from + (image + (p < end ? p : 0)) * capsule_bytes;
                }
                memset(sums, 0, sizeof sums);
                caplet_tile_of(vectors, 0)(places, op->taps, w, op->words, sums);
                for (p = 0; p < end; p++) {
                    uint8_t *row = (uint8_t *)y + (image + p) * next_image + (size_t)input * row_bytes;
                    if (carries) {
                        int32_t *rest = carried + (size_t)(image + p) * op->votes.votes + first;
                        uint32_t f;
                        for (f = 0; input == 0 && f < count; f++) {
                            rest[f] = (int32_t)(((uint32_t)1 << scale->right[f]) >> 1);
                        }
                        store_carried(scale, &op->votes.out, sums + p * vectors * CAPLET_LANES, count, rest,
                                      caplet_at_writable(row, op->votes.out.type, first));
                        continue;
                    }
                    caplet_store_panel(scale, &op->votes.out, sums + p * vectors * CAPLET_LANES, vectors, count,
                                       caplet_at_writable(row, op->votes.out.type, first));
                }
            }
            w += (size_t)op->words * vectors * CAPLET_LANES;
        }
        scaled = source;
        from += images * capsule_bytes;
    }
}

#endif
