// cp.async and its groups. The data is there at the wait, not before.
#pragma once

#include "fibers.h"

namespace cuda_on_cpu {

constexpr int kPoison = 0xff;  // bytes of it are NaN in bfloat16, half and float

// Of 16 bytes in the target the first `bytes` come from the source, the others become zero.
inline void issue_copy(void* target, const void* source, int bytes) {
  const auto misaligned = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 != 0; };
  if (misaligned(target) || (bytes > 0 && misaligned(source)))
    fail("cp.async: not aligned to 16 bytes");
  if (bytes < 0 || bytes > 16) fail("cp.async: copies 0 to 16 bytes");
  std::memset(target, kPoison, 16);
  self().issued.push_back({target, source, bytes});
}

inline void commit_copies() {
  self().groups.push_back(std::move(self().issued));
  self().issued.clear();
}

// All groups but the last `pending` have arrived.
inline void wait_for_copies(size_t pending) {
  std::vector<std::vector<Copy>>& groups = self().groups;
  while (groups.size() > pending) {
    for (const Copy& copy : groups.front()) {
      if (copy.bytes > 0) std::memcpy(copy.target, copy.source, static_cast<size_t>(copy.bytes));
      std::memset(static_cast<char*>(copy.target) + copy.bytes, 0,
                  static_cast<size_t>(16 - copy.bytes));
    }
    groups.erase(groups.begin());
  }
}

}  // namespace cuda_on_cpu
