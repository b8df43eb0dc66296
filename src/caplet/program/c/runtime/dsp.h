/*
 * Two products per instruction: the packed arithmetic of Armv7E-M and Armv8-M processors with the DSP extension. Where
 * CAPLET_DSP is defined, kernels use it beside the portable C that says what they compute; the integers are the same.
 * CAPLET_PORTABLE switches it off. With CAPLET_EMULATE_DSP its functions come from a header of the tests, in plain C.
 *
 * A pair is two int16_t in a word, the first one in the low half.
 */
#ifndef CAPLET_DSP_H
#define CAPLET_DSP_H

#include <stdint.h>

static inline int32_t caplet_low(uint32_t pair)
{
    return (int16_t)(pair & 0xFFFFu);
}

static inline int32_t caplet_high(uint32_t pair)
{
    return (int16_t)(pair >> 16);
}

#if defined(CAPLET_EMULATE_DSP)
#include "emulated_dsp.h"
#elif defined(__ARM_FEATURE_DSP) && defined(__GNUC__) && !defined(__ARM_BIG_ENDIAN) && !defined(CAPLET_PORTABLE)
#define CAPLET_DSP 1

/* The rotation is part of the instruction, which compilers do not find by themselves. */
#define CAPLET_EXTEND(NAME, INSTRUCTION)                                  \
    static inline uint32_t NAME(uint32_t w)                               \
    {                                                                     \
        uint32_t pair;                                                    \
        __asm__ volatile(INSTRUCTION : "=r"(pair) : "r"(w));                       \
        return pair;                                                      \
    }

/* Bytes 0 and 2, and bytes 1 and 3, of a word, as pairs. */
CAPLET_EXTEND(caplet_signed_02, "sxtb16 %0, %1")
CAPLET_EXTEND(caplet_signed_13, "sxtb16 %0, %1, ror #8")
CAPLET_EXTEND(caplet_unsigned_02, "uxtb16 %0, %1")
CAPLET_EXTEND(caplet_unsigned_13, "uxtb16 %0, %1, ror #8")

/* acc + the products of both halves. */
static inline int32_t caplet_multiply_pairs(uint32_t a, uint32_t b, int32_t acc)
{
    __asm__ volatile("smlad %0, %1, %2, %0" : "+r"(acc) : "r"(a), "r"(b));
    return acc;
}

/* The low halves, and the high halves, of two words as pairs. */
static inline uint32_t caplet_low_halves(uint32_t a, uint32_t b)
{
    uint32_t pair;
    __asm__ volatile("pkhbt %0, %1, %2, lsl #16" : "=r"(pair) : "r"(a), "r"(b));
    return pair;
}

static inline uint32_t caplet_high_halves(uint32_t a, uint32_t b)
{
    uint32_t pair;
    __asm__ volatile("pkhtb %0, %1, %2, asr #16" : "=r"(pair) : "r"(b), "r"(a));
    return pair;
}

/* The low half of a word, and the high half of that word shifted left. */
#define caplet_halves_apart(WORD, LEFT)                                                     \
    __extension__({                                                                         \
        uint32_t pair;                                                                      \
        __asm__ volatile("pkhbt %0, %1, %1, lsl %2" : "=r"(pair) : "r"(WORD), "i"(LEFT));   \
        pair;                                                                               \
    })

/* A constant that compilers shall not take apart into immediate operands. */
static inline uint32_t caplet_in_register(uint32_t constant)
{
    __asm__ volatile("" : "+r"(constant));
    return constant;
}

/* The differences of the bytes of two words. */
static inline uint32_t caplet_subtract_bytes(uint32_t a, uint32_t b)
{
    uint32_t bytes;
    __asm__ volatile("usub8 %0, %1, %2" : "=r"(bytes) : "r"(a), "r"(b) : "cc");
    return bytes;
}

/* Two signed bytes of a word, added to a pair of sums. */
static inline uint32_t caplet_add_signed_02(uint32_t sums, uint32_t w)
{
    __asm__ volatile("sxtab16 %0, %0, %1" : "+r"(sums) : "r"(w));
    return sums;
}

