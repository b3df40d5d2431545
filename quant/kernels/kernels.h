/* What each instruction set's file exports and module.c chooses from. */
#ifndef KCONV_KERNELS_H
#define KCONV_KERNELS_H

#include <stdbool.h>
#include <stdint.h>

/* Encode x (rows, columns) to out. columns is a multiple of the format's block; importance (columns,), or
 * NULL, weighs the error of each column. */
typedef void encoder(const float *x, void *out, int64_t rows, int64_t columns, const float *importance);

/* Whether C leaves open what the reference does with one of the blocks of x, encoded in out. */
typedef bool undefined_test(const float *x, const void *out, int64_t blocks);

struct kernel {
    int ggml_type; /* enum ggml_type of ggml.h */
    int block_size, block_bytes;
    encoder *plain, *weighed; /* without and with importance; NULL where libggml must do it */
    undefined_test *undefined; /* of plain; NULL where nothing is */
};

/* The bits, without the sign, of the largest magnitude of count numbers; they are written as float32 to out
 * unless that is NULL. */
typedef uint32_t widener(const void *from, float *out, int64_t count);

/* The values of codes, in steps: code - offset, or those of a table with count places; codes used at all. */
struct kconv_grid {
    int low, high, offset, count;
    const float *values;
};

/* Encoded rows, taken apart (quant/code_layouts.py): a weight is steps * value of its code - minima, the last
 * two (rows, columns / group). */
struct kconv_rows {
    const float *weights, *steps, *minima;
    uint8_t *codes;
    const struct kconv_grid *grid;
    int64_t count, columns;
    int group;
};

/* See feedback.h. */
struct feedback {
    bool (*factor)(float *m, int64_t n, float *work);
    void (*refine)(const float *m, int64_t n, const float *roots, const struct kconv_rows *rows, int descents,
                   float *z);
    void (*measure)(const float *m, int64_t n, const float *roots, const struct kconv_rows *rows, float *z,
                    double *losses);
};

/* See few_positions.h. */
typedef void multiplier(const float *x, int64_t width, const float *w, int64_t rows, int64_t columns, float *out);

struct kernels {
    const struct kernel *kernels;
    int count;
    widener *from_f32, *from_f16, *from_bf16;
    struct feedback feedback;
    multiplier *few_positions; /* NULL where there is none */
};

extern const struct kernels kconv_kernels_baseline, kconv_kernels_avx2, kconv_kernels_avx512;

#endif
