/* Every family, and the table of this instruction set. */
#include "kernels.h"
#include "lanes.h"
#include "iq1.h"
#include "iq2_iq3.h"
#include "feedback.h"
#include "few_positions.h"
#include "iq4.h"
#include "mxfp4.h"
#include "q2_k.h"
#include "q3_k.h"
#include "q4_q5.h"
#include "q4_q5_k.h"
#include "q6_k.h"
#include "q8_0.h"
#include "tq1_tq2.h"
#include "widen.h"

static const struct kernel NAME(table)[] = {
    {2, 32, 18, NAME(encode_q4_0), NAME(weighed_q4_0), NAME(undefined_q4_0)},
    {3, 32, 20, NAME(encode_q4_1), NAME(weighed_q4_1), NAME(undefined_q4_1)},
    {6, 32, 22, NAME(encode_q5_0), NAME(weighed_q5_0), NAME(undefined_q5_0)},
    {7, 32, 24, NAME(encode_q5_1), NAME(weighed_q5_1), NAME(undefined_q5_1)},
    {8, 32, 34, NAME(encode_q8_0), NAME(encode_q8_0), NAME(undefined_q8_0)},
    {10, 256, 84, NAME(encode_q2_K), NAME(encode_q2_K), 0},
    {11, 256, 110, NAME(encode_q3_K), NAME(encode_q3_K), 0},
    {12, 256, 144, NAME(encode_q4_K), NAME(encode_q4_K), 0},
    {13, 256, 176, NAME(encode_q5_K), NAME(encode_q5_K), 0},
    {14, 256, 210, NAME(encode_q6_K), NAME(encode_q6_K), 0},
    {16, 256, 66, 0, NAME(encode_iq2_xxs), 0},
    {17, 256, 74, 0, NAME(encode_iq2_xs), 0},
    {18, 256, 98, NAME(encode_iq3_xxs), NAME(encode_iq3_xxs), 0},
    {19, 256, 50, 0, NAME(encode_iq1_s), 0},
    {20, 32, 18, NAME(encode_iq4_nl), NAME(encode_iq4_nl), 0},
    {21, 256, 110, NAME(encode_iq3_s), NAME(encode_iq3_s), 0},
    {22, 256, 82, NAME(encode_iq2_s), NAME(encode_iq2_s), 0},
    {23, 256, 136, NAME(encode_iq4_xs), NAME(encode_iq4_xs), 0},
    {29, 256, 56, NAME(encode_iq1_m), NAME(encode_iq1_m), 0},
    {34, 256, 54, NAME(encode_tq1_0), NAME(encode_tq1_0), NAME(undefined_tq1_0)},
    {35, 256, 66, NAME(encode_tq2_0), NAME(encode_tq2_0), NAME(undefined_tq2_0)},
    {39, 32, 17, NAME(encode_mxfp4), NAME(encode_mxfp4), NAME(undefined_mxfp4)},
};

const struct kernels NAME(kconv_kernels) = {
    NAME(table), sizeof NAME(table) / sizeof *NAME(table), NAME(from_f32), NAME(from_f16), NAME(from_bf16),
    {NAME(factor), NAME(refine), NAME(measure)}, FEW_POSITIONS,
};
