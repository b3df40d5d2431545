/* iq2_xxs, iq2_xs, iq2_s, iq3_xxs and iq3_s: super-blocks of 256 weights, a half float that the scales of 8 or 16
 * sub-blocks are odd multiples of, from 1 to 31, indexes of the points of 64 or 32 groups, and signs.
 *
 * Layouts: ggml-common.h. iq2_xxs and iq3_xxs put 28 bits of signs and the multiple into one number, little end
 * first; the others have bytes of two multiples.
 */
#ifndef KCONV_IQ2_IQ3_H
#define KCONV_IQ2_IQ3_H

#include "batches.h"
#include "grid_search.h"

static const grid_format IQ2_XXS = {16, 32, 8, 6, 0.1f, GROUP_MAX_EPS, true, true, AGAIN_ALL};
static const grid_format IQ2_XS = {17, 16, 8, 9, 0.1f, GROUP_MAX_EPS, true, false, AGAIN_OFF_GRID};
static const grid_format IQ3_XXS = {18, 32, 4, 15, 0.2f, 1e-8f, true, false, AGAIN_OFF_GRID};
static const grid_format IQ3_S = {21, 32, 4, 9, 0.2f, 1e-45f, false, false, AGAIN_ALL_IF_ANY_IS_OFF};
static const grid_format IQ2_S = {22, 16, 8, 9, 0.1f, 1e-8f, false, false, AGAIN_OFF_GRID};

/* Of LANES super-blocks, one after the other. */
typedef struct {
    float scale[16 * LANES];
    uint16_t index[64 * LANES];
    uint8_t signs[32 * LANES], empty[16 * LANES];
} found_batch;

/* One of them. */
typedef struct {
    const float *scale;
    const uint16_t *index;
    const uint8_t *signs, *empty;
} super_block;

/* What the errors of LANES sub-blocks weigh. */
INLINE void weigh_grid(const grid_format *format, const float *importance, lf spread, grid_weights *w) {
    const int size = format->size;
    if (importance) {
        weigh_blocks(size, w->x, importance, spread, w->weights);
        return;
    }
    for (int i = 0; i < size; ++i) {
        const lf square = w->x[i] * w->x[i];
        w->weights[i] = format->ggml_type == IQ2_S.ggml_type ? 0.25f * spread + square : square;
    }
}

INLINE void search_batch(
    const grid_format *format, const float *x, const float *const *importance, found_batch *batch
) {
    const struct grid *grid = kconv_grid(format->ggml_type);
    const int size = format->size, blocks = 256 / size, groups = size / format->dims;
    const bool twice = format->ggml_type != IQ2_XXS.ggml_type && format->ggml_type != IQ2_XS.ggml_type;
    float spreads[LANES];
    store(spreads, sum_squares(x) * (twice ? 2.0f / 256 : 1.0f / 256));
    for (int first = 0; first < blocks * LANES; first += LANES) {
        grid_weights w;
        found_points found;
        float own[32 * LANES], spread[LANES];
        for (int j = 0; j < LANES; ++j) {
            const int at = first + j;
            spread[j] = spreads[at / blocks];
            if (importance)
                memcpy(own + size * j, importance[at / blocks] + size * (at % blocks), sizeof(float) * size);
        }
        load_transposed(x + size * first, size, size, w.x);
        weigh_grid(format, importance ? own : NULL, load(spread), &w);
        search_grid(format, grid, &w, &found);
        store(batch->scale + first, found.scale);
        for (int j = 0; j < LANES; ++j) {
            batch->empty[first + j] = (uint8_t)found.empty[j];
            for (int k = 0; k < groups; ++k)
                batch->index[(first + j) * groups + k] = (uint16_t)found.index[k][j];
            for (int k = 0; k < size / 8; ++k)
                batch->signs[(first + j) * size / 8 + k] = (uint8_t)found.signs[k][j];
        }
    }
}

/* nearest() of one number. */
INLINE int nearest_one(float x) {
    const float sum = x + MAGIC;
    int32_t word;
    memcpy(&word, &sum, 4);
    return (word & 0x007fffff) - 0x00400000;
}

/* The multiples of a super-block's scales, as (multiple - 1) / 2, and the half float, times ``fudge``. False where
 * all are zero. */
INLINE bool multiples_of(const float *scales, int count, float fudge, uint8_t *multiples, uint16_t *half) {
    float largest = 0;
    for (int j = 0; j < count; ++j) largest = largest > scales[j] ? largest : scales[j];
    memset(multiples, 0, count);
    *half = 0;
    if (largest == 0) return false;
    const float unit = largest / 31.0f, inverse = 1.0f / unit;
    *half = half_bits(unit * fudge);
    for (int j = 0; j < count; ++j) {
        const int level = nearest_one(0.5f * (inverse * scales[j] - 1.0f));
        multiples[j] = (uint8_t)(level < 0 ? 0 : level > 15 ? 15 : level);
    }
    return true;
}

/* Two multiples a byte. */
INLINE void pack_multiples(const uint8_t *multiples, int count, uint8_t *to) {
    for (int j = 0; j < count; j += 2) to[j / 2] = multiples[j] | multiples[j + 1] << 4;
}

