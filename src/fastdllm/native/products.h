// Rows times a weight that lies in panels of 32 outputs, one after another, in the order in which a product reads them: a
// thread reads some panels front to back, and asks for what comes next while it multiplies.
#pragma once
#include <sys/syscall.h>
#include <unistd.h>

#include "numbers.h"

// Blocks of rows, each of so many bytes, that stay in a core's own cache while panels go by.
static inline long near(long bytes) { return std::max(1L, (768L << 10) / bytes); }

constexpr long SHARE = 4;  // panels that a thread takes at a time: who is held up leaves the rest to others

// Rows of a finished panel, from float32 sums (rows, 32) into the outputs.
template <class T>
static void finish(const float* c, const T* bias, T* y, long rows, long n) {
    for (long r = 0; r < rows; r++)
        for (long h = 0; h < PANEL; h += LANES) {
            vec v = load(c + r * PANEL + h);
            store(y + r * n + h, bias ? v + load(bias + h) : v);
        }
}

constexpr long DEEP = 64;  // inputs of a step: so much of a panel, and of the rows, stays in the L1 cache

// Adds `deep` inputs of ROWS rows, number (k, r) of them at a[k * along + r * across], times b (deep, 32), whose inputs
// lie `step` apart, to the sums c (ROWS, 32), `wide` apart; asks for `lines` lines of `next` at each input.
template <long ROWS>
static inline __attribute__((always_inline)) void multiply(
    const float* a, long along, long across, const float* b, long step, long deep, float* c, long wide, bool first,
    const char* next, long lines) {
    vec sums[ROWS][2];
    for (long r = 0; r < ROWS; r++)
        for (long h = 0; h < 2; h++) sums[r][h] = first ? vec{} : load(c + r * wide + h * LANES);
    for (long k = 0; k < deep; k++) {
        for (long i = 0; i < lines; i++) _mm_prefetch(next + (k * lines + i) * 64, _MM_HINT_T0);
        vec b0 = load(b + k * step), b1 = load(b + k * step + LANES);
        for (long r = 0; r < ROWS; r++) {
            float x = a[k * along + r * across];
            sums[r][0] += x * b0;
            sums[r][1] += x * b1;
        }
    }
    for (long r = 0; r < ROWS; r++)
        for (long h = 0; h < 2; h++) store(c + r * wide + h * LANES, sums[r][h]);
}

// ROWS rows at a time.
template <long ROWS>
static void linear_by(const float* x, const float* w, const float* bias, float* y, long m, long n, long k, int threads) {
    long blocks = (m + ROWS - 1) / ROWS;
    float* a = (float*)rows_of_all.of(blocks * ROWS * k * 4);  // (blocks, K, ROWS)
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (long b = 0; b < blocks; b++) {
            const float* from[ROWS];
            for (long r = 0; r < ROWS; r++) from[r] = x + std::min(b * ROWS + r, m - 1) * k;  // what is beyond is not kept
            for (long i = 0; i < k; i++)
                for (long r = 0; r < ROWS; r++) a[(b * k + i) * ROWS + r] = from[r][i];
        }
        float* c = (float*)own.of(blocks * ROWS * PANEL * 4);
        long lines = std::max(1L, 2 / blocks);
#pragma omp for schedule(dynamic, SHARE)
        for (long p = 0; p < n / PANEL; p++) {
            for (long from = 0; from < k; from += DEEP) {
                long deep = std::min(k - from, DEEP);
                const float* part = w + (p * k + from) * PANEL;
                for (long b = 0; b < blocks; b++) {  // two lines of the part that comes next for each input
                    const char* next = (const char*)(part + deep * PANEL) + b * deep * lines * 64;
                    const float* rows = a + (b * k + from) * ROWS;
                    float* sums = c + b * ROWS * PANEL;
                    multiply<ROWS>(rows, ROWS, 1, part, PANEL, deep, sums, PANEL, from == 0, next, b < 2 ? lines : 0);
                }
            }
            finish(c, bias ? bias + p * PANEL : nullptr, y + p * PANEL, m, n);
        }
    }
}

extern "C" void linear_f32(const float* x, const float* w, const float* bias, float* y, long m, long n, long k, int threads) {
    if (m == 0) return;
    long blocks = (m + 11) / 12, each = (m + blocks - 1) / blocks;  // at most 12: so many sums are held in registers
    auto by = each <= 4 ? linear_by<4> : each <= 8 ? linear_by<8> : each <= 11 ? linear_by<11> : linear_by<12>;
    by(x, w, bias, y, m, n, k, threads);
}

