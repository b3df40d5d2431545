/* Products of a matrix with few vectors, as many as a library for products would pack the matrix anew for.
 *
 * x holds the vectors side by side, (columns, width), width a multiple of 2 * LANES;
 * w (rows, columns); out (rows, width). Each sum is taken over DEEP columns at a time, and these sums are
 * added: x stays in the first cache meanwhile, and float32 loses less than in one long sum. */
#ifndef FEW_POSITIONS_H
#define FEW_POSITIONS_H
enum { DEEP = 128, TALL = 6 };
#endif

#if LANES == 16
#define FUSED_TARGET
#define FUSED(a, b, c) ((lf)_mm512_fmadd_ps((__m512)(a), (__m512)(b), (__m512)(c)))
#elif LANES == 8
#define FUSED_TARGET __attribute__((target("avx2,f16c,fma")))
#define FUSED(a, b, c) ((lf)_mm256_fmadd_ps((__m256)(a), (__m256)(b), (__m256)(c)))
#endif

#ifdef FUSED
/* TALL rows of w from ``deep`` columns, for two registers of vectors. */
FUSED_TARGET static void NAME(tall_sums)(const float *x, int64_t width, const float *w, int64_t columns,
                                         int deep, float *out, bool first) {
    lf a[TALL], b[TALL];
    for (int i = 0; i < TALL; ++i) a[i] = b[i] = (lf){0};
    for (int k = 0; k < deep; ++k) {
        const lf one = load(x + k * width), two = load(x + k * width + LANES);
#pragma GCC unroll 6
        for (int i = 0; i < TALL; ++i) {
            const lf weight = floats(w[i * columns + k]);
            a[i] = FUSED(weight, one, a[i]);
            b[i] = FUSED(weight, two, b[i]);
        }
    }
    for (int i = 0; i < TALL; ++i, out += width) {
        store(out, first ? a[i] : load(out) + a[i]);
        store(out + LANES, first ? b[i] : load(out + LANES) + b[i]);
    }
}

/* The same for one row. */
FUSED_TARGET static void NAME(one_sum)(const float *x, int64_t width, const float *w, int deep, float *out,
                                       bool first) {
    lf a = {0}, b = {0};
    for (int k = 0; k < deep; ++k) {
        const lf weight = floats(w[k]);
        a = FUSED(weight, load(x + k * width), a);
        b = FUSED(weight, load(x + k * width + LANES), b);
    }
    store(out, first ? a : load(out) + a);
    store(out + LANES, first ? b : load(out + LANES) + b);
}

static void NAME(few_positions)(const float *x, int64_t width, const float *w, int64_t rows, int64_t columns,
                                float *out) {
    for (int64_t k = 0; k < columns; k += DEEP) {
        const int deep = columns - k < DEEP ? (int)(columns - k) : DEEP;
        for (int64_t p = 0; p < width; p += 2 * LANES) {
            const float *from = x + k * width + p;
            int64_t row = 0;
            for (; row + TALL <= rows; row += TALL)
                NAME(tall_sums)(from, width, w + row * columns + k, columns, deep, out + row * width + p, !k);
            for (; row < rows; ++row)
                NAME(one_sum)(from, width, w + row * columns + k, deep, out + row * width + p, !k);
        }
    }
}
#undef FUSED
#undef FUSED_TARGET
#define FEW_POSITIONS NAME(few_positions)
#else
#define FEW_POSITIONS 0 /* without fused products nothing is gained */
#endif
