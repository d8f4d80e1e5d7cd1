// AVX2 with FMA and F16C: eight lanes; one permute looks up a table of eight.
#include "kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>
#include <cstring>
#include <utility>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif
#define LMA_HF_INSTRUCTION_SET avx2
#include "dispatch.h"

namespace lma_hf {
namespace avx2 {

struct Vector {
  static constexpr int width = 8;
  using F = __m256;
  using I = __m256i;
  using M = __m256;

  static F load(const float* p) { return _mm256_loadu_ps(p); }
  static F load(const bfloat16* p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16));
  }
  static F load(const float16* p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)); }
  static void store(float* p, F v) { _mm256_storeu_ps(p, v); }
  static void store(bfloat16* p, F v) {
    const I bits = _mm256_castps_si256(v);
    const I odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    I rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
    const I is_nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    rounded = _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc0), is_nan);
    const I packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(rounded, rounded), 0xd8);
    _mm_storeu_si128((__m128i*)p, _mm256_castsi256_si128(packed));
  }
  static void store(float16* p, F v) {
    _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  static void store_index(int32_t* p, I v) { _mm256_storeu_si256((__m256i*)p, v); }
  template <class T> static void put(T* p, F v, bool) { store(p, v); }
  static void put(float* p, F v, bool stream) { stream ? _mm256_stream_ps(p, v) : store(p, v); }
  static void fence() { _mm_sfence(); }

  static F set(float v) { return _mm256_set1_ps(v); }
  static F sub(F a, F b) { return _mm256_sub_ps(a, b); }
  static F add(F a, F b) { return _mm256_add_ps(a, b); }
  static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  // maxps gives its second operand where one is NaN
  static F clamp(F v, F low, F high) { return _mm256_min_ps(_mm256_max_ps(v, low), high); }
  static I truncate(F v) { return _mm256_cvttps_epi32(v); }
  static float sum(F v) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
  }

  static M equal(I v, int j) { return _mm256_castsi256_ps(_mm256_cmpeq_epi32(v, _mm256_set1_epi32(j))); }
  // only for select, which looks at the uppermost bit alone
  static M bit(I v, int b) { return _mm256_castsi256_ps(_mm256_sll_epi32(v, _mm_cvtsi32_si128(31 - b))); }
  static F select(M m, F no, F yes) { return _mm256_blendv_ps(no, yes, m); }
  static F add_where(M m, F sum, F a) { return _mm256_add_ps(sum, _mm256_and_ps(m, a)); }
  // the product is masked, not a factor: 0 * infinity elsewhere would be NaN here
  static F fma_where(M m, F sum, F a, F b) { return _mm256_add_ps(sum, _mm256_and_ps(m, _mm256_mul_ps(a, b))); }

  template <int K> struct Lookup {
    F low, high;
    explicit Lookup(const float* p) : low(load(p)), high(K > 8 ? load(p + 8) : low) {}
    F operator()(I i) const {
      const F below = _mm256_permutevar8x32_ps(low, i);
      return K == 8 ? below : select(bit(i, 3), below, _mm256_permutevar8x32_ps(high, i));
    }
  };
  static F gather(const float* p, I i, int lane_stride, int) {
    const I lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_i32gather_ps(p, _mm256_add_epi32(i, _mm256_mullo_epi32(lanes, _mm256_set1_epi32(lane_stride))), 4);
  }
};

template <> struct Vector::Lookup<max_segments> {
  const float* table;
  explicit Lookup(const float* p) : table(p) {}
  F operator()(I i) const { return _mm256_i32gather_ps(table, i, 4); }
};

}  // namespace avx2

const Kernels* avx2_kernels() {
  const bool can = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  return can ? avx2::Dispatch<avx2::Vector>::table("avx2") : nullptr;
}
}  // namespace lma_hf

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#else
namespace lma_hf {
const Kernels* avx2_kernels() { return nullptr; }
}  // namespace lma_hf
#endif
