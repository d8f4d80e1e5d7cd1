// The operators of lma_hf::* for tensors on the CPU: checks, threads, and sums over blocks.
//
// Work is cut into blocks whose size depends on the shape alone. Each block is written by one thread, and sums over
// blocks are taken in double and in order: results do not depend on the number of threads.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/full.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "kernels.h"

namespace lma_hf {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

constexpr int64_t block_size = 8192;  // elements of one block: input and output stay in the second-level cache
constexpr int64_t max_row_blocks = 32;  // for sums by channel, which cost memory for each block
constexpr int64_t thread_size = 32768;  // elements that are worth a thread

std::vector<const Kernels*> supported() {
  std::vector<const Kernels*> found;
  for (const Kernels* kernels : {avx512_kernels(), avx2_kernels(), neon_kernels(), plain_kernels()})
    if (kernels) found.push_back(kernels);
  return found;
}

const Kernels*& active() {
  static const Kernels* kernels = supported().front();
  return kernels;
}

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const Kernels* kernels : supported()) names.emplace_back(kernels->name);
  return names;
}

std::string instruction_set() { return active()->name; }

void use_instruction_set(c10::string_view name) {
  for (const Kernels* kernels : supported())
    if (name == kernels->name) {
      active() = kernels;
      return;
    }
  TORCH_CHECK_VALUE(false, "instruction set ", name, " is not supported here; allowed are ", c10::Join(", ", instruction_sets()));
}

Type type_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case at::kFloat: return Type::float32;
    case at::kBFloat16: return Type::bfloat16;
    case at::kHalf: return Type::float16;
    default: TORCH_CHECK_TYPE(false, "x is ", x.scalar_type(), "; the kernels take float32, bfloat16 and float16");
  }
}

Tensor as_floats(const Tensor& tensor) { return tensor.to(at::kFloat).contiguous(); }

// What x and the tables look like to the kernels: rows of channels, and tables in the layout of kernels.h.
struct Problem {
  Tensor x, slope, intercept, lower, scale;
  std::vector<float> slope_table, intercept_table;
  Type type;
  int k;
  bool per_channel;
  int64_t channels, rows, size, element;

  Problem(const Tensor& input, const Tensor& slopes, const OptionalTensor& intercepts, const Tensor& lowers,
          const Tensor& steps)
      : x(input.contiguous()), slope(as_floats(slopes)), lower(as_floats(lowers)),
        scale(as_floats(steps).reciprocal()), type(type_of(input)), per_channel(slopes.dim() == 2),
        size(input.numel()), element(input.element_size()) {
    TORCH_CHECK_VALUE(slope.dim() == 1 || slope.dim() == 2, "slope must be of shape (k,) or (channels, k)");
    k = int(slope.size(-1));
    TORCH_CHECK_VALUE(k >= 1 && k <= max_segments, "k is ", k, "; the kernels take 1 to ", max_segments);
    channels = x.dim() ? x.size(-1) : 1;
    rows = channels ? size / channels : 0;
    const int64_t units = per_channel ? channels : 1;
    TORCH_CHECK_VALUE(!per_channel || slope.size(0) == channels, "slope has ", slope.size(0), " channels, x has ", channels);
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
            *scale.const_data_ptr<float>(), k};
  }
  ChannelTables channel_tables() const {
    return {slope_table.data(), intercept_table.data(), lower.const_data_ptr<float>(), scale.const_data_ptr<float>(),
            k, channels};
  }
  int64_t blocks() const { return (size + block_size - 1) / block_size; }
  int64_t in_block(int64_t block) const { return std::min(block_size, size - block * block_size); }
};

// Rows cut into blocks of about block_size elements, but not more than `most` blocks.
struct RowBlocks {
  int64_t rows, length, count;
  RowBlocks(int64_t rows_, int64_t channels, int64_t most) : rows(rows_) {
    const int64_t wanted = std::max<int64_t>(1, block_size / std::max<int64_t>(1, channels));
    length = std::max(wanted, (rows + most - 1) / most);
    count = (rows + length - 1) / length;
  }
  int64_t begin(int64_t block) const { return block * length; }
  int64_t end(int64_t block) const { return std::min(rows, (block + 1) * length); }
};

