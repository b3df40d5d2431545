/* iq1_s and iq1_m: sub-blocks whose weights are -1, 0 or 1 steps and an eighth of a step more or less.
 *
 * A lane is a sub-block: as quantize_row_iq1_s_impl and quantize_row_iq1_m_impl of ggml-quants.c. They sort the
 * weights, try every way to cut them into three runs, the lowest -1 and the highest 1, and then take for each group
 * of eight the point of the grid that the levels are, or else the best of its neighbours.
 */
#ifndef KCONV_IQ1_SEARCH_H
#define KCONV_IQ1_SEARCH_H

#include "grid_search.h"

static const grid_format IQ1_S = {.ggml_type = 19, .size = 32, .dims = 8, .least = 1e-12f};
static const grid_format IQ1_M = {.ggml_type = 29, .size = 16, .dims = 8, .least = 1e-7f};

/* The values of the levels 0 to 2: x_p and x_m there. */
static const float RAISED_VALUES[3] = {-0.875f, 0.125f, 1.125f}, LOWERED_VALUES[3] = {-1.125f, -0.125f, 0.875f};

/* Of LANES sub-blocks. Values of the first half of a sub-block are lowered where bit 1 of ``kind`` is set, those of
 * the second where bit 0 is. ``points`` have the codes of grids.h. */
typedef struct {
    lf scale;
    li points[4], kind;
} found_iq1;

/* The best cut so far: its first and second place and its kind in a byte each, or -1 before there is one. */
typedef struct {
    lf scale, score;
    li cut;
} best_cut;

/* How many weights of its sub-block come before each: equal ones in their order, and -0 is equal to 0. So qsort of
 * glibc, which sorts so few by merging, leaves them. */
INLINE void rank_weights(int size, const lf *x, li *rank) {
    for (int i = 0; i < size; ++i) rank[i] = ints(size - 1 - i);
    for (int j = 1; j < size; ++j)
        for (int i = 0; i < j; ++i) {
            const lm before = less_equal(x[i], x[j]);
            rank[i] -= choose_ints(before, ints(1), ints(0));
            rank[j] += choose_ints(before, ints(1), ints(0));
        }
}

/* Numbers of LANES sub-blocks (size, LANES) in the order of the ranks. */
INLINE void put_in_order(int size, const li *rank, const lf *from, lf *to) {
    int32_t ranks[32 * LANES];
    float values[32 * LANES], sorted[32 * LANES];
    memcpy(ranks, rank, sizeof(li) * size), memcpy(values, from, sizeof(lf) * size);
    for (int i = 0; i < size * LANES; i += LANES)
        for (int j = 0; j < LANES; ++j) sorted[ranks[i + j] * LANES + j] = values[i + j];
    memcpy(to, sorted, sizeof(lf) * size);
}

/* Takes a cut where it is better. */
INLINE void take_cut(lf qx, lf qq, int32_t cut, best_cut *best) {
    const lm better = both(less(floats(0), qq), less(best->score * qq, qx * qx));
    best->scale = choose(better, qx / qq, best->scale);
    best->score = choose(better, best->scale * qx, best->score);
    best->cut = choose_ints(better, ints(cut), best->cut);
}

INLINE int32_t cut_at(int first, int second, int kind) { return first | second << 8 | kind << 16; }

/* Of iq1_s. What the weights up to a place and those from it on add, with values raised and lowered, is made
 * beforehand; the weights between add the same either way, but for the sign. */
INLINE void try_cuts_iq1_s(const li *rank, const lf *weights, const lf *weighted, best_cut *best) {
    const float *p = RAISED_VALUES, *m = LOWERED_VALUES;
    lf x[33], w[33];
    struct {
        lf x_raised, x_lowered, w_raised, w_lowered;
    } below[33], above[33];
    put_in_order(32, rank, weighted, x + 1), put_in_order(32, rank, weights, w + 1);
    x[0] = w[0] = floats(0);
    for (int i = 1; i <= 32; ++i) x[i] += x[i - 1], w[i] += w[i - 1];
    for (int i = 0; i <= 32; ++i) {
        const lf rest = x[32] - x[i], heavy = w[32] - w[i];
        below[i].x_raised = x[i] * p[0], below[i].x_lowered = x[i] * m[0];
        below[i].w_raised = w[i] * p[0] * p[0], below[i].w_lowered = w[i] * m[0] * m[0];
        above[i].x_raised = rest * p[2], above[i].x_lowered = rest * m[2];
        above[i].w_raised = heavy * p[2] * p[2], above[i].w_lowered = heavy * m[2] * m[2];
    }
    for (int i = 0; i <= 32; ++i)
        for (int k = i; k <= 32; ++k) {
            const lf between = (x[k] - x[i]) * p[1], heavy = (w[k] - w[i]) * p[1] * p[1];
            const lf x_raised = below[i].x_raised + between + above[k].x_raised;
            const lf w_raised = below[i].w_raised + heavy + above[k].w_raised;
            const lf x_lowered = below[i].x_lowered - between + above[k].x_lowered;
            const lf w_lowered = below[i].w_lowered + heavy + above[k].w_lowered;
            if (!any(either(less(best->score * w_raised, x_raised * x_raised),
                            less(best->score * w_lowered, x_lowered * x_lowered))))
                continue;
            take_cut(x_raised, w_raised, cut_at(i, k, 0), best);
            take_cut(x_lowered, w_lowered, cut_at(i, k, 3), best);
        }
}

