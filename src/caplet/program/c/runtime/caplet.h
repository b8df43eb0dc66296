/*
 * caplet: capsule networks in integers. Types and ops of the runtime.
 *
 * Nothing here allocates memory, uses floating point, recurses or keeps state. All memory comes from the caller: one
 * arena for tensors and scratch, constants in flash. A model that was exported by caplet is a list of descriptors
 * (`static const` structures of the types below) and a sequence of op calls.
 *
 * Numbers. A tensor holds codes; value = code * 2^-frac. Codes of at most 8 bits take one byte, others two.
 * Every accumulating op follows one pattern:
 *
 *     acc  = sum of products of codes
 *     acc  = (acc << left) + (bias << bias_left)
 *     code = saturate(rounding_shift(acc, right))
 *
 * in int32_t, or in int64_t where `wide` is set: the exporter proved from the actual weights that no intermediate
 * value overflows, and wrote the proof next to each descriptor.
 *
 * Layouts are in C order. Maps are (rows, columns, channels); capsules are contiguous; votes (inputs, outputs, dim).
 *
 * Requires two's complement and an arithmetic right shift of negative integers, checked below.
 */
#ifndef CAPLET_H
#define CAPLET_H

#include <limits.h>
#include <stdint.h>

#if UINT_MAX < 0xFFFFFFFF
#error "caplet: int has 16 bits here (AVR, MSP430); products of codes need 32: build for a 32-bit processor"
#endif

/* The arena holds values of several types one after the other. The Arduino tools do not let a library say so. */
#if defined(ARDUINO) && defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("no-strict-aliasing")
#endif

#include "kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef char caplet_requires_arithmetic_shift[(((int32_t)-5) >> 1) == -3 ? 1 : -1];

/* What a model's run function returns. On an error nothing was read or written. */
enum {
    CAPLET_OK = 0,
    CAPLET_ERROR_NULL = 1,      /* an argument is NULL */
    CAPLET_ERROR_ALIGNMENT = 2, /* the arena does not start at a multiple of NAME_ARENA_ALIGN */
    CAPLET_ERROR_SIZE = 3       /* the arena is smaller than NAME_ARENA_BYTES */
};

/* Type of an element in memory. */
enum { CAPLET_INT8 = 0, CAPLET_UINT8 = 1, CAPLET_INT16 = 2, CAPLET_UINT16 = 3 };

/* How the codes of a constant are to be read. */
enum {
    CAPLET_SIGNED = 0,   /* two's complement */
    CAPLET_UNSIGNED = 1, /* plain binary */
    CAPLET_POWERS = 2    /* signed powers of two: 0 is 0, +-m is +-2^(largest code - m) */
};

enum { CAPLET_NEAREST = 0, CAPLET_TRUNCATE = 1, CAPLET_STOCHASTIC = 2, CAPLET_CARRY = 3 };

/*
 * Constants in flash.
 * data: codes of `bits` bits (1..16) packed without gaps: code i occupies bits i*bits .. i*bits + bits - 1 of the
 *   stream, and bit k of the stream is bit k % 8 of byte k / 8. Signed codes of 16 bits are an array of int16_t instead
 *   (the same bytes on a little-endian machine). NULL where there is no such constant.
 */
typedef struct caplet_constant {
    const void *data;
    uint8_t bits;
    uint8_t kind;
} caplet_constant;

/*
 * How a tensor is written.
 * low, high: the range of its codes; a ReLU is a low of 0. noise_a, noise_b: the constants of its random bits
 * (stochastic rounding only).
 */
typedef struct {
    int32_t low;
    int32_t high;
    uint32_t noise_a;
    uint32_t noise_b;
    uint8_t type;
    uint8_t rounding;
    int16_t frac;
} caplet_format;

/*
 * The accumulator of one op.
 * product_frac: fraction bits of the products; channel_shifts: int8_t[channels] added to it per channel, or NULL.
 * bias: one code per channel, fraction bits bias_frac; data is NULL where there is none.
 * wide: acc is int64_t. wide_products: the sum of products needs int64_t too, before any shift.
 */
