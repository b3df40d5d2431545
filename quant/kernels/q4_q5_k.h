/* q4_K and q5_K: super-blocks of 256 weights in eight sub-blocks of 32, each a multiple of one scale less a
 * multiple of one minimum. The bytes are those of quantize_row_q4_K_ref and quantize_row_q5_K_ref or, with
 * importance, of quantize_row_q4_K_impl and quantize_row_q5_K_impl (ggml-quants.c). */
#ifndef KCONV_Q4_Q5_K_H
#define KCONV_Q4_Q5_K_H

#include "factors.h"
#include "scale_min.h"

#define SUPER 256                     /* weights in a super-block */
#define SUB 32                        /* and in one of its sub-blocks */
#define TILE_SUBS (GROUPS * LANES)    /* sub-blocks worked on at once */
#define TILE_SUPERS (TILE_SUBS / 8)   /* super-blocks worked on at once */

/* One of the two formats: block_q4_K and block_q5_K of ggml-common.h are both scales (two halves and twelve
 * bytes), then q5_K's fifth bits, then four bits a weight. */
typedef struct {
    search_range plain, weighed;
    bool fifth_bit;
} two_level_format;

static const two_level_format Q4_K = {
    .plain = {SUB, 15, -1.0f, 0.1f, 20, false},
    .weighed = {SUB, 15, -0.9f, 0.05f, 36, false},
    .fifth_bit = false,
};
static const two_level_format Q5_K = {
    .plain = {SUB, 31, -0.5f, 0.1f, 15, false},
    .weighed = {SUB, 31, -0.9f, 0.05f, 36, false},
    .fifth_bit = true,
};

/* The scales and minima of a tile's sub-blocks: as searched for, as bytes, and as these are read again. */
typedef struct {
    float scale[TILE_SUBS], minimum[TILE_SUBS];
    uint8_t scale_byte[TILE_SUBS], minimum_byte[TILE_SUBS];
    float d[TILE_SUPERS], dmin[TILE_SUPERS];
    float read_scale[TILE_SUBS], read_minimum[TILE_SUBS];
} tile_scales;

/* Weights of the error of each weight without importance: sqrt(mean square of the sub-block) + |weight|. */
INLINE void weigh_plainly(const lf *x, lf *weights) {
    lf squares[GROUPS];
    EACH_GROUP squares[g] = floats(0);
    for (int i = 0; i < SUB; ++i) EACH_GROUP squares[g] += x[g * SUB + i] * x[g * SUB + i];
    EACH_GROUP {
        const lf average = square_root(squares[g] / 32.0f);
        for (int i = 0; i < SUB; ++i) weights[g * SUB + i] = average + absolute(x[g * SUB + i]);
    }
}

/* And with importance: importance * sqrt(twice the mean square of the super-block + weight squared). */
INLINE void weigh_importance(const float *from, const float *importance, const lf *x, lf *weights) {
    float squares[TILE_SUPERS] = {0}, sigma2[TILE_SUBS];
    for (int i = 0; i < SUPER; ++i)
        for (int s = 0; s < TILE_SUPERS; ++s) squares[s] += from[s * SUPER + i] * from[s * SUPER + i];
    for (int s = 0; s < TILE_SUBS; ++s) sigma2[s] = 2 * squares[s / 8] / SUPER;
    EACH_GROUP {
        load_transposed(importance + g * LANES * SUB, SUB, SUB, weights + g * SUB);
        const lf mean = load(sigma2 + g * LANES);
        for (int i = 0; i < SUB; ++i)
            weights[g * SUB + i] *= square_root(mean + x[g * SUB + i] * x[g * SUB + i]);
    }
}

INLINE float largest_of_eight(const float *x) {
    float largest = 0;
    for (int j = 0; j < 8; ++j) largest = x[j] > largest ? x[j] : largest;
    return largest;
}

INLINE int32_t nearest_scalar(float x) {
    const float sum = x + MAGIC;
    int32_t word;
    memcpy(&word, &sum, 4);
    return (word & 0x007fffff) - 0x00400000;
}

/* Eight numbers as multiples, at most 63, of their largest / 63, which is returned. */
INLINE float round_plainly(const float *x, uint8_t *bytes) {
    const float largest = largest_of_eight(x);
    const float inverse = largest > 0 ? 63.0f / largest : 0.0f;
    for (int j = 0; j < 8; ++j) {
        const uint8_t byte = nearest_scalar(inverse * x[j]);
        bytes[j] = byte < 63 ? byte : 63;
    }
    return largest / 63.0f;
}

