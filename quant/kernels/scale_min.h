/* The searches of ggml's K-quants for the scale and minimum of a sub-block, one sub-block a lane.
 *
 * Sub-blocks come in vectors of LANES, and GROUPS vectors are searched at once, PAIR of them abreast: sums over
 * a sub-block are made in the reference's order, and one addition waits for the one before it, so that the
 * processor has time for the sums of other sub-blocks; and what divisions give is wanted only after the sums
 * of the next pair.
 */
#ifndef KCONV_SCALE_MIN_H
#define KCONV_SCALE_MIN_H

#include "lanes.h"

#define GROUPS 4
#define PAIR 2
#define EACH_GROUP for (int g = 0; g < GROUPS; ++g)
#define EACH_PAIR for (int p = 0; p < GROUPS; p += PAIR)
#define EACH_OF_PAIR for (int g = 0; g < PAIR; ++g)

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

/* MAGIC + the nearest whole number, brought to between 0 and top. */
INLINE lf nearest_level(lf x, int top) {
    return between(nearest_sum(x), floats(MAGIC), floats(MAGIC + top));
}

/* Where a weight lies among the levels is tame if it is less than ``reach`` from ``middle``. AVX-512 looks levels
 * up to 15 up, by the lowest five bits of a sum with MAGIC, which are those of -8 to 23. */
#define LOOKED_UP(top) (LANES == 16 && (top) < 16)
#define MIDDLE(top) (LOOKED_UP(top) ? 7.5f : 0.0f)
#define REACH(top) (LOOKED_UP(top) ? 15.5f : 0x1p22f)

/* The level of a tame place: nearest_level(place, top) - MAGIC. */
INLINE lf tame_level(lf place, int top) {
#if LANES == 16
    if (LOOKED_UP(top)) {
        const lf from_0 = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
        const lf from_16 = {15, 15, 15, 15, 15, 15, 15, 15, 0, 0, 0, 0, 0, 0, 0, 0};
        const __m512 low = (__m512)minimum(from_0, floats(top)), high = (__m512)minimum(from_16, floats(top));
        return (lf)_mm512_permutex2var_ps(low, (__m512i)(place + MAGIC), high);
    }
#endif
    return between(nearest_small(place), floats(0), floats(top));
}

/* A vector of sub-blocks: its least weight, but at most 0, and its greatest; where levels are counted from, and
 * the next scale that is tried, inverted; the sums that scale and offset for its levels follow from; the least
 * error so far. */
typedef struct {
    lf low, high, origin, iscale, w, x, l, ll, xl, scale, offset, best;
    lm solvable;
} tried_scale;

/* Sum of the weighted errors of a sub-block. levels: PAIR * count. */
INLINE void weigh_errors(
    const search_range *range, const lf *x, const lf *weights, const lf *levels, const tried_scale *tried, lf *error
) {
    const int count = range->count;
    EACH_OF_PAIR error[g] = floats(0);
#pragma GCC unroll 4
    for (int i = 0; i < count; ++i)
        EACH_OF_PAIR {
            const int at = g * count + i;
            lf difference = tried[g].scale * levels[at] + tried[g].offset - x[at];
            difference = range->absolute ? absolute(difference) : difference * difference;
            error[g] += weights[at] * difference;
        }
}

/* The levels with one iscale, and their sums. ``tame`` says that all places are. */
INLINE void sum_levels(
    const search_range *range, bool tame, const lf *x, const lf *weights, lf *levels, tried_scale *tried
) {
    const int count = range->count;
    lf l[PAIR], ll[PAIR], xl[PAIR];
    EACH_OF_PAIR l[g] = ll[g] = xl[g] = floats(0);
#pragma GCC unroll 4
    for (int i = 0; i < count; ++i)
        EACH_OF_PAIR {
            const int at = g * count + i;
            const lf place = tried[g].iscale * (x[at] - tried[g].origin);
            const lf level = tame ? tame_level(place, range->top) : nearest_level(place, range->top) - MAGIC;
            const lf weighted = weights[at] * level;
            levels[at] = level;
            l[g] += weighted;
            ll[g] += weighted * level;
            xl[g] += weighted * x[at];
        }
    EACH_OF_PAIR tried[g].l = l[g], tried[g].ll = ll[g], tried[g].xl = xl[g];
}

/* Places rise, or fall, with the weights: if those of the least and the greatest are tame, all are. */
INLINE void assign_levels(
    const search_range *range, const lf *x, const lf *weights, lf *levels, tried_scale *tried
) {
    const lf middle = floats(MIDDLE(range->top)), reach = floats(REACH(range->top));
    bool tame = true;
    EACH_OF_PAIR {
        const lf lowest = tried[g].iscale * (tried[g].low - tried[g].origin);
        const lf highest = tried[g].iscale * (tried[g].high - tried[g].origin);
        const lm first = less(absolute(lowest - middle), reach), last = less(absolute(highest - middle), reach);
        tame = tame && all(both(first, last));
    }
    if (tame)
        sum_levels(range, true, x, weights, levels, tried);
    else
        sum_levels(range, false, x, weights, levels, tried);
}