typedef struct {
    const int8_t *channel_shifts;
    caplet_constant bias;
    int16_t product_frac;
    int16_t bias_frac;
    uint8_t wide;
    uint8_t wide_products;
} caplet_accumulator;

typedef struct {
    caplet_constant table; /* (channels, 256) */
    caplet_format out;
    uint32_t pixels; /* rows * columns */
    uint32_t channels;
} caplet_input_quantize_op;

/*
 * x: uint8_t (pixels, channels), 0..255. y: out.type (pixels, channels), codes of `out`.
 * y[p, c] = table[c, x[p, c]].
 */
void caplet_input_quantize(const caplet_input_quantize_op *op, const uint8_t *x, void *y);

/*
 * A convolution with square stride and zero padding. in_channels: of the input map; depth: of one filter, equal to
 * in_channels, the channels of one group, or for convolutional votes the input capsules' dimension. types: of input
 * capsules (1 for a plain convolution).
 * weight: filters of size = kernel_rows * kernel_columns * depth elements, two by two: (out_channels / 2, size, 2).
 *   In groups, the filters of each group are paired; a last one without another is (size).
 * block: filters that are taken at once, even, or all. taps: elements of a window that are gathered at once.
 * held: the filters of a block are unpacked once and kept; else, a pair's `taps` elements at a time.
 */
typedef struct caplet_conv_op {
    caplet_spreader *spread;
    caplet_multiplier *multiply;
    caplet_convolver *any; /* NULL, or does everything */
    caplet_storer *store;  /* NULL where 32 bits and one rounding term do */
    caplet_unpacker *unpack;
    caplet_constant weight;
    caplet_accumulator acc;
    caplet_format out;
    uint32_t in_rows;
    uint32_t in_columns;
    uint32_t in_channels;
    uint32_t out_rows;
    uint32_t out_columns;
    uint32_t out_channels;
    uint32_t kernel_rows;
    uint32_t kernel_columns;
    uint32_t depth;
    uint32_t types;
    uint32_t stride;
    uint32_t padding; /* to the left */
    uint32_t top;     /* rows of zeros above the input */
    uint32_t block;
    uint32_t taps;
    uint8_t held;
    uint8_t in_type;
} caplet_conv_op;

/*
 * In in_channels / depth groups: output channel o reads the channels of its group, o counted within equal runs of
 * out_channels. A ReLU is an out.low of 0; out.high limits the codes from above.
 * x: in_type (in_rows, in_columns, in_channels). y: out.type (out_rows, out_columns, out_channels); must not overlap x.
 * scratch: one after the other, taps (rounded up to even) * 8 bytes, block * 8 bytes, block * 16 bytes where taps is
 *   less than size, and where the weights are not signed with 8 or 16 bits, the elements (of caplet_constant_type) of
 *   `block` filters where they are held, of `taps` elements of two filters where not. Aligned to 4 bytes.
 */
void caplet_conv2d(const caplet_conv_op *op, const void *x, void *y, void *scratch);

/*
 * Votes of input capsule type `input` (0..types - 1): the convolution of its channels, from input * depth on.
 * x, scratch: as for caplet_conv2d. row: out.type (out_rows * out_columns * out_channels), row `input` of the votes.
 */
void caplet_conv_votes(const caplet_conv_op *op, const void *x, uint32_t input, void *row, void *scratch);

/* Maximum over kernel x kernel windows, then a rounding shift by `right` (negative: to the left). */
typedef struct {
    caplet_format out;
    uint32_t in_rows;
    uint32_t in_columns;
    uint32_t channels;
    uint32_t out_rows;
    uint32_t out_columns;
    uint32_t kernel;
    uint32_t stride;
    uint32_t padding; /* to the left, less than the kernel; positions outside the input do not count */
    uint32_t top;     /* as padding, above */
    uint8_t in_type;
    int8_t right;
    uint8_t wide;
} caplet_max_pool2d_op;

/* x: in_type (in_rows, in_columns, channels). y: out.type (out_rows, out_columns, channels); must not overlap x. */
void caplet_max_pool2d(const caplet_max_pool2d_op *op, const void *x, void *y);

typedef struct {
    caplet_constant scale; /* (channels) */
    caplet_accumulator acc;
    caplet_format out;
    uint32_t pixels;
    uint32_t channels;
    uint8_t in_type;
} caplet_channel_affine_op;

