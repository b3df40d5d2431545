/* mxfp4: 32 weights, each the nearest of 0, 1, 2, 3, 4, 6, 8 and 12 halves of a power of two and their negatives. A
 * byte, the exponent, and 16 of two codes each. A lane is a block.
 *
 * As quantize_row_mxfp4_ref of ggml-quants.c, where the first of equally near values counts. Of a negative weight
 * none of the positive values is nearer than zero, and the other way round.
 */
#ifndef KCONV_MXFP4_H
#define KCONV_MXFP4_H

#include "lanes.h"

enum { MXFP4_BYTES = 17 };

/* Codes of LANES weights, with the powers of two. */
INLINE li mxfp4_codes(lf x, lf power) {
    static const float VALUES[8] = {0, 1, 2, 3, 4, 6, 8, 12};
    const lf magnitude = absolute(x);
    lf least = magnitude;
    li code = ints(0);
    for (int k = 1; k < 8; ++k) {
        const lf error = absolute(VALUES[k] * power - magnitude);
        const lm nearer = less(error, least);
        least = minimum(error, least), code = choose_ints(nearer, ints(k), code);
    }
    const lm negative = both(less(x, floats(0)), greater_ints(code, ints(0)));
    return choose_ints(negative, code | 8, code);
}

/* The exponent's byte of a largest magnitude: log2f is libm's, as there, which rounds up to a whole number some
 * numbers just below a power of two. Exponents below 0 have no byte in C; see undefined_mxfp4. */
INLINE int mxfp4_exponent(float largest) {
    const float exponent = largest > 0 ? floorf(log2f(largest)) + 125.0f : 0;
    return exponent > 0 ? (int)exponent : 0;
}

INLINE void blocks_mxfp4(const float *x, uint8_t *to) {
    lf v[32], largest = floats(0), power;
    li codes[16];
    int32_t powers[LANES];
    load_transposed(x, 32, 32, v);
    for (int i = 0; i < 32; ++i) largest = maximum(absolute(v[i]), largest);
    for (int j = 0; j < LANES; ++j) {
        const int exponent = mxfp4_exponent(largest[j]);
        to[j * MXFP4_BYTES] = (uint8_t)exponent;
        powers[j] = exponent < 2 ? 0x00200000 << exponent : (exponent - 1) << 23;
    }
    power = from_bits(load_ints(powers));
    for (int i = 0; i < 16; ++i) codes[i] = mxfp4_codes(v[i], power) | mxfp4_codes(v[i + 16], power) << 4;
    store_bytes_transposed(codes, 16, to + 1, MXFP4_BYTES);
}

static void NAME(encode_mxfp4)(const float *x, void *out, int64_t rows, int64_t columns, const float *importance) {
    (void)importance; /* quantize_mxfp4 does not look at it */
    const int64_t blocks = rows * columns / 32;
    uint8_t *to = out;
    int64_t done = 0;
    for (; done + LANES <= blocks; done += LANES) blocks_mxfp4(x + 32 * done, to + MXFP4_BYTES * done);
    if (done == blocks) return;
    float rest[32 * LANES] = {0};
    uint8_t encoded[MXFP4_BYTES * LANES];
    memcpy(rest, x + 32 * done, sizeof(float[32]) * (blocks - done));
    blocks_mxfp4(rest, encoded);
    memcpy(to + MXFP4_BYTES * done, encoded, MXFP4_BYTES * (blocks - done));
}

static bool NAME(undefined_mxfp4)(const float *x, const void *out, int64_t blocks) {
    const uint8_t *exponent = out;
    for (int64_t block = 0; block < blocks; ++block, x += 32, exponent += MXFP4_BYTES) {
        if (*exponent) continue;
        float largest = 0;
        for (int i = 0; i < 32; ++i) largest = fmaxf(largest, fabsf(x[i]));
        if (largest > 0 && floorf(log2f(largest)) + 125.0f < 0) return true;
    }
    return false;
}

#endif
