// softmax(scale Q K^T) V of heads of CHANNELS channels, with no mask.
//
// A program takes 64 queries of one head for each of its WARPGROUPS and walks over the keys, KEYS at a time. One thread of
// a further warpgroup asks the copy engine for keys, and for the values of the keys before, which come into a ring of STAGES.
// A warpgroup asks for the scores of the next keys together with the sums of these values; while it waits, others compute
// exponentials, of which POLYNOMIAL of eight without the unit that has instructions for them. Values get a column of ones
// beside them, so that the product with them, of WIDTH = CHANNELS + 8 columns, also sums the weights, as they are rounded.
//
// Weights are powers of two of scores above a level. In bfloat16 the level is the greatest score of the first keys: what
// weights are rounded to does not depend on it, so nothing is watched or changed on the way. Where the sums show in the end
// that scores were too far above it, a row is computed again `carefully`. In float16 the level follows the greatest score.
#include "hopper.cuh"
#include "products.cuh"

#define BOXES ((CHANNELS + 63) / 64)     // of 64 channels; those past CHANNELS are zero
#define STEPS ((CHANNELS + 15) / 16)
#define BOX (KEYS * 128)                 // bytes
#define PART (BOXES * BOX)               // keys, or values
#define STAGE (2 * PART)
#define APART (CHANNELS % 64 == 0)       // no room for ones beside the values: they lie after the stages, for 16 keys
#define ONES (APART ? 16 * 128 : 0)      // bytes
#define THREADS (WARPGROUPS * 128 + 128)

#ifdef HALF
#define SLACK 4.0f  // how far above the level, as a power of two, a weight may be before sums are multiplied anew
#else
// Within these a sum of weights shows that none was too large to be one, and that the level was not above them all.
#define LEAST_TOTAL 0x1p-20f
#define MOST_TOTAL 0x1p79f
#endif

// What is added to a number below 2^22 to find the nearest whole number in its lowest bits. Scaled scores that are greater
// are computed less exactly, as float32 has them.
#define ROUNDING 12582912.0f
// The same for 128ths, with 80 of them.
#define ROUNDING_128 98304.625f

// The ring as who waits for it goes along it: keys, and the values of the keys before after them.
struct Ring {
  uint32 stages, full, empty, marked;  // without ones between the channels `marked` is `full`
  int stage = 0, phase = 0;
  __device__ __forceinline__ void next() { if (++stage == STAGES) { stage = 0; phase ^= 1; } }
  // Where the next stage is, once `there` says so, and the barrier that says that it is not needed any more.
  __device__ __forceinline__ uint32 take(uint32 there, uint32& done) {
    uint32 at = stages + stage * STAGE;
    done = empty + 8 * stage;
    barrier_wait(there + 8 * stage, phase);
    next();
    return at;
  }
  // What a warp does between the copy engine and the products: a one after the channels of each value.
  __device__ __forceinline__ void mark(bool values) {
    uint32 done, at = take(full, done) + PART + CHANNELS / 64 * BOX;
    int lane = threadIdx.x % 32;
    if (values) {
      #pragma unroll
      for (int i = lane; i < KEYS; i += 32) {
        uint32 to = at + i * 128 + ((CHANNELS % 64 * 2) ^ (lane % 8 * 16));
        asm volatile("st.shared.b16 [%0], %1;" :: "r"(to), "h"((uint16)packed(1.0f, 0.0f)) : "memory");
      }
      fence_for_copies();
    }
    __syncwarp();
    if (lane == 0) {
      barrier_arrive(done - empty + marked);
      barrier_arrive(done);
    }
  }
  // The keys of a step, if it is not the last one, and the values of the one before, if there is one.
  __device__ __forceinline__ void put(const Tiles* keys, const Tiles* values, int step, int steps, int head, int batch) {
    uint32 at = stages + stage * STAGE, barrier = full + 8 * stage;
    barrier_wait(empty + 8 * stage, phase ^ 1);
    barrier_expect(barrier, step > 0 && step < steps ? STAGE : PART);
    #pragma unroll
    for (int i = 0; i < BOXES; i++) {
      if (step < steps) copy_4d(at + i * BOX, keys, barrier, 64 * i, head, step * KEYS, batch);
      if (step > 0) copy_4d(at + PART + i * BOX, values, barrier, 64 * i, head, (step - 1) * KEYS, batch);
    }
    next();
  }
};

