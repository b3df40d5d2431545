/* iq4_nl and iq4_xs: blocks of 32 weights, each a multiple of one of sixteen numbers; a lane is a block.
 *
 * iq4_nl is a half float, the scale, and 16 bytes of levels. iq4_xs is super-blocks of 256: the half float that
 * the scales of its eight blocks are multiples of, these multiples (six bits each: two bytes of the upper two
 * bits, then four of the lower four) and the levels. As quantize_row_iq4_nl_impl of ggml-quants.c.
 */
#ifndef KCONV_IQ4_H
#define KCONV_IQ4_H

#include "batches.h"

enum { IQ4_NL_BYTES = 18, IQ4_XS_BYTES = 136, IQ4_XS_LOW = 4, IQ4_XS_LEVELS = 8, IQ4_TRIES = 7 };

/* kvalues_iq4nl of ggml-common.h, and halfway between each and the next: best_index_int8 decides there, as the
 * differences that it compares are exact around it, and counts NaN as larger than any. Nothing is beyond the
 * last. */
static const float IQ4_VALUES[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
static const float IQ4_HALFWAY[16] = {-115.5f, -93.5f, -74, -57, -42, -28.5f, -16, -4.5f,
                                      7, 19, 31.5f, 45.5f, 61, 79, 101, NAN};

/* The place of the value nearest to x, and the value. */
INLINE li nearest_place(lf x, lf *value) {
#if LANES == 16
    /* x is in a bin around a multiple of 8, and there is at most one of IQ4_HALFWAY in it. What is nearest to
     * the low end of each bin, from that around 0 to that around 112, then from -136 on: */
    static const int32_t lowest[32] = {8, 8, 9, 10, 10, 11, 11, 12, 12, 13, 13, 14, 14, 14, 15, 0,
                                       0, 0, 0, 1, 1, 2, 2, 2, 3, 3, 4, 4, 5, 6, 6, 7};
    const lf bin = maximum(minimum(x, floats(113)), floats(-136)) + 8 * MAGIC; /* in the low five bits */
    const li low = (li)_mm512_permutex2var_epi32(
        (__m512i)load_ints(lowest), (__m512i)bits(bin), (__m512i)load_ints(lowest + 16)
    );
    const lf halfway = (lf)_mm512_permutexvar_ps((__m512i)low, (__m512)load(IQ4_HALFWAY));
    const li place = choose_ints(less_equal(halfway, x), low + 1, low);
    *value = (lf)_mm512_permutexvar_ps((__m512i)place, (__m512)load(IQ4_VALUES));
#elif LANES == 8
    /* One bit of the place after the other, 0 or -1 for the lower half: place = 15 + what these make. Tables are
     * in the order 0, -7, -6 to -1, as three bits of negative numbers count. */
#define PICK(place, ...) (lf)_mm256_permutevar8x32_ps((__m256){__VA_ARGS__}, (__m256i)(place))
    const li first = less(x, floats(-4.5f));
    const li second = less(x, choose(first, floats(-57), floats(45.5f)));
    const li two = first + first + second;
    const li third = less(x, PICK(two, 79, 0, 0, 0, 0, -93.5f, -28.5f, 19));
    const li three = two + two + third;
    const li fourth = less(x, PICK(three, 101, -115.5f, -74, -42, -16, 7, 31.5f, 61));
    const li place = three + three + fourth + 15;
    *value = choose(
        fourth, PICK(three, 89, -127, -83, -49, -22, 1, 25, 53), PICK(three, 113, -104, -65, -35, -10, 13, 38, 69)
    );
#undef PICK
#else
    li place = ints(15);
    *value = floats(IQ4_VALUES[15]);
    for (int i = 0; i < 15; ++i) {
        const lm below = less(x, floats(IQ4_HALFWAY[i]));
        place += below;
        *value += from_bits(below & bits(floats(IQ4_VALUES[i] - IQ4_VALUES[i + 1])));
    }
#endif
    return place;
}

typedef struct {
    lf qx, qq;
} iq4_sums;

INLINE iq4_sums sum_iq4(const lf *x, const lf *weights, lf inverse) {
    iq4_sums sums = {floats(0), floats(0)};
    for (int i = 0; i < 32; ++i) {
        lf value;
        nearest_place(inverse * x[i], &value);
        const lf weighted = weights[i] * value;
        sums.qx += weighted * x[i];
        sums.qq += weighted * value;
    }
    return sums;
}

/* Of numbers with the largest magnitude the first. */
INLINE lf first_largest(int count, const lf *x) {
    lf largest = floats(0);
    for (int i = 0; i < count; ++i) largest = choose(less(absolute(largest), absolute(x[i])), x[i], largest);
    return largest;
}

/* The scales of LANES blocks. */
INLINE lf search_iq4(const lf *x, const lf *weights) {
    const lf largest = first_largest(32, x);
    iq4_sums sums = sum_iq4(x, weights, 1.0f / (-largest / IQ4_VALUES[0]));
    lf scale = choose(less(floats(0), sums.qq), sums.qx / sums.qq, floats(0));
    lf best = scale * sums.qx;
    for (int k = -IQ4_TRIES; k <= IQ4_TRIES; ++k) {
        sums = sum_iq4(x, weights, (k + IQ4_VALUES[0]) / largest);
        const lm better = both(less(floats(0), sums.qq), less(best * sums.qq, sums.qx * sums.qx));
        scale = choose(better, sums.qx / sums.qq, scale);
        best = choose(better, scale * sums.qx, best);
    }
    return choose(less(absolute(largest), floats(GROUP_MAX_EPS)), floats(0), scale);
}

/* What the errors of LANES blocks weigh: the square of each or, with importance, as weigh_blocks says. */
INLINE void weigh_iq4(const lf *x, const float *const *importance, const float *spreads, lf *weights) {
    if (!importance) {
        for (int i = 0; i < 32; ++i) weights[i] = x[i] * x[i];
        return;
    }
    float own[32 * LANES];
    for (int j = 0; j < LANES; ++j) memcpy(own + 32 * j, importance[j], sizeof(float[32]));
    weigh_blocks(32, x, own, load(spreads), weights);
}

/* 1 / scale, or 0 for 0. */
INLINE lf inverse_iq4(lf scale) { return choose(equal(scale, floats(0)), floats(0), 1.0f / scale); }

/* The levels of LANES blocks, each 16 bytes, to[stride * block]: the second half above the first. */
INLINE void pack_iq4(const lf *x, lf inverse, uint8_t *to, int stride) {
    li levels[16];
    lf value;
    for (int i = 0; i < 16; ++i)
        levels[i] = nearest_place(inverse * x[i], &value) | nearest_place(inverse * x[i + 16], &value) << 4;
    store_bytes_transposed(levels, 16, to, stride);
}

INLINE void encode_batch_iq4_nl(const float *x, const float *const *importance, uint8_t *to) {
    lf values[32], weights[32], sum = floats(0);
    float scale[LANES], spreads[LANES];
    load_transposed(x, 32, 32, values);
    for (int i = 0; i < 32; ++i) sum += values[i] * values[i];
    store(spreads, sum * (2.0f / 32));
    weigh_iq4(values, importance, spreads, weights);
    const lf found = search_iq4(values, weights);
    store(scale, found);
    for (int n = 0; n < LANES; ++n) {
        const uint16_t half = half_bits(scale[n]);
        memcpy(to + n * IQ4_NL_BYTES, &half, 2);
    }
    pack_iq4(values, inverse_iq4(found), to + 2, IQ4_NL_BYTES);
}

/* Factors, from -32 to 31, of the scales of eight blocks of LANES super-blocks, a super-block a lane, and what
 * they are multiples of. */
INLINE lf factor_iq4_xs(const lf *scales, li *factors) {
    const lf unit = -first_largest(8, scales) / 32.0f, inverse = inverse_iq4(unit);
    for (int j = 0; j < 8; ++j) factors[j] = clamped(nearest(inverse * scales[j]), -32, 31);
    return unit;
}

INLINE void pack_scales_iq4_xs(float unit, const uint8_t *factors, uint8_t *to) {
    const uint16_t half = half_bits(unit);
    uint16_t high = 0;
    for (int j = 0; j < 8; ++j) high |= (factors[j] >> 4) << 2 * j;
    memcpy(to, &half, 2);
    memcpy(to + 2, &high, 2);
    for (int j = 0; j < 4; ++j) to[IQ4_XS_LOW + j] = (factors[2 * j] & 15) | factors[2 * j + 1] << 4;
}

INLINE void encode_batch_iq4_xs(const float *x, const float *const *importance, uint8_t *to) {
    float scale[16 * LANES] = {0}, spreads[LANES], unit[LANES], inverse[8 * LANES];
    uint8_t bytes[8 * LANES], levels[128 * LANES];
    if (importance) store(spreads, sum_squares(x) * (2.0f / 256));
    for (int first = 0; first < 8 * LANES; first += LANES) {
        lf values[32], weights[32];
        const float *own[LANES];
        float spread[LANES];
        for (int j = 0; importance && j < LANES; ++j) {
            const int block = first + j;
            own[j] = importance[block / 8] + 32 * (block % 8), spread[j] = spreads[block / 8];
        }
        load_transposed(x + 32 * first, 32, 32, values);
        weigh_iq4(values, importance ? own : NULL, spread, weights);
        store(scale + first, search_iq4(values, weights));
    }
    lf scales[8];
    li factors[8];
    load_eights(scale, scales);
    const lf units = factor_iq4_xs(scales, factors);
    store(unit, units);
    for (int j = 0; j < 8; ++j) {
        scales[j] = inverse_iq4(units * to_floats(factors[j])); /* not as the half float says */
        factors[j] += 32;
    }
    store_bytes_transposed(factors, 8, bytes, 8);
    for (int j = 0; j < 8; ++j) {
        float lane[LANES];
        store(lane, scales[j]);
        for (int n = 0; n < LANES; ++n) inverse[8 * n + j] = lane[n];
    }
    for (int first = 0; first < 8 * LANES; first += LANES) {
        lf values[32];
        load_transposed(x + 32 * first, 32, 32, values);
        pack_iq4(values, load(inverse + first), levels + 16 * first, 16);
    }
    for (int n = 0; n < LANES; ++n, to += IQ4_XS_BYTES) {
        pack_scales_iq4_xs(unit[n], bytes + 8 * n, to);
        memcpy(to + IQ4_XS_LEVELS, levels + 128 * n, 128);
    }
}

static void NAME(encode_iq4_nl)(
    const float *x, void *out, int64_t rows, int64_t columns, const float *importance
) {
    encode_batches(encode_batch_iq4_nl, 32, IQ4_NL_BYTES, x, out, rows, columns, importance);
}

static void NAME(encode_iq4_xs)(
    const float *x, void *out, int64_t rows, int64_t columns, const float *importance
) {
    encode_batches(encode_batch_iq4_xs, 256, IQ4_XS_BYTES, x, out, rows, columns, importance);
}

#endif