/* Four times seven signs below a multiple. */
INLINE uint32_t signs_and_multiple(const uint8_t *signs, uint32_t multiple) {
    return signs[0] | (uint32_t)signs[1] << 7 | (uint32_t)signs[2] << 14 | (uint32_t)signs[3] << 21 | multiple << 28;
}

/* The bytes of a super-block; of formats with an even number of signs all are zero where all scales are. */
INLINE void pack_iq2_xxs(const super_block *found, uint8_t *to) {
    uint8_t multiples[8];
    uint16_t half;
    memset(to, 0, 66);
    if (!multiples_of(found->scale, 8, 1, multiples, &half)) return;
    memcpy(to, &half, 2);
    for (int j = 0; j < 8; ++j) {
        const uint16_t *own = found->index + 4 * j;
        const uint32_t words[2] = {own[0] | own[1] << 8 | own[2] << 16 | (uint32_t)own[3] << 24,
                                   signs_and_multiple(found->signs + 4 * j, multiples[j])};
        memcpy(to + 2 + 8 * j, words, 8);
    }
}

INLINE void pack_iq2_xs(const super_block *found, uint8_t *to) {
    uint8_t multiples[16];
    uint16_t half;
    memset(to, 0, 74);
    if (!multiples_of(found->scale, 16, 1, multiples, &half)) return;
    memcpy(to, &half, 2);
    for (int k = 0; k < 32; ++k) {
        const uint16_t word = (uint16_t)(found->index[k] | found->signs[k] << 9);
        memcpy(to + 2 + 2 * k, &word, 2);
    }
    pack_multiples(multiples, 16, to + 66);
}

INLINE void pack_iq2_s(const super_block *found, uint8_t *to) {
    uint8_t multiples[16];
    uint16_t half;
    memset(to, 0, 82);
    multiples_of(found->scale, 16, 0.9875f, multiples, &half);
    memcpy(to, &half, 2);
    for (int k = 0; k < 32; ++k) {
        to[2 + k] = (uint8_t)found->index[k];
        to[66 + k / 4] |= found->index[k] >> 8 << 2 * (k % 4);
    }
    memcpy(to + 34, found->signs, 32);
    pack_multiples(multiples, 16, to + 74);
}

INLINE void pack_iq3_xxs(const super_block *found, uint8_t *to) {
    uint8_t multiples[8];
    uint16_t half;
    memset(to, 0, 98);
    if (!multiples_of(found->scale, 8, 1.0125f, multiples, &half)) return;
    memcpy(to, &half, 2);
    for (int k = 0; k < 64; ++k) to[2 + k] = (uint8_t)found->index[k];
    for (int j = 0; j < 8; ++j) {
        const uint32_t word = signs_and_multiple(found->signs + 4 * j, multiples[j]);
        memcpy(to + 66 + 4 * j, &word, 4);
    }
}

/* The reference does not leave room for a sub-block of zeros: the lower bits and the signs of those after it are
 * in the place before theirs. */
INLINE void pack_iq3_s(const super_block *found, uint8_t *to) {
    uint8_t multiples[8];
    uint16_t half;
    memset(to, 0, 110);
    multiples_of(found->scale, 8, 1.033f, multiples, &half);
    memcpy(to, &half, 2);
    for (int j = 0, at = 0; j < 8; ++j) {
        if (found->empty[j]) continue;
        for (int k = 0; k < 8; ++k) {
            to[2 + 8 * at + k] = (uint8_t)found->index[8 * j + k];
            to[66 + j] |= found->index[8 * j + k] >> 8 << k;
        }
        memcpy(to + 74 + 4 * at, found->signs + 4 * j, 4);
        ++at;
    }
    pack_multiples(multiples, 8, to + 106);
}

#define GRID_ENCODER(name, format, bytes)                                                                     \
    static void NAME(batch_##name)(const float *x, const float *const *importance, uint8_t *to) {             \
        found_batch batch;                                                                                    \
        const int blocks = 256 / format.size, groups = 256 / format.dims;                                     \
        search_batch(&format, x, importance, &batch);                                                         \
        for (int n = 0; n < LANES; ++n) {                                                                     \
            const super_block found = {batch.scale + blocks * n, batch.index + groups * n,                    \
                                       batch.signs + 32 * n, batch.empty + blocks * n};                       \
            pack_##name(&found, to + bytes * n);                                                              \
        }                                                                                                     \
    }                                                                                                         \
    static void NAME(encode_##name)(                                                                          \
        const float *x, void *out, int64_t rows, int64_t columns, const float *importance                     \
    ) {                                                                                                       \
        encode_batches(NAME(batch_##name), 256, bytes, x, out, rows, columns, importance);                    \
    }
GRID_ENCODER(iq2_xxs, IQ2_XXS, 66)
GRID_ENCODER(iq2_xs, IQ2_XS, 74)
GRID_ENCODER(iq2_s, IQ2_S, 82)
GRID_ENCODER(iq3_xxs, IQ3_XXS, 98)
GRID_ENCODER(iq3_s, IQ3_S, 110)
#undef GRID_ENCODER

#endif
