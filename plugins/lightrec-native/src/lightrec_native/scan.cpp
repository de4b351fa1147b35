// The selective scan on a CPU and the maps of its hyperbolic form, behind a C ABI. Contracts:
// lightrec/ops/selective_scan.py and hyperbolic_selective_scan.py.
//
// One source, several objects: the build compiles it with -DLIGHTREC_LANES=16 (AVX-512), 8 (AVX2 and FMA) and without
// (4 lanes, whatever the machine has, plus the entry points, which choose at run time).
//
// Vectors run over channels, so no sum over states crosses lanes; the states of a block of channels stay in the first
// cache for the whole sequence. Batch rows are independent. Work is cut into groups of rows that do not depend on the
// number of threads, and partial sums are added in order: the result is the same on any number of threads.
// Threads are made for one call and joined: nothing of them survives into a fork.
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <system_error>
#include <thread>
#include <vector>

#ifndef LIGHTREC_LANES
#define LIGHTREC_LANES 4
#define LIGHTREC_ENTRY
#endif
#define GLUE_(a, b) a##b
#define GLUE(a, b) GLUE_(a, b)
#define ISA GLUE(lanes, LIGHTREC_LANES)

struct Arguments {
  int64_t B, L, D, N, every, rows, softplus;
  const float *x, *delta, *A, *Bm, *C, *skip, *z, *bias, *initial;
  const uint8_t *resets;
  float *out, *final, *kept;  // forward writes; backward reads kept
  const float *grad_out, *grad_final;
  float *dx, *ddelta, *dA, *dB, *dC, *dskip, *dz, *dbias, *dinitial;  // dA, dskip, dbias: one slice a group of rows
};

struct Map {
  int64_t R, D, rows, logarithm;
  const float *v, *grad;
  float *out, *kept;  // forward: v f(s), and |v|^2, f, f' of each row; backward: out is the gradient of v, kept is read
  double *dkappa;     // one number a group of rows
  double kappa;
};

