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

struct kernels {
    const struct kernel *kernels;
    int count;
    widener *from_f32, *from_f16, *from_bf16;
};

extern const struct kernels kconv_kernels_baseline, kconv_kernels_avx2, kconv_kernels_avx512;

#endif
