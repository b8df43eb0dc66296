/* Bit-packed constants. */
#include "fixed.h"

/* A raw code of `bits` bits as the integer it stands for. */
static int32_t integer_of(uint32_t code, uint8_t bits, uint8_t kind)
{
    const int32_t largest = ((int32_t)1 << (bits - 1)) - 1;
    const uint32_t negative = kind != CAPLET_UNSIGNED && code >> (bits - 1);
    const int32_t value = (int32_t)code - (negative ? (int32_t)1 << bits : 0);
    if (kind != CAPLET_POWERS || value == 0) {
        return value;
    }
    return value > 0 ? (int32_t)1 << (largest - value) : -((int32_t)1 << (largest + value));
}

uint8_t caplet_constant_type(const caplet_constant *constant)
{
    switch (constant->kind) {
    case CAPLET_SIGNED:
        return constant->bits <= 8 ? CAPLET_INT8 : CAPLET_INT16;
    case CAPLET_UNSIGNED:
        return constant->bits <= 7 ? CAPLET_INT8 : constant->bits <= 15 ? CAPLET_INT16 : CAPLET_UINT16;
    default:
        return constant->bits <= 4 ? CAPLET_INT8 : CAPLET_INT16;
    }
}

int32_t caplet_code(const caplet_constant *constant, uint32_t index)
{
    const uint8_t bits = constant->bits;
    const uint8_t *bytes = (const uint8_t *)constant->data;
    const uint32_t start = index * bits, skip = start & 7u;
    uint32_t word;
    if (bits == 16 && constant->kind == CAPLET_SIGNED) {
        return ((const int16_t *)constant->data)[index];
    }
    bytes += start >> 3, word = bytes[0];
    if (skip + bits > 8) {
        word |= (uint32_t)bytes[1] << 8;
    }
    if (skip + bits > 16) {
        word |= (uint32_t)bytes[2] << 16;
    }
    return integer_of((word >> skip) & (((uint32_t)1 << bits) - 1u), bits, constant->kind);
}

#define BYTE(I) ((uint32_t)bytes[I] << (8 * ((I) & 3)))
#ifdef CAPLET_DSP
#define FIRST_BYTES(BITS) ((BITS) > 2 ? caplet_load4(bytes) : caplet_load2(bytes))
#else
#define FIRST_BYTES(BITS) \
    (BYTE(0) | BYTE(1) | ((BITS) > 2 ? BYTE(2) : 0u) | ((BITS) > 3 ? BYTE(3) : 0u))
#endif
#define NEXT_BYTES(BITS) \
    (((BITS) > 4 ? BYTE(4) : 0u) | ((BITS) > 5 ? BYTE(5) : 0u) | ((BITS) > 6 ? BYTE(6) : 0u))

/* The words `word` and next, as one of 64 bits, shifted down by START. */
#define PLACE(START, BITS)                                                                              \
    ((START) >= 32 ? next >> ((START) & 31)                                                             \
                   : word >> ((START) & 31) | ((START) + (BITS) > 32 ? next << ((32 - (START)) & 31) : 0u))

/* Code I of eight, which lie in `word` and next, to the top of a word, then down with its sign. */
#define CODE(BITS, I)                                                                                             \
    ((int8_t)((int32_t)(PLACE((I) * (BITS), BITS) << (32 - (BITS))) >> (32 - (BITS))))

#ifdef CAPLET_DSP
/* Four codes, the lowest bits of a word, as bytes: halves apart, bytes apart, then signs. */
#define FOUR_CODES(BITS, FROM, TO)                                                    \
    do {                                                                              \
        const uint32_t from = FROM, pairs = caplet_halves_apart(from, 16 - 2 * (BITS)); \
        uint32_t codes = (pairs & each) | (pairs << (8 - (BITS)) & others);           \
        codes = caplet_subtract_bytes(codes ^ sign, sign);                            \
        __builtin_memcpy(TO, &codes, sizeof codes);                                   \
    } while (0)
