// From run-time types and sizes to the templates.
#pragma once
#include "channel_loops.h"
#include "loops.h"

namespace lma_hf {
namespace LMA_HF_INSTRUCTION_SET {

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
      Type type, const void* x, int64_t rows, int64_t channels, int64_t count, double* mean, double* m2) {
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
