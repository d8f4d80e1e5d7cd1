// Several threads call every kernel on blocks of the same arrays, as lma.cpp does; for a build with sanitizers. Returns
// 0 if the results equal those of one thread. The arrays are as large as they must be and no larger.
#include <cstdio>
#include <cstring>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "kernels.h"

using namespace lma_hf;

namespace {

constexpr int threads = 4;
uint32_t state = 1;
float noise() {
  state = state * 1664525u + 1013904223u;
  return (float(state >> 8) / 16777216.f - 0.5f) * 8;
}
std::vector<float> noises(int64_t n) {
  std::vector<float> values(n);
  for (float& value : values) value = noise();
  return values;
}
int64_t width(Type type) { return type == Type::float32 ? 4 : 2; }

std::vector<char> numbers(Type type, int64_t n) {
  std::vector<char> bytes(n * width(type));
  for (int64_t i = 0; i < n; ++i) {
    const float value = noise();
    // the upper half of a float is a bfloat16, and some number or other as a float16
    std::memcpy(&bytes[i * width(type)], reinterpret_cast<const char*>(&value) + 4 - width(type), width(type));
  }
  return bytes;
}

void for_blocks(int64_t n, int64_t size, bool parallel, const std::function<void(int64_t, int64_t, int64_t)>& body) {
  const int64_t count = (n + size - 1) / size;
  const auto work = [&](int64_t first, int64_t stride) {
    for (int64_t block = first; block < count; block += stride)
      body(block, block * size, n - block * size < size ? n - block * size : size);
  };
  if (!parallel) return work(0, 1);
  std::vector<std::thread> running;
  for (int thread = 0; thread < threads; ++thread) running.emplace_back(work, thread, threads);
  for (std::thread& thread : running) thread.join();
}

struct Results {
  std::vector<char> bytes;
  template <class T>
  void add(const std::vector<T>& values) {
    const char* from = reinterpret_cast<const char*>(values.data());
    bytes.insert(bytes.end(), from, from + values.size() * sizeof(T));
  }
};

Results shared(const Kernels& kernels, Type type, int k, bool parallel) {
  const int64_t n = 3001, size = 333, blocks = (n + size - 1) / size, w = width(type);
  state = 1;
  const auto slope = noises(padded(k)), intercept = noises(padded(k));
  const auto x = numbers(type, n), g = numbers(type, n);
  const Table table{slope.data(), intercept.data(), -3.f, float(k) / 6, k};
  const Table slopes{slope.data(), nullptr, table.lower, table.scale, k};  // backward has no intercepts
  std::vector<char> y(n * w), both(n * w), gx(n * w), only(n * w);
  std::vector<float> sums(blocks * 2 * k);
  std::vector<double> moments(blocks * 4);
  for_blocks(n, size, parallel, [&](int64_t block, int64_t at, int64_t length) {
    double* to = &moments[block * 4];
    kernels.forward(type, &x[at * w], &y[at * w], length, table);
    kernels.forward_moments(type, &x[at * w], &both[at * w], length, table, to, to + 1);
    kernels.moments(type, &x[at * w], length, to + 2, to + 3);
    kernels.backward(type, &g[at * w], &x[at * w], &gx[at * w], length, slopes, &sums[block * 2 * k]);
    kernels.backward(type, &g[at * w], &x[at * w], &only[at * w], length, slopes, nullptr);
  });
  Results results;
  results.add(y), results.add(both), results.add(gx), results.add(only), results.add(sums), results.add(moments);
  return results;
}

Results channels(const Kernels& kernels, Type type, int k, bool parallel) {
  const int64_t units = 37, rows = 83, size = 21, blocks = (rows + size - 1) / size, w = width(type);
  state = 1;
  const auto slope = noises(padded(k) * units), intercept = noises(padded(k) * units), lower = noises(units);
  const std::vector<float> scale(units, float(k) / 6);
  const auto x = numbers(type, rows * units), g = numbers(type, rows * units);
  const ChannelTables tables{slope.data(), intercept.data(), lower.data(), scale.data(), k, units};
  const ChannelTables slopes{slope.data(), nullptr, lower.data(), scale.data(), k, units};
  std::vector<char> y(rows * units * w), gx(rows * units * w), only(rows * units * w);
  std::vector<float> sums(blocks * 2 * k * units);
  std::vector<double> moments(blocks * 2 * units);
  for_blocks(rows, size, parallel, [&](int64_t block, int64_t row, int64_t count) {
    const int64_t at = row * units * w;
    double* mean = &moments[block * 2 * units];
    kernels.forward_channels(type, &x[at], &y[at], count, tables);
    kernels.backward_channels(type, &g[at], &x[at], &gx[at], count, slopes, &sums[block * 2 * k * units]);
    kernels.backward_channels(type, &g[at], &x[at], &only[at], count, slopes, nullptr);
    kernels.moments_channels(type, &x[at], 1, units, 0, mean, mean + units);
    if (count > 1) kernels.moments_channels(type, &x[at + units * w], count - 1, units, 1, mean, mean + units);
  });
  Results results;
  results.add(y), results.add(gx), results.add(only), results.add(sums), results.add(moments);
  return results;
}

}  // namespace

int main() {
  int wrong = 0;
  for (const Kernels* kernels : {avx512_kernels(), avx2_kernels(), neon_kernels(), plain_kernels()}) {
    if (!kernels) continue;
    for (const Type type : {Type::float32, Type::bfloat16, Type::float16})
      for (const int k : {2, 8, 9, 16, 17, 64}) {
        const bool same = shared(*kernels, type, k, true).bytes == shared(*kernels, type, k, false).bytes &&
                          channels(*kernels, type, k, true).bytes == channels(*kernels, type, k, false).bytes;
        if (!same) std::printf("%s, type %d, k %d differ\n", kernels->name, int(type), k);
        wrong += !same;
      }
    std::printf("%s\n", kernels->name);
  }
  return wrong;
}
