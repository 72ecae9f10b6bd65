#include "fastfss/workspace.h"

#include <cstdlib>
#include <mutex>
#include <new>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fastfss {
namespace {

constexpr std::size_t kHugePage = std::size_t{2} << 20;

struct Kept {
  std::mutex mutex;
  std::vector<WorkspaceBlock> blocks;
  std::size_t bytes = 0;
};

// Never destroyed: threads may still run while the process ends.
Kept& kept() {
  static Kept& kept = *new Kept;
  return kept;
}

}  // namespace

WorkspaceBlock take_workspace(std::size_t bytes) {
  bytes = (bytes + kHugePage - 1) / kHugePage * kHugePage;
  {
    Kept& all = kept();
    const std::lock_guard lock(all.mutex);
    // The smallest that fits, unless most of it would be wasted.
    auto best = all.blocks.end();
    for (auto block = all.blocks.begin(); block != all.blocks.end(); ++block) {
      const bool fits = block->bytes >= bytes && block->bytes <= 2 * bytes;
      if (fits && (best == all.blocks.end() || block->bytes < best->bytes)) best = block;
    }
    if (best != all.blocks.end()) {
      const WorkspaceBlock found = *best;
      all.blocks.erase(best);
      all.bytes -= found.bytes;
      return found;
    }
  }
  void* memory = std::aligned_alloc(kHugePage, bytes);
  if (memory == nullptr) {
    release_workspace();
    memory = std::aligned_alloc(kHugePage, bytes);
  }
  if (memory == nullptr) throw std::bad_alloc();
#if defined(__linux__)
  madvise(memory, bytes, MADV_HUGEPAGE);
#endif
  return {memory, bytes};
}

void give_workspace(WorkspaceBlock block) noexcept {
  if (block.memory == nullptr) return;
  Kept& all = kept();
  const std::lock_guard lock(all.mutex);
  if (block.bytes > kWorkspaceLimit) {
    std::free(block.memory);
    return;
  }
  // The oldest make room: sizes that are no longer asked for do not stay.
  while (all.bytes + block.bytes > kWorkspaceLimit) {
    std::free(all.blocks.front().memory);
    all.bytes -= all.blocks.front().bytes;
    all.blocks.erase(all.blocks.begin());
  }
  all.blocks.push_back(block);
  all.bytes += block.bytes;
}

std::size_t release_workspace() {
  Kept& all = kept();
  const std::lock_guard lock(all.mutex);
  const std::size_t bytes = all.bytes;
  for (const WorkspaceBlock& block : all.blocks) std::free(block.memory);
  all.blocks.clear();
  all.bytes = 0;
  return bytes;
}

}  // namespace fastfss
