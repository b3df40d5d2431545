/* Super-blocks of 256 weights, or iq4_nl's blocks of 32, LANES of them at once.
 *
 * The super-blocks of q2_K and q3_K have 16 blocks of 16.
 * With a lane for each block, a vector is LANES / 16 super-blocks. What is done to the 16 scales of a
 * super-block has a lane for each super-block.
 */
#ifndef KCONV_BATCHES_H
#define KCONV_BATCHES_H

#include "lanes.h"

enum { BATCH_BLOCKS = 16 * LANES };

/* Encodes LANES of them; ``importance`` points to that of each, or is NULL. */
typedef void batch_encoder(const float *x, const float *const *importance, uint8_t *to);

/* All rows, in units of ``size`` weights and ``bytes`` bytes. The last batch is filled up with zeros. */
INLINE void encode_batches(
    batch_encoder *encode, int size, int bytes, const float *x, uint8_t *to, int64_t rows, int64_t columns,
    const float *importance
) {
    const int64_t in_row = columns / size, total = rows * in_row;
    float rest[256 * LANES];
    uint8_t encoded[256 * LANES]; /* a super-block has fewer bytes than weights */
    for (int64_t first = 0; first < total; first += LANES) {
        const float *at[LANES];
        for (int n = 0; importance && n < LANES; ++n) at[n] = importance + size * ((first + n) % in_row);
        const float *from = x + size * first;
        uint8_t *out = to + bytes * first;
        const int64_t count = total - first;
        const bool whole = count >= LANES;
        if (!whole) {
            memset(rest, 0, sizeof rest);
            memcpy(rest, from, sizeof(float) * size * count);
        }
        encode(whole ? from : rest, importance ? at : NULL, whole ? out : encoded);
        if (!whole) memcpy(out, encoded, bytes * count);
    }
}

/* The sum of the squares of each of LANES super-blocks. */
INLINE lf sum_squares(const float *x) {
    lf sum = floats(0);
    for (int part = 0; part < 256; part += 16) {
        lf values[16];
        load_transposed(x + part, 256, 16, values);
        for (int i = 0; i < 16; ++i) sum += values[i] * values[i];
    }
    return sum;
}

/* What the errors of LANES blocks weigh: importance * sqrt(spread + x squared). Returns the sums. */
INLINE lf weigh_blocks(int count, const lf *x, const float *importance, lf spread, lf *weights) {
    lf sum = floats(0);
    load_transposed(importance, count, count, weights);
    for (int i = 0; i < count; ++i) {
        weights[i] *= square_root(spread + x[i] * x[i]);
        sum += weights[i];
    }
    return sum;
}

/* Eight numbers of each of LANES super-blocks, a super-block a lane. */
INLINE void load_eights(const float *from, lf *out) {
    lf sixteen[16]; /* load_transposed takes at least LANES, and from has room for them */
    load_transposed(from, 8, LANES > 8 ? LANES : 8, sixteen);
    memcpy(out, sixteen, sizeof(lf[8]));
}

/* The lower two bits of 256 levels, four a byte. */
INLINE void pack_pairs(const uint8_t *levels, uint8_t *to) {
    for (int half = 0; half < 2; ++half) {
        const uint8_t *l = levels + 128 * half;
        for (int i = 0; i < 32; ++i)
            to[32 * half + i] = (l[i] & 3) | (l[i + 32] & 3) << 2 | (l[i + 64] & 3) << 4 | l[i + 96] << 6;
    }
}

#endif
