/* q4_1, q5_0, q5_1 and, with importance, q4_0: blocks of 32 weights; a lane is a block.
 *
 * A block is a half float, the scale, in q4_1 and q5_1 another, the minimum, in q5_0 and q5_1 four bytes of the
 * levels' fifth bits, and 16 of their other four. As quantize_row_q4_1_ref and its kin or, with importance,
 * quantize_row_q4_1_impl and its kin of ggml-quants.c.
 */
#ifndef KCONV_Q4_Q5_H
#define KCONV_Q4_Q5_H

#include "batches.h"
#include "scale_min.h"
#include "signed_search.h"

typedef struct {
    int bytes, top; /* of a block; the highest level */
    bool minimum;   /* levels count from a minimum, or else from -(top + 1) / 2 scales */
} q4_q5_flat;

static const q4_q5_flat Q4_0 = {18, 15, false}, Q4_1 = {20, 15, true}, Q5_0 = {22, 31, false},
                        Q5_1 = {24, 31, true};
static const search_range Q4_1_WEIGHED = {32, 15, -0.9f, 0.05f, 36, false};
static const search_range Q5_1_WEIGHED = {32, 31, -0.9f, 0.05f, 36, false};

/* The bytes of LANES blocks; ``low`` are minima where there are any. */
INLINE void pack_q4_q5(const q4_q5_flat *format, lf scale, lf low, const li *levels, uint8_t *to) {
    const int head = format->minimum ? 4 : 2;
    li nibbles[16], fifth = ints(0);
    int32_t tops[LANES];
    float scales[LANES], minima[LANES];
    store(scales, scale), store(minima, low);
    for (int i = 0; i < 16; ++i) nibbles[i] = (levels[i] & 15) | (levels[i + 16] & 15) << 4;
    if (format->top == 31)
        for (int i = 0; i < 32; ++i) fifth |= (levels[i] >> 4 & 1) << i;
    store_ints(tops, fifth);
    for (int j = 0; j < LANES; ++j) {
        uint8_t *block = to + j * format->bytes;
        const uint16_t halves[2] = {half_bits(scales[j]), format->minimum ? half_bits(minima[j]) : 0};
        memcpy(block, halves, head);
        if (format->top == 31) memcpy(block + head, &tops[j], 4);
    }
    store_bytes_transposed(nibbles, 16, to + format->bytes - 16, format->bytes);
}

INLINE void encode_plain_q4_q5(const q4_q5_flat *format, const float *x, uint8_t *to) {
    const int top = format->top;
    lf values[32], scale, low = floats(0);
    load_transposed(x, 32, 32, values);
    if (format->minimum) {
        lf high = values[0];
        low = values[0];
        for (int i = 1; i < 32; ++i) low = minimum(values[i], low), high = maximum(values[i], high);
        scale = (high - low) / (float)top;
    } else
        scale = largest_weight(32, values) / (float)(-(top + 1) / 2);
    const lf inverse = choose(unequal(scale, floats(0)), 1.0f / scale, floats(0));
    const float half = format->minimum ? 0.5f : (top + 1) / 2 + 0.5f;
    li levels[32];
    for (int i = 0; i < 32; ++i) {
        const lf from = format->minimum ? values[i] - low : values[i];
        levels[i] = minimum_ints(truncated(from * inverse + half), ints(top));
    }
    pack_q4_q5(format, scale, low, levels, to);
}

#define FLAT_BATCH (GROUPS * LANES) /* blocks searched at once */

/* FLAT_BATCH blocks whose errors weigh as ``importance`` (blocks, 32) and the mean squares of the rows that they
 * are of say. */
INLINE void encode_weighed_q4_q5(
    const q4_q5_flat *format, const float *x, const float *importance, const float *spreads, uint8_t *to
) {
    lf values[GROUPS * 32], weights[GROUPS * 32];
    li levels[32];
    scale_min found;
    lf sums[GROUPS];
    EACH_GROUP {
        load_transposed(x + 32 * g * LANES, 32, 32, values + 32 * g);
        weigh_blocks(
            32, values + 32 * g, importance + 32 * g * LANES, load(spreads + g * LANES), weights + 32 * g
        );
    }
    if (format->minimum)
        find_scale_min(format->top == 15 ? &Q4_1_WEIGHED : &Q5_1_WEIGHED, values, weights, &found, sums);
    EACH_GROUP {
        const lf *v = values + 32 * g;
        lf scale, low = floats(0);
        if (format->minimum) {
            scale = found.scale[g], low = -found.minimum[g];
            for (int i = 0; i < 32; ++i) {
                const lf level = nearest_level(found.iscale[g] * (v[i] - found.origin[g]), format->top);
                levels[i] = bits(level) & format->top; /* which is 2^n - 1 */
            }
        } else {
            const int middle = (format->top + 1) / 2;
            const signed_scale best = search_signed(32, v, weights + 32 * g, middle, false);
            scale = best.scale;
            searched_levels(32, v, best.inverse, middle, levels);
        }
        pack_q4_q5(format, scale, low, levels, to + g * LANES * format->bytes);
    }
}

