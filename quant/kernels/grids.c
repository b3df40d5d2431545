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

enum { LARGEST_GRID = 2048 };

static struct {
    int ggml_type;
    struct grid grid;
} made[GRID_COUNT];
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

/* Appends the list of a point. Returns 0 if there is no memory. */
static int append(struct building *b, struct grid_point *point, const uint16_t *places, int found, const uint16_t *grid) {
    const size_t padded = (size_t)(found + GRID_PAD - 1) / GRID_PAD * GRID_PAD;
    if (b->used + padded > b->room) {
        const size_t room = 2 * b->room + padded;
        uint16_t *codes = realloc(b->grid.codes, room * sizeof *codes);
        if (!codes) return 0;
        b->grid.codes = codes, b->room = room;
    }
    point->first = (uint32_t)b->used, point->count = (uint16_t)found;
    for (size_t j = 0; j < padded; ++j)
        b->grid.codes[b->used + j] = grid[places[j < (size_t)found ? j : (size_t)found - 1]];
    b->used += padded;
    return 1;
}

/* The values of all neighbours of a grid of four weights, eight neighbours after eight. */
static int spread(struct building *b) {
    float *values = malloc(b->used * 4 * sizeof *values);
    if (!values) return 0;
    for (size_t j = 0; j < b->used; ++j)
        for (int i = 0; i < 4; ++i)
            values[(j / 8 * 4 + i) * 8 + j % 8] = (float)(2 * (b->grid.codes[j] >> 3 * i & 7) + 1);
    b->grid.values = values;
    return 1;
}

static int build(struct building *b, const uint16_t *grid, int count, int wanted) {
    const int dims = b->grid.dims, bits = dims == 4 ? 3 : 2, top = dims == 4 ? 7 : 2;
    const int half_bits = dims * bits / 2, halves = 1 << half_bits;
    uint8_t *tables = malloc((size_t)2 * halves * count);
    uint8_t distance[LARGEST_GRID];
    uint16_t places[LARGEST_GRID];
    b->grid.points = calloc((size_t)halves * halves, sizeof *b->grid.points);
    int fine = tables && b->grid.points;
    for (int half = 0; fine && half < halves; ++half) {
        half_distances(half, dims / 2, bits, grid, count, 0, tables + (size_t)half * count);
        half_distances(half, dims / 2, bits, grid, count, half_bits, tables + (size_t)(halves + half) * count);
    }
    for (int code = 0; fine && code < halves * halves; ++code) {
        if (!possible(code, dims, bits, top)) continue;
        const uint8_t *low = tables + (size_t)(code % halves) * count;
        const uint8_t *high = tables + (size_t)(halves + code / halves) * count;
        for (int j = 0; j < count; ++j) distance[j] = low[j] + high[j];
        int found = nearest(distance, count, 1, places);
        struct grid_point *point = &b->grid.points[code];
        point->index = distance[places[0]] ? -1 : (int16_t)places[0];
        if (point->index < 0) found = nearest(distance, count, wanted, places);
        fine = append(b, point, places, found, grid);
    }
    free(tables);
    return fine && (dims == 8 || spread(b));
}

/* Make the tables of a format from its grid, ``count`` codes in their order; points off it have as neighbours
 * what is at one of the ``wanted`` smallest distances. One call at a time. Returns 0 if there is no memory. */
EXPORT int kconv_set_grid(int ggml_type, int dims, const uint16_t *grid, int count, int wanted) {
    struct building b = {.grid = {.dims = dims}};
    if (kconv_grid(ggml_type)) return 1;
    if (made_count == GRID_COUNT || count > LARGEST_GRID) return 0;
    if (!build(&b, grid, count, wanted)) {
        free(b.grid.points), free(b.grid.codes), free(b.grid.values);
        return 0;
    }
    made[made_count].ggml_type = ggml_type, made[made_count].grid = b.grid;
    ++made_count;
    return 1;
}
