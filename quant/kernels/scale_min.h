/* The searches of ggml's K-quants for the scale and minimum of a sub-block, one sub-block a lane.
 *
 * Sub-blocks come in vectors of LANES, and GROUPS vectors are searched at once: sums over a sub-block are
 * made in the reference's order, and one addition waits for the one before it, so that the processor has
 * time for the sums of other sub-blocks.
 */
#ifndef KCONV_SCALE_MIN_H
#define KCONV_SCALE_MIN_H

#include "lanes.h"

#define GROUPS 4
#define EACH_GROUP for (int g = 0; g < GROUPS; ++g)

/* What is tried: every scale (top + first + step * k) / (range of the weights), k from 0 to last. */
typedef struct {
    int count; /* weights in a sub-block */
    int top;   /* the highest level */
    float first, step;
    int last;
    bool absolute; /* errors count as they are, not their squares */
} search_range;

/* What was found: weight i is near scale * level - minimum, where its level is that of
 * iscale * (weight - origin), as find_scale_min left it. */
typedef struct {
    lf scale[GROUPS], minimum[GROUPS], iscale[GROUPS], origin[GROUPS];
} scale_min;

/* MAGIC + the nearest whole number, brought to between 0 and top: nearest() in floats, which are quicker. */
INLINE lf nearest_level(lf x, int top) {
    return minimum(maximum(nearest_sum(x), floats(MAGIC)), floats(MAGIC + top));
}

/* Sum of the weighted errors of a sub-block. levels: GROUPS * count. */
INLINE void weigh_errors(const search_range *range, const lf *x, const lf *weights, const lf *levels,
                         const lf *scale, const lf *low, lf *error) {
    const int count = range->count;
    EACH_GROUP error[g] = floats(0);
#pragma GCC unroll 4
    for (int i = 0; i < count; ++i)
        EACH_GROUP {
            lf difference = scale[g] * levels[g * count + i] + low[g] - x[g * count + i];
            difference = range->absolute ? absolute(difference) : difference * difference;
            error[g] += weights[g * count + i] * difference;
        }
}

typedef struct {
    lf w[GROUPS], x[GROUPS], l[GROUPS], ll[GROUPS], xl[GROUPS];
} weighted_sums;

/* The levels with one iscale, and the sums that the best scale and minimum for these levels follow from. */
INLINE void assign_levels(const search_range *range, const lf *x, const lf *weights, const lf *iscale,
                          const lf *low, lf *levels, weighted_sums *sums) {
    const int count = range->count;
    lf l[GROUPS], ll[GROUPS], xl[GROUPS];
    EACH_GROUP l[g] = ll[g] = xl[g] = floats(0);
#pragma GCC unroll 4
    for (int i = 0; i < count; ++i)
        EACH_GROUP {
            const int at = g * count + i;
            const lf level = nearest_level(iscale[g] * (x[at] - low[g]), range->top) - MAGIC;
            const lf weighted = weights[at] * level;
            levels[at] = level;
            l[g] += weighted;
            ll[g] += weighted * level;
            xl[g] += weighted * x[at];
        }
    EACH_GROUP sums->l[g] = l[g], sums->ll[g] = ll[g], sums->xl[g] = xl[g];
}

/* make_qkx2_quants and make_qkx3_quants of ggml-quants.c, which find the same for the same weights.
 *
 * x and weights: GROUPS * count. Where the reference stops early, because all weights are one number that is
 * not positive, iscale is infinite here, its products with zero are NaN, all levels are 0 and the scale
 * is 1 / iscale = 0, as there. */
