/* float32, F16 and BF16 to float32, and the largest magnitude, in one pass. */

/* Magnitudes are ordered as their bits, so the largest among whole numbers is wanted; four sums run at once. */
#define WIDENER(name, type, widened, magnitude)                                                               \
    static uint32_t NAME(name)(const void *from, float *out, int64_t count) {                                 \
        const type *source = from;                                                                            \
        li largest[4] = {{0}, {0}, {0}, {0}};                                                                 \
        int64_t i = 0;                                                                                        \
        for (; i + 4 * LANES <= count; i += 4 * LANES)                                                        \
            for (int k = 0; k < 4; ++k) {                                                                     \
                const li x = widened(source + i + k * LANES);                                                 \
                largest[k] = maximum_ints(largest[k], x & 0x7fffffff);                                        \
                if (out) store_ints((int32_t *)(out + i + k * LANES), x);                                     \
            }                                                                                                 \
        if (i < count) {                                                                                      \
            type padded[4 * LANES] = {0};                                                                     \
            memcpy(padded, source + i, (count - i) * sizeof *source);                                         \
            for (int k = 0; k < 4; ++k) {                                                                     \
                const li x = widened(padded + k * LANES);                                                     \
                largest[k] = maximum_ints(largest[k], x & 0x7fffffff);                                        \
                for (int j = 0; out && j < LANES && i + k * LANES + j < count; ++j)                           \
                    memcpy(out + i + k * LANES + j, (int32_t *)&x + j, 4);                                    \
            }                                                                                                 \
        }                                                                                                     \
        return magnitude(largest);                                                                            \
    }

INLINE li NAME(same)(const float *from) { return bits(load(from)); }

INLINE li NAME(halves)(const uint16_t *from) {
#if LANES == 16
    return (li)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)from));
#elif LANES == 8
    return (li)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)from));
#else
    li x = {from[0], from[1], from[2], from[3]};
    const li rest = (x & 0x7fff) << 13;
    const li special = choose_ints(greater_ints(rest, ints(0x0f7fffff)), ints(0x70000000), ints(0));
    const li finite = bits(from_bits(rest) * 0x1p112f);
    return choose_ints(equal_ints(special, ints(0)), finite, rest | special) | (x & 0x8000) << 16;
#endif
}

INLINE li NAME(brains)(const uint16_t *from) {
#if LANES == 16
    return (li)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)from)), 16);
#elif LANES == 8
    return (li)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)from)), 16);
#else
    li x = {from[0], from[1], from[2], from[3]};
    return x << 16;
#endif
}

INLINE uint32_t NAME(largest_lane)(const li *four) {
    const li largest = maximum_ints(maximum_ints(four[0], four[1]), maximum_ints(four[2], four[3]));
    int32_t found = 0;
    for (int j = 0; j < LANES; ++j)
        if (largest[j] > found) found = largest[j];
    return (uint32_t)found;
}

WIDENER(from_f32, float, NAME(same), NAME(largest_lane))
WIDENER(from_f16, uint16_t, NAME(halves), NAME(largest_lane))
WIDENER(from_bf16, uint16_t, NAME(brains), NAME(largest_lane))
#undef WIDENER