// Where a thread's two rows of queries are.
struct Queries {
  int rows, heads, down, batch, step, mine, pair;
  __device__ __forceinline__ int row(int tile, int below) const { return tile % down * (64 * WARPGROUPS) + mine + below; }
  __device__ __forceinline__ const uint16* at(const uint16* q, int tile, int below) const {
    int part = tile / down;
    return q + (long long)(part / heads) * batch + (long long)min(row(tile, below), rows - 1) * step + part % heads * CHANNELS + 2 * pair;
  }
};

__device__ __forceinline__ void read_queries(uint32 (&asked)[STEPS][4], const uint16* q, const Queries& queries, int tile) {
  #pragma unroll
  for (int i = 0; i < 2; i++) {
    const uint16* from = queries.at(q, tile, 8 * i);
    #pragma unroll
    for (int j = 0; j < 2 * STEPS; j++) asked[j / 2][j % 2 * 2 + i] = j < CHANNELS / 8 ? *(const uint32*)(from + 8 * j) : 0;
  }
}

__device__ __forceinline__ void scores_of(float (&s)[KEYS / 2], const uint32 (&q)[STEPS][4], uint32 at) {
  uint64 keys = described(at);
  #pragma unroll
  for (int i = 0; i < STEPS; i++) NAMED(product_of_registers_, KEYS)(s, q[i], keys + (i / 4) * (BOX / 16) + i % 4 * 2, i > 0);
}

__device__ __forceinline__ void add_values(float (&o)[WIDTH / 2], const uint32 (&p)[KEYS / 16][4], uint32 at, uint32 ones, int add) {
  uint64 values = described(at, APART ? ones - at : BOX);
  #pragma unroll
  for (int i = 0; i < KEYS / 16; i++) {
    // ones that lie apart stay where they are, so come nearer
    NAMED(product_of_registers_turned_, WIDTH)(o, p[i], values + 128 * i - (APART ? (uint64)(128 * i) << 16 : 0), add | (i > 0));
  }
}

__device__ __forceinline__ float of_row(const float (&s)[KEYS / 2], int row, int i) { return s[i / 2 * 4 + 2 * row + i % 2]; }

__device__ __forceinline__ float greatest(const float (&s)[KEYS / 2], int row) {
  float found[4] = {of_row(s, row, 0), of_row(s, row, 1), of_row(s, row, 2), of_row(s, row, 3)};
  #pragma unroll
  for (int i = 4; i < KEYS / 4; i++) found[i % 4] = fmaxf(found[i % 4], of_row(s, row, i));
  float top = fmaxf(fmaxf(found[0], found[1]), fmaxf(found[2], found[3]));
  top = fmaxf(top, __shfl_xor_sync(0xffffffff, top, 1));
  return fmaxf(top, __shfl_xor_sync(0xffffffff, top, 2));
}

// Scores of no keys.
__device__ __forceinline__ void leave_out(float (&s)[KEYS / 2], int left, int pair) {
  if (left < KEYS) {
    #pragma unroll
    for (int i = 0; i < KEYS / 2; i++) if (i / 4 * 8 + 2 * pair + (i & 1) >= left) s[i] = __int_as_float(0xff800000);
  }
}

// Raises the level of each of a thread's two rows to the greatest of these scores, where that is more than `slack` above it.
// Levels are whole numbers, so that `fade`, what sums of before are to be multiplied by, is a power of two.
__device__ __forceinline__ void raise_level(const float (&s)[KEYS / 2], float (&level)[2], float (&fade)[2], float scale, float slack) {
  #pragma unroll
  for (int row = 0; row < 2; row++) {
    float top = fmaf(greatest(s, row), scale, ROUNDING) - ROUNDING, now = top > level[row] + slack ? top : level[row];
    fade[row] = exp2_of(level[row] - now);
    level[row] = now;
  }
}

__device__ __forceinline__ float fma_within_one(float a, float b, float c) { float r; asm("fma.rn.ftz.sat.f32 %0, %1, %2, %3;" : "=f"(r) : "f"(a), "f"(b), "f"(c)); return r; }

