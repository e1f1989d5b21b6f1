// Rows times a weight that lies in panels of 32 outputs, one after another, in the order in which a product reads them: a
// thread reads some panels front to back, and asks for what comes next while it multiplies.
#pragma once
#include <atomic>
#include <utility>

#include "numbers.h"

// What a thread of several has to do: `share` things at a time, so that who is held up leaves the rest to others.
struct Share {
    std::atomic<long>& taken;
    const long share;
    long at = 0, left = 0;
    long take() {
        if (!left) at = taken.fetch_add(share), left = share;
        left--;
        return at++;
    }
};

// Rows of a finished panel, from float32 sums (rows, 32) into the outputs.
template <class T>
static void finish(const float* c, const T* bias, T* y, long rows, long n) {
    for (long r = 0; r < rows; r++)
        for (long h = 0; h < PANEL; h += LANES) {
            vec v = load(c + r * PANEL + h);
            store(y + r * n + h, bias ? v + load(bias + h) : v);
        }
}

// Numbers are multiplied by words of 32 bits: one in float32, a pair in bfloat16, whose two products one sum takes in.
template <class T>
constexpr long EACH = 4 / sizeof(T);  // numbers in a word

template <class T>
static inline vec plus(vec sum, vec x, vec y) {
#ifdef __AVX512BF16__
    if constexpr (EACH<T> == 2) return (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)x, (__m512bh)y);
#endif
    return sum + x * y;
}

// Words of a step, and the cache that the next step's are fetched to: Xeons with AMX gain where a step's part of a panel and
// of the rows stay in the L1 cache, EPYCs where sums stay in registers for long.
#ifdef __AMX_BF16__
constexpr long DEEP = 64;
constexpr auto FETCHED = _MM_HINT_T0;
#else
constexpr long DEEP = 512;
constexpr auto FETCHED = _MM_HINT_T1;
#endif
constexpr long TOGETHER = 12;  // rows of a block at most: so many sums are held in registers

// Adds `deep` words of ROWS rows, word (k, r) of them at a[k * along + r * across], times b (deep, 32), whose words
// lie `step` apart, to the sums c (ROWS, 32), `wide` apart; asks for `lines` lines of `next` at each word.
template <class T, long ROWS>
static inline __attribute__((always_inline)) void multiply(
    const float* a, long along, long across, const float* b, long step, long deep, float* c, long wide, bool first,
    const char* next, long lines) {
    vec sums[ROWS][2];
    for (long r = 0; r < ROWS; r++)
        for (long h = 0; h < 2; h++) sums[r][h] = first ? vec{} : load(c + r * wide + h * LANES);
    for (long k = 0; k < deep; k++) {
        for (long i = 0; i < lines; i++) _mm_prefetch(next + (k * lines + i) * 64, FETCHED);
        vec b0 = load(b + k * step), b1 = load(b + k * step + LANES);
        for (long r = 0; r < ROWS; r++) {
            vec x = (vec)_mm512_set1_ps(a[k * along + r * across]);
            sums[r][0] = plus<T>(sums[r][0], x, b0);
            sums[r][1] = plus<T>(sums[r][1], x, b1);
        }
    }
    for (long r = 0; r < ROWS; r++)
        for (long h = 0; h < 2; h++) store(c + r * wide + h * LANES, sums[r][h]);
}

// A step of a block of ROWS rows, which lie (words, ROWS).
template <class T, long ROWS>
static void step(const float* a, const float* b, long deep, float* c, bool first, const char* next, long lines) {
    multiply<T, ROWS>(a, ROWS, 1, b, PANEL, deep, c, PANEL, first, next, lines);
}

template <class T>
constexpr decltype(&step<T, 1>) STEPS[TOGETHER + 1] = {
    nullptr, step<T, 1>, step<T, 2>, step<T, 3>, step<T, 4>, step<T, 5>, step<T, 6>,
    step<T, 7>, step<T, 8>, step<T, 9>, step<T, 10>, step<T, 11>, step<T, 12>};

// The words of `rows` rows (at most 16) to where a product reads them: step by step, those of all `m` rows one after
// another; of a block of rows (words, rows). The rows before these are `first`.
static void interleave(const float* x, long words, long m, long first, long rows, float* to) {
    alignas(64) float turned[16][16];
    for (long i = 0; i < words; i += 16) {
        const void* from[16];
        for (long r = 0; r < 16; r++) from[r] = x + (first + std::min(r, rows - 1)) * words + i;
        transpose(from, turned, 64);
        long begin = i / DEEP * DEEP, deep = std::min(words - begin, DEEP);
        float* at = to + begin * m + first * deep + (i - begin) * rows;
        for (long j = 0; j < 16; j++) _mm512_mask_storeu_ps(at + j * rows, (1 << rows) - 1, _mm512_load_ps(turned[j]));
    }
}

// A weight (n, k) in panels, its bias or null, and where outputs (m, n) go.
template <class T>
struct Product {
    const T *w, *bias;
    T* y;
    long n;
};

// Products of the same rows with `count` weights. Rows go in blocks of 12 at most, all as large but for one row. A thread
// takes some panels at a time, and the next before it has done with these: so what comes next can be fetched.
template <class T>
static void multiply_all(const T* x, const Product<T>* products, long count, long m, long k, int threads) {
    if (m == 0) return;
    long words = k / EACH<T>, blocks = (m + TOGETHER - 1) / TOGETHER, panels = 0;
    for (long i = 0; i < count; i++) panels += products[i].n / PANEL;
    auto begin = [=](long block) { return block * m / blocks; };
    float* a = (float*)rows_of_all.of(m * words * 4);
    std::atomic<long> taken{0};
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (long b = 0; b < blocks; b++) interleave((const float*)x, words, m, begin(b), begin(b + 1) - begin(b), a);
        float* c = (float*)own.of(m * PANEL * 4);
        long lines = std::max(1L, 2 / blocks);
        Share mine{taken, std::max(1L, panels / (16 * threads))};
        auto take = [&] {
            long p = mine.take();
            const Product<T>* of = products;
            for (; p < panels && p >= of->n / PANEL; of++) p -= of->n / PANEL;
            return std::pair(p < panels ? of : nullptr, p);
        };
        for (auto now = take(), after = now; now.first; now = after) {
            after = take();
            auto& [w, bias, y, n] = *now.first;
            long p = now.second;
            for (long from = 0; from < words; from += DEEP) {
                long deep = std::min(words - from, DEEP);
                const float* part = (const float*)w + (p * words + from) * PANEL;
                const float* follows = part + deep * PANEL;
                if (from + deep == words && after.first) follows = (const float*)after.first->w + after.second * words * PANEL;
                for (long b = 0; b < blocks; b++) {  // two lines of the part that comes next for each word
                    const char* next = (const char*)follows + b * deep * lines * 64;
                    long first = begin(b), rows = begin(b + 1) - first;
                    STEPS<T>[rows](a + from * m + first * deep, part, deep, c + first * PANEL, from == 0, next,
                                   b < 2 ? lines : 0);
                }
            }
            finish(c, bias ? bias + p * PANEL : nullptr, y + p * PANEL, m, n);
        }
    }
}
