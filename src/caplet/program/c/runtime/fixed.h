/*
 * Fixed-point helpers that the ops share. Internal to the runtime.
 */
#ifndef CAPLET_FIXED_H
#define CAPLET_FIXED_H

#include <stddef.h>

#include "caplet.h"

/* Before a loop of known length: gcc shall vectorise it as it stands, not after taking it apart into single steps. */
#if defined(__GNUC__) && !defined(__clang__)
#define CAPLET_WHOLE_LOOP _Pragma("GCC unroll 1")
#else
#define CAPLET_WHOLE_LOOP
#endif

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

#define CAPLET_LOAD(T) return ((const T *)x)[index]
#define CAPLET_STORE(T) ((T *)x)[index] = (T)code

/* Element `index`: -32768..65535. */
static inline int32_t caplet_load(const void *x, uint8_t type, uint32_t index)
{
    CAPLET_WITH_TYPE(type, CAPLET_LOAD)
}

/* code: within the range of `type`. */
static inline void caplet_store(void *x, uint8_t type, uint32_t index, int32_t code)
{
    CAPLET_WITH_TYPE(type, CAPLET_STORE)
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

/* The 32 random bits of an element: two rounds of the finalizer of MurmurHash3, a bijection of uint32_t. */
static inline uint32_t caplet_mix32(uint32_t x)
{
    x ^= x >> 16;
    x *= 0x85EBCA6Bu;
    x ^= x >> 13;
    x *= 0xC2B2AE35u;
    return x ^ (x >> 16);
}

static inline uint32_t caplet_noise(const caplet_format *format, uint32_t element)
{
    return caplet_mix32(caplet_mix32(element + format->noise_a) ^ format->noise_b);
}

/* What a rounding shift by `right` (0..62) adds before shifting: half, nothing, or the top bits of the noise. */
static inline int64_t caplet_rounding_term(const caplet_format *format, uint32_t right, uint32_t element)
{
    if (right == 0 || format->rounding == CAPLET_TRUNCATE) {
        return 0;
    }
    if (format->rounding == CAPLET_NEAREST) {
        return (int64_t)1 << (right - 1);
    }
    if (right <= 32) {
        return (int64_t)(caplet_noise(format, element) >> (32 - right));
    }
    return (int64_t)((uint64_t)caplet_noise(format, element) << (right - 32));
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

/* The code of a sum of products: int32_t, or int64_t where the accumulator is wide. */
static inline int32_t caplet_requantize32(int32_t acc, const caplet_scale *scale, const caplet_format *out,
                                          uint32_t element)
{
    int32_t sum = caplet_left32(acc, scale->left) + (int32_t)scale->add;
    sum += (int32_t)caplet_rounding_term(out, scale->right, element);
    return caplet_clip32(sum >> scale->right, out->low, out->high);
}

static inline int32_t caplet_requantize64(int64_t acc, const caplet_scale *scale, const caplet_format *out,
                                          uint32_t element)
{
    int64_t sum = caplet_left64(acc, scale->left) + scale->add;
    sum += caplet_rounding_term(out, scale->right, element);
    return caplet_clip64(sum >> scale->right, out->low, out->high);
}

/* The code of sum `index` of a row of int32_t, or of int64_t where `wide`. */
static inline int32_t caplet_requantize(const void *sums, uint8_t wide, uint32_t index, const caplet_scale *scale,
                                        const caplet_format *out, uint32_t element)
{
    return wide ? caplet_requantize64(((const int64_t *)sums)[index], scale, out, element)
                : caplet_requantize32(((const int32_t *)sums)[index], scale, out, element);
}

/*
 * A row of accumulators of channels 0..count - 1, without bias -> codes.
 * sums: int32_t, or int64_t where acc->wide; not kept. element: noise index of the first one.
 */
void caplet_requantize_row(const caplet_accumulator *acc, const caplet_format *out, void *sums, uint32_t count, void *y,
                           uint32_t element);

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

/* Floor of the square root. n: 2^60 .. 2^62 - 1. */
uint32_t caplet_isqrt(uint64_t n);

/* Code `index` of a constant as the integer to multiply with: -32768..65535. */
int32_t caplet_code(const caplet_constant *constant, uint32_t index);

/* Type after unpacking: CAPLET_INT8 where every integer fits, else CAPLET_INT16 (UINT16 for 16 unsigned bits). */
uint8_t caplet_constant_type(const caplet_constant *constant);

/* `count` integers from code `first` on: in flash where they lie there unpacked, else unpacked into scratch. */
const void *caplet_row(const caplet_constant *constant, uint32_t first, uint32_t count, void *scratch);

/* Sum of x[k] * w[k], k < n; the caller knows that no partial sum overflows. */
int32_t caplet_dot32(const void *x, uint8_t x_type, const void *w, uint8_t w_type, uint32_t n);
int64_t caplet_dot64(const void *x, uint8_t x_type, const void *w, uint8_t w_type, uint32_t n);

/*
 * sums[f] += sum of x[k] * w[f * stride + k], k < n, for four f; the caller knows that no partial sum overflows.
 * Returns 0, and does nothing, for types that it has no loop for.
 */
uint8_t caplet_dot_four(const void *x, uint8_t x_type, const void *w, uint8_t w_type, uint32_t stride, uint32_t n,
                        int32_t *sums);

/* count sums, int32_t or int64_t, become 0. */
void caplet_clear_sums(void *sums, uint8_t wide, uint32_t count);

/* acc[j] += sum over k < rows of x[k] * w[k, j], j < n. */
void caplet_axpy32(int32_t *acc, const int32_t *x, const void *w, uint8_t w_type, uint32_t rows, uint32_t n);
void caplet_axpy64(int64_t *acc, const int32_t *x, const void *w, uint8_t w_type, uint32_t rows, uint32_t n);

/* Squared length of a capsule of dim <= 64 elements. */
uint64_t caplet_squared_length(const void *x, uint8_t type, uint32_t dim);

/*
 * Coupling codes of `rows` rows of `count` logits (frac fraction bits), or of equal logits where logits is NULL.
 * exponentials: scratch (rows, count), may be NULL where logits is. out: element `element` on of the noise stream.
 */
void caplet_softmax(const void *logits, uint8_t type, int16_t frac, uint32_t rows, uint32_t count, uint8_t scale_bits,
                    uint32_t *exponentials, const caplet_format *out, void *coupling, uint32_t element);

/*
 * The convolution of channels first_channel .. first_channel + depth - 1 of x with the filters of the output channels
 * channel .. channel + count - 1, `together` at a time. y: out.type (out_rows, out_columns, out_channels). element:
 * noise index of y's first element.
 */
void caplet_convolve(const caplet_conv_op *op, const void *x, uint32_t first_channel, uint32_t channel, uint32_t count,
                     void *y, uint32_t element, void *filter);

#endif
