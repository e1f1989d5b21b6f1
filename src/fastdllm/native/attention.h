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

constexpr long AT_ONCE = 32;        // query rows, each a row of one of the heads that share keys and values
constexpr long MOST = 256L << 10;  // bytes of keys that are fetched before they are wanted: others need the cache, too

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

    // Values by pairs of slots, each 16 words of (t, i) to where it is wanted, and 16 more `apart`. Of every 32 columns the
    // first 16 words have those that unpacking puts first, four of every eight.
    template <class To>
    void pair_values(const T* v, To to, long apart) {
        for (long t = 0; t < keys; t += 2)
            for (long i = 0; i < s.width; i += 32) {
                __m512i x[2] = {};
                for (long j = 0; j < std::min(2L, s.length - t); j++) x[j] = _mm512_loadu_si512(v + (t + j) * s.v[2] + i);
                auto at = to(t, i);
                _mm512_storeu_si512(at, _mm512_unpacklo_epi16(x[0], x[1]));
                _mm512_storeu_si512(at + apart, _mm512_unpackhi_epi16(x[0], x[1]));
            }
    }

    // Back from the order of pair_values.
    void unpack() {
        const __m512i low = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
        const __m512i high = _mm512_setr_epi32(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
        for (float* at = out; at < out + AT_ONCE * s.width; at += 32) {
            __m512 first = (__m512)load(at), second = (__m512)load(at + 16);
            store(at, (vec)_mm512_permutex2var_ps(first, low, second));
            store(at + 16, (vec)_mm512_permutex2var_ps(first, high, second));
        }
    }

    // Weights of two slots of 16 rows, as pairs of bfloat16.
    bits pair(long t, long half) const {
        const bits half_up = bits{} + 0x8000;
        const float* at = scores + t * 32 + half * 16;
        return ((bits)load(at) + half_up) >> 16 | (((bits)load(at + 32) + half_up) & 0xffff0000);
    }
};

// Eight of the 32 rows of Attention::mix_words; a function of its own, in which the compiler keeps the sums in registers.
template <class T, long LINES>
static __attribute__((noinline)) void mix_eight(
    const float* w, const float* v, long step, long deep, float* to, long wide, bool first, const char* next) {
    multiply<T, 8>(w, 32, 1, v, step, deep, to, wide, first, next, LINES);
}

// By words, as products are.
template <class T>
struct Attention : Work<T> {
    using Work<T>::s, Work<T>::keys, Work<T>::scores, Work<T>::out;
    const long words;         // of a query or a key
    float *queries, *values;  // (words, 32); in bfloat16 (keys / 2, width): pairs of slots

    explicit Attention(const Shape& shape)
        : Work<T>(shape, 128 * shape.width / EACH<T> + (EACH<T> == 2 ? (shape.length + 31) / 32 * 64 * shape.width : 0)),
          words(shape.width / EACH<T>), queries((float*)this->more), values(queries + 32 * words) {}

    // Null ones are zeros.
    void hold_queries(const T* const rows[32]) {
        static const float nothing[16] = {};
        for (long half = 0; half < 2; half++)
            for (long i = 0; i < words; i += 16) {
                const void* from[16];
                for (long r = 0; r < 16; r++) {
                    const float* row = (const float*)rows[half * 16 + r];
                    from[r] = row ? row + i : nothing;
                }
                transpose(from, queries + i * 32 + half * 16, 128);
            }
    }

    // Scores of 32 keys, `step` apart.
    void score(const T* k, long step, float* c) {
        for (long t = 0; t < 32; t += 8)
            multiply<T, 8>((const float*)(k + t * step), 1, step / EACH<T>, queries, 32, words, c + t * 32, 32, true, nullptr, 0);
    }

    // Values by weights; the keys of `after` are fetched meanwhile.
    void mix(const T* v, bool held, const T* after) {
        if constexpr (EACH<T> == 1) {
            mix_words(scores, v, s.v[2], s.length, (const char*)after);
        } else {
            if (!held) this->pair_values(v, [&](long t, long i) { return values + t / 2 * s.width + i; }, LANES);
            memset(scores + s.length * 32, 0, (keys - s.length) * 128);
            for (long t = 0; t < s.length; t += 2)  // in place of the first of them
                for (long half = 0; half < 2; half++) store(scores + (t + half) * 16, (vec)this->pair(t, half));
            mix_words(scores, values, s.width, (s.length + 1) / 2, (const char*)after);
            this->unpack();
        }
    }

    // Of `count` words: weights (count, 32) times values (count, width), whose words lie `step` apart.
    void mix_words(const float* weights, const float* v, long step, long count, const char* after) {
        const char* end = after ? after + std::min(s.length * s.k[2] * (long)sizeof(T), MOST) : nullptr;
        for (long t = 0; t < count; t += DEEP)
            for (long i = 0; i < s.width; i += 32)
                for (long r = 0; r < AT_ONCE; r += 8) {
                    const float *w = weights + t * 32 + r, *from = v + t * step + i;
                    float* to = out + r * s.width + i;
                    long deep = std::min(DEEP, count - t);
                    bool asks = after < end;
                    (asks ? mix_eight<T, 1> : mix_eight<T, 0>)(w, from, step, deep, to, s.width, t == 0, after);
                    after += asks * deep * 64;
                }
    }
};

#ifdef TILES
#include "tiles.h"
#endif

// `out` may be q itself: who writes a row has read it, and nobody else does.
template <class T>
static void attend(const T* q, const T* k, const T* v, const uint8_t* mask, T* out, const Shape& s, float scale, int threads) {
    long per = s.heads / s.groups * s.rows, blocks = (per + AT_ONCE - 1) / AT_ONCE, tasks = s.batch * s.groups * blocks;
    long share = std::max(1L, std::min(blocks, tasks / (4 * threads)));  // mostly of one group, whose values stay held
    auto of = [&](const T* all, const long step[3], long group) {
        long n = group / s.groups;
        return all + (s.places ? s.places[n] : n) * step[0] + group % s.groups * step[1];
    };
    std::atomic<long> taken{0};
#pragma omp parallel num_threads(threads)
    {
        Attention<T> a(s);
        Share mine{taken, share};
        for (long task = mine.take(), after, held = -1; task < tasks; task = after) {
            after = mine.take();
            long group = task / blocks, n = group / s.groups, h = group % s.groups, first = task % blocks * AT_ONCE;
            const T *keys = of(k, s.k, group), *values = of(v, s.v, group), *rows[AT_ONCE] = {};
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
            bool other = after < tasks && after / blocks != group;
            a.mix(values, held == group, other ? of(k, s.k, after / blocks) : nullptr);
            held = group;
            for (long r = 0; r < std::min(AT_ONCE, per - first); r++)
                for (long i = 0; i < s.width; i += LANES)
                    store(to[r] + i, load(a.out + r * s.width + i) / all(total[r / 16][r % 16]));
        }
    }
}
