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

// body(item, begin, size) over the ranges of `length` of every item, one or more ranges an item: as
// many as it takes to occupy the threads. Ranges begin at multiples of `unit`.
template <class Body>
void parallel_ranges(int64_t items, int64_t length, int64_t unit, int threads, const Body& body) {
  if (items <= 0 || length <= 0) return;
  const int64_t units = (length + unit - 1) / unit;
  const int64_t parts = std::clamp<int64_t>((threads + items - 1) / items, 1, units);
  parallel_for(items * parts, threads, [&](int64_t from, int64_t to) {
    for (int64_t i = from; i < to; ++i) {
      const int64_t part = i % parts;
      const int64_t begin = units * part / parts * unit;
      const int64_t end = std::min(length, units * (part + 1) / parts * unit);
      body(i / parts, begin, end - begin);
    }
  });
}

}  // namespace fastfss::FASTFSS_ISA
