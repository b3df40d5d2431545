/* q2_K: super-blocks of 256 weights, 16 blocks of 16; a lane is a block.
 *
 * A super-block is 16 bytes, the scale and the minimum of each block in a nibble, 64 bytes of levels and the
 * half floats the scales and the minima are multiples of. As quantize_row_q2_K_ref and, with importance,
 * quantize_row_q2_K_impl of ggml-quants.c.
 */
#ifndef KCONV_Q2_K_H
#define KCONV_Q2_K_H

#include "batches.h"
#include "factors.h"
#include "scale_min.h"

enum { Q2_K_BYTES = 84, Q2_K_LEVELS = 16, Q2_K_SCALE = 80, Q2_K_TOP = 3, Q2_K_FACTOR = 15 };

static const search_range Q2_K_PLAIN = {16, Q2_K_TOP, -0.5f, 0.1f, 15, true};
static const search_range Q2_K_WEIGHED = {16, Q2_K_TOP, -0.9f, 0.05f, 36, false};

/* What the search leaves of each block: as scale_min says, and the sum of its weights. */
typedef struct {
    float scale[BATCH_BLOCKS], minimum[BATCH_BLOCKS], iscale[BATCH_BLOCKS], origin[BATCH_BLOCKS];
    float sum[BATCH_BLOCKS];
} found_q2_K;

INLINE void search_q2_K(const float *x, const float *const *importance, found_q2_K *found) {
    float spreads[LANES];
    if (importance) store(spreads, sum_squares(x) / 256.0f);
    for (int first = 0; first < BATCH_BLOCKS; first += GROUPS * LANES) {
        lf values[GROUPS * 16], weights[GROUPS * 16];
        weighted_sums sums;
        scale_min best;
        EACH_GROUP {
            const int block = first + g * LANES;
            lf *v = values + 16 * g, *w = weights + 16 * g;
            load_transposed(x + 16 * block, 16, 16, v);
            if (importance) {
                const float *own = importance[block / 16] + 16 * (block % 16);
                store(found->sum + block, weigh_blocks(v, own, floats(spreads[block / 16]), w));
            } else
                for (int i = 0; i < 16; ++i) w[i] = absolute(v[i]);
        }
        find_scale_min(importance ? &Q2_K_WEIGHED : &Q2_K_PLAIN, values, weights, &best, &sums);
        EACH_GROUP {
            const int block = first + g * LANES;
            store(found->scale + block, best.scale[g]), store(found->minimum + block, best.minimum[g]);
            store(found->iscale + block, best.iscale[g]), store(found->origin + block, best.origin[g]);
        }
    }
}

/* 16 numbers a lane as multiples of their largest / 15, which is returned. */
INLINE lf round_factors(const lf *x, li *factors) {
    lf largest = floats(0);
    for (int j = 0; j < 16; ++j) largest = maximum(x[j], largest);
    const lm some = less(floats(0), largest);
    const lf inverse = (float)Q2_K_FACTOR / largest;
    for (int j = 0; j < 16; ++j) factors[j] = choose_ints(some, nearest(inverse * x[j]), ints(0));
    return largest / (float)Q2_K_FACTOR;
}

/* The nibbles of all scales and minima; what they are multiples of goes to ``scale`` and ``minimum``. */
INLINE void factor_q2_K(
    const found_q2_K *found, bool weighed, uint8_t *nibbles, float *scale, float *minimum
) {
    lf scales[16], minima[16], sums[16];
    li low[16], high[16];
    load_transposed(found->scale, 16, 16, scales);
    load_transposed(found->minimum, 16, 16, minima);
    if (weighed) {
        load_transposed(found->sum, 16, 16, sums);
        store(scale, find_factors(16, Q2_K_FACTOR, scales, sums, low));
        store(minimum, find_factors(16, Q2_K_FACTOR, minima, sums, high));
    } else {
        store(scale, round_factors(scales, low));
        store(minimum, round_factors(minima, high));
    }
    for (int j = 0; j < 16; ++j) low[j] = (low[j] | high[j] << 4) & 255;
    store_bytes_transposed(low, 16, nibbles, 16);
}

/* Levels of the LANES blocks at ``x`` for scales and minima as they are stored. Where a scale is zero they
 * are those of the search. */
INLINE void level_q2_K(
    const float *x, lf scale, lf minimum, const float *iscale, const float *origin, li *levels
) {
    const lm none = equal(scale, floats(0));
    const bool some = any(none);
    lf values[16];
    load_transposed(x, 16, 16, values);
    for (int i = 0; i < 16; ++i) {
        lf level = nearest_level((values[i] + minimum) / scale, Q2_K_TOP);
        if (some) {
            const lf searched = load(iscale) * (values[i] - load(origin));
            level = choose(none, nearest_level(searched, Q2_K_TOP), level);
        }
        levels[i] = bits(level) & 3;
    }
}

INLINE void encode_batch_q2_K(const float *x, const float *const *importance, uint8_t *to) {
    found_q2_K found;
    uint8_t nibbles[BATCH_BLOCKS], packed[256];
    float scale[LANES], minimum[LANES];
    search_q2_K(x, importance, &found);
    factor_q2_K(&found, importance, nibbles, scale, minimum);
    for (int n = 0; n < LANES; ++n, to += Q2_K_BYTES) {
        const uint16_t halves[2] = {half_bits(scale[n]), half_bits(minimum[n])};
        for (int block = 16 * n; block < 16 * (n + 1); block += LANES) {
            li own, levels[16];
            for (int j = 0; j < LANES; ++j) own[j] = nibbles[block + j];
            const lf scales = half_value(halves[0]) * to_floats(own & 15);
            const lf minima = half_value(halves[1]) * to_floats(own >> 4);
            level_q2_K(x + 16 * block, scales, minima, found.iscale + block, found.origin + block, levels);
            store_bytes_transposed(levels, 16, packed + 16 * (block % 16), 16);
        }
        memcpy(to, nibbles + 16 * n, 16);
        pack_pairs(packed, to + Q2_K_LEVELS);
        memcpy(to + Q2_K_SCALE, halves, 4);
    }
}

static void NAME(encode_q2_K)(
    const float *x, void *out, int64_t rows, int64_t columns, const float *importance
) {
    encode_batches(encode_batch_q2_K, Q2_K_BYTES, x, out, rows, columns, importance);
}

#endif