/*
 * x: in_type (pixels, channels). y: out.type, same shape; may be x where the elements have one size.
 * acc[p, c] = x[p, c] * scale[c], with bias c.
 */
void caplet_channel_affine(const caplet_channel_affine_op *op, const void *x, void *y);

typedef struct {
    caplet_format out;
    uint32_t count;
    uint16_t slope; /* below 2^frac */
    uint8_t frac;
    uint8_t in_type;
    int8_t right; /* negative: to the left */
    uint8_t wide;
} caplet_leaky_relu_op;

/*
 * x: in_type (count). y: out.type (count); may be x where the elements have one size.
 * acc = x << frac, or x * slope where x is negative, then >> right.
 */
void caplet_leaky_relu(const caplet_leaky_relu_op *op, const void *x, void *y);

typedef struct {
    uint32_t pixels;
    uint32_t channels;
    uint8_t in_type;
} caplet_listing_op;

/* x: in_type (pixels, channels). y: in_type (channels, pixels), another buffer. y[c, p] = x[p, c]. */
void caplet_listing(const caplet_listing_op *op, const void *x, void *y);

typedef struct caplet_squash_op {
    caplet_squasher *kernel;
    caplet_format out;
    uint32_t count; /* of capsules */
    uint32_t dim;   /* 1..64 */
    int16_t in_frac;
    uint8_t in_type;
} caplet_squash_op;

/*
 * x: in_type (count, dim). y: out.type (count, dim); may be x where the elements have one size. Each capsule s becomes
 * s * |s| / (1 + |s|^2). element: index of the first element in its noise stream (0 outside a routing).
 */
void caplet_squash(const caplet_squash_op *op, const void *x, void *y, uint32_t element);

/* a and b take the places of the products and of the bias: acc = (a << a_left) + (b << b_left), then >> right. */
typedef struct {
    caplet_format out;
    uint32_t count;
    uint8_t a_type;
    uint8_t b_type;
    uint8_t a_left;
    uint8_t b_left;
    int8_t right; /* negative: to the left */
    uint8_t wide;
} caplet_add_op;

/* a: a_type (count), b: b_type (count), y: out.type (count); y may be a or b where the elements have one size. */
void caplet_add(const caplet_add_op *op, const void *a, const void *b, void *y);

/*
 * Input capsules of one source of dense votes: a list (count, in_dim), or a map (rows, columns, types * in_dim) read
 * type by type, row by row. A list has types = 1, rows = count, columns = 1.
 */
typedef struct caplet_source {
    caplet_accumulator acc;
    uint32_t rows;
    uint32_t columns;
    uint32_t types;
    uint8_t type;
} caplet_source;

/*
 * selected: for each input capsule its place in the list of all capsules of the sources, one source after the other;
 * NULL where every capsule of the sources votes.
 * weight: (inputs, votes / 2, in_dim, 2): the components of two votes next to each other; where votes is odd, the last
 *   one's (in_dim) follow. block: votes whose weights are unpacked at once, even, or all.
 * carry_frac: the most fraction bits of all sources' products; those of what is carried on where out.rounding is
 *   CAPLET_CARRY and sums are not lifted.
 * lifts: of each vote, the left shift of its sum with so many fraction bits, so that all have carried_bits bits, 16 to
 *   23, below a code; NULL where the kernel does not lift.
 */
typedef struct caplet_dense_votes_op {
    caplet_voter *kernel;
    caplet_unpacker *unpack;
    const caplet_source *sources;
    const uint16_t *selected;
    const uint8_t *lifts;
    caplet_constant weight;
    caplet_format out;
    uint32_t source_count;
    uint32_t in_dim;
    uint32_t votes; /* outputs * dim */
    uint32_t block;
    int32_t carry_frac;
    uint32_t carried_bits;
} caplet_dense_votes_op;

/*
 * Votes of input capsule `input`: acc[j] = sum over k of x[input, k] * weight[input, k, j], j = 0..votes - 1.
 * x: one pointer per source, elements of source.type. row: out.type (votes), row `input` of the votes.
 * scratch: for block * in_dim unpacked weights; may be NULL where they are signed with 8 or 16 bits. Before them, where
 *   out.rounding is CAPLET_CARRY, what is carried on: votes times 4 bytes, or 8 where sums are wide; input capsules are
 *   then taken in order, from 0 on.
 */
