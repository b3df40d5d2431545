/* Lanes: one vector of floats or of integers, each lane working on a block of its own.
 *
 * A file that includes this defines ISA (a suffix, such as avx2) and LANES: 4 (the baseline, SSE2 or NEON),
 * 8 (AVX2 with F16C) or 16 (AVX-512 F, BW, DQ and VL, with F16C), after asking the compiler for those
 * instructions. What is written with these lanes rounds as plain C does lane for lane, provided that the
 * compiler may not contract products and sums (-ffp-contract=off).
 *
 *   lf  LANES floats       + - * / work lane by lane, each rounded once
 *   li  LANES int32_t      + - * & | ^ << >> work lane by lane
 *   lm  LANES truth values: both, either, without, any, all
 */
#ifndef KCONV_LANES_H
#define KCONV_LANES_H

#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#if LANES != 4 && LANES != 8 && LANES != 16
#error "LANES must be 4, 8 or 16"
#endif
#if defined(__SSE2__) || LANES > 4
#include <immintrin.h>
#define X86_LANES 1
#else
#define X86_LANES 0
#endif

#define JOIN_(a, b) a##_##b
#define JOIN(a, b) JOIN_(a, b)
#define NAME(x) JOIN(x, ISA)
#define INLINE static inline __attribute__((always_inline, unused))

typedef float lf __attribute__((vector_size(4 * LANES)));
typedef int32_t li __attribute__((vector_size(4 * LANES)));
#if LANES == 16
typedef __mmask16 lm;
#else
typedef li lm;
#endif

INLINE lf floats(float x) { return x - (lf){0}; }
INLINE li ints(int32_t x) { return x - (li){0}; }
INLINE lf load(const float *from) { lf x; memcpy(&x, from, sizeof x); return x; }
INLINE void store(float *to, lf x) { memcpy(to, &x, sizeof x); }
INLINE li load_ints(const int32_t *from) { li x; memcpy(&x, from, sizeof x); return x; }
INLINE void store_ints(int32_t *to, li x) { memcpy(to, &x, sizeof x); }
INLINE li bits(lf x) { return (li)x; }
INLINE lf from_bits(li x) { return (lf)x; }
INLINE lf absolute(lf x) { return (lf)((li)x & 0x7fffffff); }

