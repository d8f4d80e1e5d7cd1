// What the vector code offers to lma.cpp. Nothing here knows torch: pointers, sizes and one table of functions for
// each instruction set. Every function runs on one thread and writes only to the memory it is given.
#pragma once
#include <cstdint>

namespace lma_hf {

enum class Type { float32, bfloat16, float16 };

constexpr int max_segments = 64;
// Tables of up to this many pieces are selected in registers, larger ones are gathered from memory.
constexpr int max_register_segments = 16;
constexpr int padded(int k) { return k <= 8 ? 8 : k <= max_register_segments ? max_register_segments : k; }

// One set of pieces for all units. `scale` is 1 / step. Both tables have padded(k) entries.
struct Table {
  const float* slope;
  const float* intercept;
  float lower, scale;
  int k;
  bool stream;  // write results past the caches; they begin at a multiple of 64 bytes
};

// Own pieces for each unit. Tables of k <= max_register_segments are piece-major, (padded(k), channels), so that
// neighbouring channels fill a register; larger ones are channel-major, (channels, k). lower, scale: (channels,).
struct ChannelTables {
  const float* slope;
  const float* intercept;
  const float* lower;
  const float* scale;
  int k;
  int64_t channels;
};

struct Kernels {
  const char* name;
  // y[i] = slope[s] * x[i] + intercept[s]
  void (*forward)(Type, const void* x, void* y, int64_t n, const Table&);
  // forward, and the moments of x
  void (*forward_moments)(Type, const void* x, void* y, int64_t n, const Table&, double* mean, double* m2);
  // gx[i] = slope[s] * g[i]; sums: k sums of g * x, then k sums of g, added to. Null: not wanted.
  void (*backward)(Type, const void* g, const void* x, void* gx, int64_t n, const Table&, float* sums);
  // mean and sum of squared deviations of n > 0 numbers
  void (*moments)(Type, const void* x, int64_t n, double* mean, double* m2);
  // the same for rows of `channels` numbers; sums: (2, k, channels), added to
  void (*forward_channels)(Type, const void* x, void* y, int64_t rows, const ChannelTables&);
  void (*backward_channels)(
      Type, const void* g, const void* x, void* gx, int64_t rows, const ChannelTables&, float* sums);
  // merges rows > 0 further rows into the mean and m2 of `count` rows before
  void (*moments_channels)(
      Type, const void* x, int64_t rows, int64_t channels, int64_t count, double* mean, double* m2);
};

// Null where the compiler's target has no such instructions.
const Kernels* avx512_kernels();
const Kernels* avx2_kernels();
const Kernels* neon_kernels();
const Kernels* plain_kernels();

}  // namespace lma_hf
