// softmax(scale Q K^T) V of heads of CHANNELS channels, with no mask.
//
// A program takes 64 queries of one head for each of its WARPGROUPS and walks over the keys, KEYS at a time. One thread of
// a further warpgroup asks the copy engine for keys and values, which come into a ring of SLOTS. A warpgroup asks for the
// scores of the next keys before it asks for the values of these, so that both products are under way while other
// warpgroups compute exponentials, which is what takes longest: heads are narrow here. Of eight exponentials POLYNOMIAL
// are computed without the unit that has instructions for them. Values get a column of ones beside them, so that the product
// with them, of WIDTH = CHANNELS + 8 columns, also sums the weights, as they are rounded.
#include "hopper.cuh"
#include "products.cuh"

#define JOINED(a, b) a##b
#define NAMED(a, b) JOINED(a, b)
#define BOXES ((CHANNELS + 63) / 64)     // of 64 channels; those past CHANNELS are zero
#define STEPS ((CHANNELS + 15) / 16)
#define BOX (KEYS * 128)                 // bytes
#define SLOT (BOXES * BOX)
#define THREADS (WARPGROUPS * 128 + 128)

// How far above the level, as a power of two, a weight may be before sums are multiplied anew.
#ifdef HALF
#define SLACK 4.0f
#else
#define SLACK 8.0f
#endif

// What is added to a number below 2^22 to find the nearest whole number in its lowest bits. Scaled scores that are greater
// are computed less exactly, as float32 has them: up to 2^26 their exponents stay those of numbers.
#define ROUNDING 12582912.0f