/* Comparisons are false where a side is NaN, but for unequal, which is true. */
#if LANES == 16
INLINE lm less(lf a, lf b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_LT_OQ); }
INLINE lm less_equal(lf a, lf b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_LE_OQ); }
INLINE lm equal(lf a, lf b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_EQ_OQ); }
INLINE lm unequal(lf a, lf b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_NEQ_UQ); }
INLINE lm greater_ints(li a, li b) { return _mm512_cmpgt_epi32_mask((__m512i)a, (__m512i)b); }
INLINE lm equal_ints(li a, li b) { return _mm512_cmpeq_epi32_mask((__m512i)a, (__m512i)b); }
INLINE bool all(lm a) { return a == 0xffff; }
INLINE lf choose(lm m, lf a, lf b) { return (lf)_mm512_mask_blend_ps(m, (__m512)b, (__m512)a); }
INLINE li choose_ints(lm m, li a, li b) { return (li)_mm512_mask_blend_epi32(m, (__m512i)b, (__m512i)a); }
INLINE lm both(lm a, lm b) { return a & b; }
INLINE lm either(lm a, lm b) { return a | b; }
INLINE lm without(lm a, lm b) { return a & (lm)~b; }
INLINE bool any(lm a) { return a != 0; }
INLINE lf maximum(lf a, lf b) { return (lf)_mm512_max_ps((__m512)a, (__m512)b); }
INLINE lf minimum(lf a, lf b) { return (lf)_mm512_min_ps((__m512)a, (__m512)b); }
INLINE li maximum_ints(li a, li b) { return (li)_mm512_max_epi32((__m512i)a, (__m512i)b); }
INLINE li minimum_ints(li a, li b) { return (li)_mm512_min_epi32((__m512i)a, (__m512i)b); }
INLINE lf square_root(lf x) { return (lf)_mm512_sqrt_ps((__m512)x); }
INLINE lf to_floats(li x) { return (lf)_mm512_cvtepi32_ps((__m512i)x); }
INLINE li truncated(lf x) { return (li)_mm512_cvttps_epi32((__m512)x); }
#else
INLINE lm less(lf a, lf b) { return a < b; }
INLINE lm less_equal(lf a, lf b) { return a <= b; }
INLINE lm equal(lf a, lf b) { return a == b; }
INLINE lm unequal(lf a, lf b) { return a != b; }
INLINE lm greater_ints(li a, li b) { return a > b; }
INLINE lm equal_ints(li a, li b) { return a == b; }
INLINE li choose_ints(lm m, li a, li b) { return (a & m) | (b & ~m); }
INLINE lm both(lm a, lm b) { return a & b; }
INLINE lm either(lm a, lm b) { return a | b; }
INLINE lm without(lm a, lm b) { return a & ~b; }
#if LANES == 8
INLINE lf choose(lm m, lf a, lf b) { return (lf)_mm256_blendv_ps((__m256)b, (__m256)a, (__m256)m); }
INLINE bool any(lm a) { return !_mm256_testz_si256((__m256i)a, (__m256i)a); }
INLINE bool all(lm a) { return _mm256_testc_si256((__m256i)a, (__m256i)ints(-1)); }
INLINE lf maximum(lf a, lf b) { return (lf)_mm256_max_ps((__m256)a, (__m256)b); }
INLINE lf minimum(lf a, lf b) { return (lf)_mm256_min_ps((__m256)a, (__m256)b); }
INLINE li maximum_ints(li a, li b) { return (li)_mm256_max_epi32((__m256i)a, (__m256i)b); }
INLINE li minimum_ints(li a, li b) { return (li)_mm256_min_epi32((__m256i)a, (__m256i)b); }
INLINE lf square_root(lf x) { return (lf)_mm256_sqrt_ps((__m256)x); }
INLINE lf to_floats(li x) { return (lf)_mm256_cvtepi32_ps((__m256i)x); }
INLINE li truncated(lf x) { return (li)_mm256_cvttps_epi32((__m256)x); }
#else
INLINE lf choose(lm m, lf a, lf b) { return (lf)choose_ints(m, (li)a, (li)b); }
INLINE bool any(lm a) { return (a[0] | a[1] | a[2] | a[3]) != 0; }
INLINE bool all(lm a) { return (a[0] & a[1] & a[2] & a[3]) != 0; }
INLINE li maximum_ints(li a, li b) { return choose_ints(a > b, a, b); }
INLINE li minimum_ints(li a, li b) { return choose_ints(a < b, a, b); }
#if X86_LANES
INLINE lf maximum(lf a, lf b) { return (lf)_mm_max_ps((__m128)a, (__m128)b); }
INLINE lf minimum(lf a, lf b) { return (lf)_mm_min_ps((__m128)a, (__m128)b); }
INLINE lf square_root(lf x) { return (lf)_mm_sqrt_ps((__m128)x); }
INLINE lf to_floats(li x) { return (lf)_mm_cvtepi32_ps((__m128i)x); }
INLINE li truncated(lf x) { return (li)_mm_cvttps_epi32((__m128)x); }
#else
INLINE lf maximum(lf a, lf b) { return choose(a > b, a, b); }
INLINE lf minimum(lf a, lf b) { return choose(a < b, a, b); }
INLINE lf square_root(lf x) { return (lf){sqrtf(x[0]), sqrtf(x[1]), sqrtf(x[2]), sqrtf(x[3])}; }
INLINE lf to_floats(li x) { return __builtin_convertvector(x, lf); }
INLINE li truncated(lf x) { return __builtin_convertvector(x, li); }
#endif
#endif
#endif
/* maximum(a, b) is a > b ? a : b and minimum(a, b) is a < b ? a : b: b where a side is NaN, b of +0 and -0. */

#define MAGIC 12582912.0f /* 1.5 * 2^23 */

/* The nearest whole number, ties to even, as ggml gets it (nearest_int in ggml-quants.c): from the low bits of
 * the sum with 1.5 * 2^23. The bits are the same beyond +-2^22 too, where they mean nothing. */
