/* q3_K: super-blocks of 256 weights, 16 blocks of 16; a lane is a block.
 *
 * A super-block is 32 bytes of top bits, 64 of lower bit pairs, 12 of block scales (six bits each) and the
 * half float they are multiples of. Without importance data as quantize_row_q3_K_ref of ggml-quants.c, whose
 * search (make_q3_quants) changes one level at a time as long as that helps; with it as
 * quantize_row_q3_K_impl, which searches the scales of the blocks as those of weights are searched.
 */
#ifndef KCONV_Q3_K_H
#define KCONV_Q3_K_H

#include "batches.h"
#include "signed_search.h"

enum { Q3_K_BYTES = 110, Q3_K_LOW = 32, Q3_K_SCALES = 96, Q3_K_SCALE = 108, Q3_K_TOP = 4 };

/* One round of make_q3_quants over the lanes that are ``active``: each level in turn becomes what is best for
 * the scale the others give, if that helps. Returns the lanes in which a level changed. */
INLINE lm improve_levels(
    const lf *x, const lf *weights, const lf *weighted, lm active, lf *level, lf *xl, lf *ll
) {
    const level_clamp full = {Q3_K_TOP, true, true, true};
    lm changed = less(floats(0), floats(0));
    for (int i = 0; i < SIGNED_BLOCK; ++i) {
        lf other_xl = *xl - weighted[i] * level[i], other_ll = *ll - weights[i] * level[i] * level[i];
        const lf fresh = signed_level(x[i] * other_ll / other_xl, full);
        lm better = both(both(active, less(floats(0), other_xl)), unequal(fresh, level[i]));
        if (!any(better)) continue;
        other_xl += weighted[i] * fresh;
        other_ll += weights[i] * fresh * fresh;
        const lm helps = less(*xl * *xl * other_ll, other_xl * other_xl * *ll);
        better = both(better, both(less(floats(0), other_ll), helps));
        level[i] = choose(better, fresh, level[i]);
        *xl = choose(better, other_xl, *xl);
        *ll = choose(better, other_ll, *ll);
        changed = either(changed, better);
    }
    return changed;
}

/* make_q3_quants: the scales; the levels, counted from 0, go to ``levels``. */
INLINE lf descend_q3_K(const lf *x, li *levels) {
    const level_clamp high = {Q3_K_TOP, false, false, true};
    lf weights[SIGNED_BLOCK], weighted[SIGNED_BLOCK], level[SIGNED_BLOCK];
    const lf largest = largest_weight(SIGNED_BLOCK, x);
    const lf inverse = -(float)Q3_K_TOP / largest;
    lf xl = floats(0), ll = floats(0);
    for (int i = 0; i < SIGNED_BLOCK; ++i) {
        weights[i] = x[i] * x[i];
        weighted[i] = weights[i] * x[i];
        level[i] = signed_level(inverse * x[i], high);
        xl += weighted[i] * level[i];
        ll += weights[i] * level[i] * level[i];
    }
    const lm uneven = less_equal(floats(GROUP_MAX_EPS), absolute(largest));
    lm active = uneven;
    for (int round = 0; round < 5 && any(active); ++round)
        active = improve_levels(x, weights, weighted, active, level, &xl, &ll);
    for (int i = 0; i < SIGNED_BLOCK; ++i)
        levels[i] = choose_ints(uneven, truncated(level[i]) + Q3_K_TOP, ints(0));
    return choose(both(uneven, less(floats(0), ll)), xl / ll, floats(0));
}

/* Levels 0 to 7 of 256 weights into their two places, 16 block scales 0 to 63 into theirs. */
INLINE void pack_q3_K(const uint8_t *levels, const uint8_t *scales, uint8_t *to) {
    for (int i = 0; i < 32; ++i) {
        int top = 0;
        for (int j = 0; j < 8; ++j) top |= (levels[32 * j + i] >> 2) << j;
        to[i] = top;
    }
    pack_pairs(levels, to + Q3_K_LOW);
    uint8_t *low = to + Q3_K_SCALES, *high = low + 8;
    for (int j = 0; j < 8; ++j) low[j] = (scales[j] & 15) | scales[j + 8] << 4;
    for (int j = 0; j < 4; ++j)
        high[j] = scales[j] >> 4 | scales[j + 4] >> 4 << 2 | scales[j + 8] >> 4 << 4 |
                  scales[j + 12] >> 4 << 6;
}

/* Writes a super-block whose block scales are ``multiples`` less 32 of ``half``. Where such a scale is zero
 * the ``levels`` stay as the search left them. */