void caplet_dense_votes(const caplet_dense_votes_op *op, const void *const *x, uint32_t input, void *row,
                        void *scratch);

/*
 * Where a routing finds the votes of an input capsule: the first `stored_rows` rows are stored, the others are made
 * again in every iteration by `make(self, input, row)`, which may be NULL where all are stored. op, x, scratch: its
 * arguments. made: room for as many rows as the routing takes together; may be NULL, too, where all are stored.
 */
typedef struct caplet_votes {
    const void *stored;
    void *made;
    void (*make)(const struct caplet_votes *self, uint32_t input, void *row);
    const void *op;
    const void *const *x;
    void *scratch;
    uint32_t stored_rows;
} caplet_votes;

/* The two values of caplet_votes.make; op is a caplet_dense_votes_op or a caplet_conv_op. */
void caplet_make_dense_votes(const caplet_votes *votes, uint32_t input, void *row);
void caplet_make_conv_votes(const caplet_votes *votes, uint32_t input, void *row);

/* Make rows first .. first + count - 1 of the votes and store them one after the other from `stored`. */
void caplet_store_votes(const caplet_votes *votes, uint32_t first, uint32_t count, void *stored, uint32_t row_bytes);

/*
 * Dynamic routing of votes (inputs, outputs, dim). acc.bias: (types, dim), element (g % types) * dim + d for output g.
 * agreement_shift: rounding shift from agreements to logits; agreement_wide: agreements need int64_t.
 * scale_bits: fraction bits of the exponentials. exponentials: uint32_t[2^(bits of the logits)], of every distance
 *   below the largest logit, where logits are int8_t and coupling has no noise; else NULL, and `compute` makes them.
 *   rows: input capsules that are taken together, at most 16. uniform: the coupling code of equal logits, where
 *   coupling has no noise.
 */
typedef struct caplet_routing_op {
    caplet_weigher *weigh;
    caplet_adder *add;      /* for equal couplings; NULL where `weigh` does them too */
    caplet_updater *update; /* NULL for one iteration */
    caplet_squasher *squash;
    caplet_coupler *couple;
    caplet_exponential *compute;
    const uint32_t *exponentials;
    caplet_accumulator acc;
    caplet_format coupling;
    caplet_format logits;
    caplet_format preactivation;
    caplet_format activation;
    uint32_t inputs;
    uint32_t outputs;
    uint32_t dim;
    uint32_t types;
    uint32_t iterations;
    uint32_t rows;
    uint16_t uniform;
    int8_t agreement_shift;
    uint8_t agreement_wide;
    uint8_t votes_type;
    uint8_t scale_bits;
} caplet_routing_op;

/*
 * Memory of a routing. logits: (inputs, outputs), NULL for one iteration; need not be cleared. preactivation and
 * activation: (outputs, dim), may be one buffer where the elements have one size. acc: scratch int32_t or int64_t
 * (outputs * dim). coupling: scratch (outputs, rows). exponentials: scratch (outputs), NULL for one iteration.
 */
typedef struct {
    void *logits;
    void *preactivation;
    void *activation;
    void *acc;
    uint16_t *coupling;
    uint32_t *exponentials;
} caplet_routing_memory;

void caplet_routing(const caplet_routing_op *op, const caplet_votes *votes, const caplet_routing_memory *memory);

typedef struct {
    uint32_t count; /* of capsules */
    uint32_t dim;   /* 1..64 */
    uint8_t in_type;
    uint8_t wide; /* lengths are uint64_t */
} caplet_lengths_op;

/* x: in_type (count, dim). y: uint32_t or uint64_t (count), the squared lengths of the capsules in codes. */
void caplet_lengths(const caplet_lengths_op *op, const void *x, void *y);

/* Index of the largest of y (uint32_t, or uint64_t where wide), the first one on a tie. count >= 1. */
uint32_t caplet_longest(const void *y, uint32_t count, uint8_t wide);

#ifdef __cplusplus
}
#endif

#endif