/* The mean squares of ``count`` rows, at most LANES, each summed from its first weight to its last. */
INLINE void mean_squares(const float *x, int count, int64_t columns, float *out) {
    if (count == LANES) {
        lf sum = floats(0), values[LANES];
        for (int64_t i = 0; i < columns; i += LANES) {
            load_transposed(x + i, columns, LANES, values);
            for (int j = 0; j < LANES; ++j) sum += values[j] * values[j];
        }
        store(out, sum / (float)columns);
        return;
    }
    for (int row = 0; row < count; ++row, x += columns) {
        float sum = 0;
        for (int64_t i = 0; i < columns; ++i) sum += x[i] * x[i];
        out[row] = sum / (float)columns;
    }
}

/* Blocks ``first`` and following, at most FLAT_BATCH, of some rows. */
INLINE void encode_flat_batch(
    const q4_q5_flat *format, const float *x, uint8_t *to, int64_t first, int count, int64_t in_row,
    const float *importance, const float *spreads
) {
    float rest[FLAT_BATCH * 32], own[FLAT_BATCH * 32], spread[FLAT_BATCH];
    uint8_t encoded[FLAT_BATCH * 24];
    for (int j = 0; j < FLAT_BATCH; ++j) {
        const int64_t block = first + (j < count ? j : 0);
        memcpy(own + 32 * j, importance + 32 * (block % in_row), sizeof(float[32]));
        spread[j] = spreads[block / in_row];
    }
    if (count == FLAT_BATCH) {
        encode_weighed_q4_q5(format, x + 32 * first, own, spread, to + format->bytes * first);
        return;
    }
    memset(rest, 0, sizeof rest);
    memcpy(rest, x + 32 * first, sizeof(float[32]) * count);
    encode_weighed_q4_q5(format, rest, own, spread, encoded);
    memcpy(to + format->bytes * first, encoded, format->bytes * count);
}

/* LANES rows share the sums of their squares, and then all their blocks follow one another. */
INLINE void encode_weighed_rows(
    const q4_q5_flat *format, const float *x, uint8_t *to, int64_t rows, int64_t columns, const float *importance
) {
    const int64_t in_row = columns / 32;
    for (int64_t row = 0; row < rows; row += LANES) {
        const int count = rows - row < LANES ? (int)(rows - row) : LANES;
        const int64_t blocks = count * in_row;
        float spreads[LANES];
        mean_squares(x + row * columns, count, columns, spreads);
        for (int64_t first = 0; first < blocks; first += FLAT_BATCH) {
            const int some = blocks - first < FLAT_BATCH ? (int)(blocks - first) : FLAT_BATCH;
            encode_flat_batch(
                format, x + row * columns, to + row * in_row * format->bytes, first, some, in_row, importance, spreads
            );
        }
    }
}

INLINE void encode_plain_blocks(const q4_q5_flat *format, const float *x, uint8_t *to, int64_t blocks) {
    float rest[32 * LANES] = {0};
    uint8_t encoded[24 * LANES];
    int64_t done = 0;
    for (; done + LANES <= blocks; done += LANES)
        encode_plain_q4_q5(format, x + 32 * done, to + format->bytes * done);
    if (done == blocks) return;
    memcpy(rest, x + 32 * done, sizeof(float[32]) * (blocks - done));
    encode_plain_q4_q5(format, rest, encoded);
    memcpy(to + format->bytes * done, encoded, format->bytes * (blocks - done));
}

/* Of scales near the smallest float the inverse is infinite, and of ranges beyond the largest the scale: their
 * products with the weights have no whole number in C. As half floats the first are zero and the others
 * infinite. */
INLINE bool undefined_q4_q5(const q4_q5_flat *format, const float *x, const uint8_t *out, int64_t blocks) {
    for (int64_t block = 0; block < blocks; ++block, x += 32, out += format->bytes) {
        const int half = (out[0] | out[1] << 8) & 0x7fff;
        if (half != 0 && half != 0x7c00) continue;
        float low = format->minimum ? x[0] : 0, high = low;
        for (int i = 0; i < 32; ++i) low = fminf(low, x[i]), high = fmaxf(high, x[i]);
        const float range = high - low;
        if (range > 0 && (range < 1e-36f || isinf(range))) return true;
    }
    return false;
}

#define ENCODE_PLAIN(name, format)                                                                            \
    static void NAME(encode_##name)(const float *x, void *out, int64_t rows, int64_t columns,                 \
                                    const float *importance) {                                                \
        (void)importance;                                                                                     \
        encode_plain_blocks(&format, x, out, rows * columns / 32);                                            \
    }                                                                                                         \
    static bool NAME(undefined_##name)(const float *x, const void *out, int64_t blocks) {                     \
        return undefined_q4_q5(&format, x, out, blocks);                                                      \
    }
#define ENCODE_WEIGHED(name, format)                                                                          \
    static void NAME(weighed_##name)(const float *x, void *out, int64_t rows, int64_t columns,                \
                                     const float *importance) {                                               \
        encode_weighed_rows(&format, x, out, rows, columns, importance);                                      \
    }
ENCODE_PLAIN(q4_1, Q4_1)
ENCODE_PLAIN(q5_0, Q5_0)
ENCODE_PLAIN(q5_1, Q5_1)
ENCODE_WEIGHED(q4_0, Q4_0)
ENCODE_WEIGHED(q4_1, Q4_1)
ENCODE_WEIGHED(q5_0, Q5_0)
ENCODE_WEIGHED(q5_1, Q5_1)
#undef ENCODE_PLAIN
#undef ENCODE_WEIGHED

#endif
