/* The iq2 and iq3 formats: sub-blocks whose groups of four or eight weights are points of a grid, times one scale.
 *
 * A lane is a sub-block: as quantize_row_iq3_xxs_impl and its kin of ggml-quants.c. They try scales, take for
 * each group the point that the rounded weights are, or else the best of its neighbours, and go on from the scale
 * that fits the points best.
 */
#ifndef KCONV_GRID_SEARCH_H
#define KCONV_GRID_SEARCH_H

#include "factors.h"
#include "neighbours.h"

/* Which groups are looked up again with the scale that was found. */
enum again { AGAIN_OFF_GRID, AGAIN_ALL_IF_ANY_IS_OFF, AGAIN_ALL };

/* A format: constants where it is inlined. */
typedef struct {
    int ggml_type, size, dims; /* weights in a sub-block and in a group */
    int tries;                 /* scales from -tries to tries steps around the first */
    float step, least;         /* sub-blocks with no weight of this magnitude count as zero */
    bool even;                 /* an even number of each eight signs is set: what weighs least is flipped for it */
    bool fitted;               /* the first scale is find_factors' */
    enum again again;
} grid_format;

enum { OFF_GRID = 1 << 16 };

/* Of LANES sub-blocks: scales, indexes of the points and eight signs a byte; zero in those that count as zero. */
typedef struct {
    lf scale;
    li index[8], signs[4], empty; /* empty: 1 in those */
} found_points;

/* What is searched: magnitudes and what their errors weigh, also by group, for the search among neighbours. */
typedef struct {
    lf x[32], weights[32], weighted[32];
    float rows[32 * LANES], roots[32 * LANES];
} grid_weights;

/* Numbers of LANES sub-blocks as (groups, LANES, dims). */
INLINE void store_groups(const grid_format *format, const lf *v, float *to) {
    const int dims = format->dims;
    for (int i = 0; i < format->size; i += LANES) {
        li t[LANES];
        for (int j = 0; j < LANES; ++j) t[j] = bits(v[i + j]);
        transpose(t);
        for (int j = 0; j < LANES; ++j)
            for (int k = 0; k < LANES; k += dims < LANES ? dims : LANES) {
                const int at = i + k;
                memcpy(to + (at / dims * LANES + j) * dims + at % dims, (float *)&t[j] + k,
                       sizeof(float) * (dims < LANES ? dims : LANES));
            }
    }
}

/* Makes magnitudes of eight weights; returns the signs, a bit for each. */
INLINE li take_signs(bool even, const lf *weights, lf *x) {
    li signs = ints(0), odd = ints(0);
    lf own[8];
    for (int i = 0; i < 8; ++i) {
        own[i] = x[i];
        const lm negative = less(x[i], floats(0));
        x[i] = choose(negative, -x[i], x[i]);
        signs |= choose_ints(negative, ints(1 << i), ints(0));
        odd ^= choose_ints(negative, ints(1), ints(0));
    }
    if (!even) return signs;
    lf least = weights[0] * own[0] * own[0];
    li place = ints(1);
    for (int i = 1; i < 8; ++i) {
        const lf error = weights[i] * own[i] * own[i];
        const lm less_than = less(error, least);
        least = choose(less_than, error, least);
        place = choose_ints(less_than, ints(1 << i), place);
    }
    place &= -odd;
    for (int i = 0; i < 8; ++i) x[i] = choose(equal_ints(place, ints(1 << i)), -x[i], x[i]);
    return (signs ^ place) & 127;
}

/* The codes of all groups at one scale, whose inverse is given. */
INLINE void round_codes(const grid_format *format, const lf *x, lf inverse, li *codes) {
    const int dims = format->dims, width = dims == 4 ? 3 : 2, zero = 0x00400000; /* as in nearest() */
    for (int k = 0; k < format->size / dims; ++k) {
        codes[k] = ints(0);
        for (int i = 0; i < dims; ++i) {
            const lf level = 0.5f * (inverse * x[k * dims + i] - 1.0f);
            codes[k] |= clamped(bits(level + MAGIC) & 0x007fffff, zero, zero + (dims == 4 ? 7 : 2)) << width * i;
        }
        codes[k] &= (1 << width * dims) - 1;
    }
}

