// Attention of rows over keys and values.
#pragma once
#include "products.h"

// Of queries (batch, heads, rows, width) over keys and values (.., groups, length, width), by strides in numbers; those
// of a row lie side by side. The mask has a byte for (batch, 1 or rows, length).
struct Shape {
    long batch, heads, groups, rows, length, width;
    long q[3], k[3], v[3], out[3], mask[2];
    const long* places;  // batch rows of keys and values; null: their own
};

constexpr long AT_ONCE = 32;  // query rows, each a row of one of the heads that share keys and values

// What a thread works with, whatever the dtype.
template <class T>
struct Work {
    const Shape s;
    const long keys;           // length rounded up to 32
    float *scores, *out;       // (keys, 32), (32, width)
    T* tail;                   // (32, width): the last keys, which fill no 32, among zeros
    char* more;                // as many bytes as were wanted

    Work(const Shape& shape, long bytes) : s(shape), keys((shape.length + 31) / 32 * 32) {
        long first = 128 * keys, second = 128 * s.width;
        char* at = (char*)own.of(first + 2 * second + bytes);
        scores = (float*)at, out = (float*)(at + first), tail = (T*)(at + first + second), more = at + first + 2 * second;
    }

    void hold_keys(const T* k) {
        long whole = s.length / 32 * 32;
        memset(tail, 0, 32 * sizeof(T) * s.width);
        for (long t = whole; t < s.length; t++) memcpy(tail + (t - whole) * s.width, k + t * s.k[2], s.width * sizeof(T));
    }

    // Hides scores of 32 keys from rows that do not see them, takes the largest of each row into account, and asks for
    // the keys after the next and for these keys' values.
    void see(long t, const T* k, const T* v, const uint8_t* const seen[32], bool alike, vec top[2]) {
        for (long j = t; j < std::min(t + 32, s.length); j++) {
            for (long i = 0; i < s.width; i += 64 / sizeof(T)) {
                _mm_prefetch((const char*)(k + (j + 64) * s.k[2] + i), _MM_HINT_T0);
                _mm_prefetch((const char*)(v + j * s.v[2] + i), _MM_HINT_T1);
            }
            for (long half = 0; half < 2; half++) {
                vec x = load(scores + j * 32 + half * 16);
                if (seen[0]) {
                    __mmask16 sees = alike ? (seen[0][j] ? 0xffff : 0) : 0;
                    for (long r = 0; !alike && r < 16; r++) sees |= (seen[half * 16 + r][j] != 0) << r;
                    x = (vec)_mm512_mask_mov_ps(_mm512_set1_ps(-INFINITY), sees, (__m512)x);
                    store(scores + j * 32 + half * 16, x);
                }
                top[half] = larger(top[half], x);
            }
        }
    }

    // Weights of keys in place of their scores, not yet divided by their sum.
    void weigh(const vec top[2], float scale, vec total[2]) {
        total[0] = total[1] = vec{};
        for (long t = 0; t < s.length; t++)
            for (long half = 0; half < 2; half++) {
                float* at = scores + t * 32 + half * 16;
                vec x = power((load(at) - top[half]) * scale);
                total[half] += x;
                store(at, x);
            }
    }
};

template <class T>
struct Attention;

template <>
struct Attention<float> : Work<float> {
    float* queries;  // (width, 32)

    explicit Attention(const Shape& shape) : Work(shape, 128 * shape.width), queries((float*)more) {}

    void hold_queries(const float* const rows[32]) {
        static const float nothing[16] = {};
        for (long half = 0; half < 2; half++)
            for (long i = 0; i < s.width; i += 16) {
                const void* from[16];
                for (long r = 0; r < 16; r++) from[r] = rows[half * 16 + r] ? rows[half * 16 + r] + i : nothing;
                transpose(from, queries + i * 32 + half * 16, 128);
            }
    }

    // Scores of 32 keys, `step` apart.
    void score(const float* k, long step, float* c) {
        for (long t = 0; t < 32; t += 8)
            multiply<8>(k + t * step, 1, step, queries, 32, s.width, c + t * 32, 32, true, nullptr, 0);
    }

