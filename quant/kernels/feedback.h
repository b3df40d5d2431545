/* Codes chosen with the inputs' correlations in view: each weight is rounded to the code nearest to what makes
 * good the errors of the weights before it (GPTQ), then, in descents, of all others.
 *
 * A row of errors e costs sum of c_ij z_i z_j, where z_i = e_i s_i, s_i is the root of the mean square of input
 * i, and c (symmetric, ones on its diagonal) how inputs correlate. With c = L^T D L, L unit lower triangular,
 * that is the sum of d_i (z_i + sum_{j<i} L_ij z_j)^2: one term for each column, whose code is chosen when the
 * z_j before it are known. So one factorization, begun at the last column, is all that is needed.
 *
 * The lanes are rows of weights, or columns of a matrix, that have nothing to do with each other, and each
 * number's products are subtracted one after the other in an order that depends on nothing: bytes are the same
 * on every instruction set. Matrices are n x n, n a multiple of TILE. */
#ifndef FEEDBACK_TILE
#define FEEDBACK_TILE
#define TILE 64
#define BLOCKS 8 /* of TILE rows that go through the columns together; feedback.py makes room for them */
enum { FORWARD, DESCENT, MEASURE }; /* what a walk over the columns does */
#endif

/* acc[i][r] -= coefficients[k][i] * z[k][r], k = 0, 1, ...; all are TILE wide. */
static void NAME(subtract)(float *acc, const float *coefficients, const float *z) {
    for (int i = 0; i < TILE; i += 4)
        for (int r = 0; r < TILE; r += 2 * LANES) {
            float *at = acc + i * TILE + r;
            lf a0 = load(at), a1 = load(at + TILE), a2 = load(at + 2 * TILE), a3 = load(at + 3 * TILE);
            lf b0 = load(at + LANES), b1 = load(at + TILE + LANES), b2 = load(at + 2 * TILE + LANES),
               b3 = load(at + 3 * TILE + LANES);
            for (int k = 0; k < TILE; ++k) {
                const float *c = coefficients + k * TILE + i;
                const lf x = load(z + k * TILE + r), y = load(z + k * TILE + r + LANES);
                const lf c0 = floats(c[0]), c1 = floats(c[1]), c2 = floats(c[2]), c3 = floats(c[3]);
                a0 = a0 - c0 * x, b0 = b0 - c0 * y;
                a1 = a1 - c1 * x, b1 = b1 - c1 * y;
                a2 = a2 - c2 * x, b2 = b2 - c2 * y;
                a3 = a3 - c3 * x, b3 = b3 - c3 * y;
            }
            store(at, a0), store(at + TILE, a1), store(at + 2 * TILE, a2), store(at + 3 * TILE, a3);
            store(at + LANES, b0), store(at + TILE + LANES, b1), store(at + 2 * TILE + LANES, b2);
            store(at + 3 * TILE + LANES, b3);
        }
}

/* Of a matrix of correlations the part below the diagonal becomes L; what is above stays. work has room for
 * 2 * TILE * n. False where the matrix is not positive definite. */
static bool NAME(factor)(float *m, int64_t n, float *work) {
    float *scaled = work, *rows = work + TILE * n; /* of the last TILE rows, the lowest first: L, and D L */
    for (int64_t b = n - TILE; b >= 0; b -= TILE) {
        for (int64_t k = b + TILE - 1; k >= b; --k) {
            const float *row = m + k * n, pivot = row[k];
            if (!(pivot > 1e-6f) || pivot > 1e6f) return false;
            for (int64_t i = b; i < k; ++i) {
                const float factor = row[i] / pivot;
                float *other = m + i * n;
                for (int64_t j = 0; j <= i; ++j) other[j] = other[j] - factor * row[j];
            }
        }
        for (int t = 0; t < TILE; ++t) {
            float *row = m + (b + TILE - 1 - t) * n;
            const float pivot = row[b + TILE - 1 - t];
            for (int64_t j = 0; j < b + TILE - 1 - t; ++j) {
                const float value = row[j];
                row[j] = value / pivot;
                if (j >= b) continue;
                const int64_t at = j / TILE * TILE * TILE + t * TILE + j % TILE;
                rows[at] = value, scaled[at] = row[j];
            }
        }
        for (int64_t bi = 0; bi < b; bi += TILE)
            for (int64_t bj = 0; bj <= bi; bj += TILE) {
                float tile[TILE * TILE];
                for (int i = 0; i < TILE; ++i) memcpy(tile + i * TILE, m + (bi + i) * n + bj, sizeof(float) * TILE);
                NAME(subtract)(tile, scaled + bi * TILE, rows + bj * TILE);
                for (int i = 0; i < TILE; ++i)
                    memcpy(m + (bi + i) * n + bj, tile + i * TILE, sizeof(float) * (bi == bj ? i + 1 : TILE));
            }
    }
    return true;
}

