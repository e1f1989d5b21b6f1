// Passes over few rows on one CPU: products, attention, norms and rotation for processors with AVX-512, in bfloat16
// with AMX. Built on the machine that runs them (build.py), called through kernels.py, which says what each computes.
//
// Weights lie in panels of 32 outputs, one after another, in the order in which a product reads them; so each thread
// reads its panels front to back, and asks for what comes next while it multiplies.
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>

using bf16 = uint16_t;
constexpr long LANES = 16, PANEL = 32;

// ---- numbers ----

typedef float vec __attribute__((vector_size(64)));
typedef uint32_t bits __attribute__((vector_size(64)));
typedef uint16_t halves __attribute__((vector_size(32)));

static inline float wide(bf16 x) {
    uint32_t u = uint32_t(x) << 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
}
static inline float wide(float x) { return x; }
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
static inline void store(bf16* p, vec v) {  // to nearest, ties to even
    bits u = (bits)v;
    halves h = __builtin_convertvector((u + 0x7fff + ((u >> 16) & 1)) >> 16, halves);
    memcpy(p, &h, 32);
}
static inline vec all(float x) { return vec{} + x; }
static inline vec larger(vec a, vec b) { return (vec)_mm512_max_ps((__m512)a, (__m512)b); }
static inline float sum(vec v) { return _mm512_reduce_add_ps((__m512)v); }

// 2^x for x <= 0, within two units of float32's last place; below 2^-126 zero.
static inline vec power(vec x) {
    __m512 whole = _mm512_roundscale_ps((__m512)x, 0);
    vec f = x - (vec)whole;
    vec p = all(1.5403530e-4f);
    for (float c : {1.3333558e-3f, 9.6181291e-3f, 5.5504109e-2f, 2.4022651e-1f, 6.9314718e-1f, 1.0f}) p = p * f + c;
    __mmask16 normal = _mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(-126.f), _CMP_GE_OQ);
    return (vec)_mm512_maskz_scalef_ps(normal, (__m512)p, whole);
}
constexpr float LOG2E = 1.44269504f;

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
static thread_local Scratch rows_of_all, own;

// Rows of a finished panel, from float32 sums (rows, 32) into the outputs.
template <class T>
static void finish(const float* c, const T* bias, T* y, long rows, long n) {
    for (long r = 0; r < rows; r++)
        for (long h = 0; h < PANEL; h += LANES) {
            vec v = load(c + r * PANEL + h);
            store(y + r * n + h, bias ? v + load(bias + h) : v);
        }
}

// ---- float32 products ----

constexpr long ROWS = 8, DEEP = 128;  // rows and depth of a step: a panel's part of that depth stays in the L1 cache

// Adds `deep` inputs of ROWS rows, a (deep, ROWS), times b (deep, 32), to the sums c (ROWS, 32); asks for `next`.
static inline void multiply(const float* a, const float* b, long deep, float* c, bool first, const char* next, long lines) {
    vec sums[ROWS][2];
    for (long r = 0; r < ROWS; r++)
        for (long h = 0; h < 2; h++) sums[r][h] = first ? vec{} : load(c + r * PANEL + h * LANES);
    for (long k = 0; k < deep; k++) {
        for (long i = 0; i < lines; i++) _mm_prefetch(next + (k * lines + i) * 64, _MM_HINT_T0);
        vec b0 = load(b + k * PANEL), b1 = load(b + k * PANEL + LANES);
        for (long r = 0; r < ROWS; r++) {
            sums[r][0] += a[k * ROWS + r] * b0;
            sums[r][1] += a[k * ROWS + r] * b1;
        }
    }
    for (long r = 0; r < ROWS; r++)
        for (long h = 0; h < 2; h++) store(c + r * PANEL + h * LANES, sums[r][h]);
}

extern "C" void linear_f32(const float* x, const float* w, const float* bias, float* y, long m, long n, long k, int threads) {
    if (m == 0) return;
    long blocks = (m + ROWS - 1) / ROWS;
    float* a = (float*)rows_of_all.of(blocks * ROWS * k * 4);  // (blocks, K, ROWS)
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (long r = 0; r < blocks * ROWS; r++)
            for (long i = 0; i < k; i++) a[(r / ROWS * k + i) * ROWS + r % ROWS] = r < m ? x[r * k + i] : 0;
        float* c = (float*)own.of(blocks * ROWS * PANEL * 4);
#pragma omp for schedule(static)
        for (long p = 0; p < n / PANEL; p++) {
            for (long from = 0; from < k; from += DEEP) {
                long deep = std::min(k - from, DEEP);
                const float* part = w + (p * k + from) * PANEL;
                long lines = std::max(1L, 2 / blocks);  // of the part that comes next, two for each input
                for (long b = 0; b < blocks; b++) {
                    const char* next = (const char*)(part + deep * PANEL) + b * deep * lines * 64;
                    multiply(a + (b * k + from) * ROWS, part, deep, c + b * ROWS * PANEL, from == 0, next, b < 2 ? lines : 0);
                }
            }
            finish(c, bias ? bias + p * PANEL : nullptr, y + p * PANEL, m, n);
        }
    }
}

