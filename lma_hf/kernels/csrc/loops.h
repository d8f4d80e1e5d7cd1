// The loops with one table for all units, once for all instruction sets. V is a vector type with the members of Scalar
// (scalar.h).
#pragma once
#include "kernels.h"
#include "scalar.h"

#include <utility>

namespace lma_hf {
namespace LMA_HF_INSTRUCTION_SET {

template <class V>
inline typename V::I segment(typename V::F x, typename V::F lower, typename V::F scale, typename V::F last) {
  // subtract, then multiply: as the reference does it, so that both choose the same segment
  return V::truncate(V::clamp(V::mul(V::sub(x, lower), scale), V::set(0), last));
}

template <int J>
struct Constant {
  constexpr operator int() const { return J; }
};
template <class F, int... J>
inline __attribute__((always_inline)) void unroll(std::integer_sequence<int, J...>, const F& body) {
  (body(Constant<J>{}), ...);
}
// body(j) for j = 0 ... N - 1 without a loop, so that arrays indexed by j live in registers.
template <int N, class F>
inline __attribute__((always_inline)) void unroll(const F& body) {
  unroll(std::make_integer_sequence<int, N>{}, body);
}

// Whether tables and sums of K segments are held in registers; else they are indexed in memory.
template <class V, int K>
constexpr bool in_registers = V::width > 1 && K <= max_register_segments;

template <class V>
struct Bounds {
  typename V::F lower, scale, last;
  explicit Bounds(const Table& t)
      : lower(V::set(t.lower)), scale(V::set(t.scale)), last(V::set(float(t.k - 1))) {}
  typename V::I find(typename V::F x) const { return segment<V>(x, lower, scale, last); }
};

template <class V, int K>
struct Pieces {
  Bounds<V> bounds;
  typename V::template Lookup<K> slope, intercept;
  explicit Pieces(const Table& t) : bounds(t), slope(t.slope), intercept(t.intercept) {}
  typename V::F operator()(typename V::F x) const {
    const auto index = bounds.find(x);
    return V::fma(slope(index), x, intercept(index));
  }
};

template <class V, int K, class T>
inline void forward_step(const T* x, T* y, const Pieces<V, K>& pieces, bool stream) {
  V::put(y, pieces(V::load(x)), stream);
}

template <class V, class T, int K>
void forward(const T* x, T* y, int64_t n, const Table& table) {
  const Pieces<V, K> pieces(table);
  int64_t i = 0;
  for (; i + V::width <= n; i += V::width) forward_step<V, K>(x + i, y + i, pieces, table.stream);
  if (i < n) {
    T in[V::width] = {}, out[V::width];
    std::memcpy(in, x + i, (n - i) * sizeof(T));
    forward_step<V, K>(in, out, pieces, false);
    std::memcpy(y + i, out, (n - i) * sizeof(T));
  }
  V::fence();
}

// Additions in float32 to one lane of a sum, before the lanes are added up: a longer sum would be less exact, a shorter
// one slower.
constexpr int64_t short_sum = 64;

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// Sums by segment, one accumulator for each segment and lane: in registers for few segments, else in memory.
template <class V, int K, bool = in_registers<V, K>>
struct Sums {
  typename V::F gx[K], g[K];
  explicit Sums(int) {
    unroll<K>([&](auto j) { gx[j] = g[j] = V::set(0); });
  }
  void add(typename V::I index, typename V::F grad, typename V::F value) {
    unroll<K>([&](auto j) {
      const auto here = V::equal(index, j);
      gx[j] = V::fma_where(here, gx[j], grad, value);
      g[j] = V::add_where(here, g[j], grad);
    });
  }
  void add_to(Sums& total) const {
    for (int j = 0; j < K; ++j) {
      total.gx[j] = V::add(total.gx[j], gx[j]);
      total.g[j] = V::add(total.g[j], g[j]);
    }
  }
  void add_to(float* sums, int k) const {
    for (int j = 0; j < k; ++j) {
      sums[j] += V::sum(gx[j]);
      sums[k + j] += V::sum(g[j]);
    }
  }
  // lane l belongs to channel l of `channels`
  void add_to(float* sums, int k, int64_t channels) const {
    for (int j = 0; j < k; ++j) {
      float* to = sums + j * channels;
      V::store(to, V::add(V::load(to), gx[j]));
      to += k * channels;
      V::store(to, V::add(V::load(to), g[j]));
    }
  }
};

template <class V, int K>
struct Sums<V, K, false> {
  float gx[max_segments][V::width], g[max_segments][V::width];
  int k;
  explicit Sums(int k_) : k(k_) {
    std::memset(gx, 0, k * sizeof gx[0]);
    std::memset(g, 0, k * sizeof g[0]);
  }
  void add(typename V::I index, typename V::F grad, typename V::F value) {
    int32_t at[V::width];
    float grads[V::width], products[V::width];
    V::store_index(at, index);
    V::store(grads, grad);
    V::store(products, V::mul(grad, value));
    for (int lane = 0; lane < V::width; ++lane) {
      gx[at[lane]][lane] += products[lane];
      g[at[lane]][lane] += grads[lane];
    }
  }
  void add_to(Sums& total) const {
    for (int j = 0; j < k; ++j) {
      V::store(total.gx[j], V::add(V::load(total.gx[j]), V::load(gx[j])));
      V::store(total.g[j], V::add(V::load(total.g[j]), V::load(g[j])));
    }
  }
  void add_to(float* sums, int k) const {
    for (int j = 0; j < k; ++j) {
      sums[j] += V::sum(V::load(gx[j]));
      sums[k + j] += V::sum(V::load(g[j]));
    }
  }
  void add_to(float* sums, int k, int64_t channels) const {
    for (int j = 0; j < k; ++j) {
      float* to = sums + j * channels;
      V::store(to, V::add(V::load(to), V::load(gx[j])));
      to += k * channels;
      V::store(to, V::add(V::load(to), V::load(g[j])));
    }
  }
};

template <class V>
struct NoSums {
  explicit NoSums(int) {}
  void add(typename V::I, typename V::F, typename V::F) {}
  void add_to(NoSums&) const {}
  void add_to(float*, int) const {}
  void add_to(float*, int, int64_t) const {}
};

template <class V, class T, class L, class S>
inline void backward_step(
    const T* g, const T* x, T* gx, const Bounds<V>& bounds, const L& slope, S& sums, bool stream) {
  const auto value = V::load(x), grad = V::load(g);
  const auto index = bounds.find(value);
  V::put(gx, V::mul(slope(index), grad), stream);
  sums.add(index, grad, value);
}

template <class V, class T, int K, class S>
void backward(const T* g, const T* x, T* gx, int64_t n, const Table& table, float* result) {
  const Bounds<V> bounds(table);
  const typename V::template Lookup<K> slope(table.slope);
  S total(table.k);
  int64_t i = 0;
  while (i < n) {
    S sums(table.k);
    const int64_t stop = smaller(n, i + (V::width == 1 ? 4 * K : short_sum) * V::width);
    for (; i + V::width <= stop; i += V::width)
      backward_step<V>(g + i, x + i, gx + i, bounds, slope, sums, table.stream);
    if (i < stop) {
      // a gradient of 0 at an input of 0 adds nothing
      T grad[V::width] = {}, in[V::width] = {}, out[V::width];
      std::memcpy(grad, g + i, (stop - i) * sizeof(T));
      std::memcpy(in, x + i, (stop - i) * sizeof(T));
      backward_step<V>(grad, in, out, bounds, slope, sums, false);
      std::memcpy(gx + i, out, (stop - i) * sizeof(T));
      i = stop;
    }
    sums.add_to(total);
  }
  total.add_to(result, table.k);
  V::fence();
}

// Moments from deviations from a center; visit(i, vector) is told of all but the last n % moments_step numbers.
// Returns whether the center was close enough to the mean for the difference below to keep its digits.
template <class V>
constexpr int64_t moments_step = 4 * V::width;

template <class V, class T, class F>
inline bool moments_around(float center, const T* x, int64_t n, const F& visit, double* mean, double* m2) {
  constexpr int64_t step = moments_step<V>;
  // Short enough for deviations of half-precision numbers to be exact: their rounding would not average out.
  center = from_bits(to_bits(center) & 0xfffff000);
  const auto shift = V::set(center);
  double total = 0, square = 0;
  int64_t i = 0;
  while (i + step <= n) {
    typename V::F sums[4], squares[4];
    unroll<4>([&](auto u) { sums[u] = squares[u] = V::set(0); });
    const int64_t stop = smaller(n, i + short_sum * step);
    for (; i + step <= stop; i += step)
      unroll<4>([&](auto u) {
        const auto value = V::load(x + i + u * V::width), deviation = V::sub(value, shift);
        visit(i + u * V::width, value);
        sums[u] = V::add(sums[u], deviation);
        squares[u] = V::fma(deviation, deviation, squares[u]);
      });
    for (int u = 0; u < 4; ++u) {
      total += V::sum(sums[u]);
      square += V::sum(squares[u]);
    }
  }
  for (; i < n; ++i) {
    const double deviation = double(Scalar::load(x + i)) - center;
    total += deviation;
    square += deviation * deviation;
  }
  const double between = total * total / double(n), within = square - between;
  *mean = center + total / double(n);
  *m2 = within < 0 ? 0 : within;  // below 0 only by rounding, where the numbers are equal; NaN stays
  return between <= 4 * within;
}

template <class V, class T>
void moments(const T* x, int64_t n, double* mean, double* m2) {
  const auto nothing = [](int64_t, typename V::F) {};
  if (!moments_around<V>(Scalar::load(x), x, n, nothing, mean, m2))
    moments_around<V>(float(*mean), x, n, nothing, mean, m2);
}

// forward and moments in one pass. The center is the middle of the segments' range, which is a running mean.
template <class V, class T, int K>
void forward_moments(const T* x, T* y, int64_t n, const Table& table, double* mean, double* m2) {
  const Pieces<V, K> pieces(table);
  const float center = table.lower + 0.5f * float(table.k) / table.scale;
  const auto visit = [&](int64_t i, typename V::F value) { V::put(y + i, pieces(value), table.stream); };
  const bool close = moments_around<V>(center, x, n, visit, mean, m2);
  const int64_t visited = n - n % moments_step<V>;
  forward<V, T, K>(x + visited, y + visited, n - visited, table);
  if (!close) moments<V>(x, n, mean, m2);
}

}  // namespace LMA_HF_INSTRUCTION_SET
}  // namespace lma_hf