/* Of the points of all groups: the sums of weight * x * value and of weight * value * value. */
INLINE void sum_points(const grid_format *format, const grid_weights *w, const li *codes, lf *qx, lf *qq) {
    const int dims = format->dims;
    *qx = *qq = floats(0);
    for (int i = 0; i < format->size; ++i) {
        const lf value = value_at(dims, codes[i / dims], i % dims);
        *qx += w->weighted[i] * value;
        *qq += w->weights[i] * value * value;
    }
}

/* The places of codes by kind: on the grid, with up to 8, with up to 16 and with more neighbours. */
typedef struct {
    int32_t places[4][9 * LANES]; /* of 8 * LANES; stores go beyond */
    int counts[4];
} sorted_codes;

/* Sorts them, without branches, which nothing could foretell. */
INLINE void sort_codes(const struct grid *grid, const int32_t *codes, int count, sorted_codes *sorted) {
#if LANES == 16
    for (int kind = 0; kind < 4; ++kind) sorted->counts[kind] = 0;
    __m512i at = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    for (int first = 0; first < count; first += 16, at = _mm512_add_epi32(at, _mm512_set1_epi32(16))) {
        const __m512i points = _mm512_i32gather_epi32((__m512i)load_ints(codes + first), grid->points, 4);
        const __m512i kinds = _mm512_srli_epi32(points, GRID_KIND_SHIFT);
        for (int kind = 1; kind < 4; ++kind) {
            const __mmask16 own = _mm512_cmpeq_epi32_mask(kinds, _mm512_set1_epi32(kind));
            store_ints(sorted->places[kind] + sorted->counts[kind], (li)_mm512_maskz_compress_epi32(own, at));
            sorted->counts[kind] += __builtin_popcount(own);
        }
    }
#else
    uint64_t counts = 0; /* four numbers of 16 bits */
    for (int at = 0; at < count; ++at) {
        const uint32_t kind = grid->points[codes[at]] >> GRID_KIND_SHIFT;
        sorted->places[kind][counts >> 16 * kind & 0xffff] = at;
        counts += UINT64_C(1) << 16 * kind;
    }
    for (int kind = 0; kind < 4; ++kind) sorted->counts[kind] = counts >> 16 * kind & 0xffff;
#endif
}

/* The codes of the points that all groups get for their rounded ``codes`` (groups, LANES) with one scale a lane:
 * what is off the grid gets the best of its neighbours and OFF_GRID. */
INLINE void find_points(
    const grid_format *format, const struct grid *grid, const grid_weights *w, const float *scales, int32_t *codes
) {
    const int dims = format->dims;
    const enum grid_values values = dims == 4 ? OF_FOUR : OF_EIGHT;
    sorted_codes sorted;
    sort_codes(grid, codes, format->size / dims * LANES, &sorted);
#define EACH_PLACE(kind, best)                                                                                \
    for (int n = 0; n < sorted.counts[kind]; ++n) {                                                           \
        const unsigned at = sorted.places[kind][n];                                                           \
        const uint32_t point = grid->points[codes[at]];                                                       \
        const uint16_t *list = grid->codes + (size_t)(point & GRID_FIRST) * GRID_PAD;                         \
        const float *x = w->rows + at * dims, *weights = w->roots + at * dims, scale = scales[at % LANES];    \
        codes[at] = OFF_GRID | (best);                                                                        \
    }
    EACH_PLACE(1, best_of_eight(dims, values, list, x, weights, scale))
    EACH_PLACE(2, best_of_sixteen(dims, values, list, 16, x, weights, scale))
    EACH_PLACE(3, best_of_many(dims, values, list, point >> GRID_COUNT_SHIFT & GRID_COUNT, x, weights, scale))
#undef EACH_PLACE
}

/* The best scale of those tried, with its points; ``from`` divided by a scale is the largest value of a point. */
INLINE lf try_scales(
    const grid_format *format, const struct grid *grid, const grid_weights *w, lf from, lf scale, lm flat, li *codes
) {
    const int groups = format->size / format->dims, tries = 2 * format->tries + 1;
    const float largest = format->dims == 4 ? 15 : 5;
    int32_t tried[8 * LANES];
    float scales[LANES];
    lf best = floats(0);
    for (int t = 0; t < tries; ++t) {
        const lf inverse = (largest + (t - format->tries) * format->step) / from;
        li points[8];
        lf qx, qq;
        store(scales, 1.0f / inverse);
        round_codes(format, w->x, inverse, points);
        for (int k = 0; k < groups; ++k) store_ints(tried + k * LANES, choose_ints(flat, ints(0), points[k]));
        find_points(format, grid, w, scales, tried);
        for (int k = 0; k < groups; ++k) points[k] = load_ints(tried + k * LANES);
        sum_points(format, w, points, &qx, &qq);
        const lm better = both(less(floats(0), qq), less(best * qq, qx * qx));
        scale = choose(better, qx / qq, scale);
        best = choose(better, scale * qx, best);
        for (int k = 0; k < groups; ++k) codes[k] = choose_ints(better, points[k], codes[k]);
    }
    return scale;
}

