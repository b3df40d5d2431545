/* q8_0 and q4_0: 32 weights and one half-float scale. A lane works on one block.
 *
 * The order of operations is that of quantize_row_q8_0_ref and quantize_row_q4_0_ref in ggml-quants.c.
 */
#ifndef KCONV_Q8_0_H
#define KCONV_Q8_0_H

#include "lanes.h"

#define Q_BLOCK 32
#define Q8_0_BYTES 34
#define Q4_0_BYTES 18

/* Half away from zero, for less than 2^22: adding the float below one half never carries a smaller fraction
 * over, and a tie's sum rounds up. */
INLINE li NAME(rounded)(lf x) {
    const li below_half = (bits(x) & INT32_MIN) | bits(floats(0.49999997f));
    return truncated(x + from_bits(below_half));
}

/* LANES blocks at once; out gets their codes, a byte each, after the two bytes of the scale. */
INLINE void NAME(blocks_q8_0)(const float *x, uint8_t *out) {
    lf v[Q_BLOCK], largest = floats(0);
    load_transposed(x, Q_BLOCK, Q_BLOCK, v);
    for (int i = 0; i < Q_BLOCK; ++i) largest = maximum(absolute(v[i]), largest);
    const lf scale = largest / 127.0f;
    const lf inverse = choose(unequal(scale, floats(0)), 1.0f / scale, floats(0));
    li codes[Q_BLOCK];
    for (int i = 0; i < Q_BLOCK; ++i) codes[i] = NAME(rounded)(v[i] * inverse) & 0xff;
    for (int j = 0; j < LANES; ++j) {
        const uint16_t half = half_bits(scale[j]);
        memcpy(out + j * Q8_0_BYTES, &half, 2);
    }
    store_bytes_transposed(codes, Q_BLOCK, out + 2, Q8_0_BYTES);
}

INLINE void NAME(blocks_q4_0)(const float *x, uint8_t *out) {
    lf v[Q_BLOCK], magnitude = floats(0), largest = floats(0);
    load_transposed(x, Q_BLOCK, Q_BLOCK, v);
    for (int i = 0; i < Q_BLOCK; ++i) { /* the first of equal magnitudes gives the sign */
        largest = choose(less(magnitude, absolute(v[i])), v[i], largest);
        magnitude = maximum(absolute(v[i]), magnitude);
    }
    const lf scale = largest / -8.0f;
    const lf inverse = choose(unequal(scale, floats(0)), 1.0f / scale, floats(0));
    li codes[Q_BLOCK / 2];
    for (int i = 0; i < Q_BLOCK / 2; ++i) {
        const li low = truncated(v[i] * inverse + 8.5f);
        const li high = truncated(v[i + Q_BLOCK / 2] * inverse + 8.5f);
        codes[i] = (minimum_ints(low, ints(15)) | minimum_ints(high, ints(15)) << 4) & 0xff;
    }
    for (int j = 0; j < LANES; ++j) {
        const uint16_t half = half_bits(scale[j]);
        memcpy(out + j * Q4_0_BYTES, &half, 2);
    }
    store_bytes_transposed(codes, Q_BLOCK / 2, out + 2, Q4_0_BYTES);
}

#define FLAT_ENCODER(format, bytes)                                                                           \
    static void NAME(encode_##format)(const float *x, void *out, int64_t rows, int64_t columns,               \
                                      const float *importance) {                                              \
        (void)importance; /* quantize_q8_0 does not look at it */                                             \
        const int64_t blocks = rows * columns / Q_BLOCK;                                                      \
        int64_t done = 0;                                                                                     \
        for (; done + LANES <= blocks; done += LANES)                                                         \
            NAME(blocks_##format)(x + done * Q_BLOCK, (uint8_t *)out + done * bytes);                         \
        if (done == blocks) return;                                                                           \
        float padded[LANES * Q_BLOCK] = {0};                                                                  \
        uint8_t last[LANES * bytes];                                                                          \
        memcpy(padded, x + done * Q_BLOCK, (blocks - done) * Q_BLOCK * sizeof(float));                        \
        NAME(blocks_##format)(padded, last);                                                                  \
        memcpy((uint8_t *)out + done * bytes, last, (blocks - done) * bytes);                                 \
    }
FLAT_ENCODER(q8_0, Q8_0_BYTES)
FLAT_ENCODER(q4_0, Q4_0_BYTES)
#undef FLAT_ENCODER

/* Of scales near the smallest float the inverse is infinite, and an infinite product has no whole number in
 * C. Such scales are zero as half floats, which few blocks' are. */
INLINE bool NAME(undefined_scale)(const float *x, const uint8_t *out, int64_t blocks, int bytes) {
    for (int64_t block = 0; block < blocks; ++block) {
        if (((out[block * bytes] | out[block * bytes + 1]) & 0x7f) != 0) continue;
        float largest = 0;
        for (int i = 0; i < Q_BLOCK; ++i) largest = fmaxf(largest, fabsf(x[block * Q_BLOCK + i]));
        if (largest > 0 && largest < 1e-36f) return true;
    }
    return false;
}
static bool NAME(undefined_q8_0)(const float *x, const void *out, int64_t blocks) {
    return NAME(undefined_scale)(x, out, blocks, Q8_0_BYTES);
}
static bool NAME(undefined_q4_0)(const float *x, const void *out, int64_t blocks) {
    return NAME(undefined_scale)(x, out, blocks, Q4_0_BYTES);
}

#endif
