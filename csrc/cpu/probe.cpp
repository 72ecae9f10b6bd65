#include "fastfss/probe.h"

#include "fastfss/exp.h"
#include "fastfss/gemm.h"

namespace fastfss::FASTFSS_ISA {

void probe_exp(const float* from, float* to, int64_t count) {
  for (int64_t i = 0; i < count; i += kWidth) {
    const int here = static_cast<int>(count - i < kWidth ? count - i : kWidth);
    store_first(to + i, exp(load_first(from + i, here)), here);
  }
}

namespace {

// Independent sums, as many as registers allow: they hide the multipliers' latency.
#if defined(__AVX512F__)
constexpr int kSums = 24;
#else
constexpr int kSums = 12;
#endif

// step(sum) is one instruction.
template <int kPerStep, class Step>
int64_t repeat(int64_t count, float* result, const Step& step) {
  VFloat sums[kSums];
  for (int i = 0; i < kSums; ++i) sums[i] = splat(*result + i);  // the compiler merges equal ones
  int64_t done = 0;
  for (; done < count; done += kSums * kPerStep) {
#pragma GCC unroll 24
    for (int i = 0; i < kSums; ++i) sums[i] = step(sums[i]);
  }
  VFloat total{};
  for (const VFloat& one : sums) total += one;
  *result = sum(total);
  return done;
}

}  // namespace

int64_t probe_multiply_adds(int64_t count, [[maybe_unused]] bool bfloat16, float* result) {
#if defined(__AVX512BF16__)
  if (bfloat16) {
    const auto pair = Bfloat16Dot::broadcast(reinterpret_cast<const BFloat16*>(&count));
    return repeat<2 * kWidth>(
        count, result, [&](VFloat sum) { return Bfloat16Dot::multiply_add(sum, pair, pair); });
  }
#endif
  const VFloat factor = splat(0.5f), term = splat(1.0f);
  return repeat<kWidth>(count, result, [&](VFloat sum) { return sum * factor + term; });
}

}  // namespace fastfss::FASTFSS_ISA
