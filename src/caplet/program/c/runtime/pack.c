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
    const uint32_t start = index * bits;
    const uint32_t skip = start & 7u;
    uint32_t word;
    if (bits == 16 && constant->kind == CAPLET_SIGNED) {
        return ((const int16_t *)constant->data)[index];
    }
    bytes += start >> 3;
    word = bytes[0];
    if (skip + bits > 8) {
        word |= (uint32_t)bytes[1] << 8;
    }
    if (skip + bits > 16) {
        word |= (uint32_t)bytes[2] << 16;
    }
    return integer_of((word >> skip) & (((uint32_t)1 << bits) - 1u), bits, constant->kind);
}

const void *caplet_row(const caplet_constant *constant, uint32_t first, uint32_t count, void *scratch)
{
    const uint8_t bits = constant->bits;
    const uint8_t type = caplet_constant_type(constant);
    const uint32_t start = first * bits;
    const uint8_t *bytes = (const uint8_t *)constant->data + (start >> 3);
    const uint32_t mask = ((uint32_t)1 << bits) - 1u;
    uint32_t word;
    uint32_t held;
    uint32_t i;
    if (constant->kind == CAPLET_SIGNED && (bits == 8 || bits == 16)) {
        return caplet_at(constant->data, type, first);
    }
    /* word holds `held` bits that were read and not used yet, the next ones lowest. */
    word = (uint32_t)*bytes++ >> (start & 7u);
    held = 8u - (start & 7u);
    for (i = 0; i < count; i++) {
        while (held < bits) {
            word |= (uint32_t)*bytes++ << held;
            held += 8u;
        }
        caplet_store(scratch, type, i, integer_of(word & mask, bits, constant->kind));
        word >>= bits;
        held -= bits;
    }
    return scratch;
}
