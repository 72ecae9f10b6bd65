// From an operation's name to its code for this CPU. Compiled for the portable set, like the
// module: nothing here may run an instruction that the CPU lacks.
#include <stdexcept>

#include "fastfss/isa.h"

namespace fastfss {
namespace {

// The entry for the set in use, or for the next lower one that the operation has code for.
template <class Function>
Function* choose(std::initializer_list<std::pair<Isa, Function*>> ascending) {
  Function* found = nullptr;
  for (const auto& [isa, function] : ascending) {
    if (isa <= active_isa()) found = function;
  }
  if (found == nullptr) throw std::logic_error("an operation has no portable code");
  return found;
}

}  // namespace

}  // namespace fastfss