/* Groups once more with the scale that was found, and the scale that then fits best. */
INLINE lf look_again(
    const grid_format *format, const struct grid *grid, const grid_weights *w, lf scale, lm flat, li *codes
) {
    const int groups = format->size / format->dims;
    li rounded[8], off = ints(format->again == AGAIN_ALL ? OFF_GRID : 0);
    for (int k = 0; k < groups; ++k) off |= codes[k] & OFF_GRID;
    const lm wanted = without(both(less(floats(0), scale), greater_ints(off, ints(0))), flat);
    if (!any(wanted)) return scale;
    int32_t found[8 * LANES];
    float scales[LANES];
    store(scales, scale);
    round_codes(format, w->x, 1.0f / scale, rounded);
    lm again[8];
    for (int k = 0; k < groups; ++k) {
        const lm own = format->again == AGAIN_OFF_GRID ? greater_ints(codes[k] & OFF_GRID, ints(0)) : wanted;
        again[k] = both(wanted, own);
        store_ints(found + k * LANES, choose_ints(again[k], rounded[k], ints(0)));
    }
    find_points(format, grid, w, scales, found);
    for (int k = 0; k < groups; ++k) codes[k] = choose_ints(again[k], load_ints(found + k * LANES), codes[k]);
    lf qx, qq;
    sum_points(format, w, codes, &qx, &qq);
    return choose(both(wanted, less(floats(0), qq)), qx / qq, scale);
}

/* LANES sub-blocks x (size) of a format; ``w`` has what their errors weigh. */
INLINE void search_grid(const grid_format *format, const struct grid *grid, grid_weights *w, found_points *found) {
    const int size = format->size, groups = size / format->dims;
    for (int i = 0; i < size; i += 8) found->signs[i / 8] = take_signs(format->even, w->weights + i, w->x + i);
    lf largest = w->x[0], roots[32];
    for (int i = 1; i < size; ++i) largest = maximum(largest, w->x[i]);
    lm flat = less(largest, floats(format->least));
    lf from = largest, scale = largest / (format->dims == 4 ? 15.0f : 5.0f);
    if (format->fitted) {
        li factors[32];
        scale = find_factors(size, 4, w->x, w->weights, factors);
        from = scale * 3.0f;
        flat = either(flat, less_equal(from, floats(0)));
    }
    for (int i = 0; i < size; ++i) {
        roots[i] = square_root(w->weights[i]);
        w->weighted[i] = w->weights[i] * w->x[i];
    }
    store_groups(format, w->x, w->rows), store_groups(format, roots, w->roots);
    li codes[8];
    for (int k = 0; k < groups; ++k) codes[k] = ints(format->again == AGAIN_ALL_IF_ANY_IS_OFF ? OFF_GRID : 0);
    scale = try_scales(format, grid, w, from, scale, flat, codes);
    scale = look_again(format, grid, w, scale, flat, codes);
    const lm negative = less(scale, floats(0));
    const li all = ints(format->even ? 127 : 255);
    found->empty = choose_ints(flat, ints(1), ints(0));
    found->scale = choose(flat, floats(0), choose(negative, -scale, scale));
    for (int k = 0; k < size / 8; ++k) {
        const li signs = choose_ints(negative, ~found->signs[k] & all, found->signs[k]);
        found->signs[k] = choose_ints(flat, ints(0), signs);
    }
    for (int k = 0; k < groups; ++k) {
        int32_t code[LANES];
        store_ints(code, choose_ints(flat, ints(0), codes[k] & (OFF_GRID - 1)));
        for (int j = 0; j < LANES; ++j) code[j] = grid->index[code[j]];
        found->index[k] = choose_ints(flat, ints(0), load_ints(code));
    }
}

#endif