namespace ISA {
constexpr int W = LIGHTREC_LANES;
typedef float V __attribute__((vector_size(W * 4), aligned(4), may_alias));
typedef int32_t I __attribute__((vector_size(W * 4), aligned(4), may_alias));

static inline V all(float v) { return V{} + v; }
static inline I bits(V v) { return (I)v; }
static inline V pick(I m, V a, V b) { return (V)((m & bits(a)) | (~m & bits(b))); }

// 2^v to 1e-7; a NaN stays one. The magic constant rounds to an integer that its low bits hold. At the ends the scale's
// exponent is 0 or 255: what is too small becomes 0, what is too large (above 2^127.5) infinite, never another number.
static inline V exp2(V v) {
  v = pick(v < all(-127.0f), all(-127.0f), v);
  v = pick(v > all(128.0f), all(128.0f), v);
  const V magic = all(12582912.0f);
  V r = v + magic;
  V f = v - (r - magic);
  V scale = (V)((bits(r) << 23) + (127 << 23));
  V p = all(1.535336188319500e-4f);
  p = p * f + 1.339887440266574e-3f;
  p = p * f + 9.618437357674640e-3f;
  p = p * f + 5.550332471162809e-2f;
  p = p * f + 2.402264791363012e-1f;
  p = p * f + 6.931472028550421e-1f;
  p = p * f + 1.0f;
  return p * scale;
}
static inline V expv(V v) { return exp2(v * 1.44269504088896341f); }

// log(1 + e) for e in [0, 1], with what 1 + e rounds away added back (Cephes' logf inside).
static inline V log1p_unit(V e) {
  V u = e + 1.0f;
  V lost = (e - (u - 1.0f)) / u;
  I big = u > all(1.41421356f);
  V m = pick(big, u * 0.5f, u) - 1.0f;
  V s = m * m;
  V p = all(7.0376836292e-2f);
  p = p * m - 1.1514610310e-1f;
  p = p * m + 1.1676998740e-1f;
  p = p * m - 1.2420140846e-1f;
  p = p * m + 1.4249322787e-1f;
  p = p * m - 1.6668057665e-1f;
  p = p * m + 2.0000714765e-1f;
  p = p * m - 2.4999993993e-1f;
  p = p * m + 3.3333331174e-1f;
  V y = p * m * s - 0.5f * s + m;
  return y + pick(big, all(0.693147180559945f), V{}) + lost;
}
static inline V softplusv(V v) {
  V a = pick(v < V{}, v, -v);
  return pick(v > V{}, v, pick(v == v, V{}, v)) + log1p_unit(expv(a));
}
static inline V sigmoidv(V v) { return 1.0f / (1.0f + expv(-v)); }

// Up to W floats; the rest of the vector is zero, so that a missing channel adds nothing.
static inline V load(const float *p, int w) {
  if (w == W) return *(const V *)p;
  float t[W] = {0};
  std::memcpy(t, p, w * 4);
  return *(V *)t;
}
static inline void store(float *p, V v, int w) {
  if (w == W) { *(V *)p = v; return; }
  std::memcpy(p, &v, w * 4);
}
static inline float total(V v) {
  float s = 0;
  for (int i = 0; i < W; i++) s += v[i];
  return s;
}
static inline V column(const float *p, int64_t N, int64_t n, int w) {  // p[D, N] -> W channels of state n
  V v{};
  for (int i = 0; i < w; i++) v[i] = p[i * N + n];
  return v;
}
static inline void put(float *p, int64_t N, int64_t n, int w, V v) {
  for (int i = 0; i < w; i++) p[i * N + n] = v[i];
}

static void forward(const Arguments &q, int64_t first, int64_t last) {
  const int64_t L = q.L, D = q.D, N = q.N, M = (L + q.every - 1) / q.every;
  std::vector<V> h(N), A(N);
  for (int64_t d = 0; d < D; d += W) {
    const int w = D - d < W ? int(D - d) : W;
    for (int64_t n = 0; n < N; n++) A[n] = column(q.A + d * N, N, n, w) * 1.44269504088896341f;
    const V bias = q.bias ? load(q.bias + d, w) : V{}, skip = q.skip ? load(q.skip + d, w) : V{};
    for (int64_t b = first; b < last; b++) {
      for (int64_t n = 0; n < N; n++) h[n] = q.initial ? column(q.initial + (b * D + d) * N, N, n, w) : V{};
      for (int64_t t = 0; t < L; t++) {
        if (q.kept && t % q.every == 0)
          for (int64_t n = 0; n < N; n++) put(q.kept + ((b * M + t / q.every) * D + d) * N, N, n, w, h[n]);
        if (q.resets && q.resets[b * L + t])
          for (int64_t n = 0; n < N; n++) h[n] = V{};
        const int64_t at = (b * L + t) * D + d;
        V dt = load(q.delta + at, w) + bias;
        if (q.softplus) dt = softplusv(dt);
        const V x = load(q.x + at, w), u = dt * x;
        const float *Bt = q.Bm + (b * L + t) * N, *Ct = q.C + (b * L + t) * N;
        V y = skip * x;
        for (int64_t n = 0; n < N; n++) {
          h[n] = exp2(dt * A[n]) * h[n] + u * Bt[n];
          y += h[n] * Ct[n];
        }
        if (q.z) {
          const V z = load(q.z + at, w);
          y = y * z * sigmoidv(z);
        }
        store(q.out + at, y, w);
      }
      for (int64_t n = 0; n < N; n++) put(q.final + (b * D + d) * N, N, n, w, h[n]);
    }
  }
}

static void backward(const Arguments &q, int64_t group, int64_t first, int64_t last) {
  const int64_t L = q.L, D = q.D, N = q.N, K = q.every, M = (L + K - 1) / K, blocks = (D + W - 1) / W;
  std::vector<V> A(blocks * N), dA(blocks * N), g(blocks * N), dskip(blocks), dbias(blocks);
  std::vector<V> a(K * N), h((K + 1) * N), dB(K * N), dC(K * N), dts(K), slope(K), nothing(N);
  for (int64_t k = 0; k < blocks; k++)
    for (int64_t n = 0; n < N; n++)
      A[k * N + n] = column(q.A + k * W * N, N, n, D - k * W < W ? int(D - k * W) : W);
  for (int64_t b = first; b < last; b++) {
    for (int64_t k = 0; k < blocks; k++) {
      const int64_t d = k * W;
      const int w = D - d < W ? int(D - d) : W;
      for (int64_t n = 0; n < N; n++)
        g[k * N + n] = q.grad_final ? column(q.grad_final + (b * D + d) * N, N, n, w) : V{};
    }
    for (int64_t m = M - 1; m >= 0; m--) {
      const int64_t from = m * K, T = L - from < K ? L - from : K;
      for (int64_t i = 0; i < T * N; i++) dB[i] = dC[i] = V{};
      for (int64_t k = 0; k < blocks; k++) {
        const int64_t d = k * W;
        const int w = D - d < W ? int(D - d) : W;
        const V bias = q.bias ? load(q.bias + d, w) : V{}, skip = q.skip ? load(q.skip + d, w) : V{};
        const V *Ak = &A[k * N];
        V *gk = &g[k * N], *dAk = &dA[k * N];
        for (int64_t n = 0; n < N; n++) h[n] = column(q.kept + ((b * M + m) * D + d) * N, N, n, w);
        for (int64_t t = 0; t < T; t++) {
          const int64_t row = b * L + from + t, at = row * D + d;
          const V raw = load(q.delta + at, w) + bias;
          const V dt = q.softplus ? softplusv(raw) : raw;
          dts[t] = dt;
          slope[t] = q.softplus ? sigmoidv(raw) : all(1.0f);
          const V u = dt * load(q.x + at, w), dt2 = dt * 1.44269504088896341f;
          const float *Bt = q.Bm + row * N;
          const float keep = q.resets && q.resets[row] ? 0.0f : 1.0f;
          const V *before = &h[t * N];
          V *after = &h[(t + 1) * N], *at_t = &a[t * N];
          if (keep != 0.0f)
            for (int64_t n = 0; n < N; n++) {
              at_t[n] = exp2(dt2 * Ak[n]);
              after[n] = at_t[n] * before[n] + u * Bt[n];
            }
          else
            for (int64_t n = 0; n < N; n++) {
              at_t[n] = V{};
              after[n] = u * Bt[n];
            }
        }
        for (int64_t t = T - 1; t >= 0; t--) {
          const int64_t row = b * L + from + t, at = row * D + d;
          const V dt = dts[t], x = load(q.x + at, w), u = dt * x;
          const float *Bt = q.Bm + row * N, *Ct = q.C + row * N;
          const bool reset = q.resets && q.resets[row];  // what was before may be NaN, and what comes from behind too
          const V *before = reset ? nothing.data() : &h[t * N], *after = &h[(t + 1) * N], *at_t = &a[t * N];
          V dy = load(q.grad_out + at, w);
          if (q.z) {
            const V z = load(q.z + at, w), s = sigmoidv(z);
            V y = skip * x;
            for (int64_t n = 0; n < N; n++) y += after[n] * Ct[n];
            store(q.dz + at, dy * y * s * (1.0f + z * (1.0f - s)), w);
            dy = dy * z * s;
          }
          V du{}, ddt{};
          V *dBt = &dB[t * N], *dCt = &dC[t * N];
          for (int64_t n = 0; n < N; n++) {
            const V G = gk[n] + dy * Ct[n];
            dCt[n] += dy * after[n];
            dBt[n] += u * G;
            du += G * Bt[n];
            const V carried = G * at_t[n], e = carried * before[n];
            ddt += e * Ak[n];
            dAk[n] += e * dt;
            gk[n] = carried;
          }
          if (reset)
            for (int64_t n = 0; n < N; n++) gk[n] = V{};
          ddt = (ddt + du * x) * slope[t];
          store(q.ddelta + at, ddt, w);
          store(q.dx + at, du * dt + skip * dy, w);
          dskip[k] += dy * x;
          dbias[k] += ddt;
        }
      }
      for (int64_t i = 0; i < T * N; i++) {
        q.dB[(b * L + from) * N + i] = total(dB[i]);
        q.dC[(b * L + from) * N + i] = total(dC[i]);
      }
    }
    for (int64_t k = 0; k < blocks; k++)
      for (int64_t n = 0; n < N; n++)
        put(q.dinitial + (b * D + k * W) * N, N, n, D - k * W < W ? int(D - k * W) : W, g[k * N + n]);
  }
  for (int64_t k = 0; k < blocks; k++) {
    const int w = D - k * W < W ? int(D - k * W) : W;
    for (int64_t n = 0; n < N; n++) put(q.dA + (group * D + k * W) * N, N, n, w, dA[k * N + n]);
    store(q.dskip + group * D + k * W, dskip[k], w);
    store(q.dbias + group * D + k * W, dbias[k], w);
  }
}
// f and its derivative in s = kappa |v|^2, in double: sinh(sqrt s) / sqrt s, or asinh(sqrt s) / sqrt s. Series near 0,
// as in lightrec/ops/hyperbolic_selective_scan.py.
static void radial(bool logarithm, double s, double &f, double &slope) {
  static const double sinh_[9] = {1.0, 1.0 / 6, 1.0 / 120, 1.0 / 5040, 1.0 / 362880, 1.0 / 39916800, 1.0 / 6227020800,
                                  1.0 / 1307674368000, 1.0 / 355687428096000};
  static const double asinh_[9] = {1.0, -1.0 / 6, 3.0 / 40, -15.0 / 336, 105.0 / 3456, -945.0 / 42240,
                                   10395.0 / 599040, -135135.0 / 9676800, 0};
  if (s < (logarithm ? 0.01 : 1.0)) {
    const double *c = logarithm ? asinh_ : sinh_;
    f = c[8];
    slope = 8 * c[8];
    for (int k = 7; k >= 1; k--) {
      f = f * s + c[k];
      slope = slope * s + k * c[k];
    }
    f = f * s + c[0];
    return;
  }
  const double root = std::sqrt(s);
  if (logarithm) {
    f = std::log(root + std::sqrt(1 + s)) / root;
    slope = (1 / std::sqrt(1 + s) - f) / (2 * s);
  } else {
    const double e = std::exp(root);
    f = (e - 1 / e) / (2 * root);
    slope = ((e + 1 / e) / 2 - f) / (2 * s);
  }
}

static inline float dot(const float *a, const float *b, int64_t D) {
  V s[4] = {};
  int64_t d = 0;
  for (; d + 4 * W <= D; d += 4 * W)
    for (int j = 0; j < 4; j++) s[j] += *(const V *)(a + d + j * W) * *(const V *)(b + d + j * W);
  for (; d < D; d += W) {
    const int w = D - d < W ? int(D - d) : W;
    s[0] += load(a + d, w) * load(b + d, w);
  }
  return total((s[0] + s[1]) + (s[2] + s[3]));
}

static void map_forward(const Map &q, int64_t first, int64_t last) {
  for (int64_t r = first; r < last; r++) {
    const float *v = q.v + r * q.D;
    const float square = dot(v, v, q.D);
    double f, slope;
    radial(q.logarithm, q.kappa * square, f, slope);
    const float scale = float(f);
    for (int64_t d = 0; d < q.D; d += W) {
      const int w = q.D - d < W ? int(q.D - d) : W;
      store(q.out + r * q.D + d, load(v + d, w) * scale, w);
    }
    q.kept[3 * r] = square;
    q.kept[3 * r + 1] = scale;
    q.kept[3 * r + 2] = float(slope);
  }
}

static void map_backward(const Map &q, int64_t group, int64_t first, int64_t last) {
  double sum = 0;
  for (int64_t r = first; r < last; r++) {
    const float *v = q.v + r * q.D, *g = q.grad + r * q.D;
    const float along = dot(g, v, q.D) * q.kept[3 * r + 2], scale = q.kept[3 * r + 1];
    const float back = float(2 * q.kappa * along);
    for (int64_t d = 0; d < q.D; d += W) {
      const int w = q.D - d < W ? int(q.D - d) : W;
      store(q.out + r * q.D + d, load(g + d, w) * scale + load(v + d, w) * back, w);
    }
    sum += double(along) * q.kept[3 * r];
  }
  q.dkappa[group] = sum;
}
// The least work of a scan: one exponential a state, summed so that none is left out.
static float floor_(int64_t count) {
  V s[4] = {}, v[4];
  for (int j = 0; j < 4; j++) v[j] = all(-0.1f * (j + 1));
  for (int64_t i = 0; i < count; i += 4 * W)
    for (int j = 0; j < 4; j++) {
      s[j] += exp2(v[j]);
      v[j] -= 1e-6f;
    }
  return total(s[0] + s[1] + s[2] + s[3]);
}
}  // namespace ISA

