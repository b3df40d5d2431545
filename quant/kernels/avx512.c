/* AVX-512, sixteen lanes; compiled for x86-64 only. */
#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl"))), apply_to = function)
#else
#pragma GCC target("avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl")
#endif
#define ISA avx512
#define LANES 16
#include "table.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
