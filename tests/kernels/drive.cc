// Runs the CPU kernels without Python, for sanitizers and fuzzers to watch.
//
// Bytes decide sizes and raw float bits of a scene. Every buffer is exactly as large as
// the kernels were told. What holds for any bits is checked: the same results with one
// thread and with four, finite images of finite features, and no gradient from what is
// not finite.
//
//   drive SECONDS [SEED]   random scenes for so long
//   drive print            image, alpha, depth and all gradients of one ordinary scene
//   with -DFUZZ            a libFuzzer target

#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <queue>
#include <random>
#include <string>
#include <thread>

#include "../../kernels/mesh_cpu.cc"
#include "../../kernels/splat_cpu.cc"

namespace geodiff {
namespace {

// What XLA's pool looks like to a kernel.
class FakePool {
 public:
  explicit FakePool(int num_threads) : size_(num_threads) {
    for (int i = 0; i < num_threads; ++i) threads_.emplace_back([this] { Work(); });
    api_.XLA_FFI_ThreadPool_Schedule = [](XLA_FFI_ThreadPool_Schedule_Args* args) {
      From(args->ctx)->Schedule([task = args->task, data = args->data] { task(data); });
      return static_cast<XLA_FFI_Error*>(nullptr);
    };
    api_.XLA_FFI_ThreadPool_NumThreads = [](XLA_FFI_ThreadPool_NumThreads_Args* args) {
      *args->num_threads = From(args->ctx)->size_;
      return static_cast<XLA_FFI_Error*>(nullptr);
    };
  }

  ~FakePool() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      done_ = true;
    }
    wake_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }

  ffi::ThreadPool pool() {
    auto* context = reinterpret_cast<XLA_FFI_ExecutionContext*>(this);
    return *ffi::CtxDecoding<ffi::ThreadPool>::Decode(&api_, context, diagnostic_);
  }

 private:
  static FakePool* From(XLA_FFI_ExecutionContext* context) {
    return reinterpret_cast<FakePool*>(context);
  }

  void Schedule(std::function<void()> task) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      tasks_.push(std::move(task));
    }
    wake_.notify_one();
  }

  void Work() {
    for (;;) {
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, [this] { return done_ || !tasks_.empty(); });
      if (tasks_.empty()) return;
      std::function<void()> task = std::move(tasks_.front());
      tasks_.pop();
      lock.unlock();
      task();
    }
  }

  int size_;
  bool done_ = false;
  XLA_FFI_Api api_ = {};
  ffi::DiagnosticEngine diagnostic_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::queue<std::function<void()>> tasks_;
  std::vector<std::thread> threads_;
};

FakePool& OneThread() {
  static auto* pool = new FakePool(1);
  return *pool;
}

FakePool& FourThreads() {
  static auto* pool = new FakePool(4);
  return *pool;
}

// A stream of bytes that goes on beyond its end, as a function of what came before.
class Bytes {
 public:
  Bytes(const uint8_t* data, size_t size) : data_(data), size_(size) {}

  uint8_t Next() {
    const uint8_t byte = position_ < size_ ? data_[position_] : 0;
    ++position_;
    state_ = (state_ ^ byte) * 0x100000001b3u + 0x9e3779b97f4a7c15u;
    return position_ <= size_ ? byte : static_cast<uint8_t>(state_ >> 40);
  }

  int64_t UpTo(int64_t most) { return (Next() << 8 | Next()) % (most + 1); }

  // Mostly of the given size, sometimes anything that a float can be.
  float Value(float typical) {
    const uint8_t kind = Next();
    if (kind < 232) return typical * (static_cast<int8_t>(Next()) + Next() / 256.0f) / 64;
    if (kind < 240) {
      uint32_t bits = 0;
      for (int i = 0; i < 4; ++i) bits = bits << 8 | Next();
      float value;
      std::memcpy(&value, &bits, sizeof(value));
      return value;
    }
    constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
    constexpr float kInfinity = std::numeric_limits<float>::infinity();
    constexpr float kSpecial[16] = {kNan,  kInfinity, -kInfinity, 0.0f,  -0.0f, 1e-42f,
                                    1e-30f, 1e-9f,    1.0f,       -1.0f, 1e3f,  1e6f,
                                    1e10f,  -1e10f,   3e38f,      -3e38f};
    return kSpecial[kind - 240];
  }

