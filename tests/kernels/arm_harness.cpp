// Compares the NEON kernels with the plain ones. Calls no operating system: an emulator starts at arm_check(), which
// returns 0, or 1 + the number of the first case that differs.
#include <cstring>
#include <initializer_list>

#include "kernels.h"

using namespace lma_hf;
using std::memcmp, std::memcpy, std::memset;

namespace {

constexpr int channels = 37, rows = 19, size = channels * rows;
uint32_t state = 1;
float noise() {
  state = state * 1664525u + 1013904223u;
  return (float(state >> 8) / 16777216.f - 0.5f) * 8;
}

float slope[64 * channels], ones[64], intercept[64 * channels], lower[channels], scale[channels];
float numbers[2][size];
alignas(16) unsigned char x[4 * size], g[4 * size], y[2][4 * size], gx[2][4 * size];
float sums[2][2 * 64 * channels];
double mean[2][channels], m2[2][channels];

bool near(double a, double b) {
  const double difference = a > b ? a - b : b - a, size_of_b = b < 0 ? -b : b;
  return difference <= 1e-4 * (size_of_b + 1);
}

// Numbers of any type, read through an identity on the plain kernel.
void read(Type type, const void* from, float* to) {
  const uint16_t* half = (const uint16_t*)from;
  for (int i = 0; i < size; ++i) {
    if (type == Type::float32) to[i] = ((const float*)from)[i];
    else if (type == Type::bfloat16) { const uint32_t bits = uint32_t(half[i]) << 16; memcpy(&to[i], &bits, 4); }
    else { _Float16 value; memcpy(&value, half + i, 2); to[i] = float(value); }
  }
}
void write(Type type, void* to) {
  for (int i = 0; i < size; ++i) {
    const float value = noise();
    uint32_t bits;
    memcpy(&bits, &value, 4);
    const uint16_t upper = uint16_t(bits >> 16);
    const _Float16 half = (_Float16)value;
    if (type == Type::float32) ((float*)to)[i] = value;
    else memcpy((uint16_t*)to + i, type == Type::bfloat16 ? (const void*)&upper : (const void*)&half, 2);
  }
}
bool same(Type type, const void* a, const void* b) {
  read(type, a, numbers[0]);
  read(type, b, numbers[1]);
  for (int i = 0; i < size; ++i) {
    const double slack = type == Type::float32 ? 0 : 0.01 * (numbers[1][i] < 0 ? -numbers[1][i] : numbers[1][i]);
    const double difference = double(numbers[0][i]) - numbers[1][i];
    if (!near(numbers[0][i], numbers[1][i]) && (difference > slack || -difference > slack)) return false;
  }
  return true;
}

bool check(Type type, int k) {
  write(type, x);
  write(type, g);
  const Kernels* kernels[] = {neon_kernels(), plain_kernels()};
  const Table table{slope, intercept, -3.f, float(k) / 6, k};
  const ChannelTables tables{slope, intercept, lower, scale, k, channels};
  double means[2], m2s[2];
  for (int i = 0; i < 2; ++i) kernels[i]->forward_moments(type, x, y[i], size, table, &means[i], &m2s[i]);
  for (int i = 0; i < 2; ++i) kernels[i]->backward(type, g, x, gx[i], size, table, sums[i]);
  if (!same(type, y[0], y[1]) || !same(type, gx[0], gx[1])) return false;
  if (!near(means[0], means[1]) || !near(m2s[0], m2s[1])) return false;
  for (int i = 0; i < 2 * k; ++i)
    if (!near(sums[0][i], sums[1][i])) return false;

  // x + intercept has one rounding in float32 and one more when it is stored: every bit must agree
  const Table shift{ones, intercept, -3.f, float(k) / 6, k};
  for (int i = 0; i < 2; ++i) kernels[i]->forward(type, x, y[i], size, shift);
  if (memcmp(y[0], y[1], size * (type == Type::float32 ? 4 : 2))) return false;

  memset(sums, 0, sizeof sums);
  for (int i = 0; i < 2; ++i) {
    kernels[i]->forward_channels(type, x, y[i], rows, tables);
    kernels[i]->backward_channels(type, g, x, gx[i], rows, tables, sums[i]);
    memset(mean[i], 0, sizeof mean[i]);
    memset(m2[i], 0, sizeof m2[i]);
    kernels[i]->moments_channels(type, x, rows, channels, 0, mean[i], m2[i]);
  }
  if (!same(type, y[0], y[1]) || !same(type, gx[0], gx[1])) return false;
  for (int i = 0; i < 2 * k * channels; ++i)
    if (!near(sums[0][i], sums[1][i])) return false;
  for (int c = 0; c < channels; ++c)
    if (!near(mean[0][c], mean[1][c]) || !near(m2[0][c], m2[1][c])) return false;
  return true;
}

}  // namespace

extern "C" __attribute__((used)) int arm_check() {
  for (float& value : ones) value = 1;
  for (float& value : slope) value = noise();
  for (float& value : intercept) value = noise();
  const int segments[] = {2, 5, 8, 13, 16, 33, 64};
  int number = 0;
  for (const Type type : {Type::float32, Type::bfloat16, Type::float16})
    for (const int k : segments) {
      for (int c = 0; c < channels; ++c) {
        lower[c] = -3 + noise() / 8;
        scale[c] = float(k) / 6;
      }
      ++number;
      if (!check(type, k)) return number;
    }
  return 0;
}
