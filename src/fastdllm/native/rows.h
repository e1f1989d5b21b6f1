// What is computed row by row or number by number.
#pragma once
#include "numbers.h"

template <class T>
static void norm(const T* x, const T* weight, T* y, long rows, long width, float eps, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long r = 0; r < rows; r++) {
        vec squares = {};
        for (long i = 0; i < width; i += LANES) squares += load(x + r * width + i) * load(x + r * width + i);
        float scale = 1 / std::sqrt(sum(squares) / width + eps);
        for (long i = 0; i < width; i += LANES)
            store(y + r * width + i, load(x + r * width + i) * scale * load(weight + i));
    }
}

// A head of a row, with the row's cosines and sines (width), the first half of the sines negative.
template <class T>
static inline void turn(const T* head, const float* cos, const float* sin, T* y, long width) {
    for (long i = 0; i < width; i += LANES) {
        vec other = load(head + (i + width / 2) % width);
        store(y + i, load(head + i) * load(cos + i) + other * load(sin + i));
    }
}

template <class T>
static void rotate(const T* x, const float* cos, const float* sin, T* y, long rows, long heads, long width, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long r = 0; r < rows; r++)
        for (long h = 0; h < heads; h++) {
            long head = (r * heads + h) * width;
            turn(x + head, cos + r * width, sin + r * width, y + head, width);
        }
}

// silu(gate) * up, silu rounded as the layer's dtype is.
template <class T>
static void gated(const T* gate, const T* up, T* y, long count, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long i = 0; i < count; i += LANES) {
        vec x = load(gate + i), small = power(-(vec)_mm512_abs_ps((__m512)x) * LOG2E);
        T silu[LANES];
        store(silu, (x > 0 ? x : x * small) / (1 + small));  // x / (1 + e^-x), without overflow
        store(y + i, load(silu) * load(up + i));
    }
}

// y += x, rounded as two steps of the layer's dtype are.
template <class T>
static void add(const T* x, T* y, long count, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long i = 0; i < count; i += LANES) store(y + i, load(x + i) + load(y + i));
}
