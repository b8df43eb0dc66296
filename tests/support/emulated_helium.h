/* The intrinsics that kernels use with helium.h, in plain C, so that those run on any little-endian machine. */
#include <string.h>

typedef uint16_t mve_pred16_t; /* a bit for each byte */

#define VECTOR(T, N) typedef struct { T##_t v[N]; } T##x##N##_t;
VECTOR(int8, 16) VECTOR(uint8, 16) VECTOR(int16, 8) VECTOR(uint16, 8) VECTOR(int32, 4) VECTOR(uint32, 4)

typedef struct { int8x16_t val[2]; } int8x16x2_t;
typedef struct { int16x8_t val[2]; } int16x8x2_t;
typedef struct { int16x8_t val[4]; } int16x8x4_t;

/* A function whose result is the vector r of N elements i. */
#define LANES(TYPE, NAME, PARAMETERS, N, BODY) \
    static inline TYPE NAME PARAMETERS         \
    {                                          \
        TYPE r;                                \
        uint32_t i;                            \
        for (i = 0; i < (N); i++) {            \
            BODY;                              \
        }                                      \
        return r;                              \
    }

/* A function that returns nothing, or the number r. */
#define EACH(TYPE, NAME, PARAMETERS, START, N, BODY) \
    static inline TYPE NAME PARAMETERS               \
    {                                                \
        uint32_t i;                                  \
        START;                                       \
        for (i = 0; i < (N); i++) {                  \
            BODY;                                    \
        }                                            \
        RETURN_##TYPE;                               \
    }
#define RETURN_void
#define RETURN_int32_t return (int32_t)r
#define RETURN_mve_pred16_t return r

#define ACTIVE(P, N, I) ((P) >> ((I) * (16 / (N))) & 1u)

#define TAIL(NAME, N)                                                                                   \
    EACH(mve_pred16_t, NAME, (uint32_t n), mve_pred16_t r = 0, 16,                                     \
         if (i / (16 / (N)) < n) r = (mve_pred16_t)(r | 1u << i))
TAIL(vctp8q, 16) TAIL(vctp16q, 8) TAIL(vctp32q, 4)

