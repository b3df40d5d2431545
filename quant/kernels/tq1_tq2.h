/* tq1_0 and tq2_0: super-blocks of 256 weights that are -1, 0 or 1 times the largest magnitude, in that order of
 * levels from 0. tq1_0 has five of them in a byte, as digits of a fraction of base 3, tq2_0 four; weights that share a
 * byte are 32 apart (tq1_0: then 16, then 4). The half float comes last.
 *
 * As quantize_row_tq1_0_ref and quantize_row_tq2_0_ref of ggml-quants.c. A vector is neighbouring weights.
 */
#ifndef KCONV_TQ1_TQ2_H
#define KCONV_TQ1_TQ2_H

#include "lanes.h"
#include "q8_0.h"

enum { TQ1_0_BYTES = 54, TQ2_0_BYTES = 66 };

/* The levels of one super-block; returns the largest magnitude. */
INLINE float ternary_levels(const float *x, int32_t *levels) {
    lf magnitudes = floats(0);
    float largest = 0;
    for (int i = 0; i < 256; i += LANES) magnitudes = maximum(absolute(load(x + i)), magnitudes);
    for (int j = 0; j < LANES; ++j) largest = magnitudes[j] > largest ? magnitudes[j] : largest;
    const float inverse = largest != 0 ? 1.0f / largest : 0.0f;
    for (int i = 0; i < 256; i += LANES)
        store_ints(levels + i, (NAME(rounded)(load(x + i) * inverse) + 1) & 3);
    return largest;
}

/* Bytes of digits: the first of ``digits`` levels that are ``count`` apart is the highest. A number of five digits is
 * times 256 / 243, rounded up: n + (13 * n + 242) / 243. */
INLINE void pack_ternary(const int32_t *levels, int count, int digits, uint8_t *to) {
    for (int i = 0; i < count; ++i) {
        int32_t number = 0;
        for (int n = 0; n < 5; ++n) number = number * 3 + (n < digits ? levels[i + n * count] : 0);
        to[i] = (uint8_t)(number + ((13 * number + 242) * 1079 >> 18));
    }
}

static void NAME(encode_tq1_0)(const float *x, void *out, int64_t rows, int64_t columns, const float *importance) {
    (void)importance; /* quantize_tq1_0 does not look at it */
    uint8_t *to = out;
    for (const float *end = x + rows * columns; x < end; x += 256, to += TQ1_0_BYTES) {
        int32_t levels[256];
        const uint16_t half = half_bits(ternary_levels(x, levels));
        pack_ternary(levels, 32, 5, to);
        pack_ternary(levels + 160, 16, 5, to + 32);
        pack_ternary(levels + 240, 4, 4, to + 48);
        memcpy(to + 52, &half, 2);
    }
}

static void NAME(encode_tq2_0)(const float *x, void *out, int64_t rows, int64_t columns, const float *importance) {
    (void)importance;
    uint8_t *to = out;
    for (const float *end = x + rows * columns; x < end; x += 256, to += TQ2_0_BYTES) {
        int32_t levels[256];
        const uint16_t half = half_bits(ternary_levels(x, levels));
        for (int part = 0; part < 2; ++part)
            for (int i = 0; i < 32; ++i) {
                const int32_t *own = levels + 128 * part + i;
                to[32 * part + i] = (uint8_t)(own[0] | own[32] << 2 | own[64] << 4 | own[96] << 6);
            }
        memcpy(to + 64, &half, 2);
    }
}

/* As undefined_scale in q8_0.h says. */
INLINE bool undefined_ternary(const float *x, const uint8_t *out, int64_t blocks, int bytes) {
    for (int64_t block = 0; block < blocks; ++block, x += 256, out += bytes) {
        if ((out[bytes - 2] | out[bytes - 1]) != 0) continue;
        float largest = 0;
        for (int i = 0; i < 256; ++i) largest = fmaxf(largest, fabsf(x[i]));
        if (largest > 0 && largest < 1e-36f) return true;
    }
    return false;
}
static bool NAME(undefined_tq1_0)(const float *x, const void *out, int64_t blocks) {
    return undefined_ternary(x, out, blocks, TQ1_0_BYTES);
}
static bool NAME(undefined_tq2_0)(const float *x, const void *out, int64_t blocks) {
    return undefined_ternary(x, out, blocks, TQ2_0_BYTES);
}

#endif