/* The best scale and offset for the sums. */
INLINE void solve(tried_scale *tried) {
    EACH_OF_PAIR {
        const lf w = tried[g].w, sx = tried[g].x, l = tried[g].l, ll = tried[g].ll, xl = tried[g].xl;
        const lf determinant = w * ll - l * l;
        tried[g].solvable = less(floats(0), determinant);
        tried[g].scale = (w * xl - sx * l) / determinant;
        tried[g].offset = (ll * sx - l * xl) / determinant;
        const lm positive = less(floats(0), tried[g].offset);
        if (any(positive)) {
            tried[g].scale = choose(positive, xl / ll, tried[g].scale);
            tried[g].offset = choose(positive, floats(0), tried[g].offset);
        }
    }
}

/* The first scale, from the range of the weights. */
INLINE void begin_scale(
    const search_range *range, const lf *x, const lf *weights, lf *levels, tried_scale *tried
) {
    const int count = range->count;
    EACH_OF_PAIR {
        const lf *xs = x + g * count, *ws = weights + g * count;
        lf low = xs[0], high = xs[0], w = ws[0], sx = ws[0] * xs[0];
        for (int i = 1; i < count; ++i) {
            low = minimum(xs[i], low), high = maximum(xs[i], high);
            w += ws[i], sx += ws[i] * xs[i];
        }
        low = choose(less(floats(0), low), floats(0), low);
        tried[g].low = tried[g].origin = tried[g].offset = low;
        tried[g].high = high, tried[g].w = w, tried[g].x = sx;
        tried[g].iscale = (float)range->top / (high - low);
        tried[g].scale = 1.0f / tried[g].iscale;
    }
    assign_levels(range, x, weights, levels, tried);
}

/* make_qkx2_quants and make_qkx3_quants of ggml-quants.c, which find the same for the same weights.
 *
 * x and weights: GROUPS * count; the sums of weights go to ``sums``. Where the reference stops early, because
 * all weights are one number that is not positive, iscale is infinite here, its products with zero are NaN, all
 * levels are 0 and the scale is 1 / iscale = 0, as there. */
INLINE void find_scale_min(const search_range *range, const lf *x, const lf *weights, scale_min *found, lf *sums) {
    const int count = range->count;
    lf levels[GROUPS * 32], error[PAIR];
    tried_scale tried[GROUPS];
    EACH_PAIR {
        const lf *xs = x + p * count, *ws = weights + p * count;
        begin_scale(range, xs, ws, levels + p * count, tried + p);
        weigh_errors(range, xs, ws, levels + p * count, tried + p, error);
        EACH_OF_PAIR {
            const tried_scale *own = tried + p + g;
            found->scale[p + g] = own->scale, found->iscale[p + g] = own->iscale;
            found->origin[p + g] = own->origin, sums[p + g] = own->w;
            tried[p + g].best = error[g];
        }
    }
    for (int k = 0; k <= range->last; ++k) {
        const float width = range->first + range->step * k + range->top;
        EACH_PAIR {
            EACH_OF_PAIR tried[p + g].iscale = width / (tried[p + g].high - tried[p + g].origin);
            assign_levels(range, x + p * count, weights + p * count, levels + p * count, tried + p);
            solve(tried + p);
        }
        EACH_PAIR {
            weigh_errors(range, x + p * count, weights + p * count, levels + p * count, tried + p, error);
            EACH_OF_PAIR {
                tried_scale *own = tried + p + g;
                const lm better = both(own->solvable, less(error[g], own->best));
                own->best = choose(better, error[g], own->best);
                found->scale[p + g] = choose(better, own->scale, found->scale[p + g]);
                found->iscale[p + g] = choose(better, own->iscale, found->iscale[p + g]);
                found->origin[p + g] = choose(better, own->origin, found->origin[p + g]);
                own->origin = choose(better, own->offset, own->origin); /* the reference goes on from there */
            }
        }
    }
    EACH_GROUP found->minimum[g] = -tried[g].origin;
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
    lf sums[GROUPS];
    find_scale_min(range, x, weights, &best, sums);
    EACH_GROUP {
        const int at = first + g * LANES;
        store(found->scale + at, best.scale[g]), store(found->minimum + at, best.minimum[g]);
        store(found->iscale + at, best.iscale[g]), store(found->origin + at, best.origin[g]);
        store(found->sum + at, sums[g]);
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
