// Attention of rows over keys and values, in bfloat16.
#pragma once
#include "products.h"

#ifdef __AMX_BF16__

// Of queries (batch, heads, rows, width) over keys and values (batch, groups, length, width), by strides in numbers;
// those of a row lie side by side. The mask has a byte for (batch, 1 or rows, length).
struct Shape {
    long batch, heads, groups, rows, length, width;
    long q[3], k[3], v[3], out[3], mask[2];
};

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

// What a thread works with: 32 query rows at a time, each a row of one of the heads that share keys and values.
struct Attention {
    const Shape s;
    const long keys, deep;  // length rounded up to 32; width in steps of 32
    bf16 *queries, *values, *weights, *tail;  // tiles (2, deep), tiles (keys / 32, 2 deep), (32, keys), (32, width)
    float *scores, *out;                      // (keys, 32), (32, width)

    explicit Attention(const Shape& shape) : s(shape), keys((shape.length + 31) / 32 * 32), deep(shape.width / 32) {
        long sizes[] = {64 * s.width, 2 * keys * s.width, 64 * keys, 64 * s.width, 128 * keys, 128 * s.width};
        void** to[] = {(void**)&queries, (void**)&values, (void**)&weights, (void**)&tail, (void**)&scores, (void**)&out};
        size_t bytes = 0;
        for (long size : sizes) bytes += size;
        char* at = (char*)own.of(bytes);
        for (int i = 0; i < 6; at += sizes[i++]) *to[i] = at;
    }

    // The last keys, which fill no tile, among zeros.
    void hold_keys(const bf16* k) {
        long whole = s.length / 32 * 32;
        memset(tail, 0, 64 * s.width);
        for (long t = whole; t < s.length; t++) memcpy(tail + (t - whole) * s.width, k + t * s.k[2], 2 * s.width);
    }

