// Rows times a matrix, plus what is added.
//
// Two programs of a cluster compute neighbouring tiles of 128 rows by COLUMNS and bring half of the matrix's rows to both.
// Rows may lie in two tensors, side by side. One warpgroup asks for copies, two multiply 64 rows each. What is to be added
// comes to where the result is put together, from where the copy engine takes it while the next tile is computed.
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

struct Place {
  int stage = 0, phase = 0;
  __device__ __forceinline__ void next() { if (++stage == STAGES) { stage = 0; phase ^= 1; } }
};

extern "C" __global__ __launch_bounds__(384, 1) void multiplied(
    const __grid_constant__ Tiles left, const __grid_constant__ Tiles beside_left, const __grid_constant__ Tiles right,
    const __grid_constant__ Tiles other, const __grid_constant__ Tiles y, int adds, const uint16* bias, int depth,
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
      int turn = 1, early = min(STAGES, steps);
      auto bring_right = [&](int tile, int at_depth, int stage) {
        barrier_expect(full + 8 * stage, STAGE);
        copy_2d_to(stages + stage * STAGE + LEFT + mine * (RIGHT / PAIR), &right, full + 8 * stage, at_depth, tile % across * COLUMNS + mine * (COLUMNS / PAIR), 3);
      };
      for (int i = 0; i < early; i++) bring_right(first, i * DEPTH, i);
      wait_for_predecessor();
      let_successor_begin();
      for (int tile = first; tile < tiles; tile += pairs) {
        int row = (tile / across * PAIR + mine) * ROWS, column = tile % across * COLUMNS;
        for (int at_depth = 0; at_depth < depth; at_depth += DEPTH) {
          uint32 at = stages + place.stage * STAGE, barrier = full + 8 * place.stage;
          if (--early < 0) {
            barrier_wait(empty + 8 * place.stage, place.phase ^ 1);
            bring_right(tile, at_depth, place.stage);
          }
          if (at_depth < first_depth) copy_2d(at, &left, barrier, at_depth, row);
          else copy_2d(at, &beside_left, barrier, at_depth - first_depth, row);
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
    wait_for_predecessor();
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
        for (int k = 0; k < DEPTH / 16; k++) NAMED(product_, COLUMNS)(sums, a + 2 * k, b + 2 * k, 1);
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
      } else {
        sync_some(1 + group, 128);  // after `reuse`
      }
      #pragma unroll
      for (int i = 0; i < COLUMNS / 16; i++) {
        uint32 v[4] = {0, 0, 0, 0};
        if (adds) read_matrices(v, place_of(i));
        #pragma unroll
        for (int j = 0; j < 4; j++) v[j] = packed(sums[8 * i + 2 * j] + low_of(v[j]), sums[8 * i + 2 * j + 1] + high_of(v[j]));
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
    }
    if (stored && thread == 0) stores_wait();
  }
  cluster_meet();  // nobody leaves while another may still write beside it
}