INLINE li nearest(lf x) { return (bits(x + MAGIC) & 0x007fffff) - 0x00400000; }

/* The same as a float, for magnitudes below 2^22 only; what rounds to zero may become -0. */
INLINE lf nearest_small(lf x) {
#if LANES == 16
    return (lf)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif LANES == 8
    return (lf)_mm256_round_ps((__m256)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
    return x + MAGIC - MAGIC;
#endif
}

/* MAGIC + nearest(x), exactly, whatever x is: floats are quicker to clamp and to go on with. */
INLINE lf nearest_sum(lf x) { return from_bits((bits(x + MAGIC) & 0x007fffff) | 0x4b000000); }

/* x, brought to between low and high, which have no sign; x is not NaN. Positive floats are ordered as their bits,
 * and the bits of negative ones are negative: processors have more room for whole numbers beside additions. */
INLINE lf between(lf x, lf low, lf high) {
#if LANES > 4
    return from_bits(minimum_ints(maximum_ints(bits(x), bits(low)), bits(high)));
#else
    return minimum(maximum(x, low), high);
#endif
}

/* Super-blocks and blocks whose largest magnitude is less count as zero (GROUP_MAX_EPS in ggml-quants.c). */
#define GROUP_MAX_EPS 1e-15f

INLINE li clamped(li x, int32_t low, int32_t high) { return maximum_ints(ints(low), minimum_ints(ints(high), x)); }

/* Four whole numbers 0 to 255 a lane in the bytes of one, the first lowest. */
INLINE li four_bytes(li a, li b, li c, li d) { return a | (b << 8) | (c << 16) | (d << 24); }

/* LANES x LANES: what was lane j of vector i becomes lane i of vector j. */
INLINE void transpose(li *v) {
#if X86_LANES
    li t[LANES];
    const int groups = LANES / 4; /* of four vectors; within quarters of 128 bits first */
#if LANES == 16
#define LOW32(a, b) (li)_mm512_unpacklo_epi32((__m512i)(a), (__m512i)(b))
#define HIGH32(a, b) (li)_mm512_unpackhi_epi32((__m512i)(a), (__m512i)(b))
#define LOW64(a, b) (li)_mm512_unpacklo_epi64((__m512i)(a), (__m512i)(b))
#define HIGH64(a, b) (li)_mm512_unpackhi_epi64((__m512i)(a), (__m512i)(b))
#elif LANES == 8
#define LOW32(a, b) (li)_mm256_unpacklo_epi32((__m256i)(a), (__m256i)(b))
#define HIGH32(a, b) (li)_mm256_unpackhi_epi32((__m256i)(a), (__m256i)(b))
#define LOW64(a, b) (li)_mm256_unpacklo_epi64((__m256i)(a), (__m256i)(b))
#define HIGH64(a, b) (li)_mm256_unpackhi_epi64((__m256i)(a), (__m256i)(b))
#else
#define LOW32(a, b) (li)_mm_unpacklo_epi32((__m128i)(a), (__m128i)(b))
#define HIGH32(a, b) (li)_mm_unpackhi_epi32((__m128i)(a), (__m128i)(b))
#define LOW64(a, b) (li)_mm_unpacklo_epi64((__m128i)(a), (__m128i)(b))
#define HIGH64(a, b) (li)_mm_unpackhi_epi64((__m128i)(a), (__m128i)(b))
#endif
    for (int g = 0; g < groups; ++g) { /* t[4g + k]: quarter q holds lane 4q + k of vectors 4g to 4g + 3 */
        const li *from = v + 4 * g;
        li a = LOW32(from[0], from[1]), b = HIGH32(from[0], from[1]);
        li c = LOW32(from[2], from[3]), d = HIGH32(from[2], from[3]);
        t[4 * g] = LOW64(a, c), t[4 * g + 1] = HIGH64(a, c);
        t[4 * g + 2] = LOW64(b, d), t[4 * g + 3] = HIGH64(b, d);
    }
#undef LOW32
#undef HIGH32
#undef LOW64
#undef HIGH64
    for (int k = 0; k < 4; ++k) {
#if LANES == 16
        __m512i a = (__m512i)t[k], b = (__m512i)t[4 + k], c = (__m512i)t[8 + k], d = (__m512i)t[12 + k];
        __m512i ab = _mm512_shuffle_i32x4(a, b, 0x44), AB = _mm512_shuffle_i32x4(a, b, 0xee);
        __m512i cd = _mm512_shuffle_i32x4(c, d, 0x44), CD = _mm512_shuffle_i32x4(c, d, 0xee);
        v[k] = (li)_mm512_shuffle_i32x4(ab, cd, 0x88), v[4 + k] = (li)_mm512_shuffle_i32x4(ab, cd, 0xdd);
        v[8 + k] = (li)_mm512_shuffle_i32x4(AB, CD, 0x88), v[12 + k] = (li)_mm512_shuffle_i32x4(AB, CD, 0xdd);
#elif LANES == 8
        v[k] = (li)_mm256_permute2x128_si256((__m256i)t[k], (__m256i)t[4 + k], 0x20);
        v[4 + k] = (li)_mm256_permute2x128_si256((__m256i)t[k], (__m256i)t[4 + k], 0x31);
#else
        v[k] = t[k];
#endif
    }
#else
    for (int i = 0; i < LANES; ++i)
        for (int j = 0; j < i; ++j) {
            int32_t kept = v[i][j];
            v[i][j] = v[j][i];
            v[j][i] = kept;
        }
#endif
}

/* out[i], lane j: element i of the block at from + j * stride. count is a multiple of LANES. */
INLINE void load_transposed(const float *from, int64_t stride, int count, lf *out) {
    for (int i = 0; i < count; i += LANES) {
        li v[LANES];
        for (int j = 0; j < LANES; ++j) v[j] = bits(load(from + j * stride + i));
        transpose(v);
        for (int j = 0; j < LANES; ++j) out[i + j] = from_bits(v[j]);
    }
}

/* Lane j of v[i], for i below count, a multiple of 4 * LANES or 4 * LANES divided by 2 or 4, goes as a byte
 * to out[j * stride + i]. Each is 0 to 255. */
INLINE void store_bytes_transposed(const li *v, int count, uint8_t *out, int64_t stride) {
    for (int i = 0; i < count; i += 4 * LANES) {
        const int words = count - i < 4 * LANES ? (count - i) / 4 : LANES;
        li t[LANES];
        for (int k = 0; k < LANES; ++k) {
            const li *four = v + i + 4 * k;
            t[k] = k < words ? four_bytes(four[0], four[1], four[2], four[3]) : ints(0);
        }
        transpose(t);
        for (int j = 0; j < LANES; ++j) memcpy(out + j * stride + i, &t[j], 4 * words);
    }
}

/* The nearest half float, ties to even, infinite above 65519.996. */
INLINE uint16_t half_bits(float x) {
#if LANES > 4
    return _cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT);
#else
    uint32_t word;
    memcpy(&word, &x, 4);
    const uint32_t sign = word >> 16 & 0x8000u, magnitude = word & 0x7fffffffu;
    if (magnitude >= 0x47800000u) return sign | (magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u);
    if (magnitude >= 0x38800000u) /* normal: drop 13 bits, rounding, and correct the exponent's bias */
        return sign | ((magnitude + 0xfffu + (magnitude >> 13 & 1u) - 0x38000000u) >> 13);
    float small; /* multiples of 2^-24: the sum with 0.5 rounds to them */
    memcpy(&small, &magnitude, 4);
    small += 0.5f;
    memcpy(&word, &small, 4);
    return sign | (word - 0x3f000000u);
#endif
}

INLINE float half_value(uint16_t half) {
#if LANES > 4
    return _cvtsh_ss(half);
#else
    const uint32_t sign = (uint32_t)(half & 0x8000u) << 16, rest = (uint32_t)(half & 0x7fffu) << 13;
    float x;
    if (rest >= 0x0f800000u) { /* infinite or NaN */
        const uint32_t word = sign | 0x70000000u | rest;
        memcpy(&x, &word, 4);
        return x;
    }
    memcpy(&x, &rest, 4);
    x *= 0x1p112f;
    return sign ? -x : x;
#endif
}

#endif
