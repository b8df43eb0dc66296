/*
 * Fixed-point helpers that the ops share. Internal to the runtime.
 */
#ifndef CAPLET_FIXED_H
#define CAPLET_FIXED_H

#include <stddef.h>

#include "caplet.h"
#include "dsp.h"

/*
 * Before a loop of known length: gcc shall vectorise it as it stands, not after taking it apart into single steps; or
 * it shall write it out.
 */
#if defined(__GNUC__) && !defined(__clang__)
#define CAPLET_WHOLE_LOOP _Pragma("GCC unroll 1")
#define CAPLET_UNROLL _Pragma("GCC unroll 4")
#else
#define CAPLET_WHOLE_LOOP
#define CAPLET_UNROLL
#endif

/* A function of its own: an inner loop that needs all registers. */
#if defined(__GNUC__)
#define CAPLET_APART __attribute__((noinline))
#else
#define CAPLET_APART
#endif

/* A function of which each caller needs a copy of its own, made for the constants that it passes. */
#if defined(__GNUC__)
#define CAPLET_COPIED static inline __attribute__((always_inline))
#else
#define CAPLET_COPIED static inline
#endif

/* Controllers have little flash, and compilers would repeat helpers wherever they are called. */
#if UINTPTR_MAX <= 0xFFFFFFFFu && !defined(__wasm__) && !defined(__i386__)
#define CAPLET_SMALL_CODE 1
#endif

/* There, a function that runs rarely, or but a little each time: small code rather than fast, but where vectors make
 * everything else take little time; and one that such a function calls often. */
#if defined(__GNUC__) && defined(CAPLET_SMALL_CODE) && !defined(CAPLET_VECTORS)
#define CAPLET_COLD __attribute__((cold, noinline))
#define CAPLET_HOT __attribute__((hot, noinline))
#else
#define CAPLET_COLD
#define CAPLET_HOT CAPLET_APART
#endif

/* Filters, and votes, whose weights lie next to each other. */
enum { CAPLET_PAIR = 2 };

/* Output positions of a convolution that are taken together. */
enum { CAPLET_POSITIONS = 4 };

/* DO(T) with the C type T of elements of this type. */
#define CAPLET_WITH_TYPE(TYPE, DO) \
    switch (TYPE) {                \
    case CAPLET_INT8:              \
        DO(int8_t);                \
        break;                     \
    case CAPLET_UINT8:             \
        DO(uint8_t);               \
        break;                     \
    case CAPLET_INT16:             \
        DO(int16_t);               \
        break;                     \
    default:                       \
        DO(uint16_t);              \
        break;                     \
    }

/* Bytes of one element. type: CAPLET_INT8 .. CAPLET_UINT16. */
static inline uint32_t caplet_element_bytes(uint8_t type)
{
    return type <= CAPLET_UINT8 ? 1u : 2u;
}

/* Address of element `index`. */
static inline const void *caplet_at(const void *x, uint8_t type, uint32_t index)
{
    return (const uint8_t *)x + (size_t)index * caplet_element_bytes(type);
}

static inline void *caplet_at_writable(void *x, uint8_t type, uint32_t index)
{
    return (uint8_t *)x + (size_t)index * caplet_element_bytes(type);
}

/* x * 2^left for 0 <= left <= 31 (62): C99 leaves the shift of negative integers undefined, so it is done unsigned. */
static inline int32_t caplet_left32(int32_t x, uint32_t left)
{
    return (int32_t)((uint32_t)x << left);
}

static inline int64_t caplet_left64(int64_t x, uint32_t left)
{
    return (int64_t)((uint64_t)x << left);
}

static inline int32_t caplet_clip32(int32_t x, int32_t low, int32_t high)
{
    return x < low ? low : x > high ? high : x;
}

static inline int32_t caplet_clip64(int64_t x, int32_t low, int32_t high)
{
    return x < low ? low : x > high ? high : (int32_t)x;
}

/* Whether codes of a format take all of int8_t, or of uint8_t. */
static inline uint32_t caplet_is_signed_byte(const caplet_format *format)
{
    return format->type == CAPLET_INT8 && format->low == -128 && format->high == 127;
}

static inline uint32_t caplet_is_unsigned_byte(const caplet_format *format)
{
    return format->type == CAPLET_UINT8 && format->low == 0 && format->high == 255;
}

/* One channel of an accumulator: code = saturate(((acc << left) + add + rounding term) >> right). */
typedef struct {
    int64_t add;
    uint32_t left;
    uint32_t right;
} caplet_scale;

/* The scale of one channel. The left shift of a negative rounding shift is folded into left and add. */
caplet_scale caplet_scale_of(const caplet_accumulator *acc, const caplet_format *out, uint32_t channel, uint32_t bias);

/* The scale of a rounding shift alone. right: negative for a shift to the left. */
static inline caplet_scale caplet_plain_scale(int32_t right)
{
    const caplet_scale scale = {0, right < 0 ? (uint32_t)-right : 0u, right < 0 ? 0u : (uint32_t)right};
    return scale;
}

#ifdef CAPLET_SMALL_CODE
#define CAPLET_HELPER CAPLET_APART

