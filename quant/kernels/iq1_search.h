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

/* What a cut adds up to: sums of weight * value * x and weight * value * value, whose quotient is the scale. Each is
 * what the first place of a cut adds, what the second does and, in iq1_s, what the weights between them do. */
typedef struct {
    lf raised, lowered;
} either_way;

typedef struct {
    lf x[33], w[33];
    either_way first_x[33], first_w[33], second_x[33], second_w[33];
} cuts_iq1_s;

typedef struct {
    lf x[17];
    either_way all, first[17], second[17];
} half_iq1_m;

typedef struct {
    cuts_iq1_s s;
    half_iq1_m m[2];
} prepared_cuts;

INLINE void prepare_iq1_s(const li *rank, const lf *weights, const lf *weighted, cuts_iq1_s *cuts) {
    const float *p = RAISED_VALUES, *m = LOWERED_VALUES;
    lf *x = cuts->x, *w = cuts->w;
    put_in_order(32, rank, weighted, x + 1), put_in_order(32, rank, weights, w + 1);
    x[0] = w[0] = floats(0);
    for (int i = 1; i <= 32; ++i) x[i] += x[i - 1], w[i] += w[i - 1];
    for (int i = 0; i <= 32; ++i) {
        const lf above = x[32] - x[i], heavy = w[32] - w[i];
        cuts->first_x[i] = (either_way){x[i] * p[0], x[i] * m[0]};
        cuts->first_w[i] = (either_way){w[i] * p[0] * p[0], w[i] * m[0] * m[0]};
        cuts->second_x[i] = (either_way){above * p[2], above * m[2]};
        cuts->second_w[i] = (either_way){heavy * p[2] * p[2], heavy * m[2] * m[2]};
    }
}

/* Of one half of the sub-blocks. */
INLINE void prepare_iq1_m(int half, const li *rank, const lf *weights, const lf *weighted, half_iq1_m *cuts) {
    const float *p = RAISED_VALUES, *m = LOWERED_VALUES;
    lf own_x[16], own_w[16], w[17];
    for (int i = 0; i < 16; ++i) { /* what is added to leaves all as they are */
        own_x[i] = i / 8 == half ? weighted[i] : floats(-0.0f);
        own_w[i] = i / 8 == half ? weights[i] : floats(-0.0f);
    }
    put_in_order(16, rank, own_x, cuts->x + 1), put_in_order(16, rank, own_w, w + 1);
    cuts->x[0] = w[0] = floats(0);
    for (int i = 1; i <= 16; ++i) cuts->x[i] += cuts->x[i - 1], w[i] += w[i - 1];
    cuts->all = (either_way){cuts->x[16] * p[2], cuts->x[16] * m[2]};
    for (int i = 0; i <= 16; ++i) {
        const lf raised = w[16] * p[2] * p[2], lowered = w[16] * m[2] * m[2];
        cuts->first[i].raised = raised + w[i] * (p[0] * p[0] - p[1] * p[1]);
        cuts->first[i].lowered = lowered + w[i] * (m[0] * m[0] - m[1] * m[1]);
        cuts->second[i].raised = w[i] * (p[1] * p[1] - p[2] * p[2]);
        cuts->second[i].lowered = w[i] * (m[1] * m[1] - m[2] * m[2]);
    }
}

enum { MOST_KINDS = 4 };

