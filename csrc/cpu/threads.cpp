#include "../threads.h"

#include <ctime>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace rest_fast {

void set_threads(int count) {
#ifdef _OPENMP
  omp_set_num_threads(count < 1 ? 1 : count);
#else
  (void)count;
#endif
}

double thread_seconds(int count) {
#ifdef CLOCK_THREAD_CPUTIME_ID
  double sum = 0.0;
#ifdef _OPENMP
#pragma omp parallel num_threads(count < 1 ? 1 : count) reduction(+ : sum)
#else
  (void)count;
#endif
  {
    timespec now{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    sum += static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
  }
  return sum;
#else
  (void)count;
  return -1.0;
#endif
}

}  // namespace rest_fast
