// Mesh rasterizer for GPUs: the nearest face under every pixel centre.
//
// Depth and face are packed into one word and pixels take the least: whatever the order
// of writes, the nearest face wins, the lower index at equal depth. A warp draws a face,
// but leaves large ones to a second kernel, where the whole device draws each.

#include "batch.h"
#include "device.h"
#include "triangle.h"

namespace geodiff {
namespace {

namespace ffi = xla::ffi;
using Packed = unsigned long long;  // Depth's bits | face: CUDA's type for atomicMin.

constexpr Packed kNothing = ~Packed{0};
constexpr int64_t kLargeBox = 4096;  // Pixels of its box that make a face large (ours).
constexpr unsigned kLargeBlocks = 528;  // Four for each of an H100's processors (ours).

struct MeshProblem {
  Batched<float> points;  // (p, 3)
  Batched<int32_t> faces;  // (f, 3)
  int64_t num_meshes, num_points, num_faces, width, height;
  Packed* pixels;          // Of all images.
  uint32_t *large, *num_large;  // Faces of all meshes.
};

__device__ inline bool SetUpFace(const MeshProblem& p, int64_t mesh, int64_t face,
                                 Triangle* triangle) {
  const float* points = p.points.At(mesh);
  const int32_t* corners = p.faces.At(mesh) + 3 * face;
  const float* vertices[3];
  for (int i = 0; i < 3; ++i) {
    const int64_t corner = corners[i];
    if (corner < 0 || corner >= p.num_points) return false;
    vertices[i] = points + 3 * corner;
  }
  return SetUpTriangle(vertices, p.width, p.height, triangle);
}

__device__ inline void DrawPixel(const MeshProblem& p, int64_t mesh, int64_t face,
                                 const Triangle& t, int64_t column, int64_t row) {
  double edge[3];
  for (int i = 0; i < 3; ++i) {
    const int64_t value = EdgeAt(t, i, column, row);
    if (value < t.bias[i]) return;
    edge[i] = static_cast<double>(value);
  }
  const float z = static_cast<float>(1.0 / InverseDepth(t, edge));
  if (!(z < INFINITY)) return;
  Packed* pixel = p.pixels + (mesh * p.height + row) * p.width + column;
  const Packed packed = Packed{FloatBits(z)} << 32 | static_cast<uint32_t>(face);
  // A pixel only ever decreases: what is not below an old value changes nothing.
  if (packed < *pixel) atomicMin(pixel, packed);
}

// A warp per face.
__global__ void __launch_bounds__(kThreads) DrawFaces(MeshProblem p) {
  const int64_t index = ThreadIndex() / kWarp;
  const int lane = threadIdx.x % kWarp;
  if (index >= p.num_meshes * p.num_faces) return;
  const int64_t mesh = index / p.num_faces, face = index % p.num_faces;
  Triangle t;
  if (!SetUpFace(p, mesh, face, &t)) return;
  const int64_t columns = t.column_end - t.column_begin + 1;
  const int64_t box = columns * (t.row_end - t.row_begin + 1);
  if (box > kLargeBox) {
    if (lane == 0) p.large[atomicAdd(p.num_large, 1u)] = static_cast<uint32_t>(index);
    return;
  }
  const int width = static_cast<int>(columns);
  for (int i = lane; i < static_cast<int>(box); i += kWarp) {
    DrawPixel(p, mesh, face, t, t.column_begin + i % width, t.row_begin + i / width);
  }
}

// All blocks draw every large face, row by row in turn.
__global__ void __launch_bounds__(kThreads) DrawLargeFaces(MeshProblem p) {
  const uint32_t count = *p.num_large;
  for (uint32_t k = 0; k < count; ++k) {
    const int64_t index = p.large[k];
    const int64_t mesh = index / p.num_faces, face = index % p.num_faces;
    Triangle t;
    SetUpFace(p, mesh, face, &t);
    for (int64_t row = t.row_begin + blockIdx.x; row <= t.row_end; row += gridDim.x) {
      for (int64_t column = t.column_begin + threadIdx.x; column <= t.column_end;
           column += kThreads) {
        DrawPixel(p, mesh, face, t, column, row);
      }
    }
  }
}

// A thread per pixel.
__global__ void UnpackFaces(const Packed* pixels, int64_t num_pixels, int32_t* face) {
  const int64_t pixel = ThreadIndex();
  if (pixel >= num_pixels) return;
  const Packed packed = pixels[pixel];
  face[pixel] = packed == kNothing ? -1 : static_cast<int32_t>(packed & 0xffffffffu);
}

// points (..., p, 3), faces (..., f, 3), face (..., h, w); leading axes of the operands
// are those of the result, or 1. Scratch: `pixels` (..., h, w, 2), `large` (..., f + 1).
ffi::Error MeshRasterize(Stream stream, ffi::Buffer<ffi::F32> points,
                         ffi::Buffer<ffi::S32> faces, ffi::ResultBuffer<ffi::S32> face,
                         ffi::ResultBuffer<ffi::U32> pixels,
                         ffi::ResultBuffer<ffi::U32> large) {
  const Dimensions image = face->dimensions();
  const size_t rank = image.size();
  if (rank < 2 || rank - 2 > kMaxBatchAxes ||
      !Broadcasts(points.dimensions(), image.first(rank - 2), 2) ||
      !Broadcasts(faces.dimensions(), image.first(rank - 2), 2) ||
      points.dimensions().back() != 3 || faces.dimensions().back() != 3) {
    return ffi::Error::InvalidArgument(
        "mesh_rasterize expects points (..., p, 3), faces (..., f, 3) and a face "
        "image (..., h, w) of equal rank");
  }
  const Dimensions lead = image.first(rank - 2);
  MeshProblem p;
  p.points = {points.typed_data(), lead, points.dimensions(), 2};
  p.faces = {faces.typed_data(), lead, faces.dimensions(), 2};
  p.num_meshes = Product(lead);
  p.num_points = points.dimensions()[rank - 2];
  p.num_faces = faces.dimensions()[rank - 2];
  p.width = image[rank - 1];
  p.height = image[rank - 2];
  const int64_t num_pixels = Product(image), num_faces = p.num_meshes * p.num_faces;
  // A warp per face, and a block's number has 31 bits.
  if (num_faces > int64_t{1} << 30) {
    return ffi::Error::InvalidArgument("mesh_rasterize: more than 2^30 faces");
  }
  if (static_cast<int64_t>(pixels->element_count()) < 2 * num_pixels ||
      static_cast<int64_t>(large->element_count()) < num_faces + 1) {
    return ffi::Error::InvalidArgument("mesh_rasterize: too little scratch");
  }
  if (num_pixels == 0) return ffi::Error::Success();
  p.pixels = reinterpret_cast<Packed*>(pixels->typed_data());
  p.num_large = large->typed_data();
  p.large = large->typed_data() + 1;
  Fill(p.pixels, 0xff, num_pixels * sizeof(Packed), stream);
  Fill(p.num_large, 0, sizeof(uint32_t), stream);
  Launch(DrawFaces, dim3(BlocksFor(num_faces * kWarp)), kThreads, stream, p);
  if (num_faces > 0) Launch(DrawLargeFaces, dim3(kLargeBlocks), kThreads, stream, p);
  Launch(UnpackFaces, dim3(BlocksFor(num_pixels)), kThreads, stream,
         const_cast<const Packed*>(p.pixels), num_pixels, face->typed_data());
  return LastError();
}

}  // namespace
}  // namespace geodiff

#pragma GCC visibility push(default)
GEODIFF_DEVICE_HANDLER(mesh_rasterize_cuda, geodiff::MeshRasterize,
                       xla::ffi::Ffi::Bind()
                           .Ctx<geodiff::StreamContext>()
                           .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
                           .Arg<xla::ffi::Buffer<xla::ffi::S32>>()
                           .Ret<xla::ffi::Buffer<xla::ffi::S32>>()
                           .Ret<xla::ffi::Buffer<xla::ffi::U32>>()
                           .Ret<xla::ffi::Buffer<xla::ffi::U32>>());
#pragma GCC visibility pop