#define EXPORTS(lanes)                                                             \
  void GLUE(run_, lanes)(const Arguments &q, int64_t group, int backward_too);     \
  void GLUE(map_, lanes)(const Map &q, int64_t group, int backward_too);           \
  float GLUE(floor_, lanes)(int64_t count);
EXPORTS(16) EXPORTS(8) EXPORTS(4)

void GLUE(run_, LIGHTREC_LANES)(const Arguments &q, int64_t group, int backward_too) {
  const int64_t first = group * q.rows, last = first + q.rows < q.B ? first + q.rows : q.B;
  if (backward_too) ISA::backward(q, group, first, last);
  else ISA::forward(q, first, last);
}
void GLUE(map_, LIGHTREC_LANES)(const Map &q, int64_t group, int backward_too) {
  const int64_t first = group * q.rows, last = first + q.rows < q.R ? first + q.rows : q.R;
  if (backward_too) ISA::map_backward(q, group, first, last);
  else ISA::map_forward(q, first, last);
}
float GLUE(floor_, LIGHTREC_LANES)(int64_t count) { return ISA::floor_(count); }

#ifdef LIGHTREC_ENTRY
// Groups go to whichever thread is free.
template <class Work> static void share(int64_t groups, int threads, const Work &work) {
  std::atomic<int64_t> next{0};
  auto take = [&] {
    for (int64_t g; (g = next.fetch_add(1)) < groups;) work(g);
  };
  std::vector<std::thread> team;
  try {
    for (int64_t i = 1; i < threads && i < groups; i++) team.emplace_back(take);
  } catch (const std::system_error &) {
    // the machine gives no more threads: those that there are take all groups
  }
  take();
  for (auto &t : team) t.join();
}

