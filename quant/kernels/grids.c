/* The grids' tables, made from the grids as quant/grids.py has them.
 *
 * For a point off the grid ggml-quants.c (iq2xs_init_impl, iq3xs_init_impl) sorts all points of the grid by their
 * distance, then by their index, and takes those of the smallest few distances. Here the distances are looked up:
 * they are the sums of those of two halves of a point.
 */
#include <stdlib.h>
#include <string.h>

#include "grids.h"

#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif

enum { LARGEST_GRID = 2048, MOST_GRIDS = 8 };

static struct {
    int ggml_type;
    struct grid grid;
} made[MOST_GRIDS];
static int made_count = 0;

const struct grid *kconv_grid(int ggml_type) {
    for (int i = 0; i < made_count; ++i)
        if (made[i].ggml_type == ggml_type) return &made[i].grid;
    return NULL;
}

/* Squared distances of ``half`` of a point, its lower or upper bits, to that of each point of the grid. */
static void half_distances(int half, int dims, int bits, const uint16_t *grid, int count, int shift, uint8_t *out) {
    const int mask = (1 << bits) - 1;
    for (int j = 0; j < count; ++j) {
        int sum = 0;
        for (int i = 0; i < dims; ++i) {
            const int difference = (half >> bits * i & mask) - (grid[j] >> (shift + bits * i) & mask);
            sum += difference * difference;
        }
        out[j] = (uint8_t)sum;
    }
}

/* The places of what is at one of the ``wanted`` smallest distances, the nearest first. */
static int nearest(const uint8_t *distance, int count, int wanted, uint16_t *places) {
    int found = 0;
    for (int last = -1; wanted > 0; --wanted) {
        int least = 256;
        for (int j = 0; j < count; ++j) {
            const int d = distance[j] > last ? distance[j] : 256;
            least = d < least ? d : least;
        }
        if (least == 256) break;
        for (int j = 0; j < count; ++j)
            if (distance[j] == least) places[found++] = (uint16_t)j;
        last = least;
    }
    return found;
}

/* Whether all levels of a code are there. */
static int possible(int code, int dims, int bits, int top) {
    for (int i = 0; i < dims; ++i)
        if ((code >> bits * i & ((1 << bits) - 1)) > top) return 0;
    return 1;
}

struct building {
    struct grid grid;
    size_t used, room; /* neighbours */
};

/* Appends a list; returns the sixteen it begins with, or -1 if there is no memory. */
static int append(struct building *b, const uint16_t *places, int found, const uint16_t *grid) {
    const size_t padded = (size_t)(found + GRID_PAD - 1) / GRID_PAD * GRID_PAD, first = b->used;
    if (first + padded > b->room) {
        const size_t room = 2 * b->room + padded;
        uint16_t *codes = realloc(b->grid.codes, room * sizeof *codes);
        if (!codes) return -1;
        b->grid.codes = codes, b->room = room;
    }
    for (size_t j = 0; j < padded; ++j)
        b->grid.codes[first + j] = grid[places[j < (size_t)found ? j : (size_t)found - 1]];
    b->used += padded;
    return (int)(first / GRID_PAD);
}

static int build(struct building *b, int dims, const uint16_t *grid, int count, int wanted) {
    const int bits = dims == 4 ? 3 : 2, top = dims == 4 ? 7 : 2;
    const int half_bits = dims * bits / 2, halves = 1 << half_bits;
    uint8_t *tables = malloc((size_t)2 * halves * count);
    uint8_t distance[LARGEST_GRID];
    uint16_t places[LARGEST_GRID];
    b->grid.points = calloc((size_t)halves * halves, sizeof *b->grid.points);
    b->grid.index = calloc((size_t)halves * halves, sizeof *b->grid.index);
    int fine = tables && b->grid.points && b->grid.index;
    for (int half = 0; fine && half < halves; ++half) {
        half_distances(half, dims / 2, bits, grid, count, 0, tables + (size_t)half * count);
        half_distances(half, dims / 2, bits, grid, count, half_bits, tables + (size_t)(halves + half) * count);
    }
    for (int code = 0; fine && code < halves * halves; ++code) {
        if (!possible(code, dims, bits, top)) continue;
        const uint8_t *low = tables + (size_t)(code % halves) * count;
        const uint8_t *high = tables + (size_t)(halves + code / halves) * count;
        for (int j = 0; j < count; ++j) distance[j] = low[j] + high[j];
        const int found = nearest(distance, count, wanted, places);
        const int off = distance[places[0]] != 0;
        b->grid.index[code] = off ? -1 : (int16_t)places[0];
        if (!off) continue;
        const int first = append(b, places, found, grid);
        const uint32_t kind = found <= 8 ? 1 : found <= 16 ? 2 : 3, sixteens = (uint32_t)(found + 15) / 16;
        b->grid.points[code] = kind << GRID_KIND_SHIFT | sixteens << GRID_COUNT_SHIFT | (uint32_t)first;
        fine = first >= 0;
    }
    free(tables);
    return fine;
}

/* Make the tables of a format from its grid, ``count`` codes in their order; points off it have as neighbours
 * what is at one of the ``wanted`` smallest distances. One call at a time. Returns 0 if there is no memory. */
EXPORT int kconv_set_grid(int ggml_type, int dims, const uint16_t *grid, int count, int wanted) {
    struct building b = {.used = 0};
    if (kconv_grid(ggml_type)) return 1;
    if (made_count == MOST_GRIDS || count > LARGEST_GRID) return 0;
    if (!build(&b, dims, grid, count, wanted)) {
        free(b.grid.points), free(b.grid.codes), free(b.grid.index);
        return 0;
    }
    made[made_count].ggml_type = ggml_type, made[made_count].grid = b.grid;
    ++made_count;
    return 1;
}
