/* iq1_s and iq1_m: super-blocks of 256 weights, indexes of the points of 32 groups of 11 bits each, and a half float
 * that the steps of 8 or 16 sub-blocks are odd multiples of, from 1 to 15.
 *
 * Layouts: ggml-common.h. iq1_s has a number of 16 bits for each sub-block: four times three bits of the indexes, the
 * multiple and whether values are lowered. iq1_m has half a byte for each group, three bits of its index and whether
 * values are lowered, and four numbers of 16 bits with four multiples and a quarter of the half float each.
 */
#ifndef KCONV_IQ1_H
#define KCONV_IQ1_H

#include "iq1_search.h"
#include "iq2_iq3.h"

/* Of LANES super-blocks, one after the other. */
typedef struct {
    float scale[16 * LANES];
    uint16_t points[32 * LANES];
    uint8_t kind[16 * LANES];
} iq1_batch;

INLINE void search_iq1_batch(
    const grid_format *format, const float *x, const float *const *importance, lf spread, iq1_batch *batch
) {
    const struct grid *grid = kconv_grid(format->ggml_type);
    const int size = format->size, blocks = 256 / size, groups = size / 8;
    float spreads[LANES];
    store(spreads, spread);
    for (int first = 0; first < blocks * LANES; first += LANES) {
        grid_weights w;
        found_iq1 found;
        float own[32 * LANES], spread_of[LANES];
        for (int j = 0; j < LANES; ++j) {
            const int at = first + j;
            spread_of[j] = spreads[at / blocks];
            if (importance)
                memcpy(own + size * j, importance[at / blocks] + size * (at % blocks), sizeof(float) * size);
        }
        load_transposed(x + size * first, size, size, w.x);
        if (importance) weigh_blocks(size, w.x, own, load(spread_of), w.weights);
        else
            for (int i = 0; i < size; ++i) w.weights[i] = w.x[i] * w.x[i];
        search_iq1(format, grid, &w, &found);
        store(batch->scale + first, found.scale);
        for (int j = 0; j < LANES; ++j) {
            batch->kind[first + j] = (uint8_t)found.kind[j];
            for (int k = 0; k < groups; ++k) batch->points[(first + j) * groups + k] = (uint16_t)found.points[k][j];
        }
    }
}

/* The multiples of a super-block's scales, as (multiple - 1) / 2, and what they are multiples of. False where all
 * scales are zero. */
INLINE bool multiples_of_iq1(const float *scales, int count, uint8_t *multiples, float *unit) {
    float largest = 0;
    for (int j = 0; j < count; ++j) largest = largest > scales[j] ? largest : scales[j];
    memset(multiples, 0, count);
    *unit = 0;
    if (largest == 0) return false;
    *unit = largest / 15.0f;
    const float inverse = 1.0f / *unit;
    for (int j = 0; j < count; ++j) {
        const int level = nearest_one(0.5f * (inverse * scales[j] - 1.0f));
        multiples[j] = (uint8_t)(level < 0 ? 0 : level > 7 ? 7 : level);
    }
    return true;
}

static void NAME(batch_iq1_s)(const float *x, const float *const *importance, uint8_t *to) {
    const struct grid *grid = kconv_grid(IQ1_S.ggml_type);
    iq1_batch batch;
    search_iq1_batch(&IQ1_S, x, importance, sum_squares(x) * (2.0f / 256), &batch);
    for (int n = 0; n < LANES; ++n, to += 50) {
        uint8_t multiples[8];
        float unit;
        const bool some = multiples_of_iq1(batch.scale + 8 * n, 8, multiples, &unit);
        const uint16_t half = half_bits(unit * 1.125f);
        memcpy(to, &half, 2);
        for (int j = 0; j < 8; ++j) {
            uint16_t word = (uint16_t)(multiples[j] << 12 | (some && batch.kind[8 * n + j] ? 0x8000 : 0));
            for (int k = 0; k < 4; ++k) {
                const int index = grid->index[batch.points[32 * n + 4 * j + k]];
                to[2 + 4 * j + k] = (uint8_t)index;
                word |= (uint16_t)(index >> 8 << 3 * k);
            }
            memcpy(to + 34 + 2 * j, &word, 2);
        }
    }
}

