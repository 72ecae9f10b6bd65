// Large working memory, kept between calls.
#pragma once

#include <cstddef>

namespace fastfss {

struct WorkspaceBlock {
  void* memory = nullptr;
  std::size_t bytes = 0;
};

// A block of at least `bytes` on a 2 MiB boundary, uninitialised; throws std::bad_alloc.
//
// Returning tens of megabytes to the operating system after each call means asking for cleared
// pages in the next: 16 of 90 ms of a dense_match in bfloat16, measured in a virtual machine. So
// blocks are kept, up to kWorkspaceLimit in the process, and on huge pages where Linux grants them.
WorkspaceBlock take_workspace(std::size_t bytes);

// Gives back what take_workspace returned.
void give_workspace(WorkspaceBlock block) noexcept;

// Frees what is kept and returns how many bytes that was.
std::size_t release_workspace();

constexpr std::size_t kWorkspaceLimit = std::size_t{64} << 20;

}  // namespace fastfss
