// Rows times a matrix, plus what is added, and if asked the layer norm of that.
//
// Two programs of a cluster compute neighbouring tiles of 128 rows by COLUMNS and bring half of the matrix's rows to both.
// Rows may lie in two tensors, side by side. One warpgroup asks for copies, two multiply 64 rows each. What is to be added
// comes to where the result is put together, from where the copy engine takes it while the next tile is computed.
//
// A norm needs whole rows, which are ACROSS tiles. Programs tell each other by memory what they found of their parts of the
// rows, and wait for it, so all must run at the same time: there are no more than fit on the device, the launch is
// cooperative, and programs that have the same rows compute them in the same turn.
#include "hopper.cuh"
#include "products.cuh"

#define ROWS 128
#define DEPTH 64
#define LEFT (ROWS * DEPTH * 2)
#define RIGHT (COLUMNS * DEPTH * 2)
#define STAGE (LEFT + RIGHT)
#define COUNT (COLUMNS / 2)
#define BOX 32                        // columns that the copy engine adds or takes at a time, in rows of 64 bytes
#define BOXES (COLUMNS / BOX)
#define PAIR 2
#define MOST_PARTS 16
#define GLUE2(a, b) a##b
#define GLUE(a, b) GLUE2(a, b)

// Mean of some numbers and squares of their deviations from it, summed.
struct Part { float mean, squares; };

struct Place {
  int stage = 0, phase = 0;
  __device__ __forceinline__ void next() { if (++stage == STAGES) { stage = 0; phase ^= 1; } }
};

__device__ __forceinline__ float of_quad(float v) {
  v += __shfl_xor_sync(0xffffffff, v, 1);
  return v + __shfl_xor_sync(0xffffffff, v, 2);
}

// What programs tell each other by the device's memory. `tell` comes after all that its warpgroup has written.
__device__ __forceinline__ void tell(int* count) { asm volatile("red.release.gpu.global.add.s32 [%0], 1;" :: "l"(count) : "memory"); }
__device__ __forceinline__ int hear(const int* count) { int v; asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(v) : "l"(count) : "memory"); return v; }
__device__ __forceinline__ int leave(int* count) { int v; asm volatile("atom.relaxed.gpu.global.add.s32 %0, [%1], 1;" : "=r"(v) : "l"(count) : "memory"); return v; }
__device__ __forceinline__ void write_far(Part* to, Part v) { asm volatile("st.relaxed.gpu.global.v2.f32 [%0], {%1, %2};" :: "l"(to), "f"(v.mean), "f"(v.squares) : "memory"); }
__device__ __forceinline__ Part read_far(const Part* from) { Part v; asm volatile("ld.relaxed.gpu.global.v2.f32 {%0, %1}, [%2];" : "=f"(v.mean), "=f"(v.squares) : "l"(from) : "memory"); return v; }

