// The loops with own tables for each channel, once for all instruction sets. Lanes are neighbouring channels.
#pragma once
#include "loops.h"

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

// Mean and m2 of a tile's columns, merged into those of the `before` rows before (Chan et al. 1983). The merge is in
// double: a mean far from 0, rounded to float, would be off by too much of a deviation.
template <class V, class T>
void moments_tile(
    const T* x, int64_t rows, int64_t channel, int64_t channels, int64_t before, double* mean, double* m2) {
  const double n = double(rows), share = n / double(before + rows);
  const auto inverse = V::set(float(1 / n));
  for (; channel + V::width <= channels; channel += V::width) {
    auto total = V::set(0), square = V::set(0), rest = V::set(0);
    const T* in = x + channel;
    for (int64_t row = 0; row < rows; ++row, in += channels) {
      prefetch(in + tile_rows * channels);
      total = V::add(total, V::load(in));
    }
    const auto center = V::mul(total, inverse);
    in = x + channel;
    for (int64_t row = 0; row < rows; ++row, in += channels) {
      const auto deviation = V::sub(V::load(in), center);
      rest = V::add(rest, deviation);
      square = V::fma(deviation, deviation, square);
    }
    float centers[V::width], rests[V::width], squares[V::width];
    V::store(centers, center);
    V::store(rests, rest);
    V::store(squares, square);
    for (int lane = 0; lane < V::width; ++lane) {
      const double off = rests[lane] / n, difference = centers[lane] + off - mean[channel + lane];
      const double within = squares[lane] - rests[lane] * off;
      mean[channel + lane] += difference * share;
      // below 0 only by rounding, where the numbers are equal; NaN stays
      m2[channel + lane] += (within < 0 ? 0 : within) + difference * difference * share * double(before);
    }
  }
  if (V::width > 1 && channel < channels) moments_tile<Scalar, T>(x, rows, channel, channels, before, mean, m2);
}

template <class V, class T>
void moments_channels(const T* x, int64_t rows, int64_t channels, int64_t count, double* mean, double* m2) {
  for (int64_t row = 0; row < rows; row += tile_rows) {
    const int64_t here = smaller(tile_rows, rows - row);
    moments_tile<V, T>(x + row * channels, here, 0, channels, count + row, mean, m2);
  }
}

}  // namespace LMA_HF_INSTRUCTION_SET
}  // namespace lma_hf
