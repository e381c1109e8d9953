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

/* Sixteen numbers at a time: one register with AVX-512, several elsewhere. */
typedef float vector __attribute__((vector_size(64), aligned(4)));

#define WIDTH 16
#define UNROLL _Pragma("GCC unroll 8")
#define INLINE static inline __attribute__((always_inline))

/* c[i, j] (+)= sum over k of a[i * row + k * step] * b[k, j], for R rows and V vectors of columns,
   which are constants where this is used, so that all sums stay in registers. */
INLINE void tile(const float *restrict a, long row, long step, const float *restrict b, long n_b,
                 float *restrict c, long n_c, long n, const int R, const int V, int adds)
{
    vector sum[6][4];
    UNROLL for (int i = 0; i < R; i++)
        UNROLL for (int v = 0; v < V; v++)
            sum[i][v] = adds ? *(const vector *)(c + i * n_c + v * WIDTH) : (vector){0.0f};
    for (long k = 0; k < n; k++, b += n_b, a += step) {
        vector right[4];
        UNROLL for (int v = 0; v < V; v++)
            right[v] = *(const vector *)(b + v * WIDTH);
        UNROLL for (int i = 0; i < R; i++) {
            float left = a[i * row];
            UNROLL for (int v = 0; v < V; v++)
                sum[i][v] += left * right[v];
        }
    }
    UNROLL for (int i = 0; i < R; i++)
        UNROLL for (int v = 0; v < V; v++)
            *(vector *)(c + i * n_c + v * WIDTH) = sum[i][v];
}

/* The same for as many rows as there are. */
INLINE void columns(const float *a, long row, long step, const float *b, long n_b, float *c,
                    long n_c, long n, long rows, const int V, int adds)
{
    for (; rows >= 6; rows -= 6, a += 6 * row, c += 6 * n_c)
        tile(a, row, step, b, n_b, c, n_c, n, 6, V, adds);
    for (; rows >= 2; rows -= 2, a += 2 * row, c += 2 * n_c)
        tile(a, row, step, b, n_b, c, n_c, n, 2, V, adds);
    if (rows > 0)
        tile(a, row, step, b, n_b, c, n_c, n, 1, V, adds);
}

/* The same for a whole matrix c of `rows` rows and n_c columns; b is (n, n_c). */
static void multiply(const float *restrict a, long row, long step, const float *restrict b,
                     float *restrict c, long n_c, long n, long rows, int adds)
{
    long j = 0;
    for (; j + 4 * WIDTH <= n_c; j += 4 * WIDTH)
        columns(a, row, step, b + j, n_c, c + j, n_c, n, rows, 4, adds);
    for (; j + 2 * WIDTH <= n_c; j += 2 * WIDTH)
        columns(a, row, step, b + j, n_c, c + j, n_c, n, rows, 2, adds);
    for (; j + WIDTH <= n_c; j += WIDTH)
        columns(a, row, step, b + j, n_c, c + j, n_c, n, rows, 1, adds);
    for (; j < n_c; j++)
        for (long i = 0; i < rows; i++) {
            float sum = adds ? c[i * n_c + j] : 0.0f;
            for (long k = 0; k < n; k++)
                sum += a[i * row + k * step] * b[k * n_c + j];
            c[i * n_c + j] = sum;
        }
}

/* Rows that go through all layers of an MLP together: what they need stays in the first caches. */
#define CHUNK 96
const long chunk = CHUNK;

static inline long least(long a, long b) { return a < b ? a : b; }

/* An MLP over rows of x: out[l] is what layer l makes of out[l - 1], the layers' inputs and outputs
   have size[0], size[1], ... numbers; weight[l] is (size[l], size[l + 1]). To the sums of layer
   pairs_at, ends[pairs[i, 0]] + ends[pairs[i, 1]] is added in place of a bias, where there are
   ends; the last layer's result plus skip goes to `added`, where there is a skip. Where keep is 0,
   all but the last of the outs hold CHUNK rows, which are overwritten. */
