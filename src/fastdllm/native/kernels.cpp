// Passes over few rows on one CPU: products, attention, norms and rotation for processors with AVX-512, in bfloat16
// with AVX-512 BF16 or AMX. Built on the machine that runs them (build.py), called through kernels.py and stack.py, which
// say what each computes.
#include "layers.h"

#if defined(BFLOAT16) && !defined(__AVX512BF16__)
#error "bfloat16 needs a compiler that knows AVX-512 BF16, such as g++ 11"
#endif

extern "C" {
void fastdllm_linear(
    const number* x, const number* w, const number* bias, number* y, long m, long n, long k, int threads) {
    Product<number> product = {w, bias, y, n};
    multiply_all(x, &product, 1, m, k, threads);
}
void fastdllm_norm(const number* x, const number* w, number* y, long rows, long width, float eps, int threads) {
    norm(x, w, y, rows, width, eps, threads);
}
void fastdllm_rotate(
    const number* x, const float* cos, const float* sin, number* y, long rows, long heads, long width, int threads) {
    rotate(x, cos, sin, y, rows, heads, width, threads);
}
void fastdllm_gated(const number* gate, const number* up, number* y, long count, int threads) {
    gated(gate, up, y, count, threads);
}
void fastdllm_attend(
    const number* q, const number* k, const number* v, const uint8_t* mask, number* out, const Shape* s, float scale,
    int threads) {
    attend(q, k, v, mask, out, *s, scale, threads);
}
void fastdllm_layer(number* x, number* q, number* keys, number* values, const Layer<number>* l, const Pass* p) {
    layer(x, q, keys, values, *l, *p);
}
}