    // Values by pairs of slots, as the right side of a product.
    void hold_values(const bf16* v) {
        const __m512i pairs = _mm512_set_epi16(
            47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
        for (long t = 0; t < keys; t += 2)
            for (long i = 0; i < s.width; i += 16) {
                __m256i x[2];
                for (long j = 0; j < 2; j++) {
                    const bf16* slot = v + (t + j) * s.v[2] + i;
                    x[j] = t + j < s.length ? _mm256_loadu_si256((const __m256i*)slot) : _mm256_setzero_si256();
                }
                __m512i both = _mm512_permutex2var_epi16(_mm512_castsi256_si512(x[0]), pairs, _mm512_castsi256_si512(x[1]));
                _mm512_storeu_si512(values + (t / 32 * 2 * deep + i / 16) * TILE + t % 32 / 2 * 32, both);
            }
    }

    // Query rows as the right side of a product; null ones are zeros.
    void ask(const bf16* const rows[32]) {
        static const bf16 nothing[32] = {};
        for (long half = 0; half < 2; half++)
            for (long i = 0; i < deep; i++) {
                const void* from[16];
                for (long r = 0; r < 16; r++) from[r] = rows[half * 16 + r] ? rows[half * 16 + r] + i * 32 : nothing;
                transpose(from, queries + (half * deep + i) * TILE, 64);
            }
    }

    // Scores of all keys for 32 rows, and the largest of each row among the keys that it sees; asks for what comes next.
    void score(const bf16* k, const bf16* v, const uint8_t* const seen[32], bool alike, vec top[2]) {
        written();
        top[0] = top[1] = all(-INFINITY);
        for (long t = 0; t < keys; t += 32) {
            bool last = t + 32 > s.length;
            const bf16* at = last ? tail : k + t * s.k[2];
            long stride = last ? s.width : s.k[2];
            for (long r = 0; v && r < 32; r++)
                for (long i = 0; i < s.width; i += 32) {
                    _mm_prefetch((const char*)(k + (t + 64 + r) * s.k[2] + i), _MM_HINT_T0);
                    _mm_prefetch((const char*)(v + (t + r) * s.v[2] + i), _MM_HINT_T1);
                }
            _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
            for (long i = 0; i < deep; i++) {
                _tile_loadd(4, at + i * 32, 2 * stride); _tile_loadd(5, at + 16 * stride + i * 32, 2 * stride);
                _tile_loadd(6, queries + i * TILE, 64); _tile_loadd(7, queries + (deep + i) * TILE, 64);
                _tile_dpbf16ps(0, 4, 6); _tile_dpbf16ps(1, 4, 7); _tile_dpbf16ps(2, 5, 6); _tile_dpbf16ps(3, 5, 7);
            }
            float* c = scores + t * 32;
            _tile_stored(0, c, 128); _tile_stored(1, c + 16, 128); _tile_stored(2, c + 512, 128); _tile_stored(3, c + 528, 128);
            for (long j = 0; j < std::min(32L, s.length - t); j++)
                for (long half = 0; half < 2; half++) {
                    vec x = load(c + j * 32 + half * 16);
                    if (seen[0]) {
                        __mmask16 sees = alike ? (seen[0][t + j] ? 0xffff : 0) : 0;
                        for (long r = 0; !alike && r < 16; r++) sees |= (seen[half * 16 + r][t + j] != 0) << r;
                        x = (vec)_mm512_mask_mov_ps(_mm512_set1_ps(-INFINITY), sees, (__m512)x);
                        store(c + j * 32 + half * 16, x);
                    }
                    top[half] = larger(top[half], x);
                }
        }
    }

    // Weights of all keys from their scores, not yet divided by their sum.
    void weigh(const vec top[2], float scale, vec total[2]) {
        for (long half = 0; half < 2; half++) {
            total[half] = vec{};
            for (long t = 0; t < keys; t += 16) {
                alignas(64) float square[256], turned[256];
                const void* from[16];
                for (long j = 0; j < 16; j++) {
                    vec x = t + j < s.length ? power((load(scores + (t + j) * 32 + half * 16) - top[half]) * scale) : vec{};
                    total[half] += x;
                    store(square + j * 16, x);
                    from[j] = square + j * 16;
                }
                transpose(from, turned, 64);
                for (long r = 0; r < 16; r++) store(weights + (half * 16 + r) * keys + t, load(turned + r * 16));
            }
        }
    }

    // Values by their weights, into `out`.
    void mix() {
        written();
        for (long i = 0; i < 2 * deep; i += 2) {
            _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
            for (long t = 0; t < keys; t += 32) {
                const bf16* v = values + (t / 32 * 2 * deep + i) * TILE;
                _tile_loadd(4, weights + t, 2 * keys); _tile_loadd(5, weights + 16 * keys + t, 2 * keys);
                _tile_loadd(6, v, 64); _tile_loadd(7, v + TILE, 64);
                _tile_dpbf16ps(0, 4, 6); _tile_dpbf16ps(1, 4, 7); _tile_dpbf16ps(2, 5, 6); _tile_dpbf16ps(3, 5, 7);
            }
            float* c = out + i * 16;
            _tile_stored(0, c, 4 * s.width); _tile_stored(1, c + 16, 4 * s.width);
            _tile_stored(2, c + 16 * s.width, 4 * s.width); _tile_stored(3, c + 16 * s.width + 16, 4 * s.width);
        }
    }
};

extern "C" void attend_bf16(
    const bf16* q, const bf16* k, const bf16* v, const uint8_t* mask, bf16* out, const Shape* shape, float scale, int threads) {
    const Shape s = *shape;
    long per = s.heads / s.groups * s.rows, blocks = (per + 31) / 32;
#pragma omp parallel num_threads(threads)
    {
        configure();
        Attention a(s);
        long held = -1;
#pragma omp for schedule(static)
        for (long task = 0; task < s.batch * s.groups * blocks; task++) {
            long group = task / blocks, n = group / s.groups, h = group % s.groups, first = task % blocks * 32;
            const bf16 *keys = k + n * s.k[0] + h * s.k[1], *rows[32] = {};
            const uint8_t* seen[32] = {};
            bf16* to[32];
            for (long r = 0; r < 32; r++) {
                long i = std::min(first + r, per - 1), head = h * (s.heads / s.groups) + i / s.rows, row = i % s.rows;
                if (first + r < per) rows[r] = q + n * s.q[0] + head * s.q[1] + row * s.q[2];
                if (mask) seen[r] = mask + n * s.mask[0] + row * s.mask[1];
                to[r] = out + n * s.out[0] + head * s.out[1] + row * s.out[2];
            }
            const bf16* values = held == group ? nullptr : v + n * s.v[0] + h * s.v[1];
            vec top[2], total[2];
            a.ask(rows);
            if (values) a.hold_keys(keys);
            a.score(keys, values, seen, s.mask[1] == 0, top);
            a.weigh(top, scale * LOG2E, total);
            if (values) a.hold_values(values), held = group;
            a.mix();
            for (long r = 0; r < std::min(32L, per - first); r++)
                for (long i = 0; i < s.width; i += LANES)
                    store(to[r] + i, load(a.out + r * s.width + i) / all(total[r / 16][r % 16]));
        }
        _tile_release();
    }
}
#endif