/* Masks, in registers: then shifts cost nothing. */
#define MASKS(BITS)                                                                            \
    const uint32_t each = caplet_in_register(((1u << (BITS)) - 1u) * 0x00010001u);             \
    const uint32_t others = caplet_in_register(((1u << (BITS)) - 1u) * 0x01000100u);           \
    const uint32_t sign = caplet_in_register(0x01010101u << ((BITS) - 1));
#define EIGHT_CODES(BITS) FOUR_CODES(BITS, word, to); FOUR_CODES(BITS, PLACE(4 * (BITS), 4 * (BITS)), to + 4)
#else
#define MASKS(BITS)
#define EIGHT_CODES(BITS)                                                                               \
    to[0] = CODE(BITS, 0), to[1] = CODE(BITS, 1), to[2] = CODE(BITS, 2), to[3] = CODE(BITS, 3);         \
    to[4] = CODE(BITS, 4), to[5] = CODE(BITS, 5), to[6] = CODE(BITS, 6), to[7] = CODE(BITS, 7)
#endif

/* Eight codes at a time, which are BITS bytes. */
#define DEFINE_UNPACK(BITS)                                                                                     \
    static void eights_of_##BITS(const uint8_t *bytes, int8_t *to, const int8_t *end)                           \
    {                                                                                                           \
        MASKS(BITS)                                                                                             \
        while (to < end) {                                                                                      \
            const uint32_t word = FIRST_BYTES(BITS);                                                            \
            const uint32_t next = NEXT_BYTES(BITS);                                                             \
            EIGHT_CODES(BITS);                                                                                  \
            (void)next;                                                                                         \
            bytes += (BITS);                                                                                    \
            to += 8;                                                                                            \
        }                                                                                                       \
    }                                                                                                           \
    void caplet_unpack_##BITS(const caplet_constant *constant, uint32_t first, uint32_t count, void *scratch)   \
    {                                                                                                           \
        unpack_eights(constant, first, count, (int8_t *)scratch, eights_of_##BITS);                             \
    }

/* Signed codes of 2 to 7 bits, eight at a time; of the first and the last eight only those that are wanted. */
static CAPLET_APART void unpack_eights(const caplet_constant *constant, uint32_t first, uint32_t count, int8_t *to,
                                       void eights(const uint8_t *bytes, int8_t *to, const int8_t *end))
{
    const uint8_t *bytes = (const uint8_t *)constant->data + (first >> 3) * constant->bits;
    uint32_t skip = first & 7u;
    while (count > 0) {
        int8_t some[8];
        uint32_t n = skip > 0 || count < 8u ? 8u - skip : count & ~7u, k;
        if (n < 8u || count < 8u) {
            n = n < count ? n : count;
            eights(bytes, some, some + 8);
            for (k = 0; k < n; k++) {
                to[k] = some[skip + k];
            }
            bytes += constant->bits, skip = 0;
        } else {
            eights(bytes, to, to + n);
            bytes += (n >> 3) * constant->bits;
        }
        to += n, count -= n;
    }
}
DEFINE_UNPACK(2)
DEFINE_UNPACK(3)
DEFINE_UNPACK(4)
DEFINE_UNPACK(5)
DEFINE_UNPACK(6)
DEFINE_UNPACK(7)

CAPLET_APART void caplet_unpack(const caplet_constant *constant, uint32_t first, uint32_t count, void *scratch)
{
    const uint8_t bits = constant->bits, type = caplet_constant_type(constant);
    const uint32_t start = first * bits;
    const uint8_t *bytes = (const uint8_t *)constant->data + (start >> 3);
    const uint32_t mask = ((uint32_t)1 << bits) - 1u;
    uint32_t word, held;
    uint32_t i;
    /* word holds `held` bits that were read and not used yet, the next ones lowest. */
    word = (uint32_t)*bytes++ >> (start & 7u), held = 8u - (start & 7u);
    for (i = 0; i < count; i++) {
        while (held < bits) {
            word |= (uint32_t)*bytes++ << held;
            held += 8u;
        }
        caplet_store(scratch, type, i, integer_of(word & mask, bits, constant->kind));
        word >>= bits, held -= bits;
    }
}
