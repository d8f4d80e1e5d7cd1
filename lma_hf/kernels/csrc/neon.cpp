// Arm with NEON: four lanes; one byte-wise permute looks up a table of sixteen.
#include "kernels.h"

#if defined(__aarch64__)
#include <arm_neon.h>

#include <cstring>
#include <utility>

#define LMA_HF_INSTRUCTION_SET neon
#include "dispatch.h"

namespace lma_hf {
namespace neon {

struct Vector {
  static constexpr int width = 4;
  using F = float32x4_t;
  using I = int32x4_t;
  using M = uint32x4_t;

  static F load(const float* p) { return vld1q_f32(p); }
  static F load(const bfloat16* p) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(&p->bits), 16)); }
  static F load(const float16* p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(&p->bits))); }
  static void store(float* p, F v) { vst1q_f32(p, v); }
  static void store(bfloat16* p, F v) {
    const uint32x4_t bits = vreinterpretq_u32_f32(v);
    const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    const uint32x4_t rounded = vshrq_n_u32(vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff))), 16);
    vst1_u16(&p->bits, vmovn_u32(vbslq_u32(vceqq_f32(v, v), rounded, vdupq_n_u32(0x7fc0))));
  }
  static void store(float16* p, F v) { vst1_u16(&p->bits, vreinterpret_u16_f16(vcvt_f16_f32(v))); }
  static void store_index(int32_t* p, I v) { vst1q_s32(p, v); }
  template <class T> static void put(T* p, F v, bool) { store(p, v); }
  static void fence() {}

  static F set(float v) { return vdupq_n_f32(v); }
  static F sub(F a, F b) { return vsubq_f32(a, b); }
  static F add(F a, F b) { return vaddq_f32(a, b); }
  static F mul(F a, F b) { return vmulq_f32(a, b); }
  static F fma(F a, F b, F c) { return vfmaq_f32(c, a, b); }
  // maxnm gives the number where one is NaN
  static F clamp(F v, F low, F high) { return vminq_f32(vmaxnmq_f32(v, low), high); }
  static I truncate(F v) { return vcvtq_s32_f32(v); }
  static float sum(F v) { return vaddvq_f32(v); }

  static M equal(I v, int j) { return vceqq_s32(v, vdupq_n_s32(j)); }
  static M bit(I v, int b) { return vtstq_s32(v, vdupq_n_s32(1 << b)); }
  static F select(M m, F no, F yes) { return vbslq_f32(m, yes, no); }
  static F masked(M m, F v) { return vreinterpretq_f32_u32(vandq_u32(m, vreinterpretq_u32_f32(v))); }
  static F add_where(M m, F sum, F a) { return vaddq_f32(sum, masked(m, a)); }
  // the product is masked, not a factor: 0 * infinity elsewhere would be NaN here
  static F fma_where(M m, F sum, F a, F b) { return vaddq_f32(sum, masked(m, vmulq_f32(a, b))); }

  template <int K> struct Lookup {
    uint8x16x4_t table;
    explicit Lookup(const float* p) {
      for (int i = 0; i < 4; ++i) table.val[i] = vreinterpretq_u8_f32(load(4 * i < K ? p + 4 * i : p));
    }
    F operator()(I i) const {
      // byte b of entry i is byte 4 * i + b of the table
      const uint32x4_t bytes = vmlaq_n_u32(vdupq_n_u32(0x03020100), vreinterpretq_u32_s32(i), 0x04040404);
      return vreinterpretq_f32_u8(vqtbl4q_u8(table, vreinterpretq_u8_u32(bytes)));
    }
  };
  static F gather(const float* p, I i, int lane_stride, int) {
    int32_t at[width];
    store_index(at, i);
    const float values[width] = {
        p[at[0]], p[lane_stride + at[1]], p[2 * lane_stride + at[2]], p[3 * lane_stride + at[3]]};
    return load(values);
  }
};

template <> struct Vector::Lookup<max_segments> {
  const float* table;
  explicit Lookup(const float* p) : table(p) {}
  F operator()(I i) const { return gather(table, i, 0, 1); }
};

}  // namespace neon

const Kernels* neon_kernels() { return neon::Dispatch<neon::Vector>::table("neon"); }
}  // namespace lma_hf

#else
namespace lma_hf {
const Kernels* neon_kernels() { return nullptr; }
}  // namespace lma_hf
#endif