/* tile[j][i]: the coefficient that column bj + j has for column bi + i. Below the diagonal there is L. */
INLINE void NAME(coefficients)(const float *m, int64_t n, int64_t bi, int64_t bj, bool below, float *tile) {
    for (int j = 0; j < TILE; ++j)
        for (int i = 0; i < TILE; ++i) {
            const int64_t row = bi + i, column = bj + j;
            const bool turned = !below && row > column; /* the same correlation, above the diagonal */
            tile[j * TILE + i] = row == column ? 0 : turned ? m[column * n + row] : m[row * n + column];
        }
}

/* The place on the grid that lies nearest to x steps, from low to high. */
INLINE li NAME(place)(lf x, const struct kconv_grid *grid) {
    if (!grid->count) {
        x = minimum(floats(1000.0f), maximum(floats(-1000.0f), x));
        return clamped(nearest(x) + grid->offset, grid->low, grid->high);
    }
    li place = ints(0);
    for (int k = 1; k < grid->count; ++k) {
        const lf middle = floats(0.5f * (grid->values[k - 1] + grid->values[k]));
        place = place + choose_ints(less(middle, x), ints(1), ints(0));
    }
    return place;
}

INLINE lf NAME(value)(li place, const struct kconv_grid *grid) {
    if (!grid->count) return to_floats(place - grid->offset);
    lf value = floats(grid->values[0]);
    for (int k = 1; k < grid->count; ++k)
        value = choose(greater_ints(place, ints(k - 1)), floats(grid->values[k]), value);
    return value;
}

/* How many blocks of TILE rows that is, how many of the rows are in block p, how many go together. */
INLINE int64_t NAME(blocks_of)(int64_t rows) { return (rows + TILE - 1) / TILE; }
INLINE int NAME(rows_of)(int count, int p) { return count - p * TILE < TILE ? count - p * TILE : TILE; }
INLINE int64_t NAME(rows_together)(const struct kconv_rows *rows) {
    return rows->count < BLOCKS * TILE ? rows->count : BLOCKS * TILE;
}

/* What a walk needs of TILE columns, the rows turned into lanes: weights, codes, steps and minima. */
struct NAME(block) {
    float weights[TILE * TILE], acc[TILE * TILE], steps[TILE / 16 * TILE], minima[TILE / 16 * TILE];
    int32_t codes[TILE * TILE];
};
_Static_assert(sizeof(struct NAME(block)) == 4 * (3 * TILE * TILE + 2 * (TILE / 16) * TILE), "as in feedback.py");

static void NAME(enter)(struct NAME(block) *block, const struct kconv_rows *rows, int64_t first, int64_t b,
                        int count) {
    const int64_t columns = rows->columns, groups = columns / rows->group;
    const int width = columns - b < TILE ? (int)(columns - b) : TILE;
    memset(block, 0, sizeof *block);
    for (int r = 0; r < count; ++r) {
        const int64_t row = first + r;
        for (int i = 0; i < width; ++i) {
            block->weights[i * TILE + r] = rows->weights[row * columns + b + i];
            block->codes[i * TILE + r] = rows->codes[row * columns + b + i];
        }
        for (int g = 0; g * rows->group < width; ++g) {
            block->steps[g * TILE + r] = rows->steps[row * groups + b / rows->group + g];
            block->minima[g * TILE + r] = rows->minima[row * groups + b / rows->group + g];
        }
    }
}