/* Lane s is the scales of super-block s, lane TILE_SUPERS + s its minima; sums: of weights, by sub-block. */
INLINE void round_weighed(const float *sums, bool bounded, tile_scales *scales) {
    float x[8][LANES] = {{0}}, w[8][LANES] = {{0}}, d[LANES];
    int32_t bytes[8][LANES];
    for (int s = 0; s < TILE_SUBS; ++s) {
        x[s % 8][s / 8] = scales->scale[s], x[s % 8][TILE_SUPERS + s / 8] = scales->minimum[s];
        w[s % 8][s / 8] = w[s % 8][TILE_SUPERS + s / 8] = sums[s];
    }
    lf xs[8], ws[8];
    li factors[8];
    for (int j = 0; j < 8; ++j) xs[j] = load(x[j]), ws[j] = load(w[j]);
    store(d, find_factors(8, 63, xs, ws, factors));
    for (int j = 0; j < 8; ++j) store_ints(bytes[j], bounded ? minimum_ints(factors[j], ints(63)) : factors[j]);
    for (int s = 0; s < TILE_SUBS; ++s) {
        scales->scale_byte[s] = bytes[s % 8][s / 8];
        scales->minimum_byte[s] = bytes[s % 8][TILE_SUPERS + s / 8];
    }
    for (int s = 0; s < TILE_SUPERS; ++s) scales->d[s] = d[s], scales->dmin[s] = d[TILE_SUPERS + s];
}

/* The head of a block, 16 bytes: two halves, then eight scales and eight minima of six bits, the upper two
 * bits of the last four of each above the first four's. What is read back goes to scales. */
INLINE void write_scales(tile_scales *scales, int super, uint8_t *head) {
    const uint8_t *ls = scales->scale_byte + 8 * super, *lm = scales->minimum_byte + 8 * super;
    const uint16_t halves[2] = {half_bits(scales->d[super]), half_bits(scales->dmin[super])};
    const float d = half_value(halves[0]), dmin = half_value(halves[1]);
    memcpy(head, halves, 4);
    uint8_t *packed = head + 4;
    for (int j = 0; j < 4; ++j) {
        packed[j] = ls[j] | ls[j + 4] >> 4 << 6;
        packed[j + 4] = lm[j] | lm[j + 4] >> 4 << 6;
        packed[j + 8] = (ls[j + 4] & 15) | (lm[j + 4] & 15) << 4;
    }
    for (int j = 0; j < 4; ++j) { /* not ls and lm, which may have more than six bits */
        float *scale = scales->read_scale + 8 * super, *minimum = scales->read_minimum + 8 * super;
        scale[j] = d * (packed[j] & 63), minimum[j] = dmin * (packed[j + 4] & 63);
        scale[j + 4] = d * ((packed[j + 8] & 15) | packed[j] >> 6 << 4);
        minimum[j + 4] = dmin * (packed[j + 8] >> 4 | packed[j + 4] >> 6 << 4);
    }
}

typedef uint64_t lw __attribute__((vector_size(4 * LANES))); /* of two lanes, even and odd, each */

/* Write the levels of a tile, for the scales as they are read. Where a sub-block's is zero, the levels are
 * those of the search. Two neighbouring sub-blocks, each element's four bits a byte, are 32 bytes. */
INLINE void write_levels(const search_range *range, bool fifth_bit, const lf *x, const tile_scales *scales,
                         const scale_min *found, uint64_t (*low)[TILE_SUBS / 2], uint64_t (*high)[TILE_SUBS / 2]) {
    EACH_GROUP {
        const lf d = load(scales->read_scale + g * LANES), dm = load(scales->read_minimum + g * LANES);
        const lm unread = equal(d, floats(0));
        const bool some = any(unread);
        for (int word = 0; word < 4; ++word) {
            lw four = {0}, fifth = {0};
            for (int k = 0; k < 8; ++k) {
                const lf weight = x[g * SUB + 8 * word + k];
                lf level = nearest_level((weight + dm) / d, range->top);
                if (some) {
                    const lf searched = found->iscale[g] * (weight - found->origin[g]);
                    level = choose(unread, nearest_level(searched, range->top), level);
                }
                const lw pair = (lw)(bits(level) & 31);
                four |= ((pair & 15) | (pair >> 28 & 0xf0)) << 8 * k;
                fifth |= ((pair >> 4 & 1) | (pair >> 35 & 2)) << 8 * k;
            }
            memcpy(low[word] + g * LANES / 2, &four, sizeof four);
            if (fifth_bit) memcpy(high[word] + g * LANES / 2, &fifth, sizeof fifth);
        }
    }
}

