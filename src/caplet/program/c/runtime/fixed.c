/* Integer square root and bit length. */
#include "fixed.h"

uint32_t caplet_bit_length(uint64_t n)
{
    uint32_t bits = n >> 32 ? 32u : 0u;
    uint32_t rest = (uint32_t)(n >> bits);
    uint32_t step;
    for (step = 16; step > 0; step >>= 1) {
        if (rest >> step) {
            rest >>= step;
            bits += step;
        }
    }
    return bits + rest;
}

/*
 * A root of half the digits, then the other half by one division (P. Zimmermann, Karatsuba Square Root, 1999): with s
 * the root of n / 4^k and r its remainder, s * 2^k + (r * 2^k + next k bits) / (2 * s) is the root of n or one more.
 */
static uint32_t isqrt32(uint32_t n) /* 2^30 .. 2^32 - 1 */
{
    const uint32_t top = n >> 16;
    uint32_t root = 0;
    uint32_t bit;
    for (bit = 128; bit > 0; bit >>= 1) {
        const uint32_t more = root | bit;
        root = more * more <= top ? more : root;
    }
    root = (root << 8) + (((top - root * root) << 8) + ((n >> 8) & 255u)) / (2u * root);
    /* The division can give 2^16, whose square does not fit. */
    return root > 65535u || root * root > n ? root - 1u : root;
}

uint32_t caplet_isqrt(uint64_t n)
{
    const uint32_t top = (uint32_t)(n >> 30);
    const uint32_t high = isqrt32(top);
    const uint32_t low = (((top - high * high) << 15) + ((uint32_t)(n >> 15) & 32767u)) / (2u * high);
    const uint32_t root = (high << 15) + low;
    return (uint64_t)root * root > n ? root - 1u : root;
}
