/* q4_K and q5_K: super-blocks of 256 weights, eight blocks of 32; a lane is a block.
 *
 * A super-block is the half floats that the scales and the minima of its blocks are multiples of, twelve bytes
 * of these multiples (six bits each), in q5_K 32 bytes of the levels' fifth bits, and 128 of their other
 * four. As quantize_row_q4_K_ref and quantize_row_q5_K_ref or, with importance, quantize_row_q4_K_impl and
 * quantize_row_q5_K_impl of ggml-quants.c.
 */
#ifndef KCONV_Q4_Q5_K_H
#define KCONV_Q4_Q5_K_H

#include "batches.h"
#include "factors.h"
#include "scale_min.h"

typedef struct {
    int bytes, head; /* of a super-block, and of these what comes before the four bits of each weight */
    search_range plain, weighed;
} q4_q5_format;

static const q4_q5_format Q4_K = {144, 16, {32, 15, -1.0f, 0.1f, 20, false}, {32, 15, -0.9f, 0.05f, 36, false}};
static const q4_q5_format Q5_K = {176, 48, {32, 31, -0.5f, 0.1f, 15, false}, {32, 31, -0.9f, 0.05f, 36, false}};

enum { Q4_Q5_BLOCKS = 8 * LANES, Q4_Q5_FACTOR = 63, Q5_K_TOPS = 16 };

/* What the errors of LANES blocks weigh without importance: square root of the mean square + magnitude. */
INLINE void weigh_q4_q5(const lf *x, lf *weights) {
    lf sum = floats(0);
    for (int i = 0; i < 32; ++i) sum += x[i] * x[i];
    const lf mean = square_root(sum / 32.0f);
    for (int i = 0; i < 32; ++i) weights[i] = mean + absolute(x[i]);
}

INLINE void search_q4_q5(
    const q4_q5_format *format, const float *x, const float *const *importance, found_blocks *found
) {
    float spreads[LANES];
    if (importance) store(spreads, 2.0f * sum_squares(x) / 256.0f);
    for (int first = 0; first < Q4_Q5_BLOCKS; first += GROUPS * LANES) {
        lf values[GROUPS * 32], weights[GROUPS * 32];
        float own[GROUPS * LANES * 32], spread[GROUPS * LANES];
        for (int j = 0; importance && j < GROUPS * LANES; ++j) {
            const int block = first + j;
            memcpy(own + 32 * j, importance[block / 8] + 32 * (block % 8), sizeof(float[32]));
            spread[j] = spreads[block / 8];
        }
        EACH_GROUP {
            lf *v = values + 32 * g, *w = weights + 32 * g;
            load_transposed(x + 32 * (first + g * LANES), 32, 32, v);
            if (importance)
                weigh_blocks(32, v, own + 32 * g * LANES, load(spread + g * LANES), w);
            else
                weigh_q4_q5(v, w);
        }
        if (importance) /* what is tried is a constant of each */
            find_blocks(&format->weighed, values, weights, first, found);
        else
            find_blocks(&format->plain, values, weights, first, found);
    }
}

/* ``x`` as multiples, to ``factors``, of what goes to ``unit``. q4_K with importance takes them as they are:
 * where weights of zero led the search astray they may have more than six bits. */
INLINE void factor_q4_q5(
    const q4_q5_format *format, const float *x, const float *sums, uint8_t *factors, float *unit
) {
    lf numbers[8], weights[8];
    li found[8];
    load_eights(x, numbers);
    if (sums) {
        load_eights(sums, weights);
        store(unit, find_factors(8, Q4_Q5_FACTOR, numbers, weights, found));
    } else
        store(unit, round_factors(8, Q4_Q5_FACTOR, numbers, found));
    for (int j = 0; j < 8; ++j) {
        found[j] &= 255;
        if (!sums || format == &Q5_K) found[j] = minimum_ints(found[j], ints(Q4_Q5_FACTOR));
    }
    store_bytes_transposed(found, 8, factors, 8);
}

/* The first 16 bytes of a super-block. Of the last four scales and minima the upper two bits lie above the
 * first four's. The scales and minima that it says are written to ``scale`` and ``minimum``. */
