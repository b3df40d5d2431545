/* The grids of the iq formats, with the neighbours of every point that is not on them. */
#ifndef KCONV_GRIDS_H
#define KCONV_GRIDS_H

#include <stdint.h>

enum { GRID_PAD = 16 };

/* Points are told by their code: the levels of their weights, the first in the lowest bits, three bits each where
 * a group has four weights (levels 0 to 7), two where it has eight (0 to 2). */
struct grid {
    int16_t *index;   /* by code: its place in the grid, or -1: then it has neighbours */
    uint32_t *points; /* by code: 1 to 3 if it has up to 8, up to 16 or more; how many sixteens; which is the first */
    uint16_t *codes;  /* of the neighbours: the nearest first, then those with lower index; lists are filled up to
                       * multiples of GRID_PAD with their last */
};

enum { GRID_KIND_SHIFT = 30, GRID_COUNT_SHIFT = 20, GRID_COUNT = 0x3ff, GRID_FIRST = 0xfffff };

/* The grid of a format, or NULL before kconv_set_grid. */
const struct grid *kconv_grid(int ggml_type);

#endif
