/*
 * Kernels of the ops. A descriptor points to those that its op needs, so that others are not linked into a firmware.
 * The `any` ones compute everything; others, which the exporter chooses where they do, are faster. The integers are
 * the same.
 */
#ifndef CAPLET_KERNELS_H
#define CAPLET_KERNELS_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct caplet_constant;
struct caplet_conv_op;
struct caplet_squash_op;
struct caplet_source;
struct caplet_dense_votes_op;
struct caplet_routing_op;

/* `count` integers from code `first` on, to scratch. Of weights that lie in flash as int8_t or int16_t: NULL. */
typedef void caplet_unpacker(const struct caplet_constant *constant, uint32_t first, uint32_t count, void *scratch);
caplet_unpacker caplet_unpack;
caplet_unpacker caplet_unpack_2, caplet_unpack_3, caplet_unpack_4; /* signed codes of so many bits */
caplet_unpacker caplet_unpack_5, caplet_unpack_6, caplet_unpack_7;

/* n elements of each window, from `from` on, as elements k .. k + n - 1 of a patch of `taps`; see patch.c. */
typedef void caplet_spreader(const void *const *from, uint32_t n, void *patch, uint32_t k, uint32_t taps);
caplet_spreader caplet_spread_unsigned; /* with caplet_multiply_bytes */
caplet_spreader caplet_spread_signed;
caplet_spreader caplet_widen_unsigned; /* with others */
caplet_spreader caplet_widen_signed;
caplet_spreader caplet_spread_words;

/* Products of gathered windows with one or two filters; see multiply.c. */
typedef void caplet_multiplier(const void *weights, const void *patch, uint32_t taps, uint32_t filters,
                               uint32_t fresh, int32_t *sums);
caplet_multiplier caplet_multiply_bytes; /* weights are int8_t, codes bytes, and no `store` */
caplet_multiplier caplet_multiply_mixed; /* weights are int8_t */
caplet_multiplier caplet_multiply_words; /* int16_t */

/* A whole convolution: of uint16_t codes or weights, or with sums of 64 bits. */
typedef void caplet_convolver(const struct caplet_conv_op *op, const void *x, uint32_t first_channel, uint32_t channel,
                              uint32_t filters, void *y, uint32_t element);
caplet_convolver caplet_convolve_any;

/* Sums of one channel at some positions to codes, which takes 64 bits or noise. index: of the first one in y. */
typedef void caplet_storer(const struct caplet_conv_op *op, const int32_t *sums, uint32_t channel, uint32_t positions,
                           void *y, uint32_t index, uint32_t element);
caplet_storer caplet_store_any;

typedef void caplet_squasher(const struct caplet_squash_op *op, const void *x, void *y, uint32_t element);
caplet_squasher caplet_squash_any;
caplet_squasher caplet_squash_bytes; /* int8_t, in_frac 0..14, out.frac at most 11, no noise */

/*
 * `count` votes from `first` on. capsule: the input capsule; w: the votes' weights, unpacked; carried: of all votes,
 * what is left of the sums of earlier input capsules below a code: int32_t, or int64_t where sums are wide. Where sums
 * are lifted, plus half a code.
 */
typedef void caplet_voter(const struct caplet_dense_votes_op *op, const struct caplet_source *source,
                          const void *capsule, const void *w, uint32_t first, uint32_t count, void *row,
                          uint32_t element, void *carried);
caplet_voter caplet_vote_any;
caplet_voter caplet_vote_bytes;   /* all of 8 bits, in_dim at most 64, no left shift, no noise */
caplet_voter caplet_vote_bytes_4; /* the same, with in_dim 4 and votes that take all of int8_t */
caplet_voter caplet_vote_bytes_8;
caplet_voter caplet_vote_channels; /* int8_t votes from bytes, with lifted sums; in_dim at most 64, no noise */
caplet_voter caplet_vote_channels_4; /* with in_dim 4 */
caplet_voter caplet_vote_channels_8;
caplet_voter caplet_vote_carried; /* the same, whose remainders are carried on */
caplet_voter caplet_vote_carried_4;
caplet_voter caplet_vote_carried_8;
caplet_voter caplet_vote_carried_any;

/* acc[g, d] += sum over r of coupling[g, r] * votes[r, g, d], rows up to 16. coupling: (outputs, op->rows). */
typedef void caplet_weigher(const struct caplet_routing_op *op, const void *votes, const uint16_t *coupling,
                            uint32_t rows, void *acc);
caplet_weigher caplet_weigh_any;
caplet_weigher caplet_weigh_bytes; /* int8_t votes, at most 8192 in a row; int32_t sums; coupling codes below 2^15 */
caplet_weigher caplet_weigh_bytes_6; /* the same, with dim 6 */

/* acc (outputs, dim) += the sum of `rows` rows of votes, at most 128 of them. */
typedef void caplet_adder(const struct caplet_routing_op *op, const void *votes, uint32_t rows, void *acc);
caplet_adder caplet_add_bytes; /* int8_t votes, int32_t sums */

/* Adds the rounded agreements of `rows` rows of votes to their logits. element: noise index of the first logit. */
typedef void caplet_updater(const struct caplet_routing_op *op, const void *activation, const void *votes,
                            uint32_t rows, void *logits, uint32_t element);
caplet_updater caplet_update_any;
caplet_updater caplet_update_bytes;    /* all are int8_t, sums int32_t, no left shift, no noise, dim at most 64 */
caplet_updater caplet_update_bytes_6;  /* the same, with dim 6 and logits that take all of int8_t */
caplet_updater caplet_update_bytes_16; /* with dim 16 */
caplet_updater caplet_update_mixed;    /* as caplet_update_bytes, with any signed activations and logits */

/*
 * Coupling codes of `rows` rows of logits: (outputs, op->rows), for every output those of the rows one after the other.
 * exponentials: scratch (outputs). element: of the noise stream, that of the first code.
 */
typedef void caplet_coupler(const struct caplet_routing_op *op, const void *logits, uint32_t rows,
                            uint32_t *exponentials, uint16_t *coupling, uint32_t element);
caplet_coupler caplet_couple;     /* without noise */
caplet_coupler caplet_couple_any; /* also of equal logits, where `logits` is NULL; there is no table of exponentials */

/* Exponentials of a row of logits, and their sum, where there is no table of them. */
typedef uint32_t caplet_exponential(const struct caplet_routing_op *op, const void *logits, uint32_t *exponentials);
caplet_exponential caplet_exponentials;

#ifdef __cplusplus
}
#endif

#endif
