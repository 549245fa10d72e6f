// Attention to few keys, a prompt's: a program has all keys and values of one head beside the processor.
//
// A warp takes sixteen queries at a time. All their scores are known at once, so these and the weights stay in its
// registers; meanwhile the next queries come. What has been found goes through the queries' place to be written in rows.
// Beside the processor each eight channels have a column of 16 bytes for each key or query, and 16 more: then neither
// rows of a column nor columns of a row meet in its banks.
#include "hopper.cuh"

constexpr int VECTORS = CHANNELS / 8, PAIRS = VECTORS / 2;
constexpr bool ODD = VECTORS % 2;
constexpr int ROWS = 16, TILES = KEYS / 8;  // queries of a warp, and tiles of their scores
constexpr int EACH = (ROWS * VECTORS + 31) / 32;  // vectors of them that a thread copies
constexpr int TOGETHER = KEYS <= 96 ? 4 : 1;  // pairs of results whose sums need not wait for each other
constexpr int COLUMN = 16 * KEYS + 16, COLUMN_OF_ROWS = 16 * ROWS + 16, PLACE = VECTORS * COLUMN_OF_ROWS;  // bytes

// As `read_matrices` and `write_matrices`, but two, or turned.
__device__ __forceinline__ void read_two(uint32& v, uint32& w, uint32 address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];" : "=r"(v), "=r"(w) : "r"(address) : "memory");
}
__device__ __forceinline__ void read_turned(uint32 (&v)[4], uint32 address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
    : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3]) : "r"(address) : "memory");
}
__device__ __forceinline__ void read_two_turned(uint32& v, uint32& w, uint32 address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];" : "=r"(v), "=r"(w) : "r"(address) : "memory");
}
__device__ __forceinline__ void write_two(uint32 address, uint32 v, uint32 w) {
  asm volatile("stmatrix.sync.aligned.m8n8.x2.shared.b16 [%0], {%1, %2};" :: "r"(address), "r"(v), "r"(w) : "memory");
}