// 2^z of z = 80 - 128 d for d = fma(x, by, from), by what the nearest whole number and the rest, at most 1/2, give (relative
// error 7.5e-5, below half a unit of 16 bits). Of d, what is outside 0 to 1 is brought there: z below -48 is as good as that,
// and z above 80 shows in the total. So does what is no number, which becomes 0.
__device__ __forceinline__ float exp2_without_unit(float x, float by, float from) {
  float d = fma_within_one(x, by, from), whole = ROUNDING_128 - d, rest = (ROUNDING_128 - whole) - d;  // in 128ths
  float power = fmaf(fmaf(fmaf(0.05517167f * 0x1p21f, rest, 0.24261113f * 0x1p14f), rest, 0.69326099f * 0x1p7f), rest, 0.99992807f);
  return __int_as_float(__float_as_int(power) + (__float_as_int(whole) << 23));
}

// Weights in the place of scores: 2 to the scaled score less the level of its row.
__device__ __forceinline__ void weigh(float (&s)[KEYS / 2], const float (&level)[2], float scale) {
  float by = scale * -0x1p-7f, from[2] = {fmaf(level[0], 0x1p-7f, 0.625f), fmaf(level[1], 0x1p-7f, 0.625f)};
  #pragma unroll
  for (int i = 0; i < KEYS / 2; i++) {
    int row = i / 2 % 2, nth = i / 4 * 2 + i % 2;
    s[i] = nth * POLYNOMIAL % 8 < POLYNOMIAL ? exp2_without_unit(s[i], by, from[row]) : exp2_of(fmaf(s[i], scale, -level[row]));
  }
}

// What float16 needs on the way: a level that follows the scores, and sums that follow it.
__device__ __forceinline__ void follow(const float (&s)[KEYS / 2], float (&level)[2], float (&fade)[2], float scale) {
#ifdef HALF
  raise_level(s, level, fade, scale, SLACK);
#endif
}
__device__ __forceinline__ void fade_sums(float (&o)[WIDTH / 2], const float (&fade)[2]) {
#ifdef HALF
  #pragma unroll
  for (int i = 0; i < WIDTH / 2; i++) o[i] *= fade[i / 2 % 2];
#endif
}

// Sums of a product are laid out as the left operand of the next.
__device__ __forceinline__ void pack(const float (&s)[KEYS / 2], uint32 (&p)[KEYS / 16][4]) {
  #pragma unroll
  for (int i = 0; i < KEYS / 4; i++) p[i / 4][i % 4] = packed(s[2 * i], s[2 * i + 1]);
}

// A place that weights, which are not negative, must have reached: else the assembler would let them wait for the products
// that are under way meanwhile, as it does with all that are not looked at.
__device__ __forceinline__ void behind(const float (&s)[KEYS / 2]) {
  int signs = 0;
  #pragma unroll
  for (int i = 3; i < KEYS / 2; i += 8) signs |= __float_as_int(s[i]);
  if (signs < 0) asm volatile("membar.cta;" ::: "memory");
}

// Weights of scores, packed, while products are under way; these are there then.
__device__ __forceinline__ void weigh_meanwhile(
    float (&s)[KEYS / 2], uint32 (&p)[KEYS / 16][4], float (&level)[2], float (&fade)[2], float scale) {
  pin(s);
  follow(s, level, fade, scale);
  weigh(s, level, scale);
  pin(s);
  behind(s);
  products_wait<0>();
  pack(s, p);
}

#ifndef HALF
__device__ __forceinline__ float score_of(const uint16* q, const uint16* k) {
  float sum = 0.0f;
  #pragma unroll 4
  for (int i = 0; i < CHANNELS; i += 2) {
    uint32 a = *(const uint32*)(q + i), b = *(const uint32*)(k + i);
    sum = fmaf(low_of(a), low_of(b), fmaf(high_of(a), high_of(b), sum));
  }
  return sum;
}