/* TILE_SUPERS super-blocks, their importance, as many numbers, or NULL, and their bytes. */
INLINE void encode_tile(const two_level_format *format, const float *from, const float *importance, uint8_t *out) {
    const search_range *range = importance ? &format->weighed : &format->plain;
    lf x[GROUPS * SUB], weights[GROUPS * SUB];
    EACH_GROUP load_transposed(from + g * LANES * SUB, SUB, SUB, x + g * SUB);
    if (importance)
        weigh_importance(from, importance, x, weights);
    else
        weigh_plainly(x, weights);
    scale_min found;
    weighted_sums sums;
    find_scale_min(range, x, weights, &found, &sums);
    tile_scales scales;
    EACH_GROUP {
        store(scales.scale + g * LANES, found.scale[g]);
        store(scales.minimum + g * LANES, found.minimum[g]);
    }
    if (importance) {
        float w[TILE_SUBS];
        EACH_GROUP store(w + g * LANES, sums.w[g]);
        round_weighed(w, format->fifth_bit, &scales);
    } else
        for (int s = 0; s < TILE_SUPERS; ++s) {
            scales.d[s] = round_plainly(scales.scale + 8 * s, scales.scale_byte + 8 * s);
            scales.dmin[s] = round_plainly(scales.minimum + 8 * s, scales.minimum_byte + 8 * s);
        }
    const int head = format->fifth_bit ? 48 : 16, size = head + 128;
    for (int s = 0; s < TILE_SUPERS; ++s) write_scales(&scales, s, out + s * size);
    uint64_t low[4][TILE_SUBS / 2], high[4][TILE_SUBS / 2];
    write_levels(range, format->fifth_bit, x, &scales, &found, low, high);
    for (int s = 0; s < TILE_SUPERS; ++s)
        for (int word = 0; word < 4; ++word) {
            const uint64_t *pairs = low[word] + 4 * s, *tops = high[word] + 4 * s;
            for (int pair = 0; pair < 4; ++pair)
                memcpy(out + s * size + head + 32 * pair + 8 * word, pairs + pair, 8);
            if (!format->fifth_bit) continue;
            const uint64_t top = tops[0] | tops[1] << 2 | tops[2] << 4 | tops[3] << 6;
            memcpy(out + s * size + 16 + 8 * word, &top, 8);
        }
}

/* All rows. Importance begins anew with each row; the last tile is filled up with zeros. */
INLINE void encode_two_level(const two_level_format *format, const float *x, uint8_t *out, int64_t rows,
                             int64_t columns, const float *importance) {
    const int64_t each = columns / SUPER, total = rows * each;
    const int size = format->fifth_bit ? 176 : 144;
    float weights[TILE_SUPERS * SUPER], rest[TILE_SUPERS * SUPER] = {0};
    uint8_t bytes[TILE_SUPERS * 176];
    int64_t column = 0;
    for (int64_t first = 0; first < total; first += TILE_SUPERS) {
        const int64_t count = total - first < TILE_SUPERS ? total - first : TILE_SUPERS;
        if (importance)
            for (int s = 0; s < TILE_SUPERS; ++s) {
                memcpy(weights + s * SUPER, importance + column * SUPER, sizeof(float[SUPER]));
                column = column + 1 < each ? column + 1 : 0;
            }
        if (count == TILE_SUPERS) {
            encode_tile(format, x + first * SUPER, importance ? weights : NULL, out + first * size);
            continue;
        }
        memcpy(rest, x + first * SUPER, sizeof(float[SUPER]) * count);
        encode_tile(format, rest, importance ? weights : NULL, bytes);
        memcpy(out + first * size, bytes, size * count);
    }
}

static void NAME(encode_q4_K)(const float *x, void *out, int64_t rows, int64_t columns, const float *importance) {
    encode_two_level(&Q4_K, x, out, rows, columns, importance);
}

static void NAME(encode_q5_K)(const float *x, void *out, int64_t rows, int64_t columns, const float *importance) {
    encode_two_level(&Q5_K, x, out, rows, columns, importance);
}

#endif
