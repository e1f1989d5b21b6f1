// Products and attention in bfloat16 on processors with AMX, whose registers hold tiles of 16 rows of 64 bytes.
#pragma once
#include <sys/syscall.h>
#include <unistd.h>

#include "attention.h"

constexpr long SHARE = 4;  // panels that a thread takes at a time: who is held up leaves the rest to others

// Blocks of rows, each of so many bytes, that stay in a core's own cache while panels go by.
static inline long near(long bytes) { return std::max(1L, (768L << 10) / bytes); }

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

static void linear_by_tiles(const bf16* x, const Product<bf16>& product, long m, long k, int threads) {
    const bf16 *w = product.w, *bias = product.bias;
    bf16* y = product.y;
    long n = product.n;
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

template <>
void multiply_all(const bf16* x, const Product<bf16>* products, long count, long m, long k, int threads) {
    for (long i = 0; m && i < count; i++) linear_by_tiles(x, products[i], m, k, threads);
}

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

    // Values as the right side of a product.
    void hold_values(const bf16* v) {
        pair_values(v, [&](long t, long i) { return values + (t / 32 * 2 * deep + i / 16) * TILE + t % 32 / 2 * 32; }, TILE);
    }

    // Weights as the left side of a product.
    void hold_weights() {
        memset(scores + s.length * 32, 0, (keys - s.length) * 128);
        for (long t = 0; t < keys; t += 32)
            for (long half = 0; half < 2; half++) {
                bits pairs[16];
                const void* from[16];
                for (long j = 0; j < 16; j++) pairs[j] = pair(t + 2 * j, half), from[j] = &pairs[j];
                transpose(from, weights + (t / 16 + half) * TILE, 64);
            }
    }

    void mix(const bf16* v, bool held, const bf16*) {
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
