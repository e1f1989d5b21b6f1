// A layer in one call, `chunk` rows at a time but for attention: what lies between its products is never held whole.
#pragma once
#include "attention.h"
#include "rows.h"

template <class T>
struct Layer {
    const T *attention_norm, *projections[3], *biases[3], *out, *feed_forward_norm, *gate, *up, *down;
};

// What is the same for all layers of a pass.
struct Pass {
    long batch, rows, width, heads, groups, head_dim, inner, reach, chunk;
    long steps[3];               // to the next batch row, head and slot of keys and values, in numbers
    long mask_steps[2];
    const long *places, *slots;  // batch rows (batch) and slots (batch, rows) of the pass among keys and values
    const float *cos, *sin;      // (batch * rows, head_dim)
    const uint8_t* mask;
    float eps, scale;  // of norms; of scores
    int threads;
};

// Keys, rotated, and values of `count` rows to their slots.
template <class T>
static void keep(const Pass& p, const T* k, const T* v, T* keys, T* values, long from, long count) {
#pragma omp parallel for num_threads(p.threads) schedule(static)
    for (long r = 0; r < count; r++) {
        long row = from + r, slot = p.places[row / p.rows] * p.steps[0] + p.slots[row] * p.steps[2];
        for (long h = 0; h < p.groups; h++) {
            long head = (r * p.groups + h) * p.head_dim, to = slot + h * p.steps[1];
            turn(k + head, p.cos + row * p.head_dim, p.sin + row * p.head_dim, keys + to, p.head_dim);
            memcpy(values + to, v + head, p.head_dim * sizeof(T));
        }
    }
}

// Queries (rows, width), and keys and values in their slots, of the norm of x.
template <class T>
static void project(const Layer<T>& l, const Pass& p, const T* x, T* q, T* keys, T* values, long from, long count) {
    long kv_width = p.groups * p.head_dim;
    T* normed = (T*)between.of(count * (2 * p.width + 2 * kv_width) * sizeof(T));
    T *still = normed + count * p.width, *k = still + count * p.width, *v = k + count * kv_width;
    norm(x + from * p.width, l.attention_norm, normed, count, p.width, p.eps, p.threads);
    Product<T> products[3] = {
        {l.projections[0], l.biases[0], still, p.width},
        {l.projections[1], l.biases[1], k, kv_width},
        {l.projections[2], l.biases[2], v, kv_width}};
    multiply_all(normed, products, 3, count, p.width, p.threads);
    long angle = from * p.head_dim;
    rotate(still, p.cos + angle, p.sin + angle, q + from * p.width, count, p.heads, p.head_dim, p.threads);
    keep(p, k, v, keys, values, from, count);
}

// x += what the heads mixed, projected out; then x += the feed-forward of its norm.
template <class T>
static void finish(const Layer<T>& l, const Pass& p, const T* mixed, T* x, long count) {
    T* normed = (T*)between.of(count * (p.width + 2 * p.inner) * sizeof(T));
    T *gates = normed + count * p.width, *ups = gates + count * p.inner;
    Product<T> out = {l.out, nullptr, normed, p.width}, down = {l.down, nullptr, normed, p.width};
    Product<T> wide[2] = {{l.gate, nullptr, gates, p.inner}, {l.up, nullptr, ups, p.inner}};
    multiply_all(mixed, &out, 1, count, p.width, p.threads);
    add(normed, x, count * p.width, p.threads);
    norm(x, l.feed_forward_norm, normed, count, p.width, p.eps, p.threads);
    multiply_all(normed, wide, 2, count, p.width, p.threads);
    gated(gates, ups, gates, count * p.inner, p.threads);
    multiply_all(gates, &down, 1, count, p.inner, p.threads);
    add(normed, x, count * p.width, p.threads);
}

// The states x (rows, width) after the layer; q is as large.
template <class T>
static void layer(T* x, T* q, T* keys, T* values, const Layer<T>& l, const Pass& p) {
    long all = p.batch * p.rows;
    for (long from = 0; from < all; from += p.chunk) project(l, p, x, q, keys, values, from, std::min(p.chunk, all - from));
    Shape s = {p.batch, p.heads, p.groups, p.rows, p.reach, p.head_dim};
    long queries[3] = {p.rows * p.width, p.head_dim, p.width};
    for (long i = 0; i < 3; i++) s.q[i] = s.out[i] = queries[i], s.k[i] = s.v[i] = p.steps[i];
    for (long i = 0; i < 2; i++) s.mask[i] = p.mask_steps[i];
    s.places = p.places;
    attend(q, keys, values, p.mask, q, s, p.scale, p.threads);
    for (long from = 0; from < all; from += p.chunk)
        finish(l, p, q + from * p.width, x + from * p.width, std::min(p.chunk, all - from));
}
