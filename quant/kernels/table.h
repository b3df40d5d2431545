/* Every family, and the table of this instruction set. */
#include "kernels.h"
#include "lanes.h"
#include "q8_0.h"
#include "widen.h"

static const struct kernel NAME(table)[] = {
    {2, 32, 18, NAME(encode_q4_0), 0, NAME(undefined_q4_0)},
    {8, 32, 34, NAME(encode_q8_0), NAME(encode_q8_0), NAME(undefined_q8_0)},
};

const struct kernels NAME(kconv_kernels) = {
    NAME(table), sizeof NAME(table) / sizeof *NAME(table), NAME(from_f32), NAME(from_f16), NAME(from_bf16),
};
