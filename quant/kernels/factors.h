/* The scales of a super-block's sub-blocks as whole multiples of one number, one super-block's scales, or
 * minima, a lane: make_qp_quants of ggml-quants.c. */
#ifndef KCONV_FACTORS_H
#define KCONV_FACTORS_H

#include "scale_min.h"

/* Sum of the weighted squared errors of x as multiples of 1 / iscale, the reference's mse. Its first multiples
 * are bytes without a bound, the others have a bound and may be negative. */
INLINE lf factor_errors(int count, int top, const lf *x, const lf *weights, lf iscale, bool bytes) {
    const lf scale = 1.0f / iscale;
    lf error = floats(0);
    for (int i = 0; i < count; ++i) {
        li factor = nearest(iscale * x[i]);
        factor = bytes ? factor & 0xff : minimum_ints(factor, ints(top));
        const lf difference = x[i] - scale * to_floats(factor);
        error += weights[i] * difference * difference;
    }
    return error;
}

/* One round of changing single factors where that makes the sums' quotient fit better; whether any changed. */
INLINE bool improve_factors(int count, int top, const lf *x, const lf *weights, li *factors, lf *sum_xl,
                            lf *sum_ll) {
    lm changed = less(floats(0), floats(0));
    for (int i = 0; i < count; ++i) {
        const lf w = weights[i], l = to_floats(factors[i]), wx = w * x[i];
        lf xl = *sum_xl - wx * l, ll = *sum_ll - w * l * l;
        const lm possible = both(less(floats(0), xl), less(floats(0), ll));
        const li factor = minimum_ints(nearest(x[i] * ll / xl), ints(top));
        const lf f = to_floats(factor);
        xl += wx * f;
        ll += w * f * f;
        const lm differs = without(possible, equal_ints(factor, factors[i]));
        const lm better = both(differs, less(*sum_xl * *sum_xl * ll, xl * xl * *sum_ll));
        factors[i] = choose_ints(better, factor & 0xff, factors[i]);
        *sum_xl = choose(better, xl, *sum_xl), *sum_ll = choose(better, ll, *sum_ll);
        changed = either(changed, better);
    }
    return any(changed);
}

/* Factors, as bytes, of x, count numbers a lane; returns what they are multiples of. */
INLINE lf find_factors(int count, int top, const lf *x, const lf *weights, li *factors) {
    lf largest = floats(0);
    for (int i = 0; i < count; ++i) largest = maximum(largest, x[i]); /* NaN at x[i] stays, as there */
    const lm none = less(largest, floats(GROUP_MAX_EPS));
    lf iscale = (float)top / largest;
    lf best = factor_errors(count, top, x, weights, iscale, true);
    for (int k = -4; k <= 4; ++k) {
        if (k == 0) continue;
        const lf tried = (0.1f * k + top) / largest;
        const lf error = factor_errors(count, top, x, weights, tried, false);
        const lm better = less(error, best);
        best = choose(better, error, best), iscale = choose(better, tried, iscale);
    }
    lf sum_xl = floats(0), sum_ll = floats(0);
    for (int i = 0; i < count; ++i) {
        const li factor = minimum_ints(nearest(iscale * x[i]), ints(top));
        const lf w = weights[i], f = to_floats(factor);
        factors[i] = factor & 0xff;
        sum_xl += w * x[i] * f;
        sum_ll += w * f * f;
    }
    /* A lane without a change would not change in a further round either. */
    for (int k = 0; k < 5; ++k)
        if (!improve_factors(count, top, x, weights, factors, &sum_xl, &sum_ll)) break;
    for (int i = 0; i < count; ++i) factors[i] = choose_ints(none, ints(0), factors[i]);
    return choose(without(less(floats(0), sum_ll), none), sum_xl / sum_ll, floats(0));
}

/* Without weights: multiples of the largest number / top, which is returned; of 0 where none is positive. */
INLINE lf round_factors(int count, int top, const lf *x, li *factors) {
    lf largest = floats(0);
    for (int j = 0; j < count; ++j) largest = maximum(x[j], largest);
    const lm some = less(floats(0), largest);
    const lf inverse = (float)top / largest;
    for (int j = 0; j < count; ++j) factors[j] = choose_ints(some, nearest(inverse * x[j]), ints(0));
    return largest / (float)top;
}

#endif
