// Vectors of 16 float32 numbers, what is read into and written from them, and memory to work in.
#pragma once
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>

using bf16 = uint16_t;
#ifdef BFLOAT16  // what this library computes with; each has one of its own, so that none waits for what it does not need
using number = bf16;
#ifdef __AMX_BF16__
#define TILES
#endif
#else
using number = float;
#endif
constexpr long LANES = 16, PANEL = 32;

typedef float vec __attribute__((vector_size(64)));
typedef uint32_t bits __attribute__((vector_size(64)));
typedef uint16_t halves __attribute__((vector_size(32)));

static inline vec load(const float* p) {
    vec v;
    memcpy(&v, p, 64);
    return v;
}
static inline vec load(const bf16* p) {
    halves h;
    memcpy(&h, p, 32);
    return (vec)(__builtin_convertvector(h, bits) << 16);
}
static inline void store(float* p, vec v) { memcpy(p, &v, 64); }
#ifdef __AVX512BF16__
static inline void store(bf16* p, vec v) {  // to nearest, ties to even; numbers below the least normal one are zero
    __m256bh h = _mm512_cvtneps_pbh((__m512)v);
    memcpy(p, &h, 32);
}
#endif
static inline vec all(float x) { return vec{} + x; }
static inline vec larger(vec a, vec b) { return (vec)_mm512_max_ps((__m512)a, (__m512)b); }
static inline float sum(vec v) { return _mm512_reduce_add_ps((__m512)v); }

// 2^x for x <= 0, to some units of float32's last place; zero below 2^-126, and no number for what is none.
static inline vec power(vec x) {
    __m512 whole = _mm512_roundscale_ps((__m512)x, 0);
    vec f = x - (vec)whole;
    vec p = all(1.5403530e-4f);
    for (float c : {1.3333558e-3f, 9.6181291e-3f, 5.5504109e-2f, 2.4022651e-1f, 6.9314718e-1f, 1.0f}) p = p * f + c;
    __mmask16 kept = _mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(-126.f), _CMP_NLT_UQ);
    return (vec)_mm512_maskz_scalef_ps(kept, (__m512)p, whole);
}
constexpr float LOG2E = 1.44269504f;

// A block of 16 x 16 numbers of 32 bits, turned over.
static inline void transpose(const void* const from[16], void* to, long stride) {
    __m512i r[16], t[16];
    for (int i = 0; i < 16; i++) r[i] = _mm512_loadu_si512(from[i]);
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int j = 0; j < 2; j++) {
            r[i + 2 * j] = _mm512_unpacklo_epi64(t[i + j], t[i + 2 + j]);
            r[i + 2 * j + 1] = _mm512_unpackhi_epi64(t[i + j], t[i + 2 + j]);
        }
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 2; j++) {
            t[i + 8 * j] = _mm512_shuffle_i32x4(r[i + 8 * j], r[i + 8 * j + 4], 0x88);
            t[i + 8 * j + 4] = _mm512_shuffle_i32x4(r[i + 8 * j], r[i + 8 * j + 4], 0xdd);
        }
    for (int i = 0; i < 8; i++) {
        _mm512_storeu_si512((char*)to + i * stride, _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88));
        _mm512_storeu_si512((char*)to + (i + 8) * stride, _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd));
    }
}

// Memory that a thread keeps from call to call.
struct Scratch {
    void* at = nullptr;
    size_t size = 0;
    void* of(size_t bytes) {
        if (bytes > size) {
            free(at);
            size = (bytes + 4095) / 4096 * 4096;
            at = aligned_alloc(4096, size);
            if (!at) abort();
        }
        return at;
    }
    ~Scratch() { free(at); }
};
static thread_local Scratch rows_of_all, between, own;
