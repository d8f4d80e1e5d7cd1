// AVX-512 (F, BW, DQ, VL): sixteen lanes; one permute looks up a table of sixteen.
#include "kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>
#include <cstring>
#include <utility>

#if defined(__clang__)
#pragma clang attribute push( \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#endif
#define LMA_HF_INSTRUCTION_SET avx512
#include "dispatch.h"

namespace lma_hf {
namespace avx512 {

struct Vector {
  static constexpr int width = 16;
  using F = __m512;
  using I = __m512i;
  using M = __mmask16;

  static F load(const float* p) { return _mm512_loadu_ps(p); }
  static F load(const bfloat16* p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16));
  }
  static F load(const float16* p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p)); }
  static void store(float* p, F v) { _mm512_storeu_ps(p, v); }
  static void store(bfloat16* p, F v) {
    const I bits = _mm512_castps_si512(v);
    const I odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    I rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
    rounded = _mm512_mask_mov_epi32(rounded, _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), _mm512_set1_epi32(0x7fc0));
    _mm256_storeu_si256((__m256i*)p, _mm512_cvtepi32_epi16(rounded));
  }
  static void store(float16* p, F v) {
    _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  static void store_index(int32_t* p, I v) { _mm512_storeu_si512(p, v); }
  template <class T> static void put(T* p, F v, bool) { store(p, v); }
  static void put(float* p, F v, bool stream) { stream ? _mm512_stream_ps(p, v) : store(p, v); }
  static void fence() { _mm_sfence(); }

  static F set(float v) { return _mm512_set1_ps(v); }
  static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  // maxps gives its second operand where one is NaN
  static F clamp(F v, F low, F high) { return _mm512_min_ps(_mm512_max_ps(v, low), high); }
  static I truncate(F v) { return _mm512_cvttps_epi32(v); }
  static float sum(F v) { return _mm512_reduce_add_ps(v); }

  static M equal(I v, int j) { return _mm512_cmpeq_epi32_mask(v, _mm512_set1_epi32(j)); }
  static M bit(I v, int b) { return _mm512_test_epi32_mask(v, _mm512_set1_epi32(1 << b)); }
  static F select(M m, F no, F yes) { return _mm512_mask_blend_ps(m, no, yes); }
  static F add_where(M m, F sum, F a) { return _mm512_mask_add_ps(sum, m, sum, a); }
  static F fma_where(M m, F sum, F a, F b) { return _mm512_mask3_fmadd_ps(a, b, sum, m); }

  template <int K> struct Lookup {
    F table;
    explicit Lookup(const float* p) : table(K == 8 ? _mm512_castps256_ps512(_mm256_loadu_ps(p)) : load(p)) {}
    F operator()(I i) const { return _mm512_permutexvar_ps(i, table); }
  };
  static F gather(const float* p, I i, int lane_stride, int) {
    const I lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    return _mm512_i32gather_ps(_mm512_add_epi32(i, _mm512_mullo_epi32(lanes, _mm512_set1_epi32(lane_stride))), p, 4);
  }
};

template <> struct Vector::Lookup<max_segments> {
  const float* table;
  explicit Lookup(const float* p) : table(p) {}
  F operator()(I i) const { return _mm512_i32gather_ps(i, table, 4); }
};

}  // namespace avx512

const Kernels* avx512_kernels() {
  const bool can = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                   __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  return can ? avx512::Dispatch<avx512::Vector>::table("avx512") : nullptr;
}
}  // namespace lma_hf

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#else
namespace lma_hf {
const Kernels* avx512_kernels() { return nullptr; }
}  // namespace lma_hf
#endif
