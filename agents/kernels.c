/* Loops of kernels.py in one pass each; native.py compiles this file.

   Polynomials are interpolations at Chebyshev nodes: 2^r to 2e-9 for |r| <= 1/2, and
   ln(1 + e) / e to 3.4e-8 for 0 <= e <= 1. NaN stays NaN. */
#include <math.h>
#include <stdint.h>
#include <string.h>

static const float LN_2 = 0.69314718056f, LOG2_E = 1.44269504089f;

/* 2^a for a <= 1; what is below 2^-100 is 2^-100. */
static inline float power_of_two(float a)
{
    a = a < -100.0f ? -100.0f : a;
    float whole = nearbyintf(a), r = a - whole;
    float p = 0.000154614447f;
    p = p * r + 0.00134004282f;
    p = p * r + 0.00961805668f;
    p = p * r + 0.0555032723f;
    p = p * r + 0.240226509f;
    p = p * r + 0.693147207f;
    p = p * r + 1.0f;
    int32_t bits = ((int32_t)whole + 127) << 23;
    float scale;
    memcpy(&scale, &bits, sizeof scale);
    return p * scale;
}

/* ln(1/2 + 2^x) */
static inline float activation(float x)
{
    float u = x + 1.0f, e = power_of_two(-fabsf(u));
    float q = 0.00512610212f;
    q = q * e - 0.0290740646f;
    q = q * e + 0.0775160866f;
    q = q * e - 0.136022476f;
    q = q * e + 0.190768807f;
    q = q * e - 0.24835399f;
    q = q * e + 0.333181217f;
    q = q * e - 0.49999445f;
    q = q * e + 0.999999966f;
    float positive = u > 0.0f ? u : 0.0f;
    return (positive - 1.0f) * LN_2 + q * e;
}

/* x[i, j] = activation(x[i, j] + bias[j]) */
void activate(float *restrict x, const float *restrict bias, long rows, long columns)
{
    for (long i = 0; i < rows; i++, x += columns)
        for (long j = 0; j < columns; j++)
            x[j] = activation(x[j] + bias[j]);
}

/* x[i, j] = activation(x[i, j] + ends[pairs[i, 0], j] + ends[pairs[i, 1], j]) */
void activate_edges(float *restrict x, const float *restrict ends, const int64_t *restrict pairs,
                    long rows, long columns)
{
    for (long i = 0; i < rows; i++, x += columns) {
        const float *first = ends + pairs[2 * i] * columns;
        const float *second = ends + pairs[2 * i + 1] * columns;
        for (long j = 0; j < columns; j++)
            x[j] = activation(x[j] + first[j] + second[j]);
    }
}

/* out[i, j] = grad[i, j] * (1 - exp(-y[i, j]) / 2), and sums[j] grows by the sum of its column */
void times_slope(const float *restrict grad, const float *restrict y, float *restrict out,
                 float *restrict sums, long rows, long columns)
{
    for (long i = 0; i < rows; i++, grad += columns, y += columns, out += columns)
        for (long j = 0; j < columns; j++) {
            out[j] = grad[j] * (1.0f - 0.5f * power_of_two(-LOG2_E * y[j]));
            sums[j] += out[j];
        }
}

#define LANES 16

/* The inner product of two rows; lanes of their own let a compiler use vectors. */
static inline float product(const float *restrict a, const float *restrict b, long columns)
{
    float lanes[LANES] = {0.0f}, sum = 0.0f;
    long j = 0;
    for (; j + LANES <= columns; j += LANES)
        for (int k = 0; k < LANES; k++)
            lanes[k] += a[j + k] * b[j + k];
    for (; j < columns; j++)
        sum += a[j] * b[j];
    for (int k = 0; k < LANES; k++)
        sum += lanes[k];
    return sum;
}

/* out[i] = x[i] . query[number[i]] */
void products(const float *restrict x, const float *restrict query, const int64_t *restrict number,
              float *restrict out, long rows, long columns)
{
    for (long i = 0; i < rows; i++)
        out[i] = product(x + i * columns, query + number[i] * columns, columns);
}

/* The gradient of a sum of rows x[i], weighted by share[i], from that of the sum, of which
   common[s] is the product with the sum itself; grad_logit[i] is that of x[i] . query[s]. */
void attention_gradient(const float *restrict x, const float *restrict query,
                        const float *restrict grad, const float *restrict common,
                        const float *restrict share, const int64_t *restrict number,
                        float *restrict grad_x, float *restrict grad_logit, long rows, long columns)
{
    for (long i = 0; i < rows; i++) {
        const float *g = grad + number[i] * columns, *q = query + number[i] * columns;
        float a = share[i];
        float logit = a * (product(g, x + i * columns, columns) - common[number[i]]);
        grad_logit[i] = logit;
        for (long j = 0; j < columns; j++)
            grad_x[i * columns + j] = a * g[j] + logit * q[j];
    }
}
