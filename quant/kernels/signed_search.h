/* Blocks of 16 or 32 weights, a lane each, in levels -top to top - 1 of one signed scale (q6_K and q3_K; q4_0
 * and q5_0 with importance).
 *
 * The search is make_qx_quants of ggml-quants.c with rmse_type 1. Its levels are computed as floats, which
 * hold them exactly; the sign of a level that is zero changes no sum.
 */
#ifndef KCONV_SIGNED_SEARCH_H
#define KCONV_SIGNED_SEARCH_H

#include "lanes.h"

#define SIGNED_BLOCK 16 /* of q6_K and q3_K */

/* What remains to be done after rounding in a part of the search; constants where it is inlined. */
typedef struct {
    float top;
    bool wild; /* the values may be infinite or NaN: take the low bits alone, as nearest_int does */
    bool low;  /* levels below -top can come out */
    bool high; /* levels above top - 1 can come out */
} level_clamp;

INLINE lf signed_level(lf x, level_clamp clamp) {
    lf level = clamp.wild ? nearest_sum(x) - MAGIC : nearest_small(x);
    if (clamp.low) level = maximum(level, floats(-clamp.top));
    if (clamp.high) level = minimum(level, floats(clamp.top - 1));
    return level;
}

typedef struct {
    lf scale;
    lf error;   /* what the search makes largest: scale * sum of weight * x * level */
    lf inverse; /* what gave the levels: the weights times this, rounded. NaN in lanes that count as zero */
} signed_scale;

/* The weight of the largest magnitude, the first of several; it has the sign that matters. */
INLINE lf largest_weight(int size, const lf *x) {
    lf largest = floats(0);
    for (int i = 0; i < size; ++i)
        largest = choose(less(absolute(largest), absolute(x[i])), x[i], largest);
    return largest;
}

/* For each of ``count`` scales of blocks of ``size`` the sums of weight * x * level and of weight * level * level. */
INLINE void signed_sums(
    int size, int count, const lf *x, const lf *weights, const lf *weighted, const lf *inverse,
    level_clamp clamp, lf *xl, lf *ll
) {
    for (int k = 0; k < count; ++k) xl[k] = ll[k] = floats(0);
    for (int i = 0; i < size; ++i)
        for (int k = 0; k < count; ++k) {
            const lf level = signed_level(inverse[k] * x[i], clamp);
            xl[k] += weighted[i] * level;
            ll[k] += weights[i] * level * level;
        }
}

#define ABREAST 3 /* scales tried at once, so that the processor need not wait for the sum of one */

/* Tries the scales by which the largest weight gets level -(top + step / 10), from step ``first`` to ``last``:
 * a multiple of ABREAST steps. */
INLINE void try_signed(
    int size, const lf *x, const lf *weights, const lf *weighted, lf largest, int first, int last,
    level_clamp clamp, signed_scale *best
) {
    for (int step = first; step <= last; step += ABREAST) {
        lf inverse[ABREAST], xl[ABREAST], ll[ABREAST];
        for (int k = 0; k < ABREAST; ++k) inverse[k] = -(clamp.top + 0.1f * (step + k)) / largest;
        signed_sums(size, ABREAST, x, weights, weighted, inverse, clamp, xl, ll);
        for (int k = 0; k < ABREAST; ++k) {
            const lf scale = xl[k] / ll[k], error = scale * xl[k];
            const lm better = both(less(floats(0), ll[k]), less(best->error * ll[k], xl[k] * xl[k]));
            best->scale = choose(better, scale, best->scale);
            best->error = choose(better, error, best->error);
            best->inverse = choose(better, inverse[k], best->inverse);
        }
    }
}

/* The best scale of each lane for ``x`` weighed by ``weights``, zero where all of x are (nearly) zero.
 *
 * Unless ``wild`` says otherwise x is finite. Then x times inverse is at most top + step / 10 and a few
 * roundings in magnitude: levels need no lower bound up to step 4 and no bound at all up to step -6.
 */
INLINE signed_scale search_signed(int size, const lf *x, const lf *weights, int top, bool wild) {
    lf weighted[32], xl, ll;
    for (int i = 0; i < size; ++i) weighted[i] = weights[i] * x[i];
    const lf largest = largest_weight(size, x);
    const level_clamp none = {top, wild, wild, wild}, high = {top, wild, wild, true};
    const level_clamp full = {top, wild, true, true};
    signed_scale best = {.inverse = -(float)top / largest}; /* step 0 is what the others must beat */
    signed_sums(size, 1, x, weights, weighted, &best.inverse, high, &xl, &ll);
    best.scale = choose(unequal(ll, floats(0)), xl / ll, floats(0));
    best.error = best.scale * xl;
    try_signed(size, x, weights, weighted, largest, -9, -7, none, &best);
    try_signed(size, x, weights, weighted, largest, -6, -1, high, &best);
    try_signed(size, x, weights, weighted, largest, 1, 3, high, &best);
    try_signed(size, x, weights, weighted, largest, 4, 9, full, &best);
    const lm flat = less(absolute(largest), floats(GROUP_MAX_EPS));
    best.scale = choose(flat, floats(0), best.scale);
    best.inverse = choose(flat, floats(NAN), best.inverse);
    return best;
}

/* The levels the search ended with, counted from 0; zero, not top, in lanes that count as zero. */
INLINE void searched_levels(int size, const lf *x, lf inverse, int top, li *levels) {
    const lm flat = unequal(inverse, inverse);
    for (int i = 0; i < size; ++i)
        levels[i] = choose_ints(flat, ints(0), clamped(nearest(inverse * x[i]), -top, top - 1) + top);
}

/* The levels for the scale as it is stored, counted from 0. Where that is zero ``levels`` stay. */
INLINE void stored_levels(const lf *x, lf scale, int top, li *levels) {
    const lm none = equal(scale, floats(0));
    for (int i = 0; i < SIGNED_BLOCK; ++i)
        levels[i] = choose_ints(none, levels[i], clamped(nearest(x[i] / scale), -top, top - 1) + top);
}

/* The first of the largest in magnitude of 16 scales, zero if all are zero or NaN. */
INLINE float largest_scale(const float *scales) {
    float largest = 0;
    for (int j = 0; j < 16; ++j)
        if (fabsf(scales[j]) > fabsf(largest)) largest = scales[j];
    return largest;
}

#endif
