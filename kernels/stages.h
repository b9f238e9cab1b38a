// Wall time of the stages of splatting, summed over all calls of this process.

#ifndef GEODIFF_JAX_KERNELS_STAGES_H_
#define GEODIFF_JAX_KERNELS_STAGES_H_

#include <atomic>
#include <chrono>
#include <cstdint>

namespace geodiff {

enum Stage { kProject, kSort, kBin, kBlend, kBlendAdjoint, kProjectAdjoint, kNumStages };

inline std::atomic<int64_t> stage_nanoseconds[kNumStages] = {};

class StageClock {
 public:
  // What has passed since the last lap belongs to `stage`.
  void Lap(Stage stage) {
    const auto now = std::chrono::steady_clock::now();
    const auto lap = std::chrono::duration_cast<std::chrono::nanoseconds>(now - last_);
    stage_nanoseconds[stage].fetch_add(lap.count(), std::memory_order_relaxed);
    last_ = now;
  }

 private:
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

}  // namespace geodiff

#endif  // GEODIFF_JAX_KERNELS_STAGES_H_