#ifdef HALF
#define KINDS "f32.f16.f16.f32"
#else
#define KINDS "f32.bf16.bf16.f32"
#endif
// A warp's product of 16 x 16 and 16 x 8 numbers, and of 16 x 8 and 8 x 8.
__device__ __forceinline__ void multiply(float (&d)[4], const uint32 (&a)[4], uint32 b0, uint32 b1) {
  asm("mma.sync.aligned.m16n8k16.row.col." KINDS " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
    : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ __forceinline__ void multiply(float (&d)[4], const uint32 (&a)[2], uint32 b) {
  asm("mma.sync.aligned.m16n8k8.row.col." KINDS " {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
    : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(b));
}

// Of the four threads that share a row of scores.
__device__ __forceinline__ float most_of_row(float v) {
  v = fmaxf(v, __shfl_xor_sync(0xffffffff, v, 1));
  return fmaxf(v, __shfl_xor_sync(0xffffffff, v, 2));
}
__device__ __forceinline__ float sum_of_row(float v) {
  v += __shfl_xor_sync(0xffffffff, v, 1);
  return v + __shfl_xor_sync(0xffffffff, v, 2);
}

// A warp's copies of a tile of queries; rows that are not there are the last one.
__device__ __forceinline__ void ask(uint32 to, const uint16* q, int row, int rows, int q_row, int lane) {
  #pragma unroll
  for (int i = 0; i < EACH; i++) {
    int at = lane + 32 * i, down = at / VECTORS, vector = at % VECTORS;
    const uint16* from = q + (uint32)(min(row + down, rows - 1) * q_row + 8 * vector);
    if (at < ROWS * VECTORS) copy_16(to + vector * COLUMN_OF_ROWS + 16 * down, from);
  }
}

extern __shared__ __align__(128) uint8 shared[];

extern "C" __global__ __launch_bounds__(32 * WARPS) void short_attention(
    const uint16* q, const uint16* k, const uint16* v, uint16* y, int rows, int keys, int tiles, int q_batch, int q_row,
    int k_batch, int k_row, int v_batch, int v_row, float scale) {
  int thread = threadIdx.x, threads = blockDim.x, lane = thread & 31, warp = thread / 32;
  int head = blockIdx.x, batch = blockIdx.z, width = gridDim.x * CHANNELS, step = threads / 32 * ROWS;
  int first = blockIdx.y * tiles * ROWS, end = min(first + tiles * ROWS, rows), row = first + warp * ROWS;
  uint32 near_keys = near(shared), near_values = near_keys + VECTORS * COLUMN;
  uint32 here = near_values + VECTORS * COLUMN + 2 * warp * PLACE, there = here + PLACE;
  q += (long long)batch * q_batch + head * CHANNELS;
  k += (long long)batch * k_batch + head * CHANNELS;
  v += (long long)batch * v_batch + head * CHANNELS;
  y += (long long)batch * rows * width + head * CHANNELS;
  asm volatile("" : "+l"(q), "+l"(y), "+r"(end));  // or they are computed anew for each tile

  wait_for_predecessor();
  let_successor_begin();
  for (int i = thread; i < KEYS * VECTORS; i += threads) {
    int key = i / VECTORS, vector = i % VECTORS;
    uint32 to = vector * COLUMN + 16 * key;
    if (key < keys) {
      copy_16(near_keys + to, k + (uint32)(key * k_row + 8 * vector));
      copy_16(near_values + to, v + (uint32)(key * v_row + 8 * vector));
    } else {
      write_16(near_keys + to, make_uint4(0, 0, 0, 0));
      write_16(near_values + to, make_uint4(0, 0, 0, 0));
    }
  }
  if (row < end) ask(here, q, row, rows, q_row, lane);
  copies_commit();
  if (row + step < end) ask(there, q, row + step, rows, q_row, lane);
  copies_commit();
  copies_wait<1>();
  __syncthreads();

  // where a thread finds its row of four matrices, of two columns and sixteen rows: first those of the first column, but
  // of keys, which are a product's columns, those of the first eight
  int by_column = lane % 16 * 16, of_column = lane / 16;
  uint32 keys_of_lane = near_keys + (lane % 8 + lane / 16 * 8) * 16 + lane / 8 % 2 * COLUMN;
  uint32 values_of_lane = near_values + by_column + of_column * COLUMN;
  int left = keys - (KEYS - 16) - lane % 4 * 2;  // keys in the last two tiles from the thread's first number on
  for (; row < end; row += step) {
    uint32 queries = here + by_column + of_column * COLUMN_OF_ROWS;
    uint32 asked[PAIRS][4], rest[2];
    #pragma unroll
    for (int pair = 0; pair < PAIRS; pair++) read_matrices(asked[pair], queries + 2 * pair * COLUMN_OF_ROWS);
    if (ODD) read_two(rest[0], rest[1], here + by_column + (VECTORS - 1) * COLUMN_OF_ROWS);
    float scores[TILES][4];
    #pragma unroll
    for (int tile = 0; tile < TILES; tile += 2) {
      #pragma unroll
      for (int i = 0; i < 8; i++) scores[tile + i / 4][i % 4] = 0.0f;
      #pragma unroll
      for (int pair = 0; pair < PAIRS; pair++) {
        uint32 b[4];
        read_matrices(b, keys_of_lane + 2 * pair * COLUMN + 128 * tile);
        multiply(scores[tile], asked[pair], b[0], b[1]);
        multiply(scores[tile + 1], asked[pair], b[2], b[3]);
      }
      if (ODD) {
        uint32 one, other;
        read_two(one, other, near_keys + by_column + (VECTORS - 1) * COLUMN + 128 * tile);
        multiply(scores[tile], rest, one);
        multiply(scores[tile + 1], rest, other);
      }
    }
    #pragma unroll
    for (int i = 0; i < 8; i++) {
      if (i / 4 * 8 + i % 2 >= left) scores[TILES - 2 + i / 4][i % 4] = -__int_as_float(0x7f800000);
    }

    uint32 weights[TILES / 2][4];
    float inverse[2];
    #pragma unroll
    for (int half = 0; half < 2; half++) {  // rows of the thread, eight apart
      float most = scores[0][2 * half], sum = 0.0f;
      #pragma unroll
      for (int tile = 0; tile < TILES; tile++) most = fmaxf(most, fmaxf(scores[tile][2 * half], scores[tile][2 * half + 1]));
      most = most_of_row(most) * scale;
      #pragma unroll
      for (int tile = 0; tile < TILES; tile++) {
        float a = exp2_of(fmaf(scores[tile][2 * half], scale, -most)), b = exp2_of(fmaf(scores[tile][2 * half + 1], scale, -most));
        sum += a + b;
        weights[tile / 2][tile % 2 * 2 + half] = packed(a, b);
      }
      inverse[half] = inverse_of(sum_of_row(sum));
    }

    __syncwarp();  // queries have been read
    uint32 found[TOGETHER][4];
    #pragma unroll
    for (int pair = 0; pair < PAIRS; pair++) {
      float sums[2][4] = {};
      #pragma unroll
      for (int i = 0; i < TILES / 2; i++) {
        uint32 b[4];
        read_turned(b, values_of_lane + 2 * pair * COLUMN + 256 * i);
        multiply(sums[0], weights[i], b[0], b[1]);
        multiply(sums[1], weights[i], b[2], b[3]);
      }
      #pragma unroll
      for (int i = 0; i < 4; i++) {
        const float* two = sums[i / 2] + i % 2 * 2;
        found[pair % TOGETHER][i] = packed(two[0] * inverse[i % 2], two[1] * inverse[i % 2]);
      }
      if (pair % TOGETHER == TOGETHER - 1 || pair == PAIRS - 1) {
        #pragma unroll
        for (int i = pair / TOGETHER * TOGETHER; i <= pair; i++) write_matrices(queries + 2 * i * COLUMN_OF_ROWS, found[i % TOGETHER]);
      }
    }
    if (ODD) {
      float sums[4] = {};
      #pragma unroll
      for (int i = 0; i < TILES / 2; i++) {
        uint32 one, other;
        read_two_turned(one, other, near_values + by_column + (VECTORS - 1) * COLUMN + 256 * i);
        multiply(sums, weights[i], one, other);
      }
      write_two(here + by_column + (VECTORS - 1) * COLUMN_OF_ROWS, packed(sums[0] * inverse[0], sums[1] * inverse[0]),
        packed(sums[2] * inverse[1], sums[3] * inverse[1]));
    }
    __syncwarp();
    uint4 result[EACH];
    #pragma unroll
    for (int i = 0; i < EACH; i++) {
      int at = min(lane + 32 * i, ROWS * VECTORS - 1);
      result[i] = read_16(here + at % VECTORS * COLUMN_OF_ROWS + at / VECTORS * 16);
    }
    #pragma unroll
    for (int i = 0; i < EACH; i++) {
      int at = lane + 32 * i, to = row + at / VECTORS;
      if (at < ROWS * VECTORS && to < rows) *(uint4*)(y + (uint32)(to * width + at % VECTORS * 8)) = result[i];
    }
    __syncwarp();
    if (row + 2 * step < end) ask(here, q, row + 2 * step, rows, q_row, lane);
    copies_commit();
    copies_wait<1>();  // the next queries are there, of which each thread has copied some
    __syncwarp();
    uint32 other = here;
    here = there;
    there = other;
  }
}