    void mix(const float* v, bool) {
        for (long t = 0; t < s.length; t += DEEP)
            for (long i = 0; i < s.width; i += 32)
                for (long r = 0; r < AT_ONCE; r += 8)
                    multiply<8>(scores + t * 32 + r, 32, 1, v + t * s.v[2] + i, s.v[2], std::min(DEEP, s.length - t),
                                out + r * s.width + i, s.width, t == 0, nullptr, 0);
    }
};

#ifdef __AMX_BF16__
template <>
struct Attention<bf16> : Work<bf16> {
    const long deep;                   // width in steps of 32
    bf16 *queries, *values, *weights;  // tiles (2, deep), (keys / 32, 2 deep), (keys / 32, 2)

    explicit Attention(const Shape& shape)
        : Work(shape, 64 * shape.width + (shape.length + 31) / 32 * 32 * (2 * shape.width + 64)), deep(shape.width / 32),
          queries((bf16*)more), values(queries + 32 * s.width), weights(values + keys * s.width) {
        configure();
    }
    ~Attention() { _tile_release(); }

    // Query rows as the right side of a product; null ones are zeros.
    void hold_queries(const bf16* const rows[32]) {
        static const bf16 nothing[32] = {};
        for (long half = 0; half < 2; half++)
            for (long i = 0; i < deep; i++) {
                const void* from[16];
                for (long r = 0; r < 16; r++) from[r] = rows[half * 16 + r] ? rows[half * 16 + r] + i * 32 : nothing;
                transpose(from, queries + (half * deep + i) * TILE, 64);
            }
        written();
    }

    // Scores of 32 keys, `step` apart.
    void score(const bf16* k, long step, float* c) {
        _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
        for (long i = 0; i < deep; i++) {
            _tile_loadd(4, k + i * 32, 2 * step); _tile_loadd(5, k + 16 * step + i * 32, 2 * step);
            _tile_loadd(6, queries + i * TILE, 64); _tile_loadd(7, queries + (deep + i) * TILE, 64);
            _tile_dpbf16ps(0, 4, 6); _tile_dpbf16ps(1, 4, 7); _tile_dpbf16ps(2, 5, 6); _tile_dpbf16ps(3, 5, 7);
        }
        _tile_stored(0, c, 128); _tile_stored(1, c + 16, 128); _tile_stored(2, c + 512, 128); _tile_stored(3, c + 528, 128);
        written();
    }

    // Values by pairs of slots, as the right side of a product. Of every 32 columns the first tile has those that
    // unpacking puts first, four of every eight.
    void hold_values(const bf16* v) {
        for (long t = 0; t < keys; t += 2)
            for (long i = 0; i < s.width; i += 32) {
                __m512i x[2] = {};
                for (long j = 0; j < std::min(2L, s.length - t); j++) x[j] = _mm512_loadu_si512(v + (t + j) * s.v[2] + i);
                bf16* to = values + (t / 32 * 2 * deep + i / 16) * TILE + t % 32 / 2 * 32;
                _mm512_storeu_si512(to, _mm512_unpacklo_epi16(x[0], x[1]));
                _mm512_storeu_si512(to + TILE, _mm512_unpackhi_epi16(x[0], x[1]));
            }
    }

    // Weights as the left side of a product.
    void hold_weights() {
        memset(scores + s.length * 32, 0, (keys - s.length) * 128);
        const bits half_up = bits{} + 0x8000;
        for (long t = 0; t < keys; t += 32)
            for (long half = 0; half < 2; half++) {
                bits pairs[16];
                const void* from[16];
                for (long j = 0; j < 16; j++) {
                    const float* at = scores + (t + 2 * j) * 32 + half * 16;
                    pairs[j] = ((bits)load(at) + half_up) >> 16 | (((bits)load(at + 32) + half_up) & 0xffff0000);
                    from[j] = &pairs[j];
                }
                transpose(from, weights + (t / 16 + half) * TILE, 64);
            }
    }

