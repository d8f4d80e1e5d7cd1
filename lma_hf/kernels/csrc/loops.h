// The loops, once for all instruction sets. V is a vector type with the members of Scalar (scalar.h).
#pragma once
#include "kernels.h"
#include "scalar.h"

#include <utility>

namespace lma_hf {
namespace LMA_HF_INSTRUCTION_SET {

// A channel's tables stay in registers while going down the rows of a tile, whose lines stay in the second-level
// cache. 16 rows were fastest for 512 to 3072 channels.
constexpr int64_t tile_rows = 16;

// A column's lines lie too far apart for the hardware to foresee them. Into the second level: all of a column's lines
// share a few sets of the first, which would throw them out again.
template <class T>
inline void prefetch(const T* line) { __builtin_prefetch(line, 0, 2); }
template <class T>
inline void prefetch_to_write(const T* line) { __builtin_prefetch(line, 1, 2); }

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

// ---- one table for all units ----

template <class V, int K>
struct Pieces {
  typename V::template Lookup<K> slope, intercept;
  typename V::F lower, scale, last;
  explicit Pieces(const Table& t)
      : slope(t.slope), intercept(t.intercept), lower(V::set(t.lower)), scale(V::set(t.scale)),
        last(V::set(float(t.k - 1))) {}
  typename V::I find(typename V::F x) const { return segment<V>(x, lower, scale, last); }
};

template <class V, int K, class T>
inline void forward_step(const T* x, T* y, const Pieces<V, K>& pieces) {
  const auto value = V::load(x);
  const auto index = pieces.find(value);
  V::store(y, V::fma(pieces.slope(index), value, pieces.intercept(index)));
}

template <class V, class T, int K>
void forward(const T* x, T* y, int64_t n, const Table& table) {
  const Pieces<V, K> pieces(table);
  int64_t i = 0;
  for (; i + V::width <= n; i += V::width) forward_step<V, K>(x + i, y + i, pieces);
  if (i < n) {
    T in[V::width] = {}, out[V::width];
    std::memcpy(in, x + i, (n - i) * sizeof(T));
    forward_step<V, K>(in, out, pieces);
    std::memcpy(y + i, out, (n - i) * sizeof(T));
  }
}

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
  void write(float* sums, int k) const {
    for (int j = 0; j < k; ++j) {
      sums[j] = V::sum(gx[j]);
      sums[k + j] = V::sum(g[j]);
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
  explicit Sums(int k) {
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
  void write(float* sums, int k) const {
    for (int j = 0; j < k; ++j) {
      sums[j] = V::sum(V::load(gx[j]));
      sums[k + j] = V::sum(V::load(g[j]));
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
  void write(float*, int) const {}
  void add_to(float*, int, int64_t) const {}
};

template <class V, int K, class T, class S>
inline void backward_step(const T* g, const T* x, T* gx, const Pieces<V, K>& pieces, S& sums) {
  const auto value = V::load(x), grad = V::load(g);
  const auto index = pieces.find(value);
  V::store(gx, V::mul(pieces.slope(index), grad));
  sums.add(index, grad, value);
}

template <class V, class T, int K, class S>
void backward(const T* g, const T* x, T* gx, int64_t n, const Table& table, float* result) {
  const Pieces<V, K> pieces(table);
  S sums(table.k);
  int64_t i = 0;
  for (; i + V::width <= n; i += V::width) backward_step<V, K>(g + i, x + i, gx + i, pieces, sums);
  if (i < n) {
    // a gradient of 0 at an input of 0 adds nothing
    T grad[V::width] = {}, in[V::width] = {}, out[V::width];
    std::memcpy(grad, g + i, (n - i) * sizeof(T));
    std::memcpy(in, x + i, (n - i) * sizeof(T));
    backward_step<V, K>(grad, in, out, pieces, sums);
    std::memcpy(gx + i, out, (n - i) * sizeof(T));
  }
  sums.write(result, table.k);
}

// Two passes over what is in the cache by then; the second also corrects the first one's rounding.
template <class V, class T>
void moments(const T* x, int64_t n, double* mean, double* m2) {
  constexpr int unroll = 4, step = unroll * V::width;
  typename V::F part[unroll], squares[unroll];
  for (auto& p : part) p = V::set(0);
  int64_t i = 0;
  for (; i + step <= n; i += step)
    for (int u = 0; u < unroll; ++u) part[u] = V::add(part[u], V::load(x + i + u * V::width));
  double total = 0;
  for (const auto& p : part) total += V::sum(p);
  for (; i < n; ++i) total += Scalar::load(x + i);
  const float center = float(total / double(n));

  for (int u = 0; u < unroll; ++u) part[u] = squares[u] = V::set(0);
  for (i = 0; i + step <= n; i += step)
    for (int u = 0; u < unroll; ++u) {
      const auto deviation = V::sub(V::load(x + i + u * V::width), V::set(center));
      part[u] = V::add(part[u], deviation);
      squares[u] = V::fma(deviation, deviation, squares[u]);
    }
  double rest = 0, square = 0;
  for (int u = 0; u < unroll; ++u) {
    rest += V::sum(part[u]);
    square += V::sum(squares[u]);
  }
  for (; i < n; ++i) {
    const double deviation = double(Scalar::load(x + i)) - center;
    rest += deviation;
    square += deviation * deviation;
  }
  *mean = center + rest / double(n);
  *m2 = square - rest * rest / double(n);
}

// forward and moments in one pass. Deviations are taken from the middle of the segments' range, which is a running mean
// and so close to the mean; where it is not, the difference below would lose digits, and moments() runs instead.
template <class V, class T, int K>
void forward_moments(const T* x, T* y, int64_t n, const Table& table, double* mean, double* m2) {
  const Pieces<V, K> pieces(table);
  const float center = table.lower + 0.5f * float(table.k) / table.scale;
  auto sum = V::set(0), squares = V::set(0);
  int64_t i = 0;
  for (; i + V::width <= n; i += V::width) {
    const auto value = V::load(x + i), deviation = V::sub(value, V::set(center));
    const auto index = pieces.find(value);
    V::store(y + i, V::fma(pieces.slope(index), value, pieces.intercept(index)));
    sum = V::add(sum, deviation);
    squares = V::fma(deviation, deviation, squares);
  }
  forward<V, T, K>(x + i, y + i, n - i, table);
  double total = V::sum(sum), square = V::sum(squares);
  for (; i < n; ++i) {
    const double deviation = double(Scalar::load(x + i)) - center;
    total += deviation;
    square += deviation * deviation;
  }
  const double between = total * total / double(n), within = square - between;
  *mean = center + total / double(n);
  *m2 = within;
  if (!(between <= 16 * within)) moments<V, T>(x, n, mean, m2);
}

// ---- own tables for each channel; lanes are neighbouring channels ----

template <class V, int K, bool = in_registers<V, K>>
struct ChannelLookup {  // piece-major: K registers, and a tree of selections by the bits of the index
  typename V::F table[K];
  ChannelLookup(const float* p, int64_t channel, const ChannelTables& t) {
    unroll<K>([&](auto j) { table[j] = V::load(p + j * t.channels + channel); });
  }
  typename V::F operator()(typename V::I index) const {
    typename V::F level[K / 2];
    const auto lowest = V::bit(index, 0);
    unroll<K / 2>([&](auto j) { level[j] = V::select(lowest, table[2 * j], table[2 * j + 1]); });
    halve<K / 4>(level, index, 1);
    return level[0];
  }
  template <int left>
  static void halve(typename V::F* level, typename V::I index, int b) {
    if constexpr (left > 0) {
      const auto here = V::bit(index, b);
      unroll<left>([&](auto j) { level[j] = V::select(here, level[2 * j], level[2 * j + 1]); });
      halve<left / 2>(level, index, b + 1);
    }
  }
};

template <class V, int K>
struct ChannelLookup<V, K, false> {
  const float* table;
  int64_t channel_stride, piece_stride;
  ChannelLookup(const float* p, int64_t channel, const ChannelTables& t)
      : channel_stride(K == max_segments ? t.k : 1), piece_stride(K == max_segments ? 1 : t.channels) {
    table = p + channel * channel_stride;
  }
  typename V::F operator()(typename V::I index) const {
    return V::gather(table, index, int(channel_stride), int(piece_stride));
  }
};

template <class V>
struct ChannelBounds {
  typename V::F lower, scale, last;
  ChannelBounds(int64_t channel, const ChannelTables& t)
      : lower(V::load(t.lower + channel)), scale(V::load(t.scale + channel)), last(V::set(float(t.k - 1))) {}
  typename V::I find(typename V::F x) const { return segment<V>(x, lower, scale, last); }
};

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// Columns [channel, end) of one tile.
template <class V, class T, int K>
void forward_tile(const T* x, T* y, int64_t rows, int64_t channel, int64_t end, const ChannelTables& t) {
  for (; channel + V::width <= end; channel += V::width) {
    const ChannelBounds<V> bounds(channel, t);
    const ChannelLookup<V, K> slope(t.slope, channel, t), intercept(t.intercept, channel, t);
    const T* in = x + channel;
    T* out = y + channel;
    for (int64_t row = 0; row < rows; ++row, in += t.channels, out += t.channels) {
      prefetch(in + tile_rows * t.channels);
      prefetch_to_write(out + tile_rows * t.channels);
      const auto value = V::load(in);
      const auto index = bounds.find(value);
      V::store(out, V::fma(slope(index), value, intercept(index)));
    }
  }
  if (V::width > 1 && channel < end) forward_tile<Scalar, T, K>(x, y, rows, channel, end, t);
}

template <class V, class T, int K>
void forward_channels(const T* x, T* y, int64_t rows, const ChannelTables& t) {
  for (int64_t row = 0; row < rows; row += tile_rows) {
    const int64_t at = row * t.channels;
    forward_tile<V, T, K>(x + at, y + at, smaller(tile_rows, rows - row), 0, t.channels, t);
  }
}

template <class V, class T, int K, template <class, int> class S>
void backward_tile(
    const T* g, const T* x, T* gx, int64_t rows, int64_t channel, int64_t end, const ChannelTables& t, float* result) {
  for (; channel + V::width <= end; channel += V::width) {
    const ChannelBounds<V> bounds(channel, t);
    const ChannelLookup<V, K> slope(t.slope, channel, t);
    S<V, K> sums(t.k);
    int64_t at = channel;
    for (int64_t row = 0; row < rows; ++row, at += t.channels) {
      const int64_t next = at + tile_rows * t.channels;
      prefetch(x + next);
      prefetch(g + next);
      prefetch_to_write(gx + next);
      const auto value = V::load(x + at), grad = V::load(g + at);
      const auto index = bounds.find(value);
      V::store(gx + at, V::mul(slope(index), grad));
      sums.add(index, grad, value);
    }
    sums.add_to(result + channel, t.k, t.channels);
  }
  if (V::width > 1 && channel < end) backward_tile<Scalar, T, K, S>(g, x, gx, rows, channel, end, t, result);
}

template <class V, int> using WithoutSums = NoSums<V>;

template <class V, class T, int K, template <class, int> class S>
void backward_channels(const T* g, const T* x, T* gx, int64_t rows, const ChannelTables& t, float* sums) {
  for (int64_t row = 0; row < rows; row += tile_rows) {
    const int64_t at = row * t.channels;
    backward_tile<V, T, K, S>(
        g + at, x + at, gx + at, smaller(tile_rows, rows - row), 0, t.channels, t, sums);
  }
}

// Mean and m2 of a tile's columns, merged into those of the rows before (Chan et al. 1983).
template <class V, class T>
void moments_tile(
    const T* x, int64_t rows, int64_t channel, int64_t channels, int64_t before, float* mean, float* m2) {
  const auto weight = V::set(float(double(rows) / double(before + rows)));
  const auto shared = V::set(float(double(rows) * double(before) / double(before + rows)));
  const auto inverse = V::set(float(1.0 / double(rows)));
  for (; channel + V::width <= channels; channel += V::width) {
    auto total = V::set(0), square = V::set(0), rest = V::set(0);
    const T* in = x + channel;
    for (int64_t row = 0; row < rows; ++row, in += channels) {
      prefetch(in + tile_rows * channels);
      total = V::add(total, V::load(in));
    }
    auto center = V::mul(total, inverse);
    in = x + channel;
    for (int64_t row = 0; row < rows; ++row, in += channels) {
      const auto deviation = V::sub(V::load(in), center);
      rest = V::add(rest, deviation);
      square = V::fma(deviation, deviation, square);
    }
    const auto shift = V::mul(rest, inverse);
    center = V::add(center, shift);
    square = V::sub(square, V::mul(rest, shift));
    const auto old = V::load(mean + channel), difference = V::sub(center, old);
    V::store(mean + channel, V::fma(difference, weight, old));
    const auto between = V::mul(V::mul(difference, difference), shared);
    V::store(m2 + channel, V::add(V::load(m2 + channel), V::add(square, between)));
  }
  if (V::width > 1 && channel < channels) moments_tile<Scalar, T>(x, rows, channel, channels, before, mean, m2);
}

template <class V, class T>
void moments_channels(const T* x, int64_t rows, int64_t channels, int64_t count, float* mean, float* m2) {
  for (int64_t row = 0; row < rows; row += tile_rows) {
    const int64_t here = smaller(tile_rows, rows - row);
    moments_tile<V, T>(x + row * channels, here, 0, channels, count + row, mean, m2);
  }
}

// ---- from run-time types and sizes to the templates ----

#define LMA_HF_FOR_TYPE(type, ...)                                       \
  switch (type) {                                                        \
    case Type::float32: { using T = float; __VA_ARGS__; break; }         \
    case Type::bfloat16: { using T = bfloat16; __VA_ARGS__; break; }     \
    case Type::float16: { using T = float16; __VA_ARGS__; break; }       \
  }
#define LMA_HF_FOR_SIZE(k, ...)                                                                 \
  if ((k) <= 8) { constexpr int K = 8; __VA_ARGS__; }                                           \
  else if ((k) <= max_register_segments) { constexpr int K = max_register_segments; __VA_ARGS__; } \
  else { constexpr int K = max_segments; __VA_ARGS__; }
#define LMA_HF_FOR(type, k, ...) LMA_HF_FOR_TYPE(type, LMA_HF_FOR_SIZE(k, __VA_ARGS__))

template <class V>
struct Dispatch {
  static void forward(Type type, const void* x, void* y, int64_t n, const Table& t) {
    LMA_HF_FOR(type, t.k, LMA_HF_INSTRUCTION_SET::forward<V, T, K>((const T*)x, (T*)y, n, t))
  }
  static void backward(Type type, const void* g, const void* x, void* gx, int64_t n, const Table& t, float* sums) {
    if (sums) {
      LMA_HF_FOR(type, t.k, LMA_HF_INSTRUCTION_SET::backward<V, T, K, Sums<V, K>>(
          (const T*)g, (const T*)x, (T*)gx, n, t, sums))
    } else {
      LMA_HF_FOR(type, t.k, LMA_HF_INSTRUCTION_SET::backward<V, T, K, NoSums<V>>(
          (const T*)g, (const T*)x, (T*)gx, n, t, sums))
    }
  }
  static void forward_moments(
      Type type, const void* x, void* y, int64_t n, const Table& t, double* mean, double* m2) {
    LMA_HF_FOR(type, t.k, LMA_HF_INSTRUCTION_SET::forward_moments<V, T, K>((const T*)x, (T*)y, n, t, mean, m2))
  }
  static void moments(Type type, const void* x, int64_t n, double* mean, double* m2) {
    LMA_HF_FOR_TYPE(type, LMA_HF_INSTRUCTION_SET::moments<V, T>((const T*)x, n, mean, m2))
  }
  static void forward_channels(Type type, const void* x, void* y, int64_t rows, const ChannelTables& t) {
    LMA_HF_FOR(type, t.k, LMA_HF_INSTRUCTION_SET::forward_channels<V, T, K>((const T*)x, (T*)y, rows, t))
  }
  static void backward_channels(
      Type type, const void* g, const void* x, void* gx, int64_t rows, const ChannelTables& t, float* sums) {
    if (sums) {
      LMA_HF_FOR(type, t.k, LMA_HF_INSTRUCTION_SET::backward_channels<V, T, K, Sums>(
          (const T*)g, (const T*)x, (T*)gx, rows, t, sums))
    } else {
      LMA_HF_FOR(type, t.k, LMA_HF_INSTRUCTION_SET::backward_channels<V, T, K, WithoutSums>(
          (const T*)g, (const T*)x, (T*)gx, rows, t, sums))
    }
  }
  static void moments_channels(
      Type type, const void* x, int64_t rows, int64_t channels, int64_t count, float* mean, float* m2) {
    LMA_HF_FOR_TYPE(type, LMA_HF_INSTRUCTION_SET::moments_channels<V, T>(
        (const T*)x, rows, channels, count, mean, m2))
  }
  static const Kernels* table(const char* name) {
    static const Kernels kernels = {name, forward, forward_moments, backward, moments, forward_channels,
                                    backward_channels, moments_channels};
    return &kernels;
  }
};

}  // namespace LMA_HF_INSTRUCTION_SET
}  // namespace lma_hf