// One row, by a warp, however far apart its scores are: it is rarely asked for, so short rather than quick.
__device__ __forceinline__ void carefully(
    const uint16* q, const uint16* k, const uint16* v, uint16* y, int keys, int k_row, int v_row, float scale, int lane) {
  float top = __int_as_float(0xff800000), total = 0.0f, sums[BOXES][2] = {};
  #pragma unroll 1
  for (int i = lane; i < keys; i += 32) top = fmaxf(top, score_of(q, k + (long long)i * k_row));
  #pragma unroll
  for (int i = 1; i < 32; i *= 2) top = fmaxf(top, __shfl_xor_sync(0xffffffff, top, i));
  if (top - top != 0.0f) keys = 0;  // where it is infinite no weight is a number; neither is 0 / 0
  #pragma unroll 1
  for (int from = 0; from < keys; from += 32) {
    int some = min(keys - from, 32);
    float weight = lane < some ? exp2_of((score_of(q, k + (long long)(from + lane) * k_row) - top) * scale) : 0.0f;
    #pragma unroll 4
    for (int i = 0; i < some; i++) {
      float one = __shfl_sync(0xffffffff, weight, i);
      total += one;
      #pragma unroll
      for (int j = 0; j < BOXES; j++) {
        if (64 * j + 2 * lane < CHANNELS) {
          uint32 two = *(const uint32*)(v + (long long)(from + i) * v_row + 64 * j + 2 * lane);
          sums[j][0] = fmaf(one, low_of(two), sums[j][0]);
          sums[j][1] = fmaf(one, high_of(two), sums[j][1]);
        }
      }
    }
  }
  #pragma unroll
  for (int j = 0; j < BOXES; j++) {
    if (64 * j + 2 * lane < CHANNELS) *(uint32*)(y + 64 * j + 2 * lane) = packed(sums[j][0] / total, sums[j][1] / total);
  }
}
#endif