INLINE void find_scale_min(const search_range *range, const lf *x, const lf *weights, scale_min *found,
                           weighted_sums *sums) {
    const int count = range->count;
    lf levels[GROUPS * 32], low[GROUPS], high[GROUPS], iscale[GROUPS], error[GROUPS], best[GROUPS];
    EACH_GROUP {
        const lf *xs = x + g * count, *ws = weights + g * count;
        low[g] = high[g] = xs[0];
        sums->w[g] = ws[0], sums->x[g] = ws[0] * xs[0];
        for (int i = 1; i < count; ++i) {
            low[g] = minimum(xs[i], low[g]), high[g] = maximum(xs[i], high[g]);
            sums->w[g] += ws[i], sums->x[g] += ws[i] * xs[i];
        }
        low[g] = choose(less(floats(0), low[g]), floats(0), low[g]);
        iscale[g] = (float)range->top / (high[g] - low[g]);
        found->scale[g] = 1.0f / iscale[g];
        found->iscale[g] = iscale[g], found->origin[g] = low[g];
    }
    assign_levels(range, x, weights, iscale, low, levels, sums);
    weigh_errors(range, x, weights, levels, found->scale, low, best);
    for (int k = 0; k <= range->last; ++k) {
        const float width = range->first + range->step * k + range->top;
        lf scale[GROUPS], offset[GROUPS];
        EACH_GROUP iscale[g] = width / (high[g] - low[g]);
        assign_levels(range, x, weights, iscale, low, levels, sums);
        lm solvable[GROUPS];
        EACH_GROUP {
            const lf w = sums->w[g], sx = sums->x[g], l = sums->l[g], ll = sums->ll[g], xl = sums->xl[g];
            const lf determinant = w * ll - l * l;
            solvable[g] = less(floats(0), determinant);
            scale[g] = (w * xl - sx * l) / determinant;
            offset[g] = (ll * sx - l * xl) / determinant;
            const lm positive = less(floats(0), offset[g]);
            scale[g] = choose(positive, xl / ll, scale[g]);
            offset[g] = choose(positive, floats(0), offset[g]);
        }
        weigh_errors(range, x, weights, levels, scale, offset, error);
        EACH_GROUP {
            const lm better = both(solvable[g], less(error[g], best[g]));
            best[g] = choose(better, error[g], best[g]);
            found->scale[g] = choose(better, scale[g], found->scale[g]);
            found->iscale[g] = choose(better, iscale[g], found->iscale[g]);
            found->origin[g] = choose(better, low[g], found->origin[g]);
            low[g] = choose(better, offset[g], low[g]); /* the reference goes on from there */
        }
    }
    EACH_GROUP found->minimum[g] = -low[g];
}

/* What was found for up to 16 * LANES blocks, in their order, and the sums of their weights. */
typedef struct {
    float scale[16 * LANES], minimum[16 * LANES], iscale[16 * LANES], origin[16 * LANES], sum[16 * LANES];
} found_blocks;

/* find_scale_min of the GROUPS * LANES blocks from ``first`` on. */
INLINE void find_blocks(
    const search_range *range, const lf *x, const lf *weights, int first, found_blocks *found
) {
    scale_min best;
    weighted_sums sums;
    find_scale_min(range, x, weights, &best, &sums);
    EACH_GROUP {
        const int at = first + g * LANES;
        store(found->scale + at, best.scale[g]), store(found->minimum + at, best.minimum[g]);
        store(found->iscale + at, best.iscale[g]), store(found->origin + at, best.origin[g]);
        store(found->sum + at, sums.w[g]);
    }
}

/* The levels of the LANES blocks from ``first`` on, x (blocks, count), for scales and minima as they are
 * stored; as bytes, to (blocks, count). Where a scale is zero they are those of the search. */
INLINE void assign_stored(
    const search_range *range, const float *x, const float *scale, const float *minimum,
    const found_blocks *found, int first, uint8_t *to
) {
    const int count = range->count;
    const lf d = load(scale + first), m = load(minimum + first);
    const lf iscale = load(found->iscale + first), origin = load(found->origin + first);
    const lm none = equal(d, floats(0));
    const bool some = any(none);
    lf values[32];
    li levels[32];
    load_transposed(x + first * count, count, count, values);
    for (int i = 0; i < count; ++i) {
        lf level = nearest_level((values[i] + m) / d, range->top);
        if (some) level = choose(none, nearest_level(iscale * (values[i] - origin), range->top), level);
        levels[i] = bits(level) & range->top; /* which is 2^n - 1 */
    }
    store_bytes_transposed(levels, count, to + first * count, count);
}

#endif
