// Storage types and a vector of width one: the plain code, and what is left over at the end of a row of channels.
// Included once by each instruction set, inside its own namespace, so that no two of them share an instantiation.
#pragma once
#include <cstdint>
#include <cstring>

namespace lma_hf {
namespace LMA_HF_INSTRUCTION_SET {

struct bfloat16 { uint16_t bits; };
struct float16 { uint16_t bits; };

inline float from_bits(uint32_t bits) { float value; std::memcpy(&value, &bits, sizeof value); return value; }
inline uint32_t to_bits(float value) { uint32_t bits; std::memcpy(&bits, &value, sizeof bits); return bits; }

inline float half_to_float(uint16_t half) {
  const uint32_t sign = uint32_t(half & 0x8000) << 16, magnitude = half & 0x7fff;
  if (magnitude >= 0x7c00) return from_bits(sign | 0x7f800000 | magnitude << 13);
  // a multiple of 2^-24 where the half is subnormal; as a float it is not, so that no flush to zero touches it
  if (magnitude < 0x0400) return from_bits(sign | to_bits(float(magnitude) * from_bits(0x33800000)));
  return from_bits(sign | (magnitude << 13) + 0x38000000);
}

inline uint16_t float_to_half(float value) {
  const uint32_t bits = to_bits(value), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return uint16_t(sign | 0x7e00);
  if (magnitude >= 0x477ff000) return uint16_t(sign | 0x7c00);  // rounds to 65536 or more: infinity
  if (magnitude < 0x38800000) {  // subnormal half: adding 0.5 rounds to multiples of 2^-24
    return uint16_t(sign | (to_bits(from_bits(magnitude) + 0.5f) - 0x3f000000));
  }
  return uint16_t(sign | (magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13);
}

struct Scalar {
  static constexpr int width = 1;
  using F = float;
  using I = int32_t;
  using M = bool;

  static F load(const float* p) { return *p; }
  static F load(const bfloat16* p) { return from_bits(uint32_t(p->bits) << 16); }
  static F load(const float16* p) { return half_to_float(p->bits); }
  static void store(float* p, F v) { *p = v; }
  static void store(bfloat16* p, F v) {
    const uint32_t bits = to_bits(v);
    p->bits = v != v ? 0x7fc0 : uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
  }
  static void store(float16* p, F v) { p->bits = float_to_half(v); }
  static void store_index(int32_t* p, I v) { *p = v; }
  // store past the caches where `stream` is set; fence() makes it visible to other threads
  template <class T> static void put(T* p, F v, bool) { store(p, v); }
  static void fence() {}

  static F set(float v) { return v; }
  static F sub(F a, F b) { return a - b; }
  static F add(F a, F b) { return a + b; }
  static F mul(F a, F b) { return a * b; }
  static F fma(F a, F b, F c) { return a * b + c; }
  // NaN becomes low
  static F clamp(F v, F low, F high) { v = v > low ? v : low; return v < high ? v : high; }
  static I truncate(F v) { return I(v); }
  static F sum(F v) { return v; }

  static M equal(I v, int j) { return v == j; }
  static M bit(I v, int b) { return v >> b & 1; }
  static F select(M m, F no, F yes) { return m ? yes : no; }
  static F add_where(M m, F sum, F a) { return m ? sum + a : sum; }
  static F fma_where(M m, F sum, F a, F b) { return m ? sum + a * b : sum; }

  // entry i of one table for all lanes
  template <int K> struct Lookup {
    const float* table;
    explicit Lookup(const float* p) : table(p) {}
    F operator()(I i) const { return table[i]; }
  };
  // lane l reads p[l * lane_stride + i * stride]; vectors know a stride of 1 only
  static F gather(const float* p, I i, int, int stride) { return p[int64_t(i) * stride]; }
};

}  // namespace LMA_HF_INSTRUCTION_SET
}  // namespace lma_hf