static void NAME(leave)(const struct NAME(block) *block, const struct kconv_rows *rows, int64_t first, int64_t b,
                        int count) {
    const int64_t columns = rows->columns;
    const int width = columns - b < TILE ? (int)(columns - b) : TILE;
    for (int r = 0; r < count; ++r)
        for (int i = 0; i < width; ++i)
            rows->codes[(first + r) * columns + b + i] = (uint8_t)block->codes[i * TILE + r];
}

/* Codes of column i of a block for LANES rows, given what is to be made good, in units of z; the new z. */
INLINE void NAME(choose_codes)(struct NAME(block) *block, const struct kconv_rows *rows, int i, int r, float root,
                               lf wanted, float *z) {
    const struct kconv_grid *grid = rows->grid;
    const int at = i * TILE + r, group = i / rows->group * TILE + r;
    const lf weight = load(block->weights + at), step = load(block->steps + group);
    const lf minimum_ = load(block->minima + group);
    li code = load_ints(block->codes + at);
    if (root > 0) {
        const lm scaled = unequal(step, floats(0));
        const lf divisor = choose(scaled, step, floats(1));
        const li plain = NAME(place)((weight + minimum_) / divisor, grid);
        li found = NAME(place)((weight + wanted / floats(root) + minimum_) / divisor, grid);
        /* at most one step from the nearest: what was measured is not all that will ever flow in */
        found = maximum_ints(plain - 1, minimum_ints(plain + 1, found));
        found = clamped(found, grid->low, grid->high);
        code = choose_ints(scaled, found, code);
        store_ints(block->codes + at, code);
    }
    store(z + at, (step * NAME(value)(code, grid) - minimum_ - weight) * root);
}

/* acc[r] -= tile[j][i] * own[j][r] for j below ``until``, one after the other, of four vectors at a time: each waits
 * long for its last product, but none for the others'. */
INLINE void NAME(subtract_own)(float *acc, const float *tile, const float *own, int i, int until) {
    for (int r = 0; r < TILE; r += 4 * LANES) {
        lf a = load(acc + r), b = load(acc + r + LANES), c = load(acc + r + 2 * LANES), d = load(acc + r + 3 * LANES);
        for (int j = 0; j < until; ++j) {
            const lf factor = floats(tile[j * TILE + i]);
            const float *at = own + j * TILE + r;
            a = a - factor * load(at), b = b - factor * load(at + LANES);
            c = c - factor * load(at + 2 * LANES), d = d - factor * load(at + 3 * LANES);
        }
        store(acc + r, a), store(acc + r + LANES, b), store(acc + r + 2 * LANES, c), store(acc + r + 3 * LANES, d);
    }
}

/* The columns of a block, when what all others have cost is in its ``acc``; ``own`` are its errors. */
static void NAME(walk_within)(struct NAME(block) *block, const float *tile, const float *roots,
                              const struct kconv_rows *rows, int count, int what, float *own, double *losses) {
    for (int i = 0; i < TILE; ++i) {
        float *acc = block->acc + i * TILE;
        NAME(subtract_own)(acc, tile, own, i, what == FORWARD ? i : TILE);
        for (int r = 0; r < TILE; r += LANES)
            if (what == MEASURE)
                for (int k = r; k < r + LANES && k < count; ++k) {
                    const double mine = own[i * TILE + k];
                    losses[k] += mine * (mine - acc[k]);
                }
            else
                NAME(choose_codes)(block, rows, i, r, roots[i], load(acc + r), own);
    }
}

/* One walk over the columns of at most BLOCKS * TILE rows from ``first`` on, TILE of them in each of ``blocks``,
 * so that coefficients are taken from the matrix once for all. z (blocks, n, TILE) holds their errors before a
 * DESCENT or MEASURE, and afterwards; losses, as many as rows, are what they cost. */