/* Of one half of a sub-block of iq1_m, up to each place: the sums of weight * x, and what the weights add where a
 * cut is first, or second, with values raised and lowered. ``x`` and ``w`` are all of the half. */
typedef struct {
    lf sums[17], first_raised[17], first_lowered[17], second_raised[17], second_lowered[17], x, w;
} half_sums;

INLINE void sum_half(int half, const li *rank, const lf *weights, const lf *weighted, half_sums *sums) {
    const float *p = RAISED_VALUES, *m = LOWERED_VALUES;
    lf own_x[16], own_w[16], w[17];
    for (int i = 0; i < 16; ++i) { /* the other half's add nothing */
        own_x[i] = i / 8 == half ? weighted[i] : floats(-0.0f);
        own_w[i] = i / 8 == half ? weights[i] : floats(-0.0f);
    }
    put_in_order(16, rank, own_x, sums->sums + 1), put_in_order(16, rank, own_w, w + 1);
    sums->sums[0] = w[0] = floats(0);
    for (int i = 1; i <= 16; ++i) sums->sums[i] += sums->sums[i - 1], w[i] += w[i - 1];
    sums->x = sums->sums[16], sums->w = w[16];
    for (int i = 0; i <= 16; ++i) {
        sums->first_raised[i] = sums->w * p[2] * p[2] + w[i] * (p[0] * p[0] - p[1] * p[1]);
        sums->first_lowered[i] = sums->w * m[2] * m[2] + w[i] * (m[0] * m[0] - m[1] * m[1]);
        sums->second_raised[i] = w[i] * (p[1] * p[1] - p[2] * p[2]);
        sums->second_lowered[i] = w[i] * (m[1] * m[1] - m[2] * m[2]);
    }
}

INLINE void try_cuts_iq1_m(const li *rank, const lf *weights, const lf *weighted, best_cut *best) {
    half_sums sums[2];
    lf all[2][2]; /* by half, raised and lowered */
    for (int h = 0; h < 2; ++h) {
        sum_half(h, rank, weights, weighted, &sums[h]);
        all[h][0] = sums[h].x * RAISED_VALUES[2], all[h][1] = sums[h].x * LOWERED_VALUES[2];
    }
    for (int i = 0; i <= 16; ++i)
        for (int k = i; k <= 16; ++k) {
            lf x[2][2], w[2][2];
            for (int h = 0; h < 2; ++h) {
                const lf lower = sums[h].sums[i] + sums[h].sums[k];
                x[h][0] = all[h][0] - lower, x[h][1] = all[h][1] - lower;
                w[h][0] = sums[h].first_raised[i] + sums[h].second_raised[k];
                w[h][1] = sums[h].first_lowered[i] + sums[h].second_lowered[k];
            }
            lf qx[4], qq[4];
            lm better = less(floats(0), floats(0));
            for (int kind = 0; kind < 4; ++kind) {
                qx[kind] = x[0][kind >> 1] + x[1][kind & 1], qq[kind] = w[0][kind >> 1] + w[1][kind & 1];
                better = either(better, less(best->score * qq[kind], qx[kind] * qx[kind]));
            }
            if (!any(better)) continue;
            for (int kind = 0; kind < 4; ++kind) take_cut(qx[kind], qq[kind], cut_at(i, k, kind), best);
        }
}

/* In which sub-blocks the values of a group are lowered. */
INLINE lm lowered(const grid_format *format, li kind, int group) {
    return greater_ints(kind & (format->size == 32 ? 3 : 2 >> group), ints(0));
}

