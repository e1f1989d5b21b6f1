// The parts of a layer, each in one call, `chunk` rows at a time: what lies between its products is never held whole.
#pragma once
#include "products.h"
#include "rows.h"

static inline void linear(const float* x, const float* w, const float* b, float* y, long m, long n, long k, int threads) {
    linear_f32(x, w, b, y, m, n, k, threads);
}
#ifdef __AMX_BF16__
static inline void linear(const bf16* x, const bf16* w, const bf16* b, bf16* y, long m, long n, long k, int threads) {
    linear_bf16(x, w, b, y, m, n, k, threads);
}
#endif

// Queries (rows, width), keys and values (rows, kv_width) of the norm of x; queries and keys rotated.
template <class T>
static void project(
    const T* x, const T* weight, const T* const weights[3], const T* const biases[3], const float* cos, const float* sin,
    T* const out[3], long rows, long width, long kv_width, long head_dim, long chunk, float eps, int threads) {
    for (long from = 0; from < rows; from += chunk) {
        long count = std::min(chunk, rows - from), turn = from * head_dim;
        T* normed = (T*)between.of(2 * count * width * sizeof(T));
        T* still = normed + count * width;
        norm(x + from * width, weight, normed, count, width, eps, threads);
        for (int i = 0; i < 3; i++) {
            long outputs = i ? kv_width : width;
            T* to = out[i] + from * outputs;
            linear(normed, weights[i], biases[i], i < 2 ? still : to, count, outputs, width, threads);
            if (i < 2) rotate(still, cos + turn, sin + turn, to, count, outputs / head_dim, head_dim, threads);
        }
    }
}

// x plus what the heads mixed (rows, inner), projected out.
template <class T>
static void merge(
    const T* x, const T* mixed, const T* weight, T* y, long rows, long width, long inner, long chunk, int threads) {
    for (long from = 0; from < rows; from += chunk) {
        long count = std::min(chunk, rows - from);
        T* to = y + from * width;
        linear(mixed + from * inner, weight, (const T*)nullptr, to, count, width, inner, threads);
        add(x + from * width, to, count * width, threads);
    }
}

// x += the feed-forward of its norm.
template <class T>
static void feed_forward(
    T* x, const T* weight, const T* gate, const T* up, const T* down, long rows, long width, long inner, long chunk,
    float eps, int threads) {
    for (long from = 0; from < rows; from += chunk) {
        long count = std::min(chunk, rows - from);
        T* at = x + from * width;
        T* normed = (T*)between.of(count * (width + 2 * inner) * sizeof(T));
        T *gates = normed + count * width, *ups = gates + count * inner;
        norm(at, weight, normed, count, width, eps, threads);
        linear(normed, gate, (const T*)nullptr, gates, count, inner, width, threads);
        linear(normed, up, (const T*)nullptr, ups, count, inner, width, threads);
        gated(gates, ups, gates, count * inner, threads);
        linear(gates, down, (const T*)nullptr, normed, count, width, inner, threads);
        add(normed, at, count * width, threads);
    }
}

#define LAYERS(T, dtype)                                                                                              \
    extern "C" void project_##dtype(                                                                                  \
        const T* x, const T* norm, const T* wq, const T* wk, const T* wv, const T* bq, const T* bk, const T* bv,      \
        const float* cos, const float* sin, T* q, T* k, T* v, long rows, long width, long kv_width, long head_dim,    \
        long chunk, float eps, int threads) {                                                                         \
        const T *const weights[3] = {wq, wk, wv}, *const biases[3] = {bq, bk, bv};                                    \
        T* const out[3] = {q, k, v};                                                                                  \
        project(x, norm, weights, biases, cos, sin, out, rows, width, kv_width, head_dim, chunk, eps, threads);       \
    }                                                                                                                 \
    extern "C" void merge_##dtype(                                                                                    \
        const T* x, const T* mixed, const T* w, T* y, long rows, long width, long inner, long chunk, int threads) {   \
        merge(x, mixed, w, y, rows, width, inner, chunk, threads);                                                    \
    }                                                                                                                 \
    extern "C" void feed_forward_##dtype(T* x, const T* norm, const T* gate, const T* up, const T* down, long rows,   \
                                         long width, long inner, long chunk, float eps, int threads) {                \
        feed_forward(x, norm, gate, up, down, rows, width, inner, chunk, eps, threads);                               \
    }
LAYERS(float, f32)
#ifdef __AMX_BF16__
LAYERS(bf16, bf16)
#endif