extern "C" {
int lightrec_abi() { return 2; }

// The widest vectors that both the build and this machine have: 16, 8 or 4 lanes.
int lightrec_lanes() {
#ifdef LIGHTREC_X86
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq")) return 16;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 8;
#endif
  return 4;
}

static void one(int lanes, const Arguments &q, int64_t group, int backward) {
#ifdef LIGHTREC_X86
  if (lanes == 16) return run_16(q, group, backward);
  if (lanes == 8) return run_8(q, group, backward);
#endif
  run_4(q, group, backward);
}
static void one_map(int lanes, const Map &q, int64_t group, int backward) {
#ifdef LIGHTREC_X86
  if (lanes == 16) return map_16(q, group, backward);
  if (lanes == 8) return map_8(q, group, backward);
#endif
  map_4(q, group, backward);
}

void lightrec_scan(const Arguments *q, int backward, int lanes, int threads) {
  share((q->B + q->rows - 1) / q->rows, threads, [=](int64_t group) { one(lanes, *q, group, backward); });
}

void lightrec_map(const Map *q, int backward, int lanes, int threads) {
  share((q->R + q->rows - 1) / q->rows, threads, [=](int64_t group) { one_map(lanes, *q, group, backward); });
}

float lightrec_exp_floor(int64_t count, int lanes) {
#ifdef LIGHTREC_X86
  if (lanes == 16) return floor_16(count);
  if (lanes == 8) return floor_8(count);
#endif
  return floor_4(count);
}
}
#endif
