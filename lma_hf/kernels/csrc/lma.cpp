// lma_hf::lma and lma_hf::lma_backward for tensors on the CPU, and the choice of instruction set. The schemas stand in
// lma_hf/kernels/ops.py.
#include <torch/library.h>

#include <string>

#include "tensors.h"

namespace lma_hf {
namespace {

std::vector<const Kernels*> supported() {
  std::vector<const Kernels*> found;
  for (const Kernels* kernels : {avx512_kernels(), avx2_kernels(), neon_kernels(), plain_kernels()})
    if (kernels) found.push_back(kernels);
  return found;
}

const Kernels*& in_use() {
  static const Kernels* kernels = supported().front();
  return kernels;
}

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const Kernels* kernels : supported()) names.emplace_back(kernels->name);
  return names;
}

std::string instruction_set() { return in_use()->name; }

void use_instruction_set(std::string name) {
  for (const Kernels* kernels : supported())
    if (name == kernels->name) {
      in_use() = kernels;
      return;
    }
  const std::string allowed = c10::Join(", ", instruction_sets());
  TORCH_CHECK_VALUE(false, "instruction set ", name, " is not supported here; allowed are ", allowed);
}

Tensor lma(const Tensor& x, const Tensor& slope, const Tensor& intercept, const Tensor& lower, const Tensor& step) {
  const Problem p(x, slope, intercept, lower, step);
  Tensor y = at::empty_like(p.x);
  if (p.per_channel) {
    const RowBlocks blocks(p.rows, p.channels, channel_rows);
    for_blocks(blocks.count, p.size, [&](int64_t b) { forward_rows(p, y, blocks.begin(b), blocks.end(b)); });
  } else {
    for_blocks(p.blocks(), p.size, [&](int64_t b) {
      const int64_t at = b * block_size;
      active()->forward(p.type, at_element(p.x, at), to_element(y, at), p.in_block(b), p.table());
    });
  }
  return y;
}

using Gradients = std::tuple<Tensor, Tensor, Tensor>;

// Sums over blocks of (2, k, units) each, as gradients of shape (units, k) or (k,).
Gradients add_up(const Tensor& grad_x, const std::vector<float>& partial, int64_t blocks, const Problem& p) {
  const int64_t units = p.per_channel ? p.channels : 1, entries = p.k * units;
  Tensor grad_slope = at::empty_like(p.slope), grad_intercept = at::empty_like(p.slope);
  float* outputs[] = {grad_slope.mutable_data_ptr<float>(), grad_intercept.mutable_data_ptr<float>()};
  constexpr int64_t chunk = 1024;  // neighbours are summed together: entries of different blocks lie far apart
  at::parallel_for(0, (2 * entries + chunk - 1) / chunk, 1, [&](int64_t begin, int64_t end) {
    for (int64_t first = begin * chunk; first < std::min(end * chunk, 2 * entries); first += chunk) {
      const int64_t count = std::min(chunk, 2 * entries - first);
      double sums[chunk] = {};
      for (int64_t block = 0; block < blocks; ++block)
        for (int64_t i = 0; i < count; ++i) sums[i] += partial[block * 2 * entries + first + i];
      for (int64_t i = 0; i < count; ++i) {
        const int64_t entry = first + i, piece = entry % entries / units, unit = entry % units;
        outputs[entry / entries][unit * p.k + piece] = float(sums[i]);
      }
    }
  });
  return {grad_x, grad_slope, grad_intercept};
}

Gradients backward_shared(const Problem& p, const Tensor& grad, const Tensor& grad_x, bool parameters) {
  std::vector<float> partial(parameters ? p.blocks() * 2 * p.k : 0, 0.f);
  for_blocks(p.blocks(), p.size, [&](int64_t b) {
    const int64_t at = b * block_size;
    float* sums = parameters ? partial.data() + b * 2 * p.k : nullptr;
    active()->backward(
        p.type, at_element(grad, at), at_element(p.x, at), to_element(grad_x, at), p.in_block(b), p.table(), sums);
  });
  return add_up(grad_x, partial, parameters ? p.blocks() : 0, p);
}

Gradients backward_channels(const Problem& p, const Tensor& grad, const Tensor& grad_x, bool parameters) {
  const RowBlocks blocks(p.rows, p.channels, channel_rows, max_row_blocks);
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
    const Tensor& grad, const Tensor& x, const Tensor& slope, const Tensor& lower, const Tensor& step,
    bool parameters) {
  const Problem p(x, slope, std::nullopt, lower, step);
  TORCH_CHECK_VALUE(grad.sizes() == x.sizes(), "grad has the shape ", grad.sizes(), ", x has ", x.sizes());
  const Tensor g = grad.to(x.scalar_type()).contiguous();
  Tensor grad_x = at::empty_like(p.x);
  return p.per_channel ? backward_channels(p, g, grad_x, parameters) : backward_shared(p, g, grad_x, parameters);
}

}  // namespace

const Kernels* active() { return in_use(); }

TORCH_LIBRARY_FRAGMENT(lma_hf, m) {
  m.def("instruction_sets() -> str[]", instruction_sets);
  m.def("instruction_set() -> str", instruction_set);
  m.def("use_instruction_set(str name) -> ()", use_instruction_set);
}

TORCH_LIBRARY_IMPL(lma_hf, CPU, m) {
  m.impl("lma", lma);
  m.impl("lma_backward", lma_backward);
}

}  // namespace lma_hf
