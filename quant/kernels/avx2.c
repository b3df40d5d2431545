/* AVX2 and F16C, eight lanes; compiled for x86-64 only. */
#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,f16c")
#endif
#define ISA avx2
#define LANES 8
#include "table.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
