// OpenMP threads of the calling thread. PyTorch's own setting would reach all threads of the
// process.
#pragma once

namespace rest_fast {

// Parallel regions that the calling thread opens from now on have this many threads (at least 1).
void set_threads(int count);

// Seconds of CPU time that the calling thread and the first count - 1 of its team have used so far;
// without POSIX clocks -1.
double thread_seconds(int count);

}  // namespace rest_fast
