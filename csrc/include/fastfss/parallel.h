// Loops over threads. The number of threads is torch's, handed down with every call.
#pragma once

#include <algorithm>
#include <cstdint>

namespace fastfss::FASTFSS_ISA {

// body(begin, end) over [0, count) in equal consecutive pieces, one a thread. The calling thread
// works alone where one thread is asked for, so that nothing is woken up.
template <class Body>
void parallel_for(int64_t count, int threads, const Body& body) {
  const int64_t used = std::min<int64_t>(threads, count);
  if (used <= 1) {
    if (count > 0) body(int64_t{0}, count);
    return;
  }
#pragma omp parallel for num_threads(static_cast<int>(used)) schedule(static, 1)
  for (int64_t part = 0; part < used; ++part) {
    body(count * part / used, count * (part + 1) / used);
  }
}

}  // namespace fastfss::FASTFSS_ISA
