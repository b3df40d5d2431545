/* q6_K: super-blocks of 256 weights, 16 blocks of 16; a lane is a block.
 *
 * A super-block is 128 bytes of low nibbles, 64 of upper bit pairs, 16 block scales (int8) and the half float
 * they are multiples of. As quantize_row_q6_K_ref and quantize_row_q6_K_impl of ggml-quants.c.
 */
#ifndef KCONV_Q6_K_H
#define KCONV_Q6_K_H

#include "signed_search.h"

enum { Q6_K_BYTES = 210, Q6_K_HIGH = 128, Q6_K_SCALES = 192, Q6_K_SCALE = 208, Q6_K_TOP = 32 };

/* Levels 0 to 63 of 256 weights into their two places. */
INLINE void pack_q6_K(const uint8_t *levels, uint8_t *to) {
    for (int half = 0; half < 2; ++half) {
        const uint8_t *l = levels + 128 * half;
        for (int i = 0; i < 32; ++i) {
            to[64 * half + i] = (l[i] & 15) | l[i + 64] << 4;
            to[64 * half + i + 32] = (l[i + 32] & 15) | l[i + 96] << 4;
            to[Q6_K_HIGH + 32 * half + i] =
                l[i] >> 4 | l[i + 32] >> 4 << 2 | l[i + 64] >> 4 << 4 | l[i + 96] >> 4 << 6;
        }
    }
}

INLINE void encode_super_q6_K(const float *x, uint8_t *to, const float *importance) {
    lf values[16 / LANES][SIGNED_BLOCK];
    signed_scale found[16 / LANES];
    float scales[16];
    for (int g = 0; g < 16 / LANES; ++g) {
        lf weights[SIGNED_BLOCK];
        load_transposed(x + 16 * LANES * g, 16, SIGNED_BLOCK, values[g]);
        if (importance)
            load_transposed(importance + 16 * LANES * g, 16, SIGNED_BLOCK, weights);
        else
            for (int i = 0; i < SIGNED_BLOCK; ++i) weights[i] = values[g][i] * values[g][i];
        found[g] = search_signed(SIGNED_BLOCK, values[g], weights, Q6_K_TOP, false);
        store(scales + LANES * g, found[g].scale);
    }
    const float largest = largest_scale(scales);
    if (fabsf(largest) < GROUP_MAX_EPS) {
        memset(to, 0, Q6_K_BYTES);
        return;
    }
    const float inverse = -128.0f / largest;
    const uint16_t half = half_bits(1 / inverse);
    memcpy(to + Q6_K_SCALE, &half, 2);
    uint8_t packed[256];
    for (int g = 0; g < 16 / LANES; ++g) {
        li levels[SIGNED_BLOCK]; /* no scale exceeds the largest: what is stored is at least -128 */
        const li stored = minimum_ints(nearest(inverse * found[g].scale), ints(127));
        const lf scale = half_value(half) * to_floats(stored);
        searched_levels(SIGNED_BLOCK, values[g], found[g].inverse, Q6_K_TOP, levels);
        stored_levels(values[g], scale, Q6_K_TOP, levels);
        store_bytes_transposed(levels, SIGNED_BLOCK, packed + 16 * LANES * g, 16);
        for (int j = 0; j < LANES; ++j) to[Q6_K_SCALES + LANES * g + j] = (uint8_t)stored[j];
    }
    pack_q6_K(packed, to);
}

static void NAME(encode_q6_K)(
    const float *x, void *out, int64_t rows, int64_t columns, const float *importance
) {
    uint8_t *to = out;
    for (int64_t row = 0; row < rows; ++row)
        for (int64_t column = 0; column < columns; column += 256) {
            encode_super_q6_K(x, to, importance ? importance + column : NULL);
            x += 256;
            to += Q6_K_BYTES;
        }
}

#endif