/* Replaces the codes of all groups that are off the grid with their best neighbours', and says where it did. */
INLINE lm find_points_iq1(
    const grid_format *format, const struct grid *grid, const grid_weights *w, lf scale, li kind, li *points
) {
    const int groups = format->size / 8;
    int32_t codes[4 * LANES], low[4 * LANES];
    float scales[LANES];
    sorted_codes sorted;
    store(scales, scale);
    for (int k = 0; k < groups; ++k) {
        store_ints(codes + k * LANES, points[k]);
        store_ints(low + k * LANES, choose_ints(lowered(format, kind, k), ints(1), ints(0)));
    }
    sort_codes(grid, codes, groups * LANES, &sorted);
#define EACH_PLACE(kind, best)                                                                                \
    for (int n = 0; n < sorted.counts[kind]; ++n) {                                                           \
        const int at = sorted.places[kind][n];                                                                \
        const uint32_t point = grid->points[codes[at]];                                                       \
        const uint16_t *list = grid->codes + (size_t)(point & GRID_FIRST) * GRID_PAD;                         \
        const float *x = w->rows + at * 8, *weights = w->roots + at * 8, own = scales[at % LANES];            \
        const enum grid_values values = low[at] ? LOWERED : RAISED;                                           \
        codes[at] = OFF_GRID | (best);                                                                        \
    }
    EACH_PLACE(1, best_of_eight(8, values, list, x, weights, own))
    EACH_PLACE(2, best_of_sixteen(8, values, list, 16, x, weights, own))
    EACH_PLACE(3, best_of_many(8, values, list, point >> GRID_COUNT_SHIFT & GRID_COUNT, x, weights, own))
#undef EACH_PLACE
    li off = ints(0);
    for (int k = 0; k < groups; ++k) {
        points[k] = load_ints(codes + k * LANES);
        off |= points[k] & OFF_GRID;
        points[k] &= OFF_GRID - 1;
    }
    return greater_ints(off, ints(0));
}

/* Adds weight * value * x and weight * value * value of eight weights to sums; values are times ``multiple``. */
INLINE void add_points(const lf *x, const lf *weights, li point, lm low, lf multiple, lf *qx, lf *qq) {
    const lf lowest = choose(low, floats(LOWERED_VALUES[0]), floats(RAISED_VALUES[0]));
    for (int i = 0; i < 8; ++i) {
        const lf value = (to_floats(point >> 2 * i & 3) + lowest) * multiple;
        *qx += weights[i] * value * x[i];
        *qq += weights[i] * value * value;
    }
}

/* LANES sub-blocks; ``w`` has them and what their errors weigh. Those that count as zero get the scale 0, the kind 0
 * and the code 0, which is the grid's first point. */
INLINE void search_iq1(const grid_format *format, const struct grid *grid, grid_weights *w, found_iq1 *found) {
    const int size = format->size, groups = size / 8;
    lf largest = absolute(w->x[0]);
    li rank[32];
    for (int i = 1; i < size; ++i) largest = maximum(largest, absolute(w->x[i]));
    for (int i = 0; i < size; ++i) w->weighted[i] = w->weights[i] * w->x[i];
    rank_weights(size, w->x, rank);
    best_cut best = {largest, floats(-3.40282347e+38f), ints(-1)};
    if (size == 32) try_cuts_iq1_s(rank, w->weights, w->weighted, &best);
    else try_cuts_iq1_m(rank, w->weights, w->weighted, &best);
    const lm none = either(less(largest, floats(format->least)), greater_ints(ints(0), best.cut));
    const lm negative = less(best.scale, floats(0));
    const li first = best.cut & 255, second = best.cut >> 8 & 255;
    const lf scale = choose(negative, -best.scale, best.scale);
    const li kind = choose_ints(negative, 3 - (best.cut >> 16), best.cut >> 16);
    for (int k = 0; k < groups; ++k) {
        found->points[k] = ints(0);
        for (int i = 0; i < 8; ++i) {
            const li own = rank[8 * k + i];
            const li level = 2 - choose_ints(greater_ints(first, own), ints(1), ints(0)) -
                             choose_ints(greater_ints(second, own), ints(1), ints(0));
            found->points[k] |= choose_ints(negative, 2 - level, level) << 2 * i;
        }
        found->points[k] = choose_ints(none, ints(0), found->points[k]);
    }
    store_groups(format, w->x, w->rows), store_groups(format, w->weights, w->roots);
    const lm off = find_points_iq1(format, grid, w, scale, kind, found->points);
    lf qx = floats(0), qq = floats(0);
    for (int k = 0; k < groups; ++k)
        add_points(w->x + 8 * k, w->weights + 8 * k, found->points[k], lowered(format, kind, k), floats(1), &qx, &qq);
    const lm fits = both(off, both(less(floats(0), qx), less(floats(0), qq)));
    found->scale = choose(none, floats(0), choose(fits, qx / qq, scale));
    found->kind = choose_ints(none, ints(0), kind);
}

#endif
