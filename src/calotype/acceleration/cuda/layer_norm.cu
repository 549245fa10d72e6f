// Layer norm of rows, or of the sum of two, which is written too.
//
// `lanes` neighbours (a power of two) have a row, each VECTORS times eight numbers of it, in registers.
#include "hopper.cuh"

struct Eight { float of[8]; };

__device__ __forceinline__ Eight unpacked(uint4 v) {
  return {low_of(v.x), high_of(v.x), low_of(v.y), high_of(v.y), low_of(v.z), high_of(v.z), low_of(v.w), high_of(v.w)};
}
__device__ __forceinline__ uint4 packed(const Eight& v) {
  return make_uint4(packed(v.of[0], v.of[1]), packed(v.of[2], v.of[3]), packed(v.of[4], v.of[5]), packed(v.of[6], v.of[7]));
}
__device__ __forceinline__ float of_row(float v, int lanes) {
  for (int apart = lanes / 2; apart > 0; apart /= 2) v += __shfl_xor_sync(0xffffffff, v, apart);
  return v;
}

extern "C" __global__ __launch_bounds__(128) void layer_norm(
    const uint16* x, const uint16* more, uint16* total, uint16* y, const uint16* weight, const uint16* bias, int rows,
    int width, int lanes, float eps) {
  int thread = blockIdx.x * blockDim.x + threadIdx.x, row = thread / lanes, lane = thread % lanes, vectors = width / 8;
  bool there = row < rows;
  long long at = (long long)row * vectors + lane;
  uint4 kept[VECTORS], weights[VECTORS], biases[VECTORS];
  #pragma unroll
  for (int i = 0; i < VECTORS; i++) {
    if (lane + i * lanes < vectors) {
      weights[i] = __ldg((const uint4*)weight + lane + i * lanes);
      biases[i] = __ldg((const uint4*)bias + lane + i * lanes);
    }
  }
  wait_for_predecessor();
  let_successor_begin();
  #pragma unroll
  for (int i = 0; i < VECTORS; i++) {
    kept[i] = there && lane + i * lanes < vectors ? ((const uint4*)x)[at + i * lanes] : make_uint4(0, 0, 0, 0);
  }
  if (more) {
    uint4 v[VECTORS];
    #pragma unroll
    for (int i = 0; i < VECTORS; i++) {
      v[i] = there && lane + i * lanes < vectors ? ((const uint4*)more)[at + i * lanes] : make_uint4(0, 0, 0, 0);
    }
    #pragma unroll
    for (int i = 0; i < VECTORS; i++) {
      kept[i] = make_uint4(added(kept[i].x, v[i].x), added(kept[i].y, v[i].y), added(kept[i].z, v[i].z), added(kept[i].w, v[i].w));
      if (there && lane + i * lanes < vectors) ((uint4*)total)[at + i * lanes] = kept[i];
    }
  }
  float mean = 0.0f, squares = 0.0f;
  #pragma unroll
  for (int i = 0; i < VECTORS; i++) {
    Eight v = unpacked(kept[i]);
    mean += ((v.of[0] + v.of[1]) + (v.of[2] + v.of[3])) + ((v.of[4] + v.of[5]) + (v.of[6] + v.of[7]));
  }
  mean = of_row(mean, lanes) / width;
  #pragma unroll
  for (int i = 0; i < VECTORS; i++) {
    if (lane + i * lanes >= vectors) continue;
    Eight v = unpacked(kept[i]);
    #pragma unroll
    for (int j = 0; j < 8; j++) squares = fmaf(v.of[j] - mean, v.of[j] - mean, squares);
  }
  float factor = rsqrtf(of_row(squares, lanes) / width + eps);
  if (!there) return;
  #pragma unroll
  for (int i = 0; i < VECTORS; i++) {
    if (lane + i * lanes >= vectors) continue;
    Eight v = unpacked(kept[i]), w = unpacked(weights[i]), b = unpacked(biases[i]);
    #pragma unroll
    for (int j = 0; j < 8; j++) v.of[j] = fmaf((v.of[j] - mean) * factor, w.of[j], b.of[j]);
    ((uint4*)y)[at + i * lanes] = packed(v);
  }
}