    // Back from the order of hold_values.
    void unpack() {
        const __m512i low = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
        const __m512i high = _mm512_setr_epi32(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
        for (float* at = out; at < out + AT_ONCE * s.width; at += 32) {
            __m512 first = (__m512)load(at), second = (__m512)load(at + 16);
            store(at, (vec)_mm512_permutex2var_ps(first, low, second));
            store(at + 16, (vec)_mm512_permutex2var_ps(first, high, second));
        }
    }

    void mix(const bf16* v, bool held) {
        if (!held) hold_values(v);
        hold_weights();
        written();
        for (long i = 0; i < 2 * deep; i += 2) {
            _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
            for (long t = 0; t < keys; t += 32) {
                const bf16* at = values + (t / 32 * 2 * deep + i) * TILE;
                const bf16* w = weights + t / 16 * TILE;
                const char *after = (const char*)(at + 2 * deep * TILE), *next = (const char*)(w + 2 * TILE);
                _tile_loadd(4, w, 64); ask<0, 8>(after);
                _tile_loadd(5, w + TILE, 64); ask<8, 16>(after);
                _tile_loadd(6, at, 64); ask<16, 24>(after); ask<0, 8>(next);
                _tile_dpbf16ps(0, 4, 6); ask<24, 32>(after); ask<8, 16>(next);
                _tile_dpbf16ps(2, 5, 6);
                _tile_loadd(7, at + TILE, 64); ask<16, 24>(next);
                _tile_dpbf16ps(1, 4, 7); ask<24, 32>(next);
                _tile_dpbf16ps(3, 5, 7);
            }
            float* c = out + i * 16;
            _tile_stored(0, c, 4 * s.width); _tile_stored(1, c + 16, 4 * s.width);
            _tile_stored(2, c + 16 * s.width, 4 * s.width); _tile_stored(3, c + 16 * s.width + 16, 4 * s.width);
        }
        written();
        unpack();
    }
};
#endif

// `out` may be q itself: who writes a row has read it, and nobody else does.
template <class T>
static void attend(const T* q, const T* k, const T* v, const uint8_t* mask, T* out, const Shape& s, float scale, int threads) {
    long per = s.heads / s.groups * s.rows, blocks = (per + AT_ONCE - 1) / AT_ONCE, tasks = s.batch * s.groups * blocks;
    long share = std::max(1L, std::min(blocks, tasks / (4 * threads)));  // mostly of one group, whose values stay held
#pragma omp parallel num_threads(threads)
    {
        Attention<T> a(s);
        long held = -1;
#pragma omp for schedule(dynamic, share)
        for (long task = 0; task < tasks; task++) {
            long group = task / blocks, n = group / s.groups, h = group % s.groups, first = task % blocks * AT_ONCE;
            long place = s.places ? s.places[n] : n;
            const T *keys = k + place * s.k[0] + h * s.k[1], *values = v + place * s.v[0] + h * s.v[1], *rows[AT_ONCE] = {};
            const uint8_t* seen[AT_ONCE] = {};
            T* to[AT_ONCE];
            for (long r = 0; r < AT_ONCE; r++) {
                long i = std::min(first + r, per - 1), head = h * (s.heads / s.groups) + i / s.rows, row = i % s.rows;
                if (first + r < per) rows[r] = q + n * s.q[0] + head * s.q[1] + row * s.q[2];
                if (mask) seen[r] = mask + n * s.mask[0] + row * s.mask[1];
                to[r] = out + n * s.out[0] + head * s.out[1] + row * s.out[2];
            }
            vec top[2] = {all(-INFINITY), all(-INFINITY)}, total[2];
            if (held != group) a.hold_keys(keys);
            a.hold_queries(rows);
            for (long t = 0; t < a.keys; t += 32) {
                bool last = t + 32 > s.length;
                a.score(last ? a.tail : keys + t * s.k[2], last ? s.width : s.k[2], a.scores + t * 32);
                a.see(t, keys, values, seen, s.mask[1] == 0, top);
            }
            a.weigh(top, scale * LOG2E, total);
            a.mix(values, held == group);
            held = group;
            for (long r = 0; r < std::min(AT_ONCE, per - first); r++)
                for (long i = 0; i < s.width; i += LANES)
                    store(to[r] + i, load(a.out + r * s.width + i) / all(total[r / 16][r % 16]));
        }
    }
}

#define ATTEND(T, dtype)                                                                                               \
    extern "C" void attend_##dtype(                                                                                    \
        const T* q, const T* k, const T* v, const uint8_t* mask, T* out, const Shape* s, float scale, int threads) {   \
        attend(q, k, v, mask, out, *s, scale, threads);                                                                \
    }
ATTEND(float, f32)
#ifdef __AMX_BF16__
ATTEND(bf16, bf16)
#endif