/* The sums of a cut at two places, of each kind in its order: two of iq1_s, four of iq1_m. Returns how many. */
INLINE int sum_cut(int size, const prepared_cuts *cuts, int i, int k, lf *qx, lf *qq) {
    if (size == 32) {
        const cuts_iq1_s *c = &cuts->s;
        const float middle = RAISED_VALUES[1]; /* -LOWERED_VALUES[1] */
        const lf between = (c->x[k] - c->x[i]) * middle, heavy = (c->w[k] - c->w[i]) * middle * middle;
        qx[0] = c->first_x[i].raised + between + c->second_x[k].raised;
        qq[0] = c->first_w[i].raised + heavy + c->second_w[k].raised;
        qx[1] = c->first_x[i].lowered - between + c->second_x[k].lowered;
        qq[1] = c->first_w[i].lowered + heavy + c->second_w[k].lowered;
        return 2;
    }
    either_way x[2], w[2];
    for (int h = 0; h < 2; ++h) {
        const half_iq1_m *c = &cuts->m[h];
        const lf below = c->x[i] + c->x[k];
        x[h] = (either_way){c->all.raised - below, c->all.lowered - below};
        w[h] = (either_way){c->first[i].raised + c->second[k].raised, c->first[i].lowered + c->second[k].lowered};
    }
    qx[0] = x[0].raised + x[1].raised, qq[0] = w[0].raised + w[1].raised;
    qx[1] = x[0].raised + x[1].lowered, qq[1] = w[0].raised + w[1].lowered;
    qx[2] = x[0].lowered + x[1].raised, qq[2] = w[0].lowered + w[1].raised;
    qx[3] = x[0].lowered + x[1].lowered, qq[3] = w[0].lowered + w[1].lowered;
    return 4;
}

/* A score that the best cut certainly beats, from a few cuts: then fewer are taken for a while, which is slow.
 *
 * The last cut taken is the same as without it. Scores compare within 2^-22 of the exact ones, because sums are
 * far from the smallest and largest floats: those of weights differ by less than a factor of 81 between cuts. As
 * long as two searches have taken different cuts, each can be ahead by no more than that at every cut, which is
 * less than 2^-11 in all; both take the cut that the bound comes from, or have taken the same better one. */
INLINE lf score_to_beat(int size, const prepared_cuts *cuts) {
    const float low = 1e-28f, high = 1e28f;
    lf best = floats(-3.40282347e+38f);
    for (int i = 2; i < size / 2 + 2; i += 4)
        for (int k = size / 2; k <= size; k += 4) {
            lf qx[MOST_KINDS], qq[MOST_KINDS];
            const int kinds = sum_cut(size, cuts, i, k, qx, qq);
            for (int n = 0; n < kinds; ++n) {
                const lf square = qx[n] * qx[n];
                const lm usual = both(both(less(floats(low), square), less(square, floats(high))),
                                      both(less(floats(low), qq[n]), less(qq[n], floats(high))));
                best = choose(usual, maximum(square / qq[n] * (1 - 1.0f / 1024), best), best);
            }
        }
    return best;
}

/* Tries all cuts in the reference's order. */
INLINE void try_cuts(int size, const prepared_cuts *cuts, best_cut *best) {
    best->score = score_to_beat(size, cuts);
    for (int i = 0; i <= size; ++i)
        for (int k = i; k <= size; ++k) {
            lf qx[MOST_KINDS], qq[MOST_KINDS];
            const int kinds = sum_cut(size, cuts, i, k, qx, qq);
            lm some = less(floats(0), floats(0));
            for (int n = 0; n < kinds; ++n) some = either(some, less(best->score * qq[n], qx[n] * qx[n]));
            if (!any(some)) continue;
            for (int n = 0; n < kinds; ++n) {
                const lm better = both(less(floats(0), qq[n]), less(best->score * qq[n], qx[n] * qx[n]));
                const int32_t cut = i | k << 8 | (size == 32 ? 3 * n : n) << 16;
                best->scale = choose(better, qx[n] / qq[n], best->scale);
                best->score = choose(better, best->scale * qx[n], best->score);
                best->cut = choose_ints(better, ints(cut), best->cut);
            }
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
        const unsigned at = sorted.places[kind][n];                                                           \
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
    best_cut best = {.scale = largest, .cut = ints(-1)};
    prepared_cuts cuts;
    if (size == 32) prepare_iq1_s(rank, w->weights, w->weighted, &cuts.s);
    else
        for (int half = 0; half < 2; ++half) prepare_iq1_m(half, rank, w->weights, w->weighted, &cuts.m[half]);
    try_cuts(size, &cuts, &best);
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