const char* at_element(const Tensor& tensor, int64_t index) {
  return static_cast<const char*>(tensor.const_data_ptr()) + index * tensor.element_size();
}
char* to_element(const Tensor& tensor, int64_t index) {
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

// ---- forward ----

void forward_rows(const Problem& p, const Tensor& y, int64_t begin, int64_t end) {
  const int64_t at = begin * p.channels;
  if (p.per_channel)
    active()->forward_channels(p.type, at_element(p.x, at), to_element(y, at), end - begin, p.channel_tables());
  else
    active()->forward(p.type, at_element(p.x, at), to_element(y, at), (end - begin) * p.channels, p.table());
}

Tensor lma(const Tensor& x, const Tensor& slope, const Tensor& intercept, const Tensor& lower, const Tensor& step) {
  const Problem p(x, slope, intercept, lower, step);
  Tensor y = at::empty_like(p.x);
  if (p.per_channel) {
    const RowBlocks blocks(p.rows, p.channels, p.rows);
    for_blocks(blocks.count, p.size, [&](int64_t b) { forward_rows(p, y, blocks.begin(b), blocks.end(b)); });
  } else {
    for_blocks(p.blocks(), p.size, [&](int64_t b) {
      const int64_t at = b * block_size;
      active()->forward(p.type, at_element(p.x, at), to_element(y, at), p.in_block(b), p.table());
    });
  }
  return y;
}

// ---- backward ----

using Gradients = std::tuple<Tensor, Tensor, Tensor>;

// Sums over blocks of (2, k, units) each, as gradients of shape (units, k) or (k,).
Gradients add_up(const Tensor& grad_x, const std::vector<float>& partial, int64_t blocks, const Problem& p) {
  const int64_t units = p.per_channel ? p.channels : 1, entries = p.k * units;
  Tensor grad_slope = at::empty_like(p.slope), grad_intercept = at::empty_like(p.slope);
  float* outputs[] = {grad_slope.mutable_data_ptr<float>(), grad_intercept.mutable_data_ptr<float>()};
  at::parallel_for(0, 2 * entries, 2048, [&](int64_t begin, int64_t end) {
    for (int64_t entry = begin; entry < end; ++entry) {
      double sum = 0;
      for (int64_t block = 0; block < blocks; ++block) sum += partial[block * 2 * entries + entry];
      const int64_t piece = entry % entries / units, unit = entry % units;
      outputs[entry / entries][unit * p.k + piece] = float(sum);
    }
  });
  return {grad_x, grad_slope, grad_intercept};
}

Gradients backward_shared(const Problem& p, const Tensor& grad, const Tensor& grad_x, bool parameters) {
  std::vector<float> partial(parameters ? p.blocks() * 2 * p.k : 0);
  for_blocks(p.blocks(), p.size, [&](int64_t b) {
    const int64_t at = b * block_size;
    float* sums = parameters ? partial.data() + b * 2 * p.k : nullptr;
    active()->backward(
        p.type, at_element(grad, at), at_element(p.x, at), to_element(grad_x, at), p.in_block(b), p.table(), sums);
  });
  return add_up(grad_x, partial, parameters ? p.blocks() : 0, p);
}

Gradients backward_channels(const Problem& p, const Tensor& grad, const Tensor& grad_x, bool parameters) {
  const RowBlocks blocks(p.rows, p.channels, max_row_blocks);
  const int64_t entries = 2 * p.k * p.channels;
  std::vector<float> partial(parameters ? blocks.count * entries : 0, 0.f);
  for_blocks(blocks.count, p.size, [&](int64_t b) {
    const int64_t at = blocks.begin(b) * p.channels;
    float* sums = parameters ? partial.data() + b * entries : nullptr;
    active()->backward_channels(
        p.type, at_element(grad, at), at_element(p.x, at), to_element(grad_x, at), blocks.end(b) - blocks.begin(b),
        p.channel_tables(), sums);
  });
  return add_up(grad_x, partial, parameters ? blocks.count : 0, p);
}

Gradients lma_backward(
    const Tensor& grad, const Tensor& x, const Tensor& slope, const Tensor& lower, const Tensor& step, bool parameters) {
  const Problem p(x, slope, std::nullopt, lower, step);
  TORCH_CHECK_VALUE(grad.sizes() == x.sizes(), "grad has the shape ", grad.sizes(), ", x has ", x.sizes());
  const Tensor g = grad.to(x.scalar_type()).contiguous();
  Tensor grad_x = at::empty_like(p.x);
  return p.per_channel ? backward_channels(p, g, grad_x, parameters) : backward_shared(p, g, grad_x, parameters);
}

// ---- statistics of the real rows ----

// Calls real(begin, end) for every run of real rows and other(begin, end) for the runs between them.
template <class F, class G>
void for_runs(const bool* mask, int64_t begin, int64_t end, const G& other, const F& real) {
  while (begin < end) {
    int64_t stop = mask ? begin + 1 : end;
    while (stop < end && mask[stop] == mask[begin]) ++stop;
    if (!mask || mask[begin]) real(begin, stop);
    else other(begin, stop);
    begin = stop;
  }
}

// Count, mean and sum of squared deviations of some numbers; merged as Chan et al. (1983) do.
struct Moments {
  double count = 0, mean = 0, m2 = 0;
  void merge(double other_count, double other_mean, double other_m2) {
    if (other_count == 0) return;
    const double total = count + other_count, difference = other_mean - mean;
    mean += difference * (other_count / total);
    m2 += other_m2 + difference * difference * (count * other_count / total);
    count = total;
  }
};

using Statistics = std::tuple<Tensor, Tensor, Tensor>;  // count, mean, m2

struct Mask {
  Tensor tensor;
  Mask(const OptionalTensor& mask, int64_t rows) {
    if (!mask) return;
    TORCH_CHECK_VALUE(mask->numel() == rows, "mask has ", mask->numel(), " entries, x has ", rows, " rows");
    tensor = mask->to(at::kBool).contiguous();
  }
  const bool* data() const { return tensor.defined() ? tensor.const_data_ptr<bool>() : nullptr; }
};

// Statistics over all units: moments(begin, end) gives those of a run of real rows, and other(begin, end) is told of the
// rows between.
template <class F, class G>
Statistics statistics_of_all(const Tensor& x, const Mask& mask, const F& moments, const G& other) {
  const int64_t channels = x.dim() ? x.size(-1) : 1, rows = channels ? x.numel() / channels : 0;
  const RowBlocks blocks(rows, channels, std::max<int64_t>(1, rows));
  std::vector<Moments> partial(blocks.count);
  for_blocks(blocks.count, x.numel(), [&](int64_t b) {
    for_runs(mask.data(), blocks.begin(b), blocks.end(b), other, [&](int64_t begin, int64_t end) {
      double mean, m2;
      moments(begin, end, &mean, &m2);
      partial[b].merge(double((end - begin) * channels), mean, m2);
    });
  });
  Moments all;
  for (const Moments& part : partial) all.merge(part.count, part.mean, part.m2);
  const auto scalar = [&](double value) { return at::full({}, value, x.options().dtype(at::kFloat)); };
  return {scalar(all.count), scalar(all.mean), scalar(all.m2)};
}

// Statistics of each channel; work(begin, end) is done on rows that are in the cache.
template <class F>
Statistics statistics_by_channel(const Tensor& x, const Mask& mask, const F& work) {
  const int64_t channels = x.size(-1), rows = channels ? x.numel() / channels : 0;
  const RowBlocks blocks(rows, channels, max_row_blocks);
  const RowBlocks steps(blocks.length, channels, std::max<int64_t>(1, blocks.length));
  const Type type = type_of(x);
  std::vector<int64_t> counts(blocks.count, 0);
  std::vector<float> partial(blocks.count * 2 * channels, 0.f);
  for_blocks(blocks.count, x.numel(), [&](int64_t b) {
    float* mean = partial.data() + b * 2 * channels;
    for (int64_t row = blocks.begin(b); row < blocks.end(b); row += steps.length) {
      const int64_t stop = std::min(row + steps.length, blocks.end(b));
      for_runs(mask.data(), row, stop, [](int64_t, int64_t) {}, [&](int64_t begin, int64_t end) {
        active()->moments_channels(
            type, at_element(x, begin * channels), end - begin, channels, counts[b], mean, mean + channels);
        counts[b] += end - begin;
      });
      work(row, stop);
    }
  });
  Tensor count = at::empty({channels}, x.options().dtype(at::kFloat)), mean = at::empty_like(count),
         m2 = at::empty_like(count);
  float* outputs[] = {count.mutable_data_ptr<float>(), mean.mutable_data_ptr<float>(), m2.mutable_data_ptr<float>()};
  for (int64_t channel = 0; channel < channels; ++channel) {
    Moments all;
    for (int64_t b = 0; b < blocks.count; ++b) {
      const float* part = partial.data() + b * 2 * channels + channel;
      all.merge(double(counts[b]), part[0], part[channels]);
    }
    outputs[0][channel] = float(all.count);
    outputs[1][channel] = float(all.mean);
    outputs[2][channel] = float(all.m2);
  }
  return {count, mean, m2};
}

Statistics token_statistics(const Tensor& input, const OptionalTensor& mask, bool per_channel) {
  TORCH_CHECK_VALUE(input.dim() > 0, "x must have at least one dimension");
  const Tensor x = input.contiguous();
  const int64_t channels = x.size(-1);
  const Mask real(mask, channels ? x.numel() / channels : 0);
  const auto nothing = [](int64_t, int64_t) {};
  if (per_channel) return statistics_by_channel(x, real, nothing);
  const Type type = type_of(x);
  return statistics_of_all(
      x, real,
      [&](int64_t begin, int64_t end, double* mean, double* m2) {
        active()->moments(type, at_element(x, begin * channels), (end - begin) * channels, mean, m2);
      },
      nothing);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> lma_with_statistics(
    const Tensor& x, const Tensor& slope, const Tensor& intercept, const Tensor& lower, const Tensor& step,
    const OptionalTensor& mask) {
  const Problem p(x, slope, intercept, lower, step);
  const Mask real(mask, p.rows);
  Tensor y = at::empty_like(p.x);
  const auto forward = [&](int64_t begin, int64_t end) { forward_rows(p, y, begin, end); };
  const auto forward_moments = [&](int64_t begin, int64_t end, double* mean, double* m2) {
    const int64_t at = begin * p.channels, n = (end - begin) * p.channels;
    active()->forward_moments(p.type, at_element(p.x, at), to_element(y, at), n, p.table(), mean, m2);
  };
  auto [count, mean, m2] = p.per_channel ? statistics_by_channel(p.x, real, forward)
                                         : statistics_of_all(p.x, real, forward_moments, forward);
  return {y, count, mean, m2};
}

}  // namespace

// The schemas stand in lma_hf/kernels/ops.py.
TORCH_LIBRARY_IMPL(lma_hf, CPU, m) {
  m.impl("lma", lma);
  m.impl("lma_backward", lma_backward);
  m.impl("token_statistics", token_statistics);
  m.impl("lma_with_statistics", lma_with_statistics);
}

TORCH_LIBRARY_FRAGMENT(lma_hf, m) {
  m.def("instruction_sets() -> str[]", instruction_sets);
  m.def("instruction_set() -> str", instruction_set);
  m.def("use_instruction_set(str name) -> ()", [](std::string name) { use_instruction_set(name); });
}

}  // namespace lma_hf
