// lma_hf::token_statistics and lma_hf::lma_with_statistics for tensors on the CPU: count, mean and sum of squared
// deviations over the real rows, in one pass over the memory.
#include <ATen/ops/full.h>
#include <torch/library.h>

#include "tensors.h"

namespace lma_hf {
namespace {

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

// Statistics over all units: moments(begin, end) gives those of a run of real rows, other(begin, end) is told of the
// rest.
template <class F, class G>
Statistics statistics_of_all(const Tensor& x, const Mask& mask, const F& moments, const G& other) {
  const int64_t channels = x.dim() ? x.size(-1) : 1, rows = channels ? x.numel() / channels : 0;
  const RowBlocks blocks(rows, channels);
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
  const RowBlocks blocks(rows, channels, channel_rows, max_row_blocks);
  const RowBlocks steps(blocks.length, channels, channel_rows);  // a block can be larger than the cache
  const Type type = type_of(x);
  std::vector<int64_t> counts(blocks.count, 0);
  std::vector<double> partial(blocks.count * 2 * channels, 0.);
  for_blocks(blocks.count, x.numel(), [&](int64_t b) {
    double* mean = partial.data() + b * 2 * channels;
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
      const double* part = partial.data() + b * 2 * channels + channel;
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

TORCH_LIBRARY_IMPL(lma_hf, CPU, m) {
  m.impl("token_statistics", token_statistics);
  m.impl("lma_with_statistics", lma_with_statistics);
}

}  // namespace lma_hf