/* Vectors of one value, or of places. */
#define FILL(TYPE, T, N, NAME)                             \
    LANES(TYPE, vdupq_n_##NAME, (T x), N, r.v[i] = x)
FILL(int8x16_t, int8_t, 16, s8) FILL(uint8x16_t, uint8_t, 16, u8) FILL(int16x8_t, int16_t, 8, s16)
FILL(int32x4_t, int32_t, 4, s32) FILL(uint32x4_t, uint32_t, 4, u32)
LANES(uint8x16_t, vidupq_n_u8, (uint32_t from, uint32_t step), 16, r.v[i] = (uint8_t)(from + step * i))
LANES(uint16x8_t, vidupq_n_u16, (uint32_t from, uint32_t step), 8, r.v[i] = (uint16_t)(from + step * i))
LANES(uint32x4_t, vidupq_n_u32, (uint32_t from, uint32_t step), 4, r.v[i] = from + step * i)

/* Loads of memory elements M to lanes T, at the lanes' places, or at `AT` bytes from the address. */
#define LOADS(TYPE, T, N, M, NAME, SUFFIX, EXTRA, AT)                                                   \
    static inline T NAME##SUFFIX##_one(const void *from, uint32_t place)                                \
    {                                                                                                   \
        M x;                                                                                            \
        memcpy(&x, (const uint8_t *)from + place, sizeof x);                                            \
        return (T)x;                                                                                    \
    }                                                                                                   \
    LANES(TYPE, NAME##SUFFIX, (const void *from EXTRA), N, r.v[i] = NAME##SUFFIX##_one(from, AT))       \
    LANES(TYPE, NAME##_z##SUFFIX, (const void *from EXTRA, mve_pred16_t p), N,                          \
          r.v[i] = ACTIVE(p, N, i) ? NAME##SUFFIX##_one(from, AT) : (T)0)
#define NOTHING
#define PLACES32 , uint32x4_t places
#define PLACES16 , uint16x8_t places
#define PLACES8 , uint8x16_t places
LOADS(int8x16_t, int8_t, 16, int8_t, vldrbq, _s8, NOTHING, i)
LOADS(uint8x16_t, uint8_t, 16, uint8_t, vldrbq, _u8, NOTHING, i)
LOADS(int16x8_t, int16_t, 8, int8_t, vldrbq, _s16, NOTHING, i)
LOADS(int32x4_t, int32_t, 4, int8_t, vldrbq, _s32, NOTHING, i)
LOADS(int16x8_t, int16_t, 8, int16_t, vldrhq, _s16, NOTHING, 2 * i)
LOADS(int32x4_t, int32_t, 4, int16_t, vldrhq, _s32, NOTHING, 2 * i)
LOADS(int32x4_t, int32_t, 4, int32_t, vldrwq, _s32, NOTHING, 4 * i)
LOADS(int8x16_t, int8_t, 16, int8_t, vldrbq_gather_offset, _s8, PLACES8, places.v[i])
LOADS(int16x8_t, int16_t, 8, int8_t, vldrbq_gather_offset, _s16, PLACES16, places.v[i])
LOADS(int32x4_t, int32_t, 4, int8_t, vldrbq_gather_offset, _s32, PLACES32, places.v[i])
LOADS(uint32x4_t, uint32_t, 4, uint32_t, vldrwq_gather_shifted_offset, _u32, PLACES32, 4 * places.v[i])

LANES(int8x16x2_t, vld2q_s8, (const int8_t *from), 32, r.val[i & 1].v[i >> 1] = from[i])
LANES(int16x8x4_t, vld4q_s16, (const int16_t *from), 32, memcpy(&r.val[i & 3].v[i >> 2], from + i, 2))

/* Stores of lanes as memory elements M. */
#define STORES(TYPE, N, M, NAME, SUFFIX, EXTRA, AT)                                                     \
    static inline void NAME##SUFFIX##_one(void *to, uint32_t place, int64_t value)                      \
    {                                                                                                   \
        const M x = (M)value;                                                                           \
        memcpy((uint8_t *)to + place, &x, sizeof x);                                                    \
    }                                                                                                   \
    EACH(void, NAME##SUFFIX, (void *to EXTRA, TYPE x), , N, NAME##SUFFIX##_one(to, AT, x.v[i]))         \
    EACH(void, NAME##_p##SUFFIX, (void *to EXTRA, TYPE x, mve_pred16_t p), , N,                         \
         if (ACTIVE(p, N, i)) NAME##SUFFIX##_one(to, AT, x.v[i]))
STORES(int8x16_t, 16, int8_t, vstrbq, _s8, NOTHING, i)
STORES(uint8x16_t, 16, uint8_t, vstrbq, _u8, NOTHING, i)
STORES(int16x8_t, 8, int8_t, vstrbq, _s16, NOTHING, i)
STORES(int32x4_t, 4, int8_t, vstrbq, _s32, NOTHING, i)
STORES(int32x4_t, 4, int32_t, vstrwq, _s32, NOTHING, 4 * i)
STORES(uint32x4_t, 4, uint16_t, vstrhq, _u32, NOTHING, 2 * i)
STORES(int32x4_t, 4, int8_t, vstrbq_scatter_offset, _s32, PLACES32, places.v[i])
STORES(int32x4_t, 4, int16_t, vstrhq_scatter_shifted_offset, _s32, PLACES32, 2 * places.v[i])

EACH(void, vst2q_s16, (int16_t *to, int16x8x2_t x), , 16, to[i] = x.val[i & 1].v[i >> 1])

#define REINTERPRET(TO, FROM, NAME)      \
    static inline TO NAME(FROM x)        \
    {                                    \
        TO r;                            \
        memcpy(&r, &x, sizeof r);        \
        return r;                        \
    }
REINTERPRET(int8x16_t, int16x8_t, vreinterpretq_s8_s16)
REINTERPRET(int32x4_t, int8x16_t, vreinterpretq_s32_s8)
REINTERPRET(int32x4_t, uint32x4_t, vreinterpretq_s32_u32)
REINTERPRET(uint32x4_t, int32x4_t, vreinterpretq_u32_s32)

static inline int32x4_t vsetq_lane_s32(int32_t x, int32x4_t a, uint32_t lane)
{
    a.v[lane] = x;
    return a;
}

/* Lane by lane. */
#define TWO(TYPE, N, NAME, WHAT) LANES(TYPE, NAME, (TYPE a, TYPE b), N, WHAT)
TWO(int32x4_t, 4, vaddq_s32, r.v[i] = (int32_t)((uint32_t)a.v[i] + (uint32_t)b.v[i]))
TWO(int32x4_t, 4, vsubq_s32, r.v[i] = (int32_t)((uint32_t)a.v[i] - (uint32_t)b.v[i]))
TWO(uint32x4_t, 4, vaddq_u32, r.v[i] = a.v[i] + b.v[i])
TWO(uint32x4_t, 4, vsubq_u32, r.v[i] = a.v[i] - b.v[i])
TWO(uint32x4_t, 4, vmulq_u32, r.v[i] = a.v[i] * b.v[i])
TWO(int16x8_t, 8, vaddq_s16, r.v[i] = (int16_t)(a.v[i] + b.v[i]))
TWO(int16x8_t, 8, vhaddq_s16, r.v[i] = (int16_t)((a.v[i] + b.v[i]) >> 1))
TWO(uint8x16_t, 16, veorq_u8, r.v[i] = a.v[i] ^ b.v[i])
TWO(int32x4_t, 4, vmaxq_s32, r.v[i] = a.v[i] > b.v[i] ? a.v[i] : b.v[i])
TWO(int32x4_t, 4, vminq_s32, r.v[i] = a.v[i] < b.v[i] ? a.v[i] : b.v[i])
TWO(uint32x4_t, 4, vminq_u32, r.v[i] = a.v[i] < b.v[i] ? a.v[i] : b.v[i])
TWO(int32x4_t, 4, vmulhq_s32, r.v[i] = (int32_t)(((int64_t)a.v[i] * b.v[i]) >> 32))
TWO(uint32x4_t, 4, vmulhq_u32, r.v[i] = (uint32_t)(((uint64_t)a.v[i] * b.v[i]) >> 32))

#define WITH(TYPE, T, N, NAME, WHAT) LANES(TYPE, NAME, (TYPE a, T b), N, WHAT)
WITH(int32x4_t, int32_t, 4, vaddq_n_s32, r.v[i] = (int32_t)((uint32_t)a.v[i] + (uint32_t)b))
WITH(int32x4_t, int32_t, 4, vsubq_n_s32, r.v[i] = (int32_t)((uint32_t)a.v[i] - (uint32_t)b))
WITH(uint32x4_t, uint32_t, 4, vaddq_n_u32, r.v[i] = a.v[i] + b)
WITH(uint32x4_t, uint32_t, 4, vsubq_n_u32, r.v[i] = a.v[i] - b)
WITH(uint32x4_t, uint32_t, 4, vmulq_n_u32, r.v[i] = a.v[i] * b)
WITH(uint16x8_t, uint16_t, 8, vmulq_n_u16, r.v[i] = (uint16_t)((uint32_t)a.v[i] * b))
WITH(int16x8_t, int16_t, 8, vmulq_n_s16, r.v[i] = (int16_t)(a.v[i] * b))
LANES(int16x8_t, vmlaq_n_s16, (int16x8_t a, int16x8_t b, int16_t c), 8, r.v[i] = (int16_t)(a.v[i] + b.v[i] * c))
LANES(uint32x4_t, vaddq_m_n_u32, (uint32x4_t inactive, uint32x4_t a, uint32_t b, mve_pred16_t p), 4,
      r.v[i] = ACTIVE(p, 4, i) ? a.v[i] + b : inactive.v[i])

/* Shifts to the left, to the right by negative numbers. */
static inline uint32_t shifted_u32(uint32_t x, int32_t by)
{
    return by >= 32 || by <= -32 ? 0u : by >= 0 ? x << by : x >> -by;
}

static inline int32_t shifted_s32(int32_t x, int32_t by)
{
    return by >= 32 ? 0 : by >= 0 ? (int32_t)((uint32_t)x << by) : x >> (by < -31 ? 31 : -by);
}

WITH(uint32x4_t, int32_t, 4, vshlq_r_u32, r.v[i] = shifted_u32(a.v[i], b))
WITH(uint32x4_t, int32_t, 4, vshlq_n_u32, r.v[i] = shifted_u32(a.v[i], b))
WITH(int32x4_t, int32_t, 4, vshlq_r_s32, r.v[i] = shifted_s32(a.v[i], b))
WITH(uint32x4_t, int32x4_t, 4, vshlq_u32, r.v[i] = shifted_u32(a.v[i], b.v[i]))
WITH(int16x8_t, int32_t, 8, vrshlq_n_s16, r.v[i] = (int16_t)((a.v[i] + (1 << (-b) >> 1)) >> -b)) /* to the right */

#define COUNT_ZEROS(X, R) for (R = 0; R < 32u && !((X) >> (31u - R) & 1u); R++) { }
LANES(uint32x4_t, vclzq_u32, (uint32x4_t a), 4, COUNT_ZEROS(a.v[i], r.v[i]))

LANES(int16x8_t, vmovlbq_s8, (int8x16_t a), 8, r.v[i] = a.v[2 * i])
LANES(int16x8_t, vmovltq_s8, (int8x16_t a), 8, r.v[i] = a.v[2 * i + 1])

#define SATURATED(X) (int8_t)((X) < -128 ? -128 : (X) > 127 ? 127 : (X))
LANES(int8x16_t, vqmovnbq_s16, (int8x16_t a, int16x8_t b), 16, r.v[i] = i & 1 ? a.v[i] : SATURATED(b.v[i >> 1]))
LANES(int8x16_t, vqmovntq_s16, (int8x16_t a, int16x8_t b), 16, r.v[i] = i & 1 ? SATURATED(b.v[i >> 1]) : a.v[i])

EACH(mve_pred16_t, vcmpcsq_u32, (uint32x4_t a, uint32x4_t b), mve_pred16_t r = 0, 4,
     if (a.v[i] >= b.v[i]) r = (mve_pred16_t)(r | 15u << (4 * i)))

/* Sums over all lanes. */
EACH(int32_t, vmladavaq_s8, (int32_t sum, int8x16_t a, int8x16_t b), uint32_t r = (uint32_t)sum, 16,
     r += (uint32_t)(a.v[i] * b.v[i]))
EACH(int32_t, vmladavq_s8, (int8x16_t a, int8x16_t b), uint32_t r = 0, 16, r += (uint32_t)(a.v[i] * b.v[i]))
EACH(int32_t, vmladavaq_s16, (int32_t sum, int16x8_t a, int16x8_t b), uint32_t r = (uint32_t)sum, 8,
     r += (uint32_t)(a.v[i] * b.v[i]))
EACH(int32_t, vaddvaq_s8, (int32_t sum, int8x16_t a), uint32_t r = (uint32_t)sum, 16, r = r + (uint32_t)a.v[i])