  std::vector<float> Values(int64_t count, float typical) {
    std::vector<float> values(count);
    for (float& value : values) value = Value(typical);
    return values;
  }

 private:
  const uint8_t* data_;
  size_t size_, position_ = 0;
  uint64_t state_ = 0xcbf29ce484222325u;
};

[[noreturn]] void Fail(const char* what) {
  std::fprintf(stderr, "drive: %s\n", what);
  std::abort();
}

bool Finite(const float* values, int64_t count) {
  return std::all_of(values, values + count, [](float x) { return std::isfinite(x); });
}

bool Moderate(const std::vector<float>& values) {
  return std::all_of(values.begin(), values.end(),
                     [](float x) { return std::abs(x) < 1e30f; });
}

bool Same(const std::vector<float>& a, const std::vector<float>& b) {
  return a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

struct SplatResults {
  std::vector<float> image, alpha, depth, means, quaternions, scales, opacities;
  std::vector<float> features, camera, intrinsics, background, offsets;
  std::vector<float> visible;  // 0 or 1.
};

SplatResults RunSplat(FakePool& threads, const Scene& scene, bool has_depth,
                      const std::vector<float>& weights) {
  const int64_t pixels = scene.width * scene.height, n = scene.num_gaussians;
  const int64_t channels = scene.num_channels;
  const auto zeros = [](int64_t size) { return std::vector<float>(size); };
  SplatResults r = {zeros(pixels * channels), zeros(pixels), zeros(pixels),
                    zeros(3 * n),             zeros(4 * n),  zeros(3 * n),
                    zeros(n),                 zeros(n * channels), zeros(12),
                    zeros(4),                 zeros(channels),
                    zeros(scene.offsets != nullptr ? 2 * n : 0), zeros(n)};
  const std::unique_ptr<bool[]> visible(new bool[n]);
  Parallel parallel(threads.pool());
  Workspace work;
  Forward(parallel, scene, work, r.image.data(), r.alpha.data(),
          has_depth ? r.depth.data() : nullptr, visible.get());
  std::copy(visible.get(), visible.get() + n, r.visible.begin());
  const float* d_image = weights.data();
  const float* d_alpha = d_image + pixels * channels;
  const Cotangents cotangents = {d_image, d_alpha,
                                 has_depth ? d_alpha + pixels : nullptr};
  const Gradients out = {r.means.data(),      r.quaternions.data(), r.scales.data(),
                         r.opacities.data(),  r.features.data(),    r.camera.data(),
                         r.intrinsics.data(), r.background.data(),
                         scene.offsets != nullptr ? r.offsets.data() : nullptr};
  Backward(parallel, scene, cotangents, work, out);
  return r;
}

// What one machine computes, for another to compare.
void Print() {
  std::mt19937 random(0);  // The same numbers everywhere, unlike distributions.
  const auto values = [&](int64_t count, float least, float most) {
    std::vector<float> result(count);
    for (float& x : result) x = least + (most - least) * (random() >> 8) / 16777216.0f;
    return result;
  };
  const int64_t n = 60, channels = 3, width = 45, height = 37;
  const auto means = values(3 * n, -1, 1), quaternions = values(4 * n, -1, 1);
  const auto scales = values(3 * n, 0.05f, 0.3f), opacities = values(n, 0.1f, 0.9f);
  const auto features = values(channels * n, 0, 1), background = values(channels, 0, 1);
  const auto weights = values(width * height * (channels + 2), -1, 1);
  const float camera[12] = {1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3};
  const float intrinsics[4] = {50, 52, 22, 19};
  const auto offsets = values(2 * n, -2, 2);
  const Scene scene = {means.data(),     quaternions.data(), scales.data(),
                       opacities.data(), features.data(),    camera,
                       intrinsics,       background.data(),  offsets.data(),
                       n,                channels,           width,
                       height,           0.01f,              true};
  const SplatResults r = RunSplat(FourThreads(), scene, true, weights);
  for (const auto* result : {&r.image, &r.alpha, &r.depth, &r.means, &r.quaternions,
                             &r.scales, &r.opacities, &r.features, &r.camera,
                             &r.intrinsics, &r.background, &r.offsets, &r.visible}) {
    for (const float x : *result) std::printf("%.9g ", x);
    std::printf("\n");
  }
}

void DriveSplat(Bytes bytes) {
  Scene scene;
  const bool has_depth = bytes.Next() & 1;
  scene.antialiased = bytes.Next() & 1;
  scene.near = 0.01f;
  scene.width = 1 + bytes.UpTo(bytes.Next() < 240 ? 50 : 500);
  scene.height = 1 + bytes.UpTo(50);
  scene.num_channels = bytes.UpTo(6);
  const int64_t n = bytes.UpTo(bytes.Next() < 240 ? 40 : 2500);
  scene.num_gaussians = n;
  const std::vector<float> means = bytes.Values(3 * n, 1.0f);
  const std::vector<float> quaternions = bytes.Values(4 * n, 1.0f);
  const std::vector<float> scales = bytes.Values(3 * n, 0.2f);
  const std::vector<float> opacities = bytes.Values(n, 1.0f);
  const std::vector<float> features = bytes.Values(n * scene.num_channels, 1.0f);
  const std::vector<float> background = bytes.Values(scene.num_channels, 1.0f);
  const float size = static_cast<float>(scene.width);
  std::vector<float> camera = {1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3};
  std::vector<float> intrinsics = {size, size, size / 2, scene.height / 2.0f};
  const std::vector<float> offsets = bytes.Values(2 * n, 2.0f);
  if (bytes.Next() >= 200) camera[bytes.UpTo(11)] = bytes.Value(1.0f);
  if (bytes.Next() >= 200) intrinsics[bytes.UpTo(3)] = bytes.Value(size);
  scene.means = means.data();
  scene.quaternions = quaternions.data();
  scene.scales = scales.data();
  scene.opacities = opacities.data();
  scene.features = features.data();
  scene.background = background.data();
  scene.offsets = bytes.Next() & 1 ? offsets.data() : nullptr;
  scene.camera = camera.data();
  scene.intrinsics = intrinsics.data();
  const std::vector<float> weights(
      scene.width * scene.height * (scene.num_channels + 2), 0.5f);
  const SplatResults r = RunSplat(OneThread(), scene, has_depth, weights);
  const SplatResults again = RunSplat(FourThreads(), scene, has_depth, weights);
  if (!Same(r.image, again.image) || !Same(r.alpha, again.alpha) ||
      !Same(r.depth, again.depth) || !Same(r.means, again.means) ||
      !Same(r.quaternions, again.quaternions) || !Same(r.scales, again.scales) ||
      !Same(r.opacities, again.opacities) || !Same(r.features, again.features) ||
      !Same(r.camera, again.camera) || !Same(r.intrinsics, again.intrinsics) ||
      !Same(r.background, again.background) || !Same(r.offsets, again.offsets) ||
      !Same(r.visible, again.visible)) {
    Fail("results depend on the number of threads");
  }
  if (!Finite(r.alpha.data(), r.alpha.size())) Fail("alpha is not finite");
  if (!Finite(r.depth.data(), r.depth.size())) Fail("depth is not finite");
  if (Moderate(features) && Moderate(background) &&
      !Finite(r.image.data(), r.image.size())) {
    Fail("the image of finite features is not finite");
  }
  for (int64_t i = 0; i < n; ++i) {
    const bool finite = Finite(&means[3 * i], 3) && Finite(&quaternions[4 * i], 4) &&
                        Finite(&scales[3 * i], 3) && Finite(&opacities[i], 1) &&
                        (scene.offsets == nullptr || Finite(&offsets[2 * i], 2));
    if (!finite && r.visible[i] != 0.0f) Fail("what is not finite is visible");
    if (r.visible[i] != 0.0f) continue;
    float sum = std::abs(r.opacities[i]);
    for (int k = 0; k < 3; ++k) sum += std::abs(r.means[3 * i + k]);
    for (int k = 0; k < 4; ++k) sum += std::abs(r.quaternions[4 * i + k]);
    for (int k = 0; k < 3; ++k) sum += std::abs(r.scales[3 * i + k]);
    for (int64_t c = 0; c < scene.num_channels; ++c) {
      sum += std::abs(r.features[i * scene.num_channels + c]);
    }
    if (scene.offsets != nullptr) {
      sum += std::abs(r.offsets[2 * i]) + std::abs(r.offsets[2 * i + 1]);
    }
    if (sum != 0.0f) Fail("a Gaussian that is not visible has a gradient");
  }
}

void DriveMesh(Bytes bytes) {
  const int64_t width = 1 + bytes.UpTo(70), height = 1 + bytes.UpTo(70);
  const int64_t num_points = bytes.UpTo(60), num_faces = bytes.UpTo(120);
  const std::vector<float> points = bytes.Values(3 * num_points, 70.0f);
  std::vector<int32_t> faces(3 * num_faces);
  for (int32_t& index : faces) {
    index = static_cast<int32_t>(bytes.UpTo(num_points + 1)) - 1;
  }
  std::vector<int32_t> one(width * height), four(width * height);
  Parallel serial(OneThread().pool()), parallel(FourThreads().pool());
  const Mesh mesh = {points.data(), num_points, faces.data(), num_faces};
  MeshWorkspace work;
  Rasterize(serial, mesh, width, height, work, one.data());
  Rasterize(parallel, mesh, width, height, work, four.data());
  if (one != four) Fail("faces depend on the number of threads");
  for (const int32_t face : one) {
    if (face < -1 || face >= num_faces) Fail("a pixel shows no face of the mesh");
  }
  std::vector<float> weights(3 * width * height), depth(width * height);
  std::vector<float> again = weights, depth_again = depth;
  InterpolateAll(serial, mesh, width, height, one.data(), weights.data(), depth.data());
  InterpolateAll(parallel, mesh, width, height, one.data(), again.data(),
                 depth_again.data());
  if (!Same(weights, again) || !Same(depth, depth_again)) {
    Fail("weights depend on the number of threads");
  }
  for (int64_t i = 0; i < width * height; ++i) {
    const float* w = &weights[3 * i];
    if (one[i] < 0) {
      if (w[0] != 0.0f || w[1] != 0.0f || w[2] != 0.0f || std::isfinite(depth[i])) {
        Fail("the background has a depth");
      }
      continue;
    }
    // Reciprocals of extreme depths are not floats.
    bool ordinary = true;
    for (int k = 0; k < 3; ++k) {
      const float z = points[3 * faces[3 * one[i] + k] + 2];
      ordinary = ordinary && z > 1e-12f && z < 1e12f;
    }
    if (ordinary && !(std::abs(w[0] + w[1] + w[2] - 1.0f) < 1e-5f && depth[i] > 0.0f)) {
      Fail("weights do not sum to one");
    }
  }
}

void Drive(const uint8_t* data, size_t size) {
  const Bytes bytes(data, size);
  if (size > 0 && data[0] >= 192) {
    DriveMesh(bytes);
  } else {
    DriveSplat(bytes);
  }
}

}  // namespace
}  // namespace geodiff

#ifdef FUZZ
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  geodiff::Drive(data, size);
  return 0;
}
#else
int main(int argc, char** argv) {
  if (argc > 1 && std::string(argv[1]) == "print") {
    geodiff::Print();
    return 0;
  }
  const double seconds = argc > 1 ? std::atof(argv[1]) : 10.0;
  std::mt19937 random(argc > 2 ? std::atoi(argv[2]) : 0);
  const auto begin = std::chrono::steady_clock::now();
  int64_t scenes = 0;
  do {
    uint8_t seed[16];
    for (uint8_t& byte : seed) byte = static_cast<uint8_t>(random());
    geodiff::Drive(seed, sizeof(seed));
    ++scenes;
  } while (std::chrono::duration<double>(std::chrono::steady_clock::now() - begin)
               .count() < seconds);
  std::printf("%lld scenes\n", static_cast<long long>(scenes));
}
#endif