static inline uint32_t caplet_add_signed_13(uint32_t sums, uint32_t w)
{
    __asm__ volatile("sxtab16 %0, %0, %1, ror #8" : "+r"(sums) : "r"(w));
    return sums;
}

/* As caplet_multiply_pairs, where acc is needed again. */
static inline int32_t caplet_multiply_pairs_from(uint32_t a, uint32_t b, int32_t acc)
{
    int32_t sum;
    __asm__ volatile("smlad %0, %1, %2, %3" : "=r"(sum) : "r"(a), "r"(b), "r"(acc));
    return sum;
}

/* The larger one of each pair of signed bytes. */
static inline uint32_t caplet_largest_bytes(uint32_t a, uint32_t b)
{
    uint32_t larger;
    __asm__ volatile("ssub8 %0, %1, %2\n\tsel %0, %1, %2" : "=&r"(larger) : "r"(a), "r"(b) : "cc");
    return larger;
}

/* Two words, aligned to 4 bytes. */
static inline void caplet_load_two(const uint32_t *from, uint32_t *first, uint32_t *second)
{
    __asm__ volatile("ldrd %0, %1, %2" : "=r"(*first), "=r"(*second) : "m"(*(const uint64_t *)(const void *)from));
}
#endif

/* The nearest value of int8_t, and of uint8_t: one instruction of many Arm processors. */
#if defined(__ARM_FEATURE_SAT) && defined(__GNUC__) && !defined(CAPLET_PORTABLE)
static inline int32_t caplet_signed_byte(int32_t x)
{
    __asm__("ssat %0, #8, %0" : "+r"(x));
    return x;
}

static inline int32_t caplet_unsigned_byte(int32_t x)
{
    __asm__("usat %0, #8, %0" : "+r"(x));
    return x;
}

/* The signed byte of the upper half of a word. */
static inline int32_t caplet_upper_byte(int32_t x)
{
    __asm__("ssat %0, #8, %0, asr #16" : "+r"(x));
    return x;
}
#else
static inline int32_t caplet_signed_byte(int32_t x)
{
    return x < -128 ? -128 : x > 127 ? 127 : x;
}

static inline int32_t caplet_unsigned_byte(int32_t x)
{
    return x < 0 ? 0 : x > 255 ? 255 : x;
}

static inline int32_t caplet_upper_byte(int32_t x)
{
    return caplet_signed_byte(x >> 16);
}
#endif
#ifdef CAPLET_DSP
/* Four bytes, or two, at any address. */
static inline uint32_t caplet_load4(const void *from)
{
    uint32_t word;
    __builtin_memcpy(&word, from, sizeof word);
    return word;
}

static inline uint32_t caplet_load2(const void *from)
{
    uint16_t half;
    __builtin_memcpy(&half, from, sizeof half);
    return half;
}
#endif

/*
 * Vectors of 16 bytes: Helium, of Cortex-M55 and M85. Where CAPLET_HELIUM is defined, kernels use the intrinsics of
 * Arm's C language extensions (ACLE); CAPLET_PORTABLE and CAPLET_EMULATE_HELIUM as above.
 */
#if defined(CAPLET_EMULATE_HELIUM)
#include "emulated_helium.h"
#define CAPLET_HELIUM 1
#elif defined(__ARM_FEATURE_MVE) && defined(__GNUC__) && !defined(__ARM_BIG_ENDIAN) && !defined(CAPLET_PORTABLE)
#include <arm_mve.h>
#define CAPLET_HELIUM 1
#endif

/*
 * Vectors of any length: the extension V of RISC-V, or its part Zve32x. Where CAPLET_RVV is defined, kernels use the
 * intrinsics of RISC-V's C API, version 0.12 or later; CAPLET_PORTABLE as above.
 */
#if defined(__riscv_vector) && defined(__riscv_v_intrinsic) && !defined(CAPLET_PORTABLE)
#if __riscv_v_intrinsic >= 12000 && __riscv_v_min_vlen >= 64
#include <riscv_vector.h>
#define CAPLET_RVV 1
#endif
#endif

/* Either kind: patches are then of bytes, int8_t (CAPLET_POSITIONS, taps). */
#if defined(CAPLET_HELIUM) || defined(CAPLET_RVV)
#define CAPLET_VECTORS 1
#endif
#endif