extern "C" __global__ __launch_bounds__(THREADS, 1) void attention(
    const __grid_constant__ Tiles k_tiles, const __grid_constant__ Tiles v_tiles, const uint16* q, const uint16* k,
    const uint16* v, uint16* y, int rows, int keys, int heads, int q_batch, int q_row, int k_batch, int k_row, int v_batch,
    int v_row, float scale, int down, int tiles) {
  extern __shared__ uint8 memory[];
  Ring ring;
  ring.stages = (near(memory) + 1023) & ~1023u;
  uint32 ones = ring.stages + STAGES * STAGE;
  ring.full = ones + ONES;
  ring.empty = ring.full + 8 * STAGES;
  ring.marked = APART ? ring.full : ring.empty + 8 * STAGES;
  int group = threadIdx.x / 128;
  if (APART && threadIdx.x < 128) {  // 16 bytes each: where a row's first eight channels are, a one and zeros
    uint32 one = threadIdx.x % 8 == threadIdx.x / 8 % 8 ? packed(1.0f, 0.0f) : 0;
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %2, %2};" :: "r"(ones + 16 * threadIdx.x), "r"(one), "r"(0) : "memory");
    fence_for_copies();
  }
  if (threadIdx.x == 0) {
    prefetch_tiles(&k_tiles);
    prefetch_tiles(&v_tiles);
    for (int i = 0; i < STAGES; i++) {
      barrier_init(ring.full + 8 * i, 1);
      barrier_init(ring.empty + 8 * i, 4 * WARPGROUPS + !APART);
      if (!APART) barrier_init(ring.marked + 8 * i, 1);
    }
    barriers_are_known();
  }
  __syncthreads();
  int steps = (keys + KEYS - 1) / KEYS;
  wait_for_predecessor();
  let_successor_begin();
  if (group == WARPGROUPS) {
    give_registers<WARPGROUPS == 2 ? 40 : 32>();
    if (threadIdx.x == WARPGROUPS * 128) {
      for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        int head = tile / down % heads, batch = tile / down / heads;
        for (int step = 0; step <= steps; step++) ring.put(&k_tiles, &v_tiles, step, steps, head, batch);
      }
    } else if (!APART && threadIdx.x / 32 == WARPGROUPS * 4 + 1) {
      for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        for (int step = 0; step <= steps; step++) ring.mark(step > 0);
      }
    }
  } else {
    take_registers<REGISTERS>();
    int lane = threadIdx.x % 32, pair = lane % 4, inner = heads * CHANNELS, mine = threadIdx.x / 32 * 16 + lane / 4;
    Queries queries = {rows, heads, down, q_batch, q_row, mine, pair};
    bool first = lane == 0, wrong = false;
    float s[KEYS / 2], o[WIDTH / 2], level[2], fade[2];
    uint32 asked[STEPS][4], p[KEYS / 16][4], done, at;
    read_queries(asked, q, queries, blockIdx.x);
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
      int row = queries.row(tile, 0), head = tile / down % heads, batch = tile / down / heads, next = tile + gridDim.x;
      level[0] = level[1] = __int_as_float(0xff800000);
      if (next < tiles && pair == 0) {  // what is asked next comes nearer
        asm volatile("prefetch.global.L2 [%0];" :: "l"(queries.at(q, next, 0)));
        asm volatile("prefetch.global.L2 [%0];" :: "l"(queries.at(q, next, 8)));
      }
      at = ring.take(ring.marked, done);
      products_begin();
      scores_of(s, asked, at);
      products_commit();
      products_wait<0>();
      pin(s);
      if (first) barrier_arrive(done);
      leave_out(s, keys, pair);
      raise_level(s, level, fade, scale, 0.0f);
      weigh(s, level, scale);
      pack(s, p);
      for (int step = 1; step < steps; step++) {
        at = ring.take(ring.marked, done);
        products_begin();
        scores_of(s, asked, at);
        products_commit();
        products_begin();
        add_values(o, p, at + PART, ones, step > 1);
        products_commit();
        products_wait<1>();
        leave_out(s, keys - step * KEYS, pair);
        weigh_meanwhile(s, p, level, fade, scale);
        pin(o);
        if (first) barrier_arrive(done);
        fade_sums(o, fade);
      }
      at = ring.take(ring.marked, done);
      products_begin();
      add_values(o, p, at + PART, ones, steps > 1);
      products_commit();
      if (next < tiles) read_queries(asked, q, queries, next);
      products_wait<0>();
      pin(o);
      if (first) barrier_arrive(done);
      #pragma unroll
      for (int i = 0; i < 2; i++) {
        // one of four threads has the column of ones; the zeros beside it are read too, since the assembler does not let
        // products overlap whose sums nobody reads
        float total = o[CHANNELS / 2 + 2 * i] + o[CHANNELS / 2 + 2 * i + 1];
        total = __shfl_sync(0xffffffff, total, lane - pair);
        float share = 1.0f / total;
        uint16* to = y + ((long long)batch * rows + row + 8 * i) * inner + head * CHANNELS + 2 * pair;
#ifndef HALF
        float zero = 0.0f;  // unless a sum is infinite or no number
        #pragma unroll
        for (int j = 0; j < CHANNELS / 8; j++) zero = fmaf(0.0f, o[4 * j + 2 * i], fmaf(0.0f, o[4 * j + 2 * i + 1], zero));
        bool right = total > LEAST_TOTAL && total < MOST_TOTAL && zero == 0.0f;
        if (__ballot_sync(0xffffffff, !right) >> lane - pair & 15) {  // of the four threads of the row
          wrong = true;
          share = __int_as_float(0x7fffffff);  // by which it is found again
        }
#endif
        if (row + 8 * i < rows) {
          #pragma unroll
          for (int j = 0; j < CHANNELS / 8; j++) {
            *(uint32*)(to + 8 * j) = packed(o[4 * j + 2 * i] * share, o[4 * j + 2 * i + 1] * share);
          }
        }
      }
    }
#ifndef HALF
    // after all tiles: among them it would cost uniform registers
    if (__any_sync(0xffffffff, wrong)) {
      __syncwarp();  // what was written is read
      for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        int head = tile / down % heads;
        long long batch = tile / down / heads;
        #pragma unroll 1
        for (int i = 0; i < 16; i++) {
          int row = queries.row(tile, i - lane / 4);
          uint16* to = y + (batch * rows + row) * inner + head * CHANNELS;
          if (row < rows && (*to & 0x7fff) > 0x7f80) {
            carefully(q + batch * q_batch + (long long)row * q_row + head * CHANNELS, k + batch * k_batch + head * CHANNELS,
                      v + batch * v_batch + head * CHANNELS, to, keys, k_row, v_row, scale, lane);
          }
        }
      }
    }
#endif
  }
}