// ---- bfloat16 products ----
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

// What was written is in memory: the compiler does not know that a tile is loaded from there.
static inline void written() { asm volatile("" ::: "memory"); }

// Sums c (32, 32) of two row tiles' rows with a panel, `steps` times 32 inputs deep.
static inline void multiply(const bf16* a0, const bf16* a1, const bf16* b, long steps, float* c, bool ahead) {
    _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
    for (long s = 0; s < steps; s++) {
        const bf16* at = b + s * 2 * TILE;
        if (ahead)
            for (long i = 0; i < 2 * TILE; i += 32) _mm_prefetch((const char*)(at + AHEAD * 2 * TILE + i), _MM_HINT_T0);
        _tile_loadd(6, at, 64); _tile_loadd(7, at + TILE, 64);
        _tile_loadd(4, a0 + s * TILE, 64);
        _tile_dpbf16ps(0, 4, 6); _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, a1 + s * TILE, 64);
        _tile_dpbf16ps(2, 5, 6); _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, c, 128); _tile_stored(1, c + 16, 128);
    _tile_stored(2, c + 16 * PANEL, 128); _tile_stored(3, c + 16 * PANEL + 16, 128);
}

extern "C" void linear_bf16(const bf16* x, const bf16* w, const bf16* bias, bf16* y, long m, long n, long k, int threads) {
    if (m == 0) return;
    long blocks = (m + 31) / 32, steps = k / 32;
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
#pragma omp for schedule(static)
        for (long p = 0; p < n / PANEL; p++)
            for (long b = 0; b < blocks; b++) {
                const bf16* rows = a + b * 2 * steps * TILE;
                multiply(rows, rows + steps * TILE, w + p * k * PANEL, steps, c, b == 0);
                finish(c, bias ? bias + p * PANEL : nullptr, y + b * 32 * n + p * PANEL, std::min(32L, m - b * 32), n);
            }
        _tile_release();
    }
}

// ---- bfloat16 attention ----

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

// ---- row by row ----

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

// Cosines and sines of a row (width), the first half of the sines negative.
template <class T>
static void rotate(const T* x, const float* cos, const float* sin, T* y, long rows, long heads, long width, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long r = 0; r < rows; r++)
        for (long h = 0; h < heads; h++)
            for (long i = 0; i < width; i += LANES) {
                const T* head = x + (r * heads + h) * width;
                vec other = load(head + (i + width / 2) % width);
                vec turned = load(head + i) * load(cos + r * width + i) + other * load(sin + r * width + i);
                store(y + (r * heads + h) * width + i, turned);
            }
}

// silu(gate) * up, silu rounded as the layer's dtype is.
template <class T>
static void gated(const T* gate, const T* up, T* y, long count, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long i = 0; i < count; i += LANES) {
        vec x = load(gate + i), small = power(-(vec)_mm512_abs_ps((__m512)x) * LOG2E);
        vec above = (vec)_mm512_max_ps((__m512)x, _mm512_setzero_ps());  // silu(x) = x / (1 + e^-x), without overflow
        T silu[LANES];
        store(silu, (above + (x - above) * small) / (1 + small));
        store(y + i, load(silu) * load(up + i));
    }
}

#define EXPORT(T, dtype)                                                                                              \
    extern "C" void norm_##dtype(const T* x, const T* w, T* y, long rows, long width, float eps, int threads) {       \
        norm(x, w, y, rows, width, eps, threads);                                                                     \
    }                                                                                                                 \
    extern "C" void rotate_##dtype(                                                                                   \
        const T* x, const float* cos, const float* sin, T* y, long rows, long heads, long width, int threads) {       \
        rotate(x, cos, sin, y, rows, heads, width, threads);                                                          \
    }                                                                                                                 \
    extern "C" void gated_##dtype(const T* gate, const T* up, T* y, long count, int threads) {                        \
        gated(gate, up, y, count, threads);                                                                           \
    }
EXPORT(float, f32)
EXPORT(bf16, bf16)