void mlp_forward(const float *restrict x, long rows, long n_layers, const long *restrict size,
                 const float **weight, const float **bias, float **out, int keep,
                 const float *restrict ends, const int64_t *restrict pairs, long pairs_at,
                 const float *restrict skip, float *restrict added)
{
    for (long from = 0; from < rows; from += CHUNK) {
        long n = least(CHUNK, rows - from);
        const float *input = x + from * size[0];
        for (long l = 0; l < n_layers; l++) {
            long wide = size[l + 1];
            float *result = out[l] + (keep || l == n_layers - 1 ? from * wide : 0);
            multiply(input, size[l], 1, weight[l], result, wide, size[l], n, 0);
            for (long i = 0; i < n; i++) {
                float *restrict y = result + i * wide;
                const float *first = bias[l];
                if (ends && l == pairs_at) {
                    first = ends + pairs[2 * (from + i)] * wide;
                    const float *second = ends + pairs[2 * (from + i) + 1] * wide;
                    for (long j = 0; j < wide; j++)
                        y[j] = activation(y[j] + first[j] + second[j]);
                } else
                    for (long j = 0; j < wide; j++)
                        y[j] = activation(y[j] + first[j]);
            }
            input = result;
        }
        long wide = size[n_layers];
        if (skip)
            for (long i = from * wide; i < (from + n) * wide; i++)
                added[i] = out[n_layers - 1][i] + skip[i];
    }
}

/* The gradients of that: grad and, where it is not NULL, grad_added are those of the last result
   and of `added`; weight[l] is (size[l + 1], size[l]) here. grad_weight[l], of the same shape, and
   grad_bias[l] grow. grad_x, with to_x added to it where that is not NULL, and grad_pairs, the
   gradient of the sums at pairs_at, are written where they are not NULL. work holds 2 * CHUNK rows as
   wide as the widest. */
void mlp_backward(const float *restrict x, long rows, long n_layers, const long *restrict size,
                  const float **weight, const float **out, const float *grad,
                  const float *grad_added, float **grad_weight, float **grad_bias,
                  float *restrict grad_x, const float *to_x, float *restrict grad_pairs,
                  long pairs_at, float *restrict work)
{
    long widest = 0;
    for (long l = 0; l <= n_layers; l++)
        widest = size[l] > widest ? size[l] : widest;
    for (long from = 0; from < rows; from += CHUNK) {
        long n = least(CHUNK, rows - from), wide = size[n_layers];
        float *g = work, *before = work + CHUNK * widest;
        for (long i = 0; i < n * wide; i++)
            g[i] = grad[from * wide + i] + (grad_added ? grad_added[from * wide + i] : 0.0f);
        for (long l = n_layers - 1; l >= 0; l--) {
            wide = size[l + 1];
            const float *y = out[l] + from * wide;
            float *restrict sums = grad_bias[l];
            for (long i = 0; i < n; i++)
                for (long j = 0; j < wide; j++) {
                    float slope = 1.0f - 0.5f * power_of_two(-LOG2_E * y[i * wide + j]);
                    g[i * wide + j] *= slope;
                    sums[j] += g[i * wide + j];
                }
            if (grad_pairs && l == pairs_at)
                memcpy(grad_pairs + from * wide, g, sizeof(float) * n * wide);
            const float *input = l > 0 ? out[l - 1] + from * size[l] : x + from * size[0];
            multiply(g, 1, wide, input, grad_weight[l], size[l], n, wide, 1);
            if (l > 0) {
                multiply(g, wide, 1, weight[l], before, size[l], wide, n, 0);
                float *other = g;
                g = before, before = other;
            } else if (grad_x) {
                float *gx = grad_x + from * size[0];
                if (to_x)
                    memcpy(gx, to_x + from * size[0], sizeof(float) * n * size[0]);
                multiply(g, wide, 1, weight[0], gx, size[0], wide, n, to_x != NULL);
            }
        }
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