INLINE void finish_q3_K(
    const lf (*x)[SIGNED_BLOCK], const li *multiples, uint16_t half, li (*levels)[SIGNED_BLOCK], uint8_t *to
) {
    uint8_t packed[256], scales[16];
    for (int g = 0; g < 16 / LANES; ++g) {
        stored_levels(x[g], half_value(half) * to_floats(multiples[g] - 32), Q3_K_TOP, levels[g]);
        store_bytes_transposed(levels[g], SIGNED_BLOCK, packed + 16 * LANES * g, 16);
        for (int j = 0; j < LANES; ++j) scales[LANES * g + j] = (uint8_t)multiples[g][j];
    }
    pack_q3_K(packed, scales, to);
    memcpy(to + Q3_K_SCALE, &half, 2);
}

INLINE void encode_plain_q3_K(const float *x, uint8_t *to) {
    lf values[16 / LANES][SIGNED_BLOCK];
    li levels[16 / LANES][SIGNED_BLOCK], multiples[16 / LANES];
    float scales[16];
    for (int g = 0; g < 16 / LANES; ++g) {
        load_transposed(x + 16 * LANES * g, 16, SIGNED_BLOCK, values[g]);
        store(scales + LANES * g, descend_q3_K(values[g], levels[g]));
    }
    const float largest = largest_scale(scales);
    const float inverse = -32.0f / largest;
    for (int g = 0; g < 16 / LANES; ++g) {
        const li multiple = clamped(nearest(inverse * load(scales + LANES * g)), -32, 31);
        multiples[g] = largest == 0 ? ints(0) : multiple + 32;
    }
    finish_q3_K(values, multiples, largest == 0 ? 0 : half_bits(1 / inverse), levels, to);
}

/* What the search leaves of each block: its scale, what gave its levels, the sum of its weights. */
typedef struct {
    float scale[BATCH_BLOCKS], inverse[BATCH_BLOCKS], sum[BATCH_BLOCKS];
} found_q3_K;

INLINE void search_q3_K(const float *x, const float *const *importance, found_q3_K *found) {
    float spreads[LANES];
    store(spreads, 2.0f * sum_squares(x) / 256.0f);
    for (int block = 0; block < BATCH_BLOCKS; block += LANES) {
        lf values[16], weights[16];
        load_transposed(x + 16 * block, 16, 16, values);
        const float *own = importance[block / 16] + 16 * (block % 16);
        store(found->sum + block, weigh_blocks(16, values, own, floats(spreads[block / 16]), weights));
        const signed_scale best = search_signed(SIGNED_BLOCK, values, weights, Q3_K_TOP, false);
        store(found->scale + block, best.scale);
        store(found->inverse + block, best.inverse);
    }
}

INLINE void encode_batch_q3_K(const float *x, const float *const *importance, uint8_t *to) {
    found_q3_K found;
    lf scales[16], sums[16];
    li multiples[16];
    uint8_t bytes[BATCH_BLOCKS];
    search_q3_K(x, importance, &found);
    load_transposed(found.scale, 16, 16, scales);
    load_transposed(found.sum, 16, 16, sums);
    const signed_scale best = search_signed(SIGNED_BLOCK, scales, sums, 32, true);
    searched_levels(SIGNED_BLOCK, scales, best.inverse, 32, multiples);
    store_bytes_transposed(multiples, 16, bytes, 16);
    for (int n = 0; n < LANES; ++n) {
        lf values[16 / LANES][SIGNED_BLOCK];
        li levels[16 / LANES][SIGNED_BLOCK], own[16 / LANES];
        for (int g = 0; g < 16 / LANES; ++g) {
            const int block = 16 * n + LANES * g;
            load_transposed(x + 16 * block, 16, SIGNED_BLOCK, values[g]);
            searched_levels(SIGNED_BLOCK, values[g], load(found.inverse + block), Q3_K_TOP, levels[g]);
            for (int j = 0; j < LANES; ++j) own[g][j] = bytes[block + j];
        }
        finish_q3_K(values, own, half_bits(best.scale[n]), levels, to + Q3_K_BYTES * n);
    }
}

static void NAME(encode_q3_K)(
    const float *x, void *out, int64_t rows, int64_t columns, const float *importance
) {
    uint8_t *to = out;
    if (importance)
        encode_batches(encode_batch_q3_K, 256, Q3_K_BYTES, x, to, rows, columns, importance);
    else
        for (int64_t n = 0; n < rows * columns / 256; ++n)
            encode_plain_q3_K(x + 256 * n, to + Q3_K_BYTES * n);
}

#endif
