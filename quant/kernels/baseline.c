/* What every processor of the architecture runs: SSE2 or NEON, four lanes. */
#define ISA baseline
#define LANES 4
#include "table.h"
