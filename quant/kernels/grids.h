/* The grids of the iq formats, with the neighbours of every point that is not on them. */
#ifndef KCONV_GRIDS_H
#define KCONV_GRIDS_H

#include <stdint.h>

enum { GRID_COUNT = 8, GRID_PAD = 16 };

/* What there is for a point. Points are told by their code: the levels of its weights, the first in the lowest
 * bits, three bits each where there are four weights (levels 0 to 7), two where there are eight (0 to 2). */
struct grid_point {
    uint32_t first; /* its neighbours: ``count`` from this one on, the nearest first, then those with lower index */
    uint16_t count;
    int16_t index; /* its place in the grid, or -1: then it has neighbours */
};

struct grid {
    int dims;                  /* weights in a group: 4 or 8 */
    struct grid_point *points; /* by code */
    uint16_t *codes;           /* of neighbours; lists are filled up to multiples of GRID_PAD with their last */
    float *values;             /* for four weights: 2 * level + 1 of eight neighbours, for each of the weights */
};

/* The grid of a format, or NULL before kconv_set_grid. */
const struct grid *kconv_grid(int ggml_type);

#endif