// `counts` are, for each 64 rows, of the programs that have found their parts and of those that have read all: the last one
// of the latter leaves zero again.
extern "C" __global__ __launch_bounds__(384, 1) void multiplied(
    const __grid_constant__ Tiles left, const __grid_constant__ Tiles beside_left, const __grid_constant__ Tiles right,
    const __grid_constant__ Tiles other, const __grid_constant__ Tiles y, int adds, const uint16* bias, uint16* normed,
    const uint16* norm_weight, const uint16* norm_bias, Part* parts, int* counts, float eps, int rows, int out, int depth,
    int first_depth, int down, int across) {
  extern __shared__ uint8 memory[];
  uint32 stages = (near(memory) + 1023) & ~1023u, result = stages + STAGES * STAGE;
  uint32 full = result + ROWS * COLUMNS * 2, empty = full + 8 * STAGES, there = empty + 8 * STAGES, taken = there + 8;
  int group = threadIdx.x / 128;
  uint32 mine = rank_in_cluster();
  if (threadIdx.x == 0) {
    prefetch_tiles(&left);
    prefetch_tiles(&right);
    prefetch_tiles(&y);
    for (int i = 0; i < STAGES; i++) {
      barrier_init(full + 8 * i, 1);
      barrier_init(empty + 8 * i, 2 * PAIR);
    }
    barrier_init(there, 1);
    barrier_init(taken, 2);
    barriers_are_known();
  }
  cluster_meet();
  int tiles = down * across, pairs = gridDim.x / PAIR, first = blockIdx.x / PAIR, steps = depth / DEPTH;
  Place place;
  if (group == 0) {
    give_registers<40>();
    if (threadIdx.x == 0) {
      int turn = 1;
      for (int tile = first; tile < tiles; tile += pairs) {
        int row = (tile / across * PAIR + mine) * ROWS, column = tile % across * COLUMNS;
        for (int at_depth = 0; at_depth < depth; at_depth += DEPTH) {
          uint32 at = stages + place.stage * STAGE, barrier = full + 8 * place.stage;
          barrier_wait(empty + 8 * place.stage, place.phase ^ 1);
          barrier_expect(barrier, STAGE);
          if (at_depth < first_depth) copy_2d(at, &left, barrier, at_depth, row);
          else copy_2d(at, &beside_left, barrier, at_depth - first_depth, row);
          copy_2d_to(at + LEFT + mine * (RIGHT / PAIR), &right, barrier, at_depth, column + mine * (COLUMNS / PAIR), 3);
          place.next();
        }
        if (adds) {
          barrier_wait(taken, turn);
          barrier_expect(there, ROWS * COLUMNS * 2);
          #pragma unroll
          for (int i = 0; i < BOXES; i++) copy_2d(result + i * (ROWS * BOX * 2), &other, there, column + i * BOX, row);
          turn ^= 1;
        }
      }
    }
    __syncwarp();
  } else {
    take_registers<232>();
    int thread = threadIdx.x % 128, lane = thread % 32, warp = threadIdx.x / 32 - 4, turn = 0, before = 0;
    uint32 slab = (group - 1) * 64 * DEPTH * 2;
    // 16 rows of a warp in the result, whose rows of 64 bytes are swizzled; half of the lanes have every second run of 8 columns
    uint32 part = result + (warp * 16 + lane % 16) * 64;
    int turned = lane / 2 % 4;
    auto place_of = [&](int i) { return part + i / 2 * (ROWS * BOX * 2) + ((i % 2 * 2 + lane / 16) ^ turned) * 16; };
    bool stored = false;
    for (int tile = first; tile < tiles; tile += pairs) {
      int row = (tile / across * PAIR + mine) * ROWS, column = tile % across * COLUMNS;
      float sums[COUNT];
      #pragma unroll
      for (int i = 0; i < COLUMNS / 8; i++) {
        uint32 b = bias ? __ldg((const uint32*)(bias + column + 8 * i) + lane % 4) : 0;
        sums[4 * i] = sums[4 * i + 2] = low_of(b);
        sums[4 * i + 1] = sums[4 * i + 3] = high_of(b);
      }
      auto release = [&]() { if (thread < PAIR) barrier_arrive_beside(beside(empty + 8 * before, thread)); };
      // the last result has been read, and its place may be used again
      auto reuse = [&]() {
        if (stored) {
          if (thread == 0) {
            stores_wait();
            barrier_arrive(taken);
          }
          stored = false;
        }
      };
      pin(sums);
      for (int step = 0; step < steps; step++) {
        uint32 at = stages + place.stage * STAGE;
        barrier_wait(full + 8 * place.stage, place.phase);
        uint64 a = described(at + slab), b = described(at + LEFT);
        products_begin();
        #pragma unroll
        for (int k = 0; k < DEPTH / 16; k++) GLUE(product_, COLUMNS)(sums, a + 2 * k, b + 2 * k, 1);
        products_commit();
        if (step > 0) {
          products_wait<1>();
          release();
        } else {
          reuse();
        }
        before = place.stage;
        place.next();
      }
      products_wait<0>();
      pin(sums);
      release();
      if (adds) {
        barrier_wait(there, turn);
        turn ^= 1;
        #pragma unroll
        for (int i = 0; i < COLUMNS / 16; i++) {
          uint32 v[4];
          read_matrices(v, place_of(i));
          #pragma unroll
          for (int j = 0; j < 4; j++) {
            sums[8 * i + 2 * j] += low_of(v[j]);
            sums[8 * i + 2 * j + 1] += high_of(v[j]);
          }
        }
      }
      int at = row + warp * 16 + lane / 4, block = row / 64 + group - 1;
      if (normed) {
        #pragma unroll
        for (int half = 0; half < 2; half++) {
          float mean = 0.0f, squares = 0.0f;
          #pragma unroll
          for (int i = 2 * half; i < COUNT; i += 4) mean += sums[i] + sums[i + 1];
          mean = of_quad(mean) * (1.0f / COLUMNS);
          #pragma unroll
          for (int i = 2 * half; i < COUNT; i += 4) {
            float low = sums[i] - mean, high = sums[i + 1] - mean;
            squares = fmaf(low, low, fmaf(high, high, squares));
          }
          squares = of_quad(squares);
          if (lane % 4 == 0) write_far(parts + (long long)(at + 8 * half) * across + column / COLUMNS, {mean, squares});
        }
      }
      if (!adds) sync_some(1 + group, 128);  // after `reuse`
      #pragma unroll
      for (int i = 0; i < COLUMNS / 16; i++) {
        uint32 v[4];
        #pragma unroll
        for (int j = 0; j < 4; j++) v[j] = packed(sums[8 * i + 2 * j], sums[8 * i + 2 * j + 1]);
        write_matrices(place_of(i), v);
      }
      fence_for_copies();
      sync_some(1 + group, 128);
      if (thread == 0) {
        #pragma unroll
        for (int i = 0; i < BOXES; i++) {
          store_2d(&y, result + i * (ROWS * BOX * 2) + (group - 1) * (64 * BOX * 2), column + i * BOX, row + (group - 1) * 64);
        }
        stores_commit();
      }
      stored = true;
      if (normed) {
        uint32 weights[COLUMNS / 8], biases[COLUMNS / 8];  // come while others are waited for
        #pragma unroll
        for (int i = 0; i < COLUMNS / 8; i++) {
          weights[i] = __ldg((const uint32*)(norm_weight + column) + lane % 4 + 4 * i);
          biases[i] = __ldg((const uint32*)(norm_bias + column) + lane % 4 + 4 * i);
        }
        if (thread == 32) {
          tell(counts + block);
          while (hear(counts + block) < across) { }
          if (leave(counts + block) == 2 * across - 1) counts[block] = 0;
        }
        sync_some(1 + group, 128);
        Part its[2][MOST_PARTS / 4];
        #pragma unroll
        for (int i = 0; i < MOST_PARTS / 2; i++) {
          int half = i % 2, which = i / 2 * 4 + lane % 4;
          its[half][i / 2] = which < across ? read_far(parts + (long long)(at + 8 * half) * across + which) : Part{0.0f, 0.0f};
        }
        #pragma unroll
        for (int half = 0; half < 2; half++) {
          float mean = 0.0f, squares = 0.0f;
          #pragma unroll
          for (int i = 0; i < MOST_PARTS / 4; i++) mean += its[half][i].mean;
          mean = of_quad(mean) * inverse_of(across);
          #pragma unroll
          for (int i = 0; i < MOST_PARTS / 4; i++) {
            float apart = its[half][i].mean - mean;
            if (4 * i + lane % 4 < across) squares += fmaf(COLUMNS * apart, apart, its[half][i].squares);
          }
          float factor = rsqrtf(of_quad(squares) * inverse_of(across * COLUMNS) + eps), offset = -mean * factor;
          uint16* to = normed + (long long)(at + 8 * half) * out + column + lane % 4 * 8;
          #pragma unroll
          for (int j = 0; j < COLUMNS / 8; j += 4) {
            uint32 given[4];
            #pragma unroll
            for (int i = 0; i < 4; i++) {
              uint32 w = weights[j + i], b = biases[j + i];
              float low = fmaf(sums[4 * (j + i) + 2 * half], factor, offset), high = fmaf(sums[4 * (j + i) + 2 * half + 1], factor, offset);
              given[i] = packed(fmaf(low, low_of(w), low_of(b)), fmaf(high, high_of(w), high_of(b)));
            }
            gather(given, lane);
            if (at + 8 * half < rows) *(uint4*)(to + 8 * j) = make_uint4(given[0], given[1], given[2], given[3]);
          }
        }
      }
    }
    if (stored && thread == 0) stores_wait();
  }
  cluster_meet();  // nobody leaves while another may still write beside it
}