#ifdef __AMX_BF16__

constexpr long TILE = 512, AHEAD = 4;  // numbers in a tile: 16 rows of 32, or 16 pairs of inputs for 16 outputs

// Lets this process use the tiles' registers; 0 where the system refuses.
extern "C" int allow_tiles() { return syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* tile data */) == 0; }

// Eight tiles of 16 rows and 64 bytes. Constant, as the compiler knows only of eight bytes that are read here.
static void configure() {
    alignas(64) static const struct {
        uint8_t palette = 1, start = 0, reserved[14] = {};
        uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
        uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } config;
    _tile_loadconfig(&config);
}

// Lines from..to of what will be read.
template <long from, long to>
static inline void ask(const char* at) {
    for (long i = from; i < to; i++) _mm_prefetch(at + i * 64, _MM_HINT_T0);
}

// What was written is in memory: the compiler does not know that a tile is loaded from there.
static inline void written() { asm volatile("" ::: "memory"); }

// Sums c (32, 32) of two row tiles' rows with a panel, `steps` times 32 inputs deep. What later steps read is asked for
// a few lines at a time, between other work: many at once would hold up the loads behind them.
static inline void multiply(const bf16* a0, const bf16* a1, const bf16* b, long steps, float* c) {
    _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
    for (long s = 0; s < steps; s++) {
        const bf16 *panel = b + s * 2 * TILE, *upper = a0 + s * TILE, *lower = a1 + s * TILE;
        const char *after = (const char*)(panel + AHEAD * 2 * TILE), *next = (const char*)(upper + 2 * TILE);
        const char* below = (const char*)(lower + 2 * TILE);
        _tile_loadd(4, upper, 64); ask<0, 6>(after);
        _tile_loadd(5, lower, 64); ask<6, 12>(after);
        _tile_loadd(6, panel, 64); ask<12, 18>(after); ask<0, 8>(next);
        _tile_dpbf16ps(0, 4, 6); ask<8, 16>(next);
        _tile_dpbf16ps(2, 5, 6);
        _tile_loadd(7, panel + TILE, 64); ask<18, 26>(after); ask<0, 8>(below);
        _tile_dpbf16ps(1, 4, 7); ask<26, 32>(after); ask<8, 16>(below);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, c, 128); _tile_stored(1, c + 16, 128);
    _tile_stored(2, c + 16 * PANEL, 128); _tile_stored(3, c + 16 * PANEL + 16, 128);
}

extern "C" void linear_bf16(const bf16* x, const bf16* w, const bf16* bias, bf16* y, long m, long n, long k, int threads) {
    if (m == 0) return;
    long blocks = (m + 31) / 32, steps = k / 32, panels = n / PANEL;
    long share = blocks > 1 ? SHARE : (panels + threads - 1) / threads;  // of few rows: memory is read front to back
    bf16* a = (bf16*)rows_of_all.of(blocks * 2 * steps * TILE * 2);  // (blocks, 2, steps) tiles
#pragma omp parallel num_threads(threads)
    {
        configure();
#pragma omp for schedule(static)
        for (long r = 0; r < blocks * 32; r++)
            for (long s = 0; s < steps; s++) {
                bf16* to = a + (r / 16 * steps + s) * TILE + r % 16 * 32;
                r < m ? memcpy(to, x + r * k + s * 32, 64) : memset(to, 0, 64);
            }
        written();
        alignas(64) float c[32 * PANEL];
        long chunk = near(32 * k * 2);
        for (long at = 0; at < blocks; at += chunk)
#pragma omp for schedule(dynamic, share) nowait
            for (long p = 0; p < panels; p++)
                for (long b = at; b < std::min(at + chunk, blocks); b++) {
                    const bf16* rows = a + b * 2 * steps * TILE;
                    multiply(rows, rows + steps * TILE, w + p * k * PANEL, steps, c);
                    bf16* block = y + b * 32 * n + p * PANEL;
                    finish(c, bias ? bias + p * PANEL : nullptr, block, std::min(32L, m - b * 32), n);
                }
        _tile_release();
    }
}
#endif
