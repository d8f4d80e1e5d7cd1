// Tensors as the kernels see them, and how work is cut into blocks.
//
// The size of a block depends on the shape alone. Each block is written by one thread, and sums over blocks are taken
// in double and in order: results do not depend on the number of threads.
#pragma once
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

#include "kernels.h"

namespace lma_hf {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

constexpr int64_t block_size = 8192;  // elements of one block: input and output stay in the second-level cache
constexpr int64_t channel_rows = 32;  // rows of one block that are worth loading the channels' tables
constexpr int64_t max_row_blocks = 16;  // for sums by channel, which cost memory for each block
// Results of this size do not stay in a cache until they are read, and writing past the caches saves reading what is
// overwritten: a third of the traffic of a forward pass. Tensors begin at a multiple of 64 bytes. Tables by channel
// gain nothing by it.
constexpr int64_t stream_size = 1 << 22;
constexpr int64_t thread_size = 32768;  // elements that are worth a thread

// The kernels in use: those of the best instruction set, unless another was chosen.
const Kernels* active();

inline Type type_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case at::kFloat: return Type::float32;
    case at::kBFloat16: return Type::bfloat16;
    case at::kHalf: return Type::float16;
    default: TORCH_CHECK_TYPE(false, "x is ", x.scalar_type(), "; the kernels take float32, bfloat16 and float16");
  }
}

inline Tensor as_floats(const Tensor& tensor) { return tensor.to(at::kFloat).contiguous(); }

// What x and the tables look like to the kernels: rows of channels, and tables in the layout of kernels.h.
struct Problem {
  Tensor x, slope, intercept, lower, scale;
  std::vector<float> slope_table, intercept_table;
  Type type;
  int k;
  bool per_channel, stream;
  int64_t channels, rows, size;

  Problem(const Tensor& input, const Tensor& slopes, const OptionalTensor& intercepts, const Tensor& lowers,
          const Tensor& steps)
      : x(input.contiguous()), slope(as_floats(slopes)), lower(as_floats(lowers)),
        scale(as_floats(steps).reciprocal()), type(type_of(input)), per_channel(slopes.dim() == 2),
        size(input.numel()) {
    TORCH_CHECK_VALUE(slope.dim() == 1 || slope.dim() == 2, "slope must be of shape (k,) or (channels, k)");
    k = int(slope.size(-1));
    TORCH_CHECK_VALUE(k >= 1 && k <= max_segments, "k is ", k, "; the kernels take 1 to ", max_segments);
    channels = x.dim() ? x.size(-1) : 1;
    rows = channels ? size / channels : 0;
    stream = size >= stream_size && type == Type::float32 && channels % 16 == 0;
    const int64_t units = per_channel ? channels : 1;
    TORCH_CHECK_VALUE(
        !per_channel || slope.size(0) == channels, "slope has ", slope.size(0), " channels, x has ", channels);
    TORCH_CHECK_VALUE(lower.numel() == units && scale.numel() == units, "lower and step must have ", units, " entries");
    slope_table = lay_out(slope);
    if (intercepts) {
      intercept = as_floats(*intercepts);
      TORCH_CHECK_VALUE(intercept.sizes() == slope.sizes(), "slope and intercept must share a shape");
      intercept_table = lay_out(intercept);
    }
  }

  std::vector<float> lay_out(const Tensor& table) const {
    const float* from = table.const_data_ptr<float>();
    if (per_channel && k > max_register_segments) return {from, from + table.numel()};
    const int64_t units = per_channel ? channels : 1;
    std::vector<float> to(padded(k) * units, 0.f);
    for (int64_t unit = 0; unit < units; ++unit)
      for (int j = 0; j < k; ++j) to[j * units + unit] = from[unit * k + j];
    return to;
  }

  Table table() const {
    return {slope_table.data(), intercept_table.data(), *lower.const_data_ptr<float>(),
            *scale.const_data_ptr<float>(), k, stream};
  }
  ChannelTables channel_tables() const {
    return {slope_table.data(), intercept_table.data(), lower.const_data_ptr<float>(), scale.const_data_ptr<float>(),
            k, channels};
  }
  int64_t blocks() const { return (size + block_size - 1) / block_size; }
  int64_t in_block(int64_t block) const { return std::min(block_size, size - block * block_size); }
};

// Rows cut into blocks of about block_size elements and at least `least` rows, but not more than `most` blocks where
// that is given.
struct RowBlocks {
  int64_t rows, length, count;
  RowBlocks(int64_t rows_, int64_t channels, int64_t least = 1, int64_t most = 0) : rows(rows_) {
    length = std::max(least, block_size / std::max<int64_t>(1, channels));
    if (most) length = std::max(length, (rows + most - 1) / most);
    count = (rows + length - 1) / length;
  }
  int64_t begin(int64_t block) const { return block * length; }
  int64_t end(int64_t block) const { return std::min(rows, (block + 1) * length); }
};

inline const char* at_element(const Tensor& tensor, int64_t index) {
  return static_cast<const char*>(tensor.const_data_ptr()) + index * tensor.element_size();
}
inline char* to_element(const Tensor& tensor, int64_t index) {
  return static_cast<char*>(tensor.mutable_data_ptr()) + index * tensor.element_size();
}

// at::parallel_for over blocks of `elements` in all.
template <class F>
void for_blocks(int64_t count, int64_t elements, const F& body) {
  const int64_t each = std::max<int64_t>(1, elements / std::max<int64_t>(1, count));
  at::parallel_for(0, count, std::max<int64_t>(1, thread_size / each), [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) body(block);
  });
}

// The function on rows [begin, end).
inline void forward_rows(const Problem& p, const Tensor& y, int64_t begin, int64_t end) {
  const int64_t at = begin * p.channels;
  if (p.per_channel)
    active()->forward_channels(p.type, at_element(p.x, at), to_element(y, at), end - begin, p.channel_tables());
  else
    active()->forward(p.type, at_element(p.x, at), to_element(y, at), (end - begin) * p.channels, p.table());
}

}  // namespace lma_hf
