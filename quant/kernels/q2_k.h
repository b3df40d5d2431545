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

INLINE void search_q2_K(const float *x, const float *const *importance, found_blocks *found) {
    float spreads[LANES];
    if (importance) store(spreads, sum_squares(x) / 256.0f);
    for (int first = 0; first < BATCH_BLOCKS; first += GROUPS * LANES) {
        lf values[GROUPS * 16], weights[GROUPS * 16];
        EACH_GROUP {
            const int block = first + g * LANES;
            lf *v = values + 16 * g, *w = weights + 16 * g;
            load_transposed(x + 16 * block, 16, 16, v);
            if (importance) {
                const float *own = importance[block / 16] + 16 * (block % 16);
                weigh_blocks(16, v, own, floats(spreads[block / 16]), w);
            } else
                for (int i = 0; i < 16; ++i) w[i] = absolute(v[i]);
        }
        if (importance) /* what is tried is a constant of each */
            find_blocks(&Q2_K_WEIGHED, values, weights, first, found);
        else
            find_blocks(&Q2_K_PLAIN, values, weights, first, found);
    }
}

/* The nibbles of all scales and minima; what they are multiples of goes to ``scale`` and ``minimum``. */
INLINE void factor_q2_K(
    const found_blocks *found, bool weighed, uint8_t *nibbles, float *scale, float *minimum
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
        store(scale, round_factors(16, Q2_K_FACTOR, scales, low));
        store(minimum, round_factors(16, Q2_K_FACTOR, minima, high));
    }
    for (int j = 0; j < 16; ++j) low[j] = (low[j] | high[j] << 4) & 255;
    store_bytes_transposed(low, 16, nibbles, 16);
}

INLINE void encode_batch_q2_K(const float *x, const float *const *importance, uint8_t *to) {
    found_blocks found;
    uint8_t nibbles[BATCH_BLOCKS], levels[256 * LANES];
    float scale[LANES], minimum[LANES], stored_scale[BATCH_BLOCKS], stored_minimum[BATCH_BLOCKS];
    search_q2_K(x, importance, &found);
    factor_q2_K(&found, importance, nibbles, scale, minimum);
    for (int n = 0; n < LANES; ++n) {
        const uint16_t halves[2] = {half_bits(scale[n]), half_bits(minimum[n])};
        memcpy(to + n * Q2_K_BYTES, nibbles + 16 * n, 16);
        memcpy(to + n * Q2_K_BYTES + Q2_K_SCALE, halves, 4);
        for (int block = 16 * n; block < 16 * (n + 1); ++block) {
            stored_scale[block] = half_value(halves[0]) * (nibbles[block] & 15);
            stored_minimum[block] = half_value(halves[1]) * (nibbles[block] >> 4);
        }
    }
    for (int block = 0; block < BATCH_BLOCKS; block += LANES)
        assign_stored(&Q2_K_PLAIN, x, stored_scale, stored_minimum, &found, block, levels);
    for (int n = 0; n < LANES; ++n) pack_pairs(levels + 256 * n, to + n * Q2_K_BYTES + Q2_K_LEVELS);
}

static void NAME(encode_q2_K)(
    const float *x, void *out, int64_t rows, int64_t columns, const float *importance
) {
    encode_batches(encode_batch_q2_K, 256, Q2_K_BYTES, x, out, rows, columns, importance);
}

#endif
