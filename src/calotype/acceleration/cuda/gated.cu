// Values times gelu(gates), where values and gates are products of the same rows with two halves of one matrix.
//
// Two programs of a cluster compute 256 rows by 128 columns: each has its own 128 rows of the left operand and brings half
// of the right one's rows to both. One warpgroup asks for the copies, two multiply 64 rows each; a program goes on to
// further tiles while what it found is written.
#include "hopper.cuh"
#include "products.cuh"

#define ROWS 128
#define COLUMNS 128
#define DEPTH 64
#define LEFT (ROWS * DEPTH * 2)
#define RIGHT (2 * COLUMNS * DEPTH * 2)
#define STAGE (LEFT + RIGHT)
#define CLUSTER 2

// x · Φ(x) = max(x, 0) - |x| · Φ(-|x|), where the logarithm of Φ(-|x|) is nearly a parabola: a polynomial of degree 5, fitted on
// 0 to 6 with the weight (0.02 + |x| Φ(-|x|))², is within 8.1e-4 of Φ(-|x|), relative, and within 1.5e-5 of the result.
__device__ __forceinline__ float gelu(float x) {
  float a = fabsf(x), p = fmaf(-0.000233668666f, a, 0.00491330674f);
  p = fmaf(p, a, -0.0449120668f);
  p = fmaf(p, a, -0.469196557f);
  p = fmaf(p, a, -1.14596771f);
  p = fmaf(p, a, -1.00075298f);
  return fmaf(-a, exp2_of(p), fmaxf(x, 0.0f));
}

extern "C" __global__ __launch_bounds__(384, 1) void gated(
    const __grid_constant__ Tiles left, const __grid_constant__ Tiles right, const uint16* bias, uint16* y, int rows,
    int half, int depth, int down, int across, int rows_first) {
  extern __shared__ uint8 memory[];
  uint32 stages = (near(memory) + 1023) & ~1023u;
  uint32 full = stages + STAGES * STAGE, empty = full + 8 * STAGES;
  int group = threadIdx.x / 128;
  uint32 rank = rank_in_cluster();
  if (threadIdx.x == 0) {
    prefetch_tiles(&left);
    prefetch_tiles(&right);
    for (int i = 0; i < STAGES; i++) {
      barrier_init(full + 8 * i, 1);
      barrier_init(empty + 8 * i, 2 * CLUSTER);
    }
    barriers_are_known();
  }
  cluster_meet();
  int tiles = down * across, pairs = gridDim.x / CLUSTER, first = blockIdx.x / CLUSTER, steps = depth / DEPTH;
  if (group == 0) {
    give_registers<40>();
    if (threadIdx.x == 0) {
      int stage = 0, phase = 0, early = min(STAGES, steps);
      auto bring_right = [&](int tile, int step, int stage) {
        int part = COLUMNS / CLUSTER, of = (rows_first ? tile / down : tile % across) * COLUMNS + rank * part;
        uint32 to = stages + stage * STAGE + LEFT + rank * part * DEPTH * 2, barrier = full + 8 * stage;
        barrier_expect(barrier, STAGE);
        copy_2d_to(to, &right, barrier, step * DEPTH, of, 3);
        copy_2d_to(to + RIGHT / 2, &right, barrier, step * DEPTH, half + of, 3);
      };
      for (int i = 0; i < early; i++) bring_right(first, i, i);
      wait_for_predecessor();
      let_successor_begin();
      for (int tile = first; tile < tiles; tile += pairs) {
        int row = (rows_first ? tile % down : tile / across) * ROWS * CLUSTER + rank * ROWS;
        for (int step = 0; step < steps; step++) {
          if (--early < 0) {
            barrier_wait(empty + 8 * stage, phase ^ 1);
            bring_right(tile, step, stage);
          }
          copy_2d(stages + stage * STAGE, &left, full + 8 * stage, step * DEPTH, row);
          if (++stage == STAGES) { stage = 0; phase ^= 1; }
        }
      }
    }
    __syncwarp();
  } else {
    take_registers<232>();
    wait_for_predecessor();
    int thread = threadIdx.x % 128, lane = thread % 32, stage = 0, phase = 0;
    uint32 mine = (group - 1) * 64 * DEPTH * 2;
    for (int tile = first; tile < tiles; tile += pairs) {
      float sums[128];
      for (int step = 0; step < steps; step++) {
        uint32 at = stages + stage * STAGE;
        barrier_wait(full + 8 * stage, phase);
        uint64 a = described(at + mine), b = described(at + LEFT);
        products_begin();
        #pragma unroll
        for (int k = 0; k < DEPTH / 16; k++) product_256(sums, a + 2 * k, b + 2 * k, step > 0 || k > 0);
        products_commit();
        if (step > 0) {
          products_wait<1>();
          int before = (stage + STAGES - 1) % STAGES;
          if (thread < CLUSTER) barrier_arrive_beside(beside(empty + 8 * before, thread));
        }
        if (++stage == STAGES) { stage = 0; phase ^= 1; }
      }
      int row = (rows_first ? tile % down : tile / across) * ROWS * CLUSTER + rank * ROWS;
      row += (group - 1) * 64 + thread / 32 * 16 + lane / 4;
      int column = (rows_first ? tile / down : tile % across) * COLUMNS, pair = lane % 4;
      uint32 values[COLUMNS / 8], gates[COLUMNS / 8];  // biases, which come while the last products are computed
      #pragma unroll
      for (int i = 0; i < COLUMNS / 8; i++) {
        values[i] = __ldg((const uint32*)(bias + column) + pair + 4 * i);
        gates[i] = __ldg((const uint32*)(bias + half + column) + pair + 4 * i);
      }
      products_wait<0>();
      pin(sums);
      if (thread < CLUSTER) barrier_arrive_beside(beside(empty + 8 * ((stage + STAGES - 1) % STAGES), thread));
      #pragma unroll
      for (int j = 0; j < COLUMNS / 8; j += 4) {
        uint32 above[4], below[4];
        #pragma unroll
        for (int i = 0; i < 4; i++) {
          int at = 4 * (j + i);
          uint32 v = values[j + i], g = gates[j + i];
          float v0 = low_of(v), v1 = high_of(v), g0 = low_of(g), g1 = high_of(g);
          above[i] = packed((sums[at] + v0) * gelu(sums[64 + at] + g0), (sums[at + 1] + v1) * gelu(sums[65 + at] + g1));
          below[i] = packed((sums[at + 2] + v0) * gelu(sums[66 + at] + g0), (sums[at + 3] + v1) * gelu(sums[67 + at] + g1));
        }
        gather(above, lane);
        gather(below, lane);
        uint16* to = y + (long long)row * half + column + 8 * (j + pair);
        if (row < rows) *(uint4*)to = make_uint4(above[0], above[1], above[2], above[3]);
        if (row + 8 < rows) *(uint4*)(to + 8ll * half) = make_uint4(below[0], below[1], below[2], below[3]);
      }
    }
  }
  cluster_meet();  // nobody leaves while another may still write beside it
}
