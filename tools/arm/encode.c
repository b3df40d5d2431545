/* Encodes what comes on standard input, for tools/arm/compare.py: the kernels of an ARM processor, run by
 * qemu-aarch64.
 *
 * In: eight int64 (ggml_type, rows, columns, weighed, dims and count of a grid or zeros, its distances, bytes out),
 * the grid's codes, the rows, importance. Out: the bytes, and for each row 1 if it was left to libggml.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int kconv_set_grid(int ggml_type, int dims, const uint16_t *grid, int count, int wanted);
int kconv_encodes(int set, int ggml_type, int weighed);
typedef size_t reference(int type, const float *x, void *out, int64_t start, int64_t rows, int64_t columns,
                         const float *importance);
void kconv_encode(int set, int ggml_type, const float *x, uint8_t *out, int64_t rows, int64_t columns,
                  const float *importance, reference *ggml);

static const float *first;
static uint8_t *left;

static size_t leave(int type, const float *x, void *out, int64_t start, int64_t rows, int64_t columns,
                    const float *importance) {
    (void)type, (void)out, (void)start, (void)rows, (void)importance;
    left[(x - first) / columns] = 1;
    return 0;
}

static void *take(size_t bytes) {
    void *to = malloc(bytes + 1);
    if (!to || fread(to, 1, bytes, stdin) != bytes) exit(2);
    return to;
}

int main(void) {
    int64_t *head = take(8 * sizeof(int64_t));
    const int64_t type = head[0], rows = head[1], columns = head[2], weighed = head[3];
    const uint16_t *grid = take(sizeof(uint16_t) * head[5]);
    if (head[5] && !kconv_set_grid(type, head[4], grid, head[5], head[6])) return 3;
    if (!kconv_encodes(0, type, weighed)) return 4;
    const float *x = first = take(sizeof(float) * rows * columns);
    const float *importance = weighed ? take(sizeof(float) * columns) : NULL;
    uint8_t *out = calloc(head[7], 1);
    left = calloc(rows, 1);
    kconv_encode(0, type, x, out, rows, columns, importance, leave);
    return fwrite(out, 1, head[7], stdout) + fwrite(left, 1, rows, stdout) == (size_t)(head[7] + rows) ? 0 : 5;
}
