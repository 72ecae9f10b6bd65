#include "fastfss/isa.h"

#include <atomic>
#include <stdexcept>

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace fastfss {
namespace {

#if defined(__x86_64__)
struct Features {
  bool avx2 = false, fma = false, avx512 = false, avx512_bf16 = false, amx_bf16 = false;
};

bool os_permits_amx() {
#if defined(__linux__)
  // Tile registers are 8 KiB of state that Linux hands out on request:
  // arch_prctl(ARCH_REQ_XCOMP_PERM, XTILEDATA), once per process.
  constexpr long kRequestPermission = 0x1023;
  constexpr long kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

Features detect() {
  Features found;
  __builtin_cpu_init();
  found.avx2 = __builtin_cpu_supports("avx2");
  found.fma = __builtin_cpu_supports("fma");
  // __builtin_cpu_supports also checks that the operating system saves the registers.
  found.avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                 __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (found.avx512 && __get_cpuid_count(7, 1, &a, &b, &c, &d)) found.avx512_bf16 = (a >> 5) & 1;
  if (found.avx512_bf16 && __get_cpuid_count(7, 0, &a, &b, &c, &d)) {
    const bool amx_tile = (d >> 24) & 1;
    const bool amx_bf16 = (d >> 22) & 1;
    found.amx_bf16 = amx_tile && amx_bf16 && os_permits_amx();
  }
  return found;
}

const Features& features() {
  static const Features found = detect();
  return found;
}
#endif

std::atomic<int>& chosen() {
  static std::atomic<int> isa{static_cast<int>(best_isa())};
  return isa;
}

}  // namespace

Isa best_isa() {
#if defined(__x86_64__)
  const Features& found = features();
  if (found.amx_bf16) return Isa::kAmx;
  if (found.avx512_bf16) return Isa::kAvx512Bf16;
  if (found.avx512) return Isa::kAvx512;
  if (found.avx2 && found.fma) return Isa::kAvx2;
#endif
  return Isa::kPortable;
}

Isa active_isa() { return static_cast<Isa>(chosen().load(std::memory_order_relaxed)); }

void set_isa(Isa isa) {
  if (isa > best_isa() || isa < Isa::kPortable) {
    throw std::invalid_argument(std::string("isa: this CPU runs up to ") + isa_name(best_isa()) +
                                ", asked for " + isa_name(isa));
  }
  chosen().store(static_cast<int>(isa), std::memory_order_relaxed);
}

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::kPortable: return "portable";
    case Isa::kAvx2: return "avx2";
    case Isa::kAvx512: return "avx512";
    case Isa::kAvx512Bf16: return "avx512_bf16";
    case Isa::kAmx: return "amx";
  }
  return "unknown";
}

std::vector<std::string> cpu_features() {
  std::vector<std::string> names;
#if defined(__x86_64__)
  const Features& found = features();
  if (found.avx2) names.emplace_back("avx2");
  if (found.fma) names.emplace_back("fma");
  if (found.avx512) names.emplace_back("avx512");
  if (found.avx512_bf16) names.emplace_back("avx512_bf16");
  if (found.amx_bf16) names.emplace_back("amx_bf16");
#endif
  return names;
}

}  // namespace fastfss
