/* Of the neighbours of a group of weights that which errs least: iq1_find_best_neighbour2, iq2_find_best_neighbour
 * and iq3_find_best_neighbour of ggml-quants.c, with a lane for each of sixteen neighbours.
 *
 * What a weight errs by follows from its level, of which there are few, so that it is computed once for each.
 * Errors are sums over the weights in their order; among equal ones the first neighbour counts. They are finite
 * and not negative (ggml.can_encode sees to that).
 */
#ifndef KCONV_NEIGHBOURS_H
#define KCONV_NEIGHBOURS_H

#include "grids.h"
#include "lanes.h"

#define PARTS (GRID_PAD / LANES) /* vectors of sixteen neighbours */
#define EACH_PART for (int p = 0; p < PARTS; ++p)

typedef struct {
    lf part[PARTS];
} sixteen;

/* The values of the levels: of iq3 and iq2 2 * level + 1, of iq1 level - 1 and an eighth more or less. */
enum grid_values { OF_FOUR, OF_EIGHT, RAISED, LOWERED };

/* What each weight of a group errs by at each level; the baseline, which cannot look up, has what it takes. */
typedef struct {
#if LANES > 4
    lf level[8]; /* lane n: level n % 8 of the weights of a group of four, level n % 4 of one of eight */
#else
    enum grid_values values;
    float scale;
    const float *x, *weights;
#endif
} group_errors;

#if LANES > 4
#define TWICE(...) __VA_ARGS__, __VA_ARGS__
#if LANES == 16
#define ALL_LANES(...) TWICE(__VA_ARGS__)
#else
#define ALL_LANES(...) __VA_ARGS__
#endif
static const float GRID_VALUES[4][LANES] = {
    [OF_FOUR] = {ALL_LANES(1, 3, 5, 7, 9, 11, 13, 15)},
    [OF_EIGHT] = {ALL_LANES(TWICE(1, 3, 5, 7))},
    [RAISED] = {ALL_LANES(TWICE(-0.875f, 0.125f, 1.125f, 0))},
    [LOWERED] = {ALL_LANES(TWICE(-1.125f, -0.125f, 0.875f, 0))},
};
#undef TWICE
#undef ALL_LANES
#endif

/* The value of weight ``i`` of a group of iq2 or iq3 whose point's code is in the low bits. */
INLINE lf value_at(int dims, li code, int i) {
#if LANES == 16
    const __m512 values = (__m512)load(GRID_VALUES[dims == 8]);
    return dims == 4 ? (lf)_mm512_permutexvar_ps((__m512i)(code >> 3 * i), values)
                     : (lf)_mm512_permutevar_ps(values, (__m512i)(code >> 2 * i));
#elif LANES == 8
    const __m256 values = (__m256)load(GRID_VALUES[dims == 8]);
    return dims == 4 ? (lf)_mm256_permutevar8x32_ps(values, (__m256i)(code >> 3 * i))
                     : (lf)_mm256_permutevar_ps(values, (__m256i)(code >> 2 * i));
#else
    return to_floats((dims == 4 ? code >> 3 * i & 7 : code >> 2 * i & 3) * 2 + 1);
#endif
}

INLINE group_errors errors_of_group(
    int dims, enum grid_values which, const float *x, const float *weights, float scale
) {
    group_errors errors;
#if LANES > 4
    const lf values = scale * load(GRID_VALUES[which]);
    for (int i = 0; i < dims; ++i) {
        const lf difference = values - x[i];
        errors.level[i] = weights[i] * difference * difference;
    }
#else
    (void)dims;
    errors.values = which, errors.scale = scale, errors.x = x, errors.weights = weights;
#endif
    return errors;
}

#if LANES > 4
/* What the group errs by at eight points. */
INLINE __m256 eight_errors(int dims, const __m256 *levels, const uint16_t *codes) {
    const __m256i code = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)codes));
    __m256 sum;
    for (int i = 0; i < dims; ++i) {
        const __m256i own = _mm256_srli_epi32(code, (dims == 4 ? 3 : 2) * i);
        const __m256 level = levels[i];
        const __m256 error = dims == 4 ? _mm256_permutevar8x32_ps(level, own) : _mm256_permutevar_ps(level, own);
        sum = i ? _mm256_add_ps(sum, error) : error;
    }
    return sum;
}

/* The least of eight numbers, in all lanes of a quarter. */
INLINE __m128 least_of_eight(__m256 numbers) {
    __m128 m = _mm_min_ps(_mm256_castps256_ps128(numbers), _mm256_extractf128_ps(numbers, 1));
    m = _mm_min_ps(m, _mm_permute_ps(m, 0x4e));
    return _mm_min_ps(m, _mm_permute_ps(m, 0xb1));
}
#endif