// The ring as who waits for it goes along it.
struct Ring {
  uint32 slots, full, empty, marked;
  int slot = 0, phase = 0;
  __device__ __forceinline__ void next() { if (++slot == SLOTS) { slot = 0; phase ^= 1; } }
  // Where the next keys or values are, once `there` says so, and the barrier that says that they are not needed any more.
  __device__ __forceinline__ uint32 take(uint32 there, uint32& done) {
    uint32 at = slots + slot * SLOT;
    done = empty + 8 * slot;
    barrier_wait(there + 8 * slot, phase);
    next();
    return at;
  }
  __device__ __forceinline__ uint32 take_keys(uint32& done) { return take(full, done); }
  __device__ __forceinline__ uint32 take_values(uint32& done) { return take(marked, done); }
  // What a warp does between the copy engine and the products: a one after the channels of each value.
  __device__ __forceinline__ void mark(bool values) {
    uint32 done, at = take(full, done) + CHANNELS / 64 * BOX;
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
  __device__ __forceinline__ void put(const Tiles* tiles, int place, int head, int batch) {
    uint32 at = slots + slot * SLOT, barrier = full + 8 * slot;
    barrier_wait(empty + 8 * slot, phase ^ 1);
    barrier_expect(barrier, SLOT);
    #pragma unroll
    for (int i = 0; i < BOXES; i++) copy_4d(at + i * BOX, tiles, barrier, 64 * i, head, place, batch);
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

__device__ __forceinline__ void add_values(float (&o)[WIDTH / 2], const uint32 (&p)[KEYS / 16][4], uint32 at, int add) {
  uint64 values = described(at, BOX);
  #pragma unroll
  for (int i = 0; i < KEYS / 16; i++) NAMED(product_of_registers_turned_, WIDTH)(o, p[i], values + 128 * i, add | (i > 0));
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

// Weights of these keys in the place of their scores: 2 to the scaled score less `level`, which is raised where a score is
// more than SLACK above it. Each thread has two rows; `fade` is what sums of before are to be multiplied by.
__device__ __forceinline__ void weigh(float (&s)[KEYS / 2], float (&level)[2], float (&fade)[2], float scale, int left, int pair) {
  if (left < KEYS) {
    #pragma unroll
    for (int i = 0; i < KEYS / 2; i++) if (i / 4 * 8 + 2 * pair + (i & 1) >= left) s[i] = __int_as_float(0xff800000);
  }
  #pragma unroll
  for (int row = 0; row < 2; row++) {
    // a whole number, so that factors are powers of two and exponents are computed apart
    float top = fmaf(greatest(s, row), scale, ROUNDING) - ROUNDING, now = top > level[row] + SLACK ? top : level[row];
    fade[row] = exp2_of(level[row] - now);
    level[row] = now;
    float turn = ROUNDING - now, least = (now - 100.0f) * inverse_of(scale);  // what is less is as good as nothing
    #pragma unroll
    for (int i = 0; i < KEYS / 4; i++) {
      float& x = s[i / 2 * 4 + 2 * row + i % 2];
      if (i * POLYNOMIAL % 8 < POLYNOMIAL) {
        // 2^x of the nearest whole number and of the rest, at most 1/2 (relative error 7.5e-5, below half a unit of 16 bits)
        float y = fmaxf(x, least), whole = fmaf(y, scale, turn), rest = fmaf(y, scale, turn - whole);
        float power = fmaf(fmaf(fmaf(0.05517167f, rest, 0.24261113f), rest, 0.69326099f), rest, 0.99992807f);
        x = __int_as_float(__float_as_int(power) + (__float_as_int(whole) << 23));
      } else {
        x = exp2_of(fmaf(x, scale, -now));
      }
    }
  }
}

// A place that weights, which are not negative, must have reached: else the assembler would let them wait for the products
// that are under way meanwhile.
__device__ __forceinline__ void behind(const float (&s)[KEYS / 2]) {
  int signs = 0;
  #pragma unroll
  for (int i = 3; i < KEYS / 2; i += 8) signs |= __float_as_int(s[i]);
  if (signs < 0) asm volatile("membar.cta;" ::: "memory");
}

// Sums of a product are laid out as the left operand of the next.
__device__ __forceinline__ void pack(const float (&s)[KEYS / 2], uint32 (&p)[KEYS / 16][4]) {
  #pragma unroll
  for (int i = 0; i < KEYS / 4; i++) p[i / 4][i % 4] = packed(s[2 * i], s[2 * i + 1]);
}

extern "C" __global__ __launch_bounds__(THREADS, 1) void attention(
    const __grid_constant__ Tiles k, const __grid_constant__ Tiles v, const uint16* q, uint16* y, int rows, int keys,
    int heads, int q_batch, int q_row, float scale, int down, int tiles) {
  extern __shared__ uint8 memory[];
  Ring ring;
  ring.slots = (near(memory) + 1023) & ~1023u;
  ring.full = ring.slots + SLOTS * SLOT;
  ring.empty = ring.full + 8 * SLOTS;
  ring.marked = ring.empty + 8 * SLOTS;
  int group = threadIdx.x / 128;
  if (threadIdx.x == 0) {
    prefetch_tiles(&k);
    prefetch_tiles(&v);
    for (int i = 0; i < SLOTS; i++) {
      barrier_init(ring.full + 8 * i, 1);
      barrier_init(ring.empty + 8 * i, 4 * WARPGROUPS + 1);
      barrier_init(ring.marked + 8 * i, 1);
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
        ring.put(&k, 0, head, batch);
        for (int step = 1; step < steps; step++) {
          ring.put(&k, step * KEYS, head, batch);
          ring.put(&v, (step - 1) * KEYS, head, batch);
        }
        ring.put(&v, (steps - 1) * KEYS, head, batch);
      }
    } else if (threadIdx.x / 32 == WARPGROUPS * 4 + 1) {
      for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        for (int i = 0; i < 2 * steps; i++) ring.mark(i == 2 * steps - 1 || (i > 0 && i % 2 == 0));
      }
    }
  } else {
    take_registers<REGISTERS>();
    int lane = threadIdx.x % 32, pair = lane % 4, inner = heads * CHANNELS, mine = threadIdx.x / 32 * 16 + lane / 4;
    Queries queries = {rows, heads, down, q_batch, q_row, mine, pair};
    bool first = lane == 0;
#if ORDERED
    // Warpgroups ask for products in turns, so that each computes exponentials while another's products are computed.
    if (group == WARPGROUPS - 1) asm volatile("bar.arrive 1, 256;" ::: "memory");
#endif
    float s[KEYS / 2], o[WIDTH / 2], level[2], fade[2];
    uint32 asked[STEPS][4], p[KEYS / 16][4], done, read;
    read_queries(asked, q, queries, blockIdx.x);
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
      int row = queries.row(tile, 0), head = tile / down % heads, batch = tile / down / heads, next = tile + gridDim.x;
      level[0] = level[1] = __int_as_float(0xff800000);
      if (next < tiles && pair == 0) {  // what is asked next comes nearer
        asm volatile("prefetch.global.L2 [%0];" :: "l"(queries.at(q, next, 0)));
        asm volatile("prefetch.global.L2 [%0];" :: "l"(queries.at(q, next, 8)));
      }
      uint32 at = ring.take_keys(done);
      products_begin();
      scores_of(s, asked, at);
      products_commit();
      products_wait<0>();
      pin(s);
      if (first) barrier_arrive(done);
      weigh(s, level, fade, scale, keys, pair);
      pack(s, p);
      if (steps > 1) at = ring.take_keys(done);
      for (int step = 1; step < steps; step++) {
#if ORDERED
        sync_some(1 + group, 256);
#endif
        products_begin();
        scores_of(s, asked, at);
        products_commit();
        at = ring.take_values(read);
        products_begin();
        add_values(o, p, at, step > 1);
        products_commit();
#if ORDERED
        asm volatile("bar.arrive %0, 256;" :: "r"(1 + (group + 1) % WARPGROUPS) : "memory");
#endif
        products_wait<1>();
        pin(s);
        if (first) barrier_arrive(done);
        weigh(s, level, fade, scale, keys - step * KEYS, pair);
        pin(s);
        behind(s);
        if (step + 1 < steps) at = ring.take_keys(done);
        products_wait<0>();
        pin(o);
        if (first) barrier_arrive(read);
        #pragma unroll
        for (int i = 0; i < WIDTH / 2; i++) o[i] *= fade[i / 2 % 2];
        pack(s, p);
      }
      at = ring.take_values(read);
      products_begin();
      add_values(o, p, at, steps > 1);
      products_commit();
      if (next < tiles) read_queries(asked, q, queries, next);
      products_wait<0>();
      pin(o);
      if (first) barrier_arrive(read);
      #pragma unroll
      for (int i = 0; i < 2; i++) {
        // one of four threads has the column of ones; the zeros beside it are read too, since the assembler does not let
        // products overlap whose sums nobody reads
        float total = o[CHANNELS / 2 + 2 * i] + o[CHANNELS / 2 + 2 * i + 1];
        float share = 1.0f / __shfl_sync(0xffffffff, total, lane - pair);
        uint16* to = y + ((long long)batch * rows + row + 8 * i) * inner + head * CHANNELS + 2 * pair;
        if (row + 8 * i < rows) {
          #pragma unroll
          for (int j = 0; j < CHANNELS / 8; j++) {
            *(uint32*)(to + 8 * j) = packed(o[4 * j + 2 * i] * share, o[4 * j + 2 * i + 1] * share);
          }
        }
      }
    }
#if ORDERED
    if (group == 0) sync_some(1, 256);
#endif
  }
}
