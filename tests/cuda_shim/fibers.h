// Threads of a block as fibers: one runs until it waits, then the next.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __shared__ static  // one block runs at a time, so one copy is enough

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

// Set by the scheduler before it resumes a fiber.
inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace cuda_on_cpu {

constexpr size_t kWarp = 32;

[[noreturn]] inline void fail(const char* what) {
  std::fprintf(stderr, "cuda_on_cpu: block (%u, %u, %u), thread %u: %s\n", blockIdx.x, blockIdx.y,
               blockIdx.z, threadIdx.x, what);
  std::abort();
}

template <class Vector>
void expect_aligned(const Vector* at) {
  if (reinterpret_cast<uintptr_t>(at) % sizeof(Vector)) fail("a vector is not aligned to its size");
}

// --- a stack of its own, and the switch between two ---------------------------------------------

#if defined(__x86_64__)

// Keeps the registers that a function must keep, on the stack that is left.
extern "C" void cuda_on_cpu_switch(void** leave, void* enter);
asm(R"(
  .text
  .weak cuda_on_cpu_switch
  .hidden cuda_on_cpu_switch
  .type cuda_on_cpu_switch, @function
cuda_on_cpu_switch:
  push %rbp; push %rbx; push %r12; push %r13; push %r14; push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15; pop %r14; pop %r13; pop %r12; pop %rbx; pop %rbp
  ret
  .size cuda_on_cpu_switch, . - cuda_on_cpu_switch
)");

struct Context {
  void* at = nullptr;
  void prepare(char* stack, size_t size, void (*run)()) {
    void** top =
        reinterpret_cast<void**>(reinterpret_cast<uintptr_t>(stack + size) & ~uintptr_t{15});
    *--top = nullptr;  // no caller: `run` never returns
    *--top = reinterpret_cast<void*>(run);
    at = top - 6;
  }
  void leave_for(Context& next) { cuda_on_cpu_switch(&at, next.at); }
};

#else

}  // namespace cuda_on_cpu
#include <ucontext.h>
namespace cuda_on_cpu {

struct Context {
  ucontext_t at;
  void prepare(char* stack, size_t size, void (*run)()) {
    getcontext(&at);
    at.uc_stack.ss_sp = stack;
    at.uc_stack.ss_size = size;
    at.uc_link = nullptr;
    makecontext(&at, run, 0);
  }
  void leave_for(Context& next) { swapcontext(&at, &next.at); }
};

#endif

// --- the block in flight -------------------------------------------------------------------------

enum class State { kRuns, kAtBlockBarrier, kInCollective, kFinished };

struct Copy {  // of cp.async
  void* target;
  const void* source;
  int bytes;
};

struct Thread {
  Context context;
  dim3 index;
  State state = State::kRuns;
  std::unique_ptr<char[]> stack;
  std::vector<Copy> issued;               // not in a group yet
  std::vector<std::vector<Copy>> groups;  // committed, oldest first
};

struct Warp {
  const void* what = nullptr;  // the collective that its lanes are in
  unsigned mask = 0, arrived = 0;
  void* part[kWarp] = {};  // what each lane brings and takes, on its own stack
};

constexpr size_t kStack = 128 * 1024;

struct Machine {
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  Context scheduler;
  size_t current = 0, waiting = 0, finished = 0;
  std::function<void()> body;
  std::unique_ptr<unsigned char, void (*)(void*)> shared{nullptr, std::free};  // dynamic
};

inline Machine& machine() {
  static Machine instance;
  return instance;
}

inline Thread& self() {
  return machine().threads[machine().current];
}

#ifdef __SANITIZE_ADDRESS__
inline const void* scheduler_stack;
inline size_t scheduler_stack_size;
#endif

// From the scheduler to the current thread, until that pauses.
inline void resume(Thread& thread) {
#ifdef __SANITIZE_ADDRESS__
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(&fake, thread.stack.get(), kStack);
#endif
  machine().scheduler.leave_for(thread.context);
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
}

// Back to the scheduler, which comes again when the state is kRuns.
inline void pause(State state) {
  Thread& thread = self();
  thread.state = state;
#ifdef __SANITIZE_ADDRESS__
  void* fake = nullptr;
  const bool ends = state == State::kFinished;
  __sanitizer_start_switch_fiber(ends ? nullptr : &fake, scheduler_stack, scheduler_stack_size);
#endif
  thread.context.leave_for(machine().scheduler);
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
}

inline void thread_main() {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_stack_size);
#endif
  machine().body();
  if (!self().issued.empty() || !self().groups.empty()) fail("a cp.async that nobody waited for");
  ++machine().finished;
  pause(State::kFinished);
}

