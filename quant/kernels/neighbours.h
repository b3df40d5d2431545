/* Of the neighbours of a group of weights that which errs least: iq2_find_best_neighbour and
 * iq3_find_best_neighbour of ggml-quants.c, with a lane for each neighbour.
 *
 * Errors are sums over the weights in their order; among equal ones the first neighbour counts. They are finite
 * and not negative (ggml.can_encode sees to that).
 */
#ifndef KCONV_NEIGHBOURS_H
#define KCONV_NEIGHBOURS_H

#include "grids.h"
#include "lanes.h"

#define NEAR (LANES > 4 ? 8 : 4) /* neighbours looked at at once where groups have four weights */

typedef float nf __attribute__((vector_size(4 * NEAR)));

/* The least of the errors, and the first lane that has it. */
INLINE int first_least(nf error, float *least) {
#if LANES > 4
    __m128 m = _mm_min_ps(_mm256_castps256_ps128((__m256)error), _mm256_extractf128_ps((__m256)error, 1));
    m = _mm_min_ps(m, _mm_shuffle_ps(m, m, 0x4e));
    m = _mm_min_ps(m, _mm_shuffle_ps(m, m, 0xb1));
    *least = _mm_cvtss_f32(m);
    return __builtin_ctz(_mm256_movemask_ps(_mm256_cmp_ps((__m256)error, _mm256_set_m128(m, m), _CMP_EQ_OQ)));
#else
    int place = 0;
    for (int j = 1; j < 4; ++j)
        if (error[j] < error[place]) place = j;
    *least = error[place];
    return place;
#endif
}

/* The code of the best of the neighbours of a group of four weights. */
INLINE int nearest_of_four(
    const struct grid *grid, const struct grid_point *point, const float *x, const float *weights, float scale
) {
    const float *values = grid->values + 4 * (size_t)point->first;
    float best = INFINITY;
    int place = 0, padded = (point->count + NEAR - 1) / NEAR * NEAR;
    for (int from = 0; from < padded; from += NEAR) {
        const float *q = values + from / 8 * 32 + from % 8;
        nf error = {0};
        for (int i = 0; i < 4; ++i) {
            nf value;
            memcpy(&value, q + 8 * i, sizeof value);
            const nf difference = scale * value - x[i];
            error += weights[i] * difference * difference;
        }
        float least;
        const int lane = first_least(error, &least);
        if (least < best) best = least, place = from + lane;
    }
    return grid->codes[point->first + place];
}

/* What a group of eight weights errs by with each of the levels 0 to 2. */
typedef struct {
#if LANES > 4
    lf level[8]; /* lane n of each four: level n */
#else
    float scale;
    const float *x, *weights;
#endif
} eight_errors;

INLINE eight_errors errors_of_eight(const float *x, const float *weights, float scale) {
    eight_errors errors;
#if LANES > 4
    lf value;
    for (int n = 0; n < LANES; ++n) value[n] = 2 * (n % 4) + 1;
    value *= scale;
    for (int i = 0; i < 8; ++i) {
        const lf difference = value - x[i];
        errors.level[i] = weights[i] * difference * difference;
    }
#else
    errors.scale = scale, errors.x = x, errors.weights = weights;
#endif
    return errors;
}

/* What it errs by at LANES points. */
INLINE lf errors_at(const eight_errors *errors, const uint16_t *codes) {
    lf sum = floats(0);
#if LANES == 16
    const __m512i code = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)codes));
    for (int i = 0; i < 8; ++i)
        sum += (lf)_mm512_permutevar_ps((__m512)errors->level[i], _mm512_srli_epi32(code, 2 * i));
#elif LANES == 8
    const __m256i code = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)codes));
    for (int i = 0; i < 8; ++i)
        sum += (lf)_mm256_permutevar_ps((__m256)errors->level[i], _mm256_srli_epi32(code, 2 * i));
#else
    const li code = {codes[0], codes[1], codes[2], codes[3]};
    for (int i = 0; i < 8; ++i) {
        const lf difference = errors->scale * to_floats((code >> 2 * i & 3) * 2 + 1) - errors->x[i];
        sum += errors->weights[i] * difference * difference;
    }
#endif
    return sum;
}

/* The least number of all lanes. */
INLINE float least_lane(lf x) {
#if LANES == 16
    return _mm512_reduce_min_ps((__m512)x);
#elif LANES == 8
    float least;
    first_least(x, &least);
    return least;
#else
    return fminf(fminf(x[0], x[1]), fminf(x[2], x[3]));
#endif
}

/* The code of the best of the neighbours of a group of eight weights. */
INLINE int nearest_of_eight(
    const struct grid *grid, const struct grid_point *point, const float *x, const float *weights, float scale
) {
    const uint16_t *codes = grid->codes + point->first;
    const eight_errors errors = errors_of_eight(x, weights, scale);
    lf best = errors_at(&errors, codes);
    li from = ints(0);
    for (int next = LANES; next < point->count; next += LANES) {
        const lf error = errors_at(&errors, codes + next);
        from = choose_ints(less(error, best), ints(next), from);
        best = minimum(error, best);
    }
    const lm least = equal(best, floats(least_lane(best)));
    int32_t starts[LANES];
    store_ints(starts, from);
#if LANES == 16
    unsigned lanes = least;
#elif LANES == 8
    unsigned lanes = _mm256_movemask_ps((__m256)least);
#else
    unsigned lanes = 0;
    for (int j = 0; j < LANES; ++j) lanes |= (least[j] & 1u) << j;
#endif
    int place = INT32_MAX;
    for (; lanes; lanes &= lanes - 1) {
        const int lane = __builtin_ctz(lanes);
        if (starts[lane] + lane < place) place = starts[lane] + lane;
    }
    return codes[place];
}

#endif
