/* kconv.quant._kernels: a library for ctypes (quant/native.py), which lets other threads run meanwhile. It is
 * built and installed as a Python module is, but uses nothing of Python and needs none of its headers. */
#include <stddef.h>

#include "kernels.h"

#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif

#if defined(__x86_64__)
#include <cpuid.h>
static bool has_f16c(void) {
    unsigned a, b, c = 0, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
static bool has_fused(void) { return __builtin_cpu_supports("fma"); }
static bool has_avx2(void) { return __builtin_cpu_supports("avx2") && has_f16c(); }
static bool has_avx512(void) {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#else
static bool has_fused(void) { return true; }
#endif

/* The kernels of the instruction set 0 (baseline), 1 (avx2) or 2 (avx512), or NULL if it is not built or this
 * processor or system does not run it. */
static const struct kernels *kernels_of(int set) {
    if (set == 0) return &kconv_kernels_baseline;
#if defined(__x86_64__)
    if (set == 1 && has_avx2()) return &kconv_kernels_avx2;
    if (set == 2 && has_avx512()) return &kconv_kernels_avx512;
#endif
    return NULL;
}

static const struct kernel *find(int set, int ggml_type) {
    const struct kernels *all = kernels_of(set);
    for (int i = 0; all && i < all->count; ++i)
        if (all->kernels[i].ggml_type == ggml_type) return &all->kernels[i];
    return NULL;
}

/* What native.py expects; another number with every change of what is exported here or of its meaning. */
EXPORT int kconv_interface(void) { return 4; }

EXPORT int kconv_runs(int set) { return kernels_of(set) != NULL; }

/* Whether there is a kernel. */
EXPORT int kconv_encodes(int set, int ggml_type, int weighed) {
    const struct kernel *kernel = find(set, ggml_type);
    return kernel && (weighed ? kernel->weighed : kernel->plain);
}

/* ggml_quantize_chunk of ggml.h. */
typedef size_t reference(int type, const float *x, void *out, int64_t start, int64_t rows, int64_t columns,
                         const float *importance);

/* Encode x (rows, columns); rows with blocks for which C leaves open what the reference does go to ``ggml``.
 * The caller has asked kconv_encodes. */
EXPORT void kconv_encode(int set, int ggml_type, const float *x, uint8_t *out, int64_t rows, int64_t columns,
                         const float *importance, reference *ggml) {
    const struct kernel *kernel = find(set, ggml_type);
    encoder *encode = importance ? kernel->weighed : kernel->plain;
    if (!kernel->undefined || encode != kernel->plain) {
        encode(x, out, rows, columns, importance);
        return;
    }
    const int64_t blocks = columns / kernel->block_size, bytes = blocks * kernel->block_bytes;
    for (int64_t row = 0; row < rows; ++row, x += columns, out += bytes) {
        encode(x, out, 1, columns, importance);
        if (kernel->undefined(x, out, blocks)) ggml(ggml_type, x, out, 0, 1, columns, importance);
    }
}

/* Numbers of 0 (float32), 1 (F16) or 2 (BF16) as widener says; the bits are float32's. */
EXPORT uint32_t kconv_widen(int set, int kind, const void *from, float *out, int64_t count) {
    const struct kernels *all = kernels_of(set);
    widener *const widen[] = {all->from_f32, all->from_f16, all->from_bf16};
    return widen[kind](from, out, count);
}

/* As feedback.h says; the set is one that runs here. */
EXPORT int kconv_factor(int set, float *m, int64_t n, float *work) {
    return kernels_of(set)->feedback.factor(m, n, work);
}

EXPORT void kconv_refine(int set, const float *m, int64_t n, const float *roots, const struct kconv_rows *rows,
                         int descents, float *z) {
    kernels_of(set)->feedback.refine(m, n, roots, rows, descents, z);
}

EXPORT void kconv_measure(int set, const float *m, int64_t n, const float *roots, const struct kconv_rows *rows,
                          float *z, double *losses) {
    kernels_of(set)->feedback.measure(m, n, roots, rows, z, losses);
}

/* As few_positions.h says, for vectors as many as ``width``; false if this set has no such kernel, and nothing
 * was done. */
EXPORT int kconv_few_positions(int set, const float *x, int64_t width, const float *w, int64_t rows,
                               int64_t columns, float *out) {
    multiplier *const multiply = kernels_of(set)->few_positions;
    if (!multiply || !has_fused()) return false;
    multiply(x, width, w, rows, columns, out);
    return true;
}

/* Windows links a module of Python only if it has this; importing it is an error, loading it is not. */
EXPORT void *PyInit__kernels(void) { return NULL; }