/* What iq1_m's multiples fit best as multiples of, LANES super-blocks at once; ``unit`` where nothing weighs. */
INLINE lf fit_iq1_m(
    const float *x, const float *const *importance, lf spread, const iq1_batch *batch, const uint8_t *multiples, lf unit
) {
    lf qx = floats(0), qq = floats(0);
    for (int j = 0; j < 16; ++j) {
        lf values[16], weights[16];
        float own[16 * LANES], multiple[LANES];
        int32_t points[2][LANES], kind[LANES];
        for (int n = 0; n < LANES; ++n) {
            if (importance) memcpy(own + 16 * n, importance[n] + 16 * j, sizeof(float[16]));
            multiple[n] = (float)(2 * multiples[16 * n + j] + 1);
            kind[n] = batch->kind[16 * n + j];
            for (int k = 0; k < 2; ++k) points[k][n] = batch->points[32 * n + 2 * j + k];
        }
        load_transposed(x + 16 * j, 256, 16, values);
        if (importance) weigh_blocks(16, values, own, spread, weights);
        else
            for (int i = 0; i < 16; ++i) weights[i] = values[i] * values[i];
        for (int k = 0; k < 2; ++k)
            add_points(values + 8 * k, weights + 8 * k, load_ints(points[k]), lowered(&IQ1_M, load_ints(kind), k),
                       load(multiple), &qx, &qq);
    }
    return choose(less(floats(0), qq), qx / qq, unit);
}

/* One super-block whose scales are multiples of ``unit``; of none at all where it has no scales. */
INLINE void pack_iq1_m(
    const struct grid *grid, const uint16_t *points, const uint8_t *kind, const uint8_t *multiples, bool some,
    float unit, uint8_t *to
) {
    const uint16_t half = some ? half_bits(unit * 1.1125f) : 0;
    uint16_t words[4];
    for (int k = 0; k < 32; ++k) to[k] = (uint8_t)grid->index[points[k]];
    for (int j = 0; j < 16; ++j) {
        const int first = grid->index[points[2 * j]] >> 8, second = grid->index[points[2 * j + 1]] >> 8;
        const int signs = some ? (kind[j] & 2) << 2 | (kind[j] & 1) << 7 : 0;
        to[32 + j] = (uint8_t)(first | second << 4 | signs);
    }
    for (int k = 0; k < 4; ++k) {
        const uint8_t *own = multiples + 4 * k;
        words[k] = (uint16_t)(own[0] | own[1] << 3 | own[2] << 6 | own[3] << 9 | (half >> 4 * k & 15) << 12);
    }
    memcpy(to + 48, words, 8);
}

static void NAME(batch_iq1_m)(const float *x, const float *const *importance, uint8_t *to) {
    const struct grid *grid = kconv_grid(IQ1_M.ggml_type);
    const lf spread = sum_squares(x) * (2.0f / 256);
    iq1_batch batch;
    uint8_t multiples[16 * LANES];
    bool some[LANES];
    float units[LANES];
    search_iq1_batch(&IQ1_M, x, importance, spread, &batch);
    for (int n = 0; n < LANES; ++n)
        some[n] = multiples_of_iq1(batch.scale + 16 * n, 16, multiples + 16 * n, &units[n]);
    store(units, fit_iq1_m(x, importance, spread, &batch, multiples, load(units)));
    for (int n = 0; n < LANES; ++n)
        pack_iq1_m(grid, batch.points + 32 * n, batch.kind + 16 * n, multiples + 16 * n, some[n], units[n], to + 56 * n);
}

static void NAME(encode_iq1_s)(const float *x, void *out, int64_t rows, int64_t columns, const float *importance) {
    encode_batches(NAME(batch_iq1_s), 256, 50, x, out, rows, columns, importance);
}

static void NAME(encode_iq1_m)(const float *x, void *out, int64_t rows, int64_t columns, const float *importance) {
    encode_batches(NAME(batch_iq1_m), 256, 56, x, out, rows, columns, importance);
}

#endif
