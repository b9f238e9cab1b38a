// The CPU kernels' gradients against finite differences, both in double precision.
//
// The kernels' own source, with double for float and one lane: central differences of a
// weighted sum of all outputs, entry by entry, for every operand. Entries at a kink (alpha
// at 1/255, a full pixel), where the slopes to both sides differ, are left out. Prints an
// operand's name, the norms of its gradient and of the error, and how many were left out.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <mutex>
#include <new>
#include <random>
#include <vector>

#include "../../kernels/host_device.h"
#include "../../kernels/parallel.h"
#include "../../kernels/scratch.h"
#include "../../kernels/stages.h"

// Instead of simd.h.
#define GEODIFF_JAX_KERNELS_SIMD_H_
namespace geodiff {

constexpr int kLanes = 1;
using F = double;
using Mask = bool;

inline F Set(double value) { return value; }
inline F Load(const double* from) { return *from; }
inline void Store(double* to, F value) { *to = value; }
inline Mask Less(F a, F b) { return a < b; }
inline Mask LessEqual(F a, F b) { return a <= b; }
inline Mask And(Mask a, Mask b) { return a && b; }
inline Mask AndNot(Mask a, Mask b) { return a && !b; }
inline F Select(Mask mask, F a, F b) { return mask ? a : b; }
inline uint32_t Bits(Mask mask) { return mask; }
inline F Sqrt(F a) { return std::sqrt(a); }
inline F Min(F a, F b) { return Select(Less(a, b), a, b); }
inline F Max(F a, F b) { return Select(Less(b, a), a, b); }
inline F ExpOfNegative(F x) { return std::exp(x); }
inline double SumLanes(F value) { return value; }

// Literals stay floats.
inline double Least(double a, double b) { return b < a ? b : a; }
inline double Most(double a, double b) { return a < b ? b : a; }

}  // namespace geodiff

#define float double
#include "../../kernels/splat_passes.h"
#undef float

namespace geodiff {
namespace {

constexpr int64_t kChannels = 3, kWidth = 37, kHeight = 29;
constexpr int64_t kOutputs = kWidth * kHeight * (kChannels + 2);

// What sets one check apart.
struct Setting {
  bool antialiased;
  int64_t count;
  double spread;        // Of the centres; the image ends at about 1.8.
  double most_opacity;  // Alpha is clamped to 0.99.
};

struct Operand {
  const char* name;
  std::vector<double> values, gradient;
};

struct Problem {
  std::vector<Operand> operands;
  Setting setting;
  Workspace work;

  explicit Problem(const Setting& setting) : setting(setting) {
    const int64_t n = setting.count;
    std::mt19937 random(1);
    const auto add = [&](const char* name, int64_t count, double least, double most) {
      std::vector<double> values(count);
      for (double& x : values) x = least + (most - least) * random() / 4294967296.0;
      operands.push_back({name, values, std::vector<double>(count)});
    };
    add("means", 3 * n, -setting.spread, setting.spread);
    add("quaternions", 4 * n, -1.0, 1.0);
    add("scales", 3 * n, 0.05, 0.3);
    add("opacities", n, 0.1, setting.most_opacity);
    add("features", kChannels * n, -1.0, 1.0);
    add("camera", 12, -0.1, 0.1);
    add("intrinsics", 4, 30.0, 34.0);
    add("background", kChannels, 0.0, 1.0);
    add("offsets", 2 * n, -2.0, 2.0);
    std::vector<double>& camera = operands[5].values;
    for (int i = 0; i < 3; ++i) camera[5 * i] += 1.0;
    camera[11] += 3.0;
    operands[6].values[2] = 0.5 * kWidth;
    operands[6].values[3] = 0.5 * kHeight;
  }

  Scene scene() const {
    const auto at = [&](int i) { return operands[i].values.data(); };
    Scene s;
    s.means = at(0);
    s.quaternions = at(1);
    s.scales = at(2);
    s.opacities = at(3);
    s.features = at(4);
    s.camera = at(5);
    s.intrinsics = at(6);
    s.background = at(7);
    s.offsets = at(8);
    s.num_gaussians = setting.count;
    s.num_channels = kChannels;
    s.width = kWidth;
    s.height = kHeight;
    s.near = 0.01;
    s.antialiased = setting.antialiased;
    return s;
  }

  double Loss(Parallel& parallel, const std::vector<double>& weights) {
    std::vector<double> outputs(kOutputs);
    const std::unique_ptr<bool[]> visible(new bool[setting.count]);
    double* const alpha = outputs.data() + kWidth * kHeight * kChannels;
    Forward(parallel, scene(), work, outputs.data(), alpha, alpha + kWidth * kHeight,
            visible.get());
    double sum = 0.0;
    for (int64_t i = 0; i < kOutputs; ++i) sum += weights[i] * outputs[i];
    return sum;
  }

  void Differentiate(Parallel& parallel, const std::vector<double>& weights) {
    const double* const d_alpha = weights.data() + kWidth * kHeight * kChannels;
    const Cotangents cotangents = {weights.data(), d_alpha, d_alpha + kWidth * kHeight};
    const auto at = [&](int i) { return operands[i].gradient.data(); };
    const Gradients out = {at(0), at(1), at(2), at(3), at(4), at(5), at(6), at(7), at(8)};
    Backward(parallel, scene(), cotangents, work, out);
  }
};

// No threads: whoever waits for the loop runs it.
Parallel Alone() {
  static XLA_FFI_Api api = {};
  static xla::ffi::DiagnosticEngine diagnostic;
  api.XLA_FFI_ThreadPool_NumThreads = [](XLA_FFI_ThreadPool_NumThreads_Args* args) {
    *args->num_threads = 1;
    return static_cast<XLA_FFI_Error*>(nullptr);
  };
  return Parallel(*xla::ffi::CtxDecoding<xla::ffi::ThreadPool>::Decode(&api, nullptr,
                                                                       diagnostic));
}

void Check(const Setting& setting) {
  Parallel parallel = Alone();
  Problem problem(setting);
  std::mt19937 random(2);
  std::vector<double> weights(kOutputs);
  for (double& w : weights) w = random() / 2147483648.0 - 1.0;
  problem.Differentiate(parallel, weights);
  const double here = problem.Loss(parallel, weights);
  constexpr double kStep = 3e-7;
  for (Operand& operand : problem.operands) {
    double norm = 0.0, error = 0.0;
    int kinks = 0;
    for (size_t i = 0; i < operand.values.size(); ++i) {
      const double value = operand.values[i];
      operand.values[i] = value + kStep;
      const double above = problem.Loss(parallel, weights);
      operand.values[i] = value - kStep;
      const double below = problem.Loss(parallel, weights);
      operand.values[i] = value;
      const double difference = (above - below) / (2.0 * kStep);
      const double bend = std::abs(above - 2.0 * here + below) / kStep;
      if (bend > 1e-3 * (1.0 + std::abs(difference))) {
        ++kinks;
        continue;
      }
      norm += operand.gradient[i] * operand.gradient[i];
      error += std::pow(difference - operand.gradient[i], 2);
    }
    std::printf("%s %.9g %.9g %d\n", operand.name, std::sqrt(norm), std::sqrt(error),
                kinks);
  }
}

}  // namespace
}  // namespace geodiff

int main() {
  geodiff::Check({false, 40, 1.0, 0.95});
  geodiff::Check({true, 40, 1.0, 0.95});
  // Clamped alphas, full pixels, and centres where the Jacobian is clamped.
  geodiff::Check({false, 150, 2.6, 1.3});
}