INLINE void pack_scales_q4_q5(
    float unit, float minimum_unit, const uint8_t *s, const uint8_t *m, uint8_t *to, float *scale, float *minimum
) {
    const uint16_t halves[2] = {half_bits(unit), half_bits(minimum_unit)};
    const float d = half_value(halves[0]), dmin = half_value(halves[1]);
    memcpy(to, halves, 4);
    uint8_t *low = to + 4, *high = to + 8, *rest = to + 12;
    for (int j = 0; j < 4; ++j) {
        low[j] = s[j] | s[j + 4] >> 4 << 6;
        high[j] = m[j] | m[j + 4] >> 4 << 6;
        rest[j] = (s[j + 4] & 15) | (m[j + 4] & 15) << 4;
        scale[j] = d * (low[j] & 63), minimum[j] = dmin * (high[j] & 63);
        scale[j + 4] = d * ((rest[j] & 15) | low[j] >> 6 << 4);
        minimum[j + 4] = dmin * (rest[j] >> 4 | high[j] >> 6 << 4);
    }
}

/* The lower four bits of 256 levels, two blocks side by side. */
INLINE void pack_nibbles(const uint8_t *levels, uint8_t *to) {
    for (int pair = 0; pair < 4; ++pair, levels += 64, to += 32)
        for (int i = 0; i < 32; ++i) to[i] = (levels[i] & 15) | levels[i + 32] << 4;
}

/* Their fifth bits, those of a block at the same place in 32 bytes. */
INLINE void pack_tops_q5_K(const uint8_t *levels, uint8_t *to) {
    memset(to, 0, 32);
    for (int block = 0; block < 8; ++block)
        for (int i = 0; i < 32; ++i) to[i] |= levels[32 * block + i] >> 4 << block;
}

INLINE void encode_batch_q4_q5(
    const q4_q5_format *format, const float *x, const float *const *importance, uint8_t *to
) {
    found_blocks found;
    uint8_t scales[Q4_Q5_BLOCKS], minima[Q4_Q5_BLOCKS], levels[256 * LANES];
    float unit[LANES], minimum_unit[LANES], scale[Q4_Q5_BLOCKS], minimum[Q4_Q5_BLOCKS];
    search_q4_q5(format, x, importance, &found);
    factor_q4_q5(format, found.scale, importance ? found.sum : NULL, scales, unit);
    factor_q4_q5(format, found.minimum, importance ? found.sum : NULL, minima, minimum_unit);
    for (int n = 0; n < LANES; ++n) {
        const int block = 8 * n;
        pack_scales_q4_q5(
            unit[n], minimum_unit[n], scales + block, minima + block, to + n * format->bytes,
            scale + block, minimum + block
        );
    }
    for (int block = 0; block < Q4_Q5_BLOCKS; block += LANES)
        assign_stored(&format->plain, x, scale, minimum, &found, block, levels);
    for (int n = 0; n < LANES; ++n, to += format->bytes) {
        if (format == &Q5_K) pack_tops_q5_K(levels + 256 * n, to + Q5_K_TOPS);
        pack_nibbles(levels + 256 * n, to + format->head);
    }
}

INLINE void encode_batch_q4_K(const float *x, const float *const *importance, uint8_t *to) {
    encode_batch_q4_q5(&Q4_K, x, importance, to);
}

INLINE void encode_batch_q5_K(const float *x, const float *const *importance, uint8_t *to) {
    encode_batch_q4_q5(&Q5_K, x, importance, to);
}

static void NAME(encode_q4_K)(
    const float *x, void *out, int64_t rows, int64_t columns, const float *importance
) {
    encode_batches(encode_batch_q4_K, 256, Q4_K.bytes, x, out, rows, columns, importance);
}

static void NAME(encode_q5_K)(
    const float *x, void *out, int64_t rows, int64_t columns, const float *importance
) {
    encode_batches(encode_batch_q5_K, 256, Q5_K.bytes, x, out, rows, columns, importance);
}

#endif
