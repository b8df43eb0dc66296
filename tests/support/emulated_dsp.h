/* The functions of dsp.h in plain C, so that the kernels that use them run on any machine. */
#define CAPLET_DSP 1

static inline uint32_t caplet_pair(uint32_t first, uint32_t second)
{
    return (first & 0xFFFFu) | second << 16;
}

/* Bytes 0 and 2, and bytes 1 and 3, of a word, as pairs. */
static inline uint32_t caplet_signed_02(uint32_t w)
{
    return caplet_pair((uint32_t)(int8_t)(w & 255u), (uint32_t)(int8_t)(w >> 16 & 255u));
}

static inline uint32_t caplet_signed_13(uint32_t w)
{
    return caplet_signed_02(w >> 8);
}

static inline uint32_t caplet_unsigned_02(uint32_t w)
{
    return w & 0x00FF00FFu;
}

static inline uint32_t caplet_unsigned_13(uint32_t w)
{
    return w >> 8 & 0x00FF00FFu;
}

/* Two words, aligned to 4 bytes. */
static inline void caplet_load_two(const uint32_t *from, uint32_t *first, uint32_t *second)
{
    *first = from[0];
    *second = from[1];
}

/* acc + the products of both halves. */
static inline int32_t caplet_multiply_pairs(uint32_t a, uint32_t b, int32_t acc)
{
    const uint32_t first = (uint32_t)(caplet_low(a) * caplet_low(b));
    return (int32_t)((uint32_t)acc + first + (uint32_t)(caplet_high(a) * caplet_high(b)));
}

/* The low halves, and the high halves, of two words as pairs. */
static inline uint32_t caplet_low_halves(uint32_t a, uint32_t b)
{
    return caplet_pair(a, b);
}

static inline uint32_t caplet_high_halves(uint32_t a, uint32_t b)
{
    return caplet_pair(a >> 16, b >> 16);
}

static inline uint32_t caplet_halves_apart(uint32_t w, uint32_t left)
{
    return caplet_pair(w, w << left >> 16);
}

#define caplet_in_register(CONSTANT) (CONSTANT)

static inline uint32_t caplet_subtract_bytes(uint32_t a, uint32_t b)
{
    return ((a | 0x80808080u) - (b & 0x7F7F7F7Fu)) ^ ((a ^ ~b) & 0x80808080u);
}

/* The same two pairs of bytes, added to a pair of sums. */
static inline uint32_t caplet_add_signed_02(uint32_t sums, uint32_t w)
{
    const uint32_t pair = caplet_signed_02(w);
    return caplet_pair(sums + pair, (sums >> 16) + (pair >> 16));
}

static inline uint32_t caplet_add_signed_13(uint32_t sums, uint32_t w)
{
    return caplet_add_signed_02(sums, w >> 8);
}

static inline int32_t caplet_multiply_pairs_from(uint32_t a, uint32_t b, int32_t acc)
{
    return caplet_multiply_pairs(a, b, acc);
}

/* The larger one of each pair of signed bytes. */
static inline uint32_t caplet_largest_bytes(uint32_t a, uint32_t b)
{
    uint32_t larger = 0;
    uint32_t at;
    for (at = 0; at < 32; at += 8) {
        larger |= ((int8_t)(a >> at & 255u) >= (int8_t)(b >> at & 255u) ? a : b) & 255u << at;
    }
    return larger;
}