/* What the group errs by at sixteen points, or at the first ``count``. */
INLINE sixteen errors_at(int dims, const group_errors *errors, const uint16_t *codes, int count) {
    sixteen sum;
    EACH_PART {
        if (p * LANES >= count) {
            sum.part[p] = floats(INFINITY);
            continue;
        }
        const uint16_t *own = codes + p * LANES;
        sum.part[p] = floats(0);
#if LANES == 16
        const __m512i code = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)own));
        for (int i = 0; i < dims; ++i) {
            const __m512 level = (__m512)errors->level[i];
            const lf error = dims == 4 ? (lf)_mm512_permutexvar_ps(_mm512_srli_epi32(code, 3 * i), level)
                                       : (lf)_mm512_permutevar_ps(level, _mm512_srli_epi32(code, 2 * i));
            sum.part[p] = i ? sum.part[p] + error : error;
        }
#elif LANES == 8
        sum.part[p] = (lf)eight_errors(dims, (const __m256 *)errors->level, own);
#else
        const li code = {own[0], own[1], own[2], own[3]};
        for (int i = 0; i < dims; ++i) {
            lf value = value_at(dims, code, i);
            if (errors->values > OF_EIGHT)
                value = to_floats(code >> 2 * i & 3) - (errors->values == RAISED ? 0.875f : 1.125f);
            const lf difference = errors->scale * value - errors->x[i];
            sum.part[p] += errors->weights[i] * difference * difference;
        }
#endif
    }
    return sum;
}

/* A bit for each of sixteen numbers, whether it is the least of them. */
INLINE unsigned least_of(const sixteen *numbers) {
#if LANES == 16
    const __m512 all = (__m512)numbers->part[0];
    const __m256 half = _mm256_min_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
#elif LANES == 8
    const __m256 half = _mm256_min_ps((__m256)numbers->part[0], (__m256)numbers->part[1]);
#endif
#if LANES > 4
    const __m128 m = least_of_eight(half);
#if LANES == 16
    return equal((lf)_mm512_broadcastss_ps(m), numbers->part[0]);
#else
    const lf least = (lf)_mm256_broadcastss_ps(m);
    return (unsigned)_mm256_movemask_ps((__m256)equal(least, numbers->part[0])) |
           (unsigned)_mm256_movemask_ps((__m256)equal(least, numbers->part[1])) << 8;
#endif
#else
    const lf two[2] = {minimum(numbers->part[0], numbers->part[1]), minimum(numbers->part[2], numbers->part[3])};
    const lf four = minimum(two[0], two[1]);
    const float least = fminf(fminf(four[0], four[1]), fminf(four[2], four[3]));
    unsigned lanes = 0;
    EACH_PART {
        const lm same = equal(numbers->part[p], floats(least));
        for (int j = 0; j < 4; ++j) lanes |= (same[j] & 1u) << (4 * p + j);
    }
    return lanes;
#endif
}

/* The code of the best of at most ``count`` neighbours, 8 or 16. */
INLINE int best_of_sixteen(
    int dims, enum grid_values which, const uint16_t *codes, int count, const float *x, const float *weights,
    float scale
) {
    const group_errors errors = errors_of_group(dims, which, x, weights, scale);
    const sixteen sums = errors_at(dims, &errors, codes, count);
    return codes[__builtin_ctz(least_of(&sums))];
}

/* The code of the best of at most eight neighbours. */
INLINE int best_of_eight(
    int dims, enum grid_values which, const uint16_t *codes, const float *x, const float *weights, float scale
) {
#if LANES > 4
    const __m256 values = _mm256_mul_ps(_mm256_set1_ps(scale), _mm256_loadu_ps(GRID_VALUES[which]));
    __m256 levels[8];
    for (int i = 0; i < dims; ++i) {
        const __m256 difference = _mm256_sub_ps(values, _mm256_set1_ps(x[i]));
        levels[i] = _mm256_mul_ps(_mm256_mul_ps(_mm256_set1_ps(weights[i]), difference), difference);
    }
    const __m256 sums = eight_errors(dims, levels, codes);
    const __m256 least = _mm256_broadcastss_ps(least_of_eight(sums));
    return codes[__builtin_ctz(_mm256_movemask_ps(_mm256_cmp_ps(least, sums, _CMP_EQ_OQ)))];
#else
    return best_of_sixteen(dims, which, codes, 8, x, weights, scale);
#endif
}

/* The same of ``count`` times sixteen. */
INLINE int best_of_many(
    int dims, enum grid_values which, const uint16_t *codes, int count, const float *x, const float *weights,
    float scale
) {
    const group_errors errors = errors_of_group(dims, which, x, weights, scale);
    sixteen best = errors_at(dims, &errors, codes, 16);
    li from[PARTS];
    int32_t starts[GRID_PAD];
    EACH_PART from[p] = ints(0);
    for (int next = 16; next < 16 * count; next += 16) {
        const sixteen sums = errors_at(dims, &errors, codes + next, 16);
        EACH_PART {
            from[p] = choose_ints(less(sums.part[p], best.part[p]), ints(next), from[p]);
            best.part[p] = minimum(sums.part[p], best.part[p]);
        }
    }
    EACH_PART store_ints(starts + p * LANES, from[p]);
    int place = INT32_MAX;
    for (unsigned lanes = least_of(&best); lanes; lanes &= lanes - 1) {
        const int lane = __builtin_ctz(lanes);
        place = starts[lane] + lane < place ? starts[lane] + lane : place;
    }
    return codes[place];
}

#endif