static void NAME(walk)(const float *m, int64_t n, const float *roots, const struct kconv_rows *rows, int64_t first,
                       int count, int what, float *z, struct NAME(block) *blocks, double *losses) {
    float tile[TILE * TILE];
    for (int64_t b = 0; b < n; b += TILE) {
        for (int p = 0; p * TILE < count; ++p)
            NAME(enter)(blocks + p, rows, first + p * TILE, b, NAME(rows_of)(count, p));
        for (int64_t bj = 0; bj < (what == FORWARD ? b : n); bj += TILE) {
            if (bj == b) continue;
            NAME(coefficients)(m, n, b, bj, what == FORWARD, tile);
            for (int p = 0; p * TILE < count; ++p) NAME(subtract)(blocks[p].acc, tile, z + (p * n + bj) * TILE);
        }
        NAME(coefficients)(m, n, b, b, what == FORWARD, tile);
        for (int p = 0; p * TILE < count; ++p) {
            const int own = NAME(rows_of)(count, p);
            NAME(walk_within)(blocks + p, tile, roots + b, rows, own, what, z + (p * n + b) * TILE,
                              losses ? losses + p * TILE : NULL);
            if (what != MEASURE) NAME(leave)(blocks + p, rows, first + p * TILE, b, own);
        }
    }
}

/* The errors of the codes as they are. */
static void NAME(errors)(const float *roots, int64_t n, const struct kconv_rows *rows, int64_t first, int count,
                         float *z, struct NAME(block) *block) {
    for (int64_t b = 0; b < n; b += TILE) {
        NAME(enter)(block, rows, first, b, count);
        for (int i = 0; i < TILE; ++i)
            for (int r = 0; r < TILE; r += LANES) {
                const int at = i * TILE + r, group = i / rows->group * TILE + r;
                const lf value = NAME(value)(load_ints(block->codes + at), rows->grid);
                const lf error = load(block->steps + group) * value - load(block->minima + group) -
                                 load(block->weights + at);
                store(z + b * TILE + at, error * roots[b + i]);
            }
    }
}

/* Choose the codes of all rows; z has room for as many blocks as rows take, at most BLOCKS, of n * TILE numbers each,
 * and behind them for what a block needs. */
static void NAME(refine)(const float *m, int64_t n, const float *roots, const struct kconv_rows *rows, int descents,
                         float *z) {
    const int64_t most = NAME(rows_together)(rows);
    struct NAME(block) *blocks = (struct NAME(block) *)(z + NAME(blocks_of)(most) * n * TILE);
    for (int64_t first = 0; first < rows->count; first += most) {
        const int count = (int)(rows->count - first < most ? rows->count - first : most);
        memset(z, 0, sizeof(float) * NAME(blocks_of)(count) * TILE * n);
        NAME(walk)(m, n, roots, rows, first, count, FORWARD, z, blocks, NULL);
        for (int i = 0; i < descents; ++i) NAME(walk)(m, n, roots, rows, first, count, DESCENT, z, blocks, NULL);
    }
}

/* What the errors of each row's codes cost under correlations that lie above the diagonal of m; z as for refine. */
static void NAME(measure)(const float *m, int64_t n, const float *roots, const struct kconv_rows *rows, float *z,
                          double *losses) {
    const int64_t most = NAME(rows_together)(rows);
    struct NAME(block) *blocks = (struct NAME(block) *)(z + NAME(blocks_of)(most) * n * TILE);
    for (int64_t first = 0; first < rows->count; first += most) {
        const int count = (int)(rows->count - first < most ? rows->count - first : most);
        for (int p = 0; p * TILE < count; ++p)
            NAME(errors)(roots, n, rows, first + p * TILE, NAME(rows_of)(count, p), z + p * n * TILE, blocks);
        for (int r = 0; r < count; ++r) losses[first + r] = 0;
        NAME(walk)(m, n, roots, rows, first, count, MEASURE, z, blocks, losses + first);
    }
}
