/* Integer square root, bit length, squared length; rows of sums. */
#include "fixed.h"

#ifdef CAPLET_SMALL_CODE
#include "helpers.h"
#endif

uint32_t caplet_bit_length(uint64_t n)
{
    uint32_t bits = n >> 32 ? 32u : 0u;
    uint32_t rest = (uint32_t)(n >> bits);
#if defined(__GNUC__)
    return rest > 0 ? bits + 32u - (uint32_t)__builtin_clzl(rest) + 8u * (uint32_t)(sizeof(long) - sizeof rest) : 0u;
#else
    uint32_t step;
    for (step = 16; step > 0; step >>= 1) {
        if (rest >> step) {
            rest >>= step, bits += step;
        }
    }
    return bits + rest;
#endif
}

#if UINTPTR_MAX <= 0xFFFFFFFFu || defined(CAPLET_EMULATE_DSP)
#define SHORT_DIVISION 1

/* One digit of 16 bits of a quotient: of (high, next) by divisor, 2^31 or more and above high; the rest in *high. */
static inline uint32_t digit_of(uint32_t *high, uint32_t next, uint32_t divisor)
{
    const uint32_t top = divisor >> 16, low = divisor & 0xFFFFu, dividend = *high << 16 | next;
    uint32_t digit = *high / top, rest = *high - digit * top;
    if (digit * low > (rest << 16 | next)) {
        digit--, rest += top;
        digit -= rest <= 0xFFFFu && digit * low > (rest << 16 | next) ? 1u : 0u;
    }
    *high = dividend - digit * divisor;
    return digit;
}
#endif

/* Where the processor divides 32 bits only: digits of 16 bits (D. Knuth, The Art of Computer Programming 2, 4.3.1). */
CAPLET_HOT uint32_t caplet_divide(uint64_t n, uint32_t divisor)
{
#ifndef SHORT_DIVISION
    return (uint32_t)(n / divisor);
#else
    const uint32_t shift = 32u - caplet_bit_length(divisor);
    const uint64_t normal = n << shift;
    const uint32_t low = (uint32_t)normal;
    uint32_t high = (uint32_t)(normal >> 32), quotient;
    divisor <<= shift, quotient = digit_of(&high, low >> 16, divisor) << 16;
    return quotient | digit_of(&high, low & 0xFFFFu, divisor);
#endif
}

/*
 * A root of half the digits, then the other half by one division (P. Zimmermann, Karatsuba Square Root, 1999): with s
 * the root of n / 4^k and r its remainder, s * 2^k + (r * 2^k + next k bits) / (2 * s) is the root of n or one more.
 */
static uint32_t isqrt32(uint32_t n) /* 2^30 .. 2^32 - 1 */
{
    const uint32_t top = n >> 16;
    /* A line through the root, within 4 of it; then a step of Newton's, which gives the root or one more. */
    const uint32_t near = 86u + (top * 171u >> 16);
    uint32_t root = (near + top / near) >> 1;
    root -= root * root > top ? 1u : 0u;
    root = (root << 8) + (((top - root * root) << 8) + ((n >> 8) & 255u)) / (2u * root);
    /* The division can give 2^16, whose square does not fit. */
    return root > 65535u || root * root > n ? root - 1u : root;
}

CAPLET_COLD uint32_t caplet_isqrt(uint64_t n)
{
    const uint32_t top = (uint32_t)(n >> 30), high = isqrt32(top);
    const uint32_t low = (((top - high * high) << 15) + ((uint32_t)(n >> 15) & 32767u)) / (2u * high);
    const uint32_t root = (high << 15) + low;
    return (uint64_t)root * root > n ? root - 1u : root;
}

void caplet_clear_sums(void *sums, uint8_t wide, uint32_t count)
{
    const uint32_t words = wide ? 2u * count : count;
    uint32_t j;
    for (j = 0; j < words; j++) {
        ((int32_t *)sums)[j] = 0;
    }
}

uint64_t caplet_squared_length(const void *x, uint8_t type, uint32_t dim)
{
    uint32_t d;
    uint64_t sum = 0;
    if (type == CAPLET_INT8) {
        const int8_t *codes = (const int8_t *)x;
        uint32_t squares = 0; /* at most 64 * 2^14 */
        for (d = 0; d < dim; d++) {
            squares += (uint32_t)(codes[d] * codes[d]);
        }
        return squares;
    }
    for (d = 0; d < dim; d++) {
        const int32_t code = caplet_load(x, type, d);
        const uint32_t magnitude = code < 0 ? (uint32_t)-code : (uint32_t)code;
        sum += magnitude * magnitude; /* at most 65535^2, below 2^32 */
    }
    return sum;
}