inline void start_block(size_t threads) {
  Machine& m = machine();
  if (m.threads.size() < threads) m.threads.resize(threads);
  m.warps.assign((threads + kWarp - 1) / kWarp, Warp{});
  m.waiting = m.finished = 0;
  for (size_t i = 0; i < threads; ++i) {
    Thread& thread = m.threads[i];
    const unsigned n = static_cast<unsigned>(i);
    thread.index = dim3(n % blockDim.x, n / blockDim.x % blockDim.y, n / blockDim.x / blockDim.y);
    thread.state = State::kRuns;
    if (!thread.stack) thread.stack.reset(new char[kStack]);
    thread.context.prepare(thread.stack.get(), kStack, thread_main);
  }
}

inline void run_block() {
  Machine& m = machine();
  const size_t threads = size_t{blockDim.x} * blockDim.y * blockDim.z;
  start_block(threads);
  while (m.finished < threads) {
    bool progress = false;
    for (size_t i = 0; i < threads; ++i) {
      m.current = cuda_on_cpu_backwards ? threads - 1 - i : i;
      if (self().state != State::kRuns) continue;
      threadIdx = self().index;
      resume(self());
      progress = true;
    }
    if (m.waiting > 0 && m.waiting + m.finished == threads) {  // as on a GPU, the finished count
      for (size_t i = 0; i < threads; ++i) {
        if (m.threads[i].state == State::kAtBlockBarrier) m.threads[i].state = State::kRuns;
      }
      m.waiting = 0;
      progress = true;
    }
    if (!progress) fail("a barrier or collective that some threads never reach");
  }
}

// --- what lanes of a warp do together
// -------------------------------------------------------------

inline unsigned lane() {
  return static_cast<unsigned>(machine().current % kWarp);
}

// `all` gets what each lane of the mask has brought (null for the others) when the last one comes.
template <class Part>
void together(unsigned mask, Part& mine, void (*all)(Part* const*)) {
  Machine& m = machine();
  const size_t first = m.current / kWarp * kWarp;
  Warp& warp = m.warps[first / kWarp];
  if (!(mask >> lane() & 1)) fail("a lane takes part in a collective whose mask leaves it out");
  if (warp.arrived == 0) {
    warp.what = reinterpret_cast<const void*>(all);
    warp.mask = mask;
    std::memset(warp.part, 0, sizeof(warp.part));
  } else if (warp.what != reinterpret_cast<const void*>(all) || warp.mask != mask) {
    fail("lanes of a warp are in different collectives, or name different lanes");
  }
  warp.part[lane()] = &mine;
  warp.arrived |= 1u << lane();
  if (warp.arrived != mask) return pause(State::kInCollective);
  Part* parts[kWarp];
  for (size_t i = 0; i < kWarp; ++i) parts[i] = static_cast<Part*>(warp.part[i]);
  warp.arrived = 0;
  all(parts);
  for (size_t i = 0; i < kWarp; ++i) {
    if (parts[i]) m.threads[first + i].state = State::kRuns;
  }
}

}  // namespace cuda_on_cpu

inline void __syncthreads() {
  ++cuda_on_cpu::machine().waiting;
  cuda_on_cpu::pause(cuda_on_cpu::State::kAtBlockBarrier);
}