/* Element `index`: -32768..65535. */
int32_t caplet_load(const void *x, uint8_t type, uint32_t index);

/* code: within the range of `type`. */
void caplet_store(void *x, uint8_t type, uint32_t index, int32_t code);

/* What a rounding shift by `right` (0..62) adds before shifting: half, nothing, or the top bits of the noise. */
int64_t caplet_rounding_term(const caplet_format *format, uint32_t right, uint32_t element);

/* The code of a sum of products: int32_t, or int64_t where the accumulator is wide. */
int32_t caplet_requantize32(int32_t acc, const caplet_scale *scale, const caplet_format *out, uint32_t element);
int32_t caplet_requantize64(int64_t acc, const caplet_scale *scale, const caplet_format *out, uint32_t element);

/* The code of sum `index` of a row of int32_t, or of int64_t where `wide`. */
int32_t caplet_requantize(const void *sums, uint8_t wide, uint32_t index, const caplet_scale *scale,
                          const caplet_format *out, uint32_t element);
#else
#define CAPLET_HELPER static inline
#include "helpers.h"
#endif

/*
 * One axis: a window of `kernel` positions at `start` (counted from `padding` before the input of `size` positions)
 * meets `count` positions of the input from `first` on; `skipped` of its own lie before the input.
 */
static inline void caplet_clip_axis(uint32_t start, uint32_t padding, uint32_t kernel, uint32_t size, uint32_t *first,
                                    uint32_t *count, uint32_t *skipped)
{
    const uint32_t end = start + kernel;
    *skipped = start < padding ? padding - start : 0u;
    *first = start < padding ? 0u : start - padding;
    *count = (end < padding + size ? end : padding + size) - start - *skipped;
}

/* Bits of n: 0 for 0, else the position of the highest set bit plus one. */
uint32_t caplet_bit_length(uint64_t n);

/* Floor of n / divisor, which is below 2^32. */
uint32_t caplet_divide(uint64_t n, uint32_t divisor);

/* Floor of the square root. n: 2^60 .. 2^62 - 1. */
uint32_t caplet_isqrt(uint64_t n);

/* Code `index` of a constant as the integer to multiply with: -32768..65535. */
int32_t caplet_code(const caplet_constant *constant, uint32_t index);

/* Type after unpacking: CAPLET_INT8 where every integer fits, else CAPLET_INT16 (UINT16 for 16 unsigned bits). */
uint8_t caplet_constant_type(const caplet_constant *constant);

/* `count` weights from number `first` on: where they lie in flash, or unpacked into scratch. */
static inline const void *caplet_row(const caplet_constant *constant, caplet_unpacker *unpack, uint32_t first,
                                     uint32_t count, void *scratch)
{
    if (unpack == NULL) {
        return caplet_at(constant->data, constant->bits <= 8 ? CAPLET_INT8 : CAPLET_INT16, first);
    }
    unpack(constant, first, count, scratch);
    return scratch;
}

/* count sums, int32_t or int64_t, become 0. */
void caplet_clear_sums(void *sums, uint8_t wide, uint32_t count);

/* The source of input capsule `input`; *x moves to its pointer, *first is the capsule's first component there. */
const caplet_source *caplet_source_of(const caplet_dense_votes_op *op, const void *const **x, uint32_t input,
                                      uint32_t *first);

#ifdef CAPLET_RVV
/* Votes two by two, many pairs at a time. x: the capsule. lifts: of the votes, NULL where sums are not lifted. */
void caplet_vote_pairs(const caplet_dense_votes_op *op, const caplet_source *source, const int16_t *x, const int8_t *w,
                       uint32_t dim, uint32_t pairs, const uint8_t *lifts, uint8_t *row);
#endif

/* Squared length of a capsule of dim <= 64 elements. */
uint64_t caplet_squared_length(const void *x, uint8_t type, uint32_t dim);

/* Elements of a window that lie one after the other: of a kernel row, or of one position where channels are skipped. */
static inline uint32_t caplet_run_length(const caplet_conv_op *op)
{
    return op->depth == op->in_channels ? op->kernel_columns * op->depth : op->depth;
}

/* Elements first .. first + count - 1 of a window; the first one lies in run `run`, at its element `within`. */
typedef struct {
    uint32_t first;
    uint32_t count;
    uint32_t run;
    uint32_t within;
} caplet_chunk;

/*
 * A chunk of the windows at `positions` output positions from `position` on, as a patch. Positions outside the input
 * are 0.
 */
void caplet_gather(const caplet_conv_op *op, const void *x, uint32_t first_channel, uint32_t position,
                   uint32_t positions, const caplet_chunk *part, void *patch);

/*
 * The convolution of channels first_channel .. first_channel + depth - 1 of x with the filters of the output channels
 * channel .. channel + count - 1. y: out.type (out_rows, out_columns, out_channels). element: noise index of y's first
 * element. scratch: as for caplet_conv2d.
 */
void caplet_convolve(const caplet_conv_op *op, const void *x, uint32_t first_channel, uint32_t channel, uint32_t count,
                     void *y, uint32_t element, void *scratch);

#endif
