// softmax(Q K^T / sqrt(channels)) V of heads of CHANNELS channels, with no mask.
//
// A program takes 64 queries of one head for each of its WARPGROUPS and walks over the keys, KEYS at a time, which one
// thread of a further warpgroup brings by the copy engine into a ring of SLOTS. A warpgroup asks for the scores of the next keys before it asks for the
// values of these, so that both products are under way while other warpgroups compute exponentials, which is what takes
// longest: heads are narrow here. A share of the exponentials, POLYNOMIAL of 8, is computed without the unit for them.
#include "hopper.cuh"
#include "products.cuh"

#define JOINED(a, b) a##b
#define NAMED(a, b) JOINED(a, b)
#define BOXES ((CHANNELS + 63) / 64)     // of 64 channels; those past CHANNELS are zero
#define STEPS ((CHANNELS + 15) / 16)
#define BOX (KEYS * 128)                 // bytes
#define SLOT (BOXES * BOX)
#define THREADS (WARPGROUPS * 128 + 128)

// What is added to a number below 2^22 to find the nearest whole number in its lowest bits.
#define ROUNDING 12582912.0f

// The ring as who waits for it goes along it.
struct Ring {
  uint32 slots, full, empty;
  int slot = 0, phase = 0;
  __device__ __forceinline__ void next() { if (++slot == SLOTS) { slot = 0; phase ^= 1; } }
  // Where the next keys or values are, once they are there, and the barrier that says that they are not needed any more.
  __device__ __forceinline__ uint32 take(uint32& done) {
    uint32 at = slots + slot * SLOT;
    done = empty + 8 * slot;
    barrier_wait(full + 8 * slot, phase);
    next();
    return at;
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

__device__ __forceinline__ void scores_of(float (&s)[KEYS / 2], const uint32 (&q)[STEPS][4], uint32 at) {
  uint64 keys = described(at);
  #pragma unroll
  for (int i = 0; i < STEPS; i++) NAMED(product_of_registers_, KEYS)(s, q[i], keys + (i / 4) * (BOX / 16) + i % 4 * 2, i > 0);
}

__device__ __forceinline__ void add_values(float (&o)[CHANNELS / 2], const uint32 (&p)[KEYS / 16][4], uint32 at, int add) {
  uint64 values = described(at, BOX);
  #pragma unroll
  for (int i = 0; i < KEYS / 16; i++) NAMED(product_of_registers_turned_, CHANNELS)(o, p[i], values + 128 * i, add | (i > 0));
}

__device__ __forceinline__ float of_row(const float (&s)[KEYS / 2], int row, int i) { return s[i / 2 * 4 + 2 * row + i % 2]; }

__device__ __forceinline__ float greatest(const float (&s)[KEYS / 2], int row, float most) {
  float found[4] = {most, of_row(s, row, 0), of_row(s, row, 1), of_row(s, row, 2)};
  #pragma unroll
  for (int i = 3; i < KEYS / 4; i++) found[i % 4] = fmaxf(found[i % 4], of_row(s, row, i));
  return fmaxf(fmaxf(found[0], found[1]), fmaxf(found[2], found[3]));
}

// Weights of these keys in the place of their scores. Each thread has two rows; `most` and `total` are what was found
// until now, the total of this thread's columns alone, and `fade` is what sums of before are to be multiplied by.
__device__ __forceinline__ void weigh(float (&s)[KEYS / 2], float (&most)[2], float (&total)[2], float (&fade)[2], float scale, int left, int pair) {
  if (left < KEYS) {
    #pragma unroll
    for (int i = 0; i < KEYS / 2; i++) if (i / 4 * 8 + 2 * pair + (i & 1) >= left) s[i] = __int_as_float(0xff800000);
  }
  #pragma unroll
  for (int row = 0; row < 2; row++) {
    float top = greatest(s, row, most[row]);
    top = fmaxf(top, __shfl_xor_sync(0xffffffff, top, 1));
    top = fmaxf(top, __shfl_xor_sync(0xffffffff, top, 2));
#if POLYNOMIAL > 0
    float now = fmaf(top, scale, ROUNDING) - ROUNDING, before = fmaf(most[row], scale, ROUNDING) - ROUNDING;  // whole numbers
    float turn = ROUNDING - now, least = (now - 126.0f) * inverse_of(scale);
#else
    float now = top * scale, before = most[row] * scale;
#endif
    fade[row] = exp2_of(before - now);
    most[row] = top;
    float sums[4] = {total[row] * fade[row], 0.0f, 0.0f, 0.0f};
    #pragma unroll
    for (int i = 0; i < KEYS / 4; i++) {
      float& x = s[i / 2 * 4 + 2 * row + i % 2];
#if POLYNOMIAL > 0
      if (i * POLYNOMIAL % 8 < POLYNOMIAL) {
        // 2^x of the nearest whole number and of the rest, at most 1/2 (relative error 7.5e-5, below half a unit of 16 bits)
        float y = fmaxf(x, least), whole = fmaf(y, scale, turn), rest = fmaf(y, scale, turn - whole);
        float power = fmaf(fmaf(fmaf(0.05517167f, rest, 0.24261113f), rest, 0.69326099f), rest, 0.99992807f);
        x = __int_as_float(__float_as_int(power) + (__float_as_int(whole) << 23));
      } else
#endif
      x = exp2_of(fmaf(x, scale, -now));
      sums[i % 4] += x;
    }
    total[row] = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  }
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
  int group = threadIdx.x / 128;
  if (threadIdx.x == 0) {
    prefetch_tiles(&k);
    prefetch_tiles(&v);
    for (int i = 0; i < SLOTS; i++) {
      barrier_init(ring.full + 8 * i, 1);
      barrier_init(ring.empty + 8 * i, 4 * WARPGROUPS);
    }
    barriers_are_known();
  }
  __syncthreads();
  int steps = (keys + KEYS - 1) / KEYS;
  wait_for_predecessor();
  if (group == WARPGROUPS) {
    give_registers<WARPGROUPS == 2 ? 24 : 32>();
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
    }
  } else {
    take_registers<REGISTERS>();
    int lane = threadIdx.x % 32, pair = lane % 4, inner = heads * CHANNELS;
    int mine = group * 64 + threadIdx.x % 128 / 32 * 16 + lane / 4;
    bool first = lane == 0;
#if ORDERED
    // Warpgroups ask for products in turns, so that each computes exponentials while another's products are computed.
    if (group == WARPGROUPS - 1) asm volatile("bar.arrive 1, 256;" ::: "memory");
#endif
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
      int row = tile % down * (64 * WARPGROUPS) + mine, head = tile / down % heads, batch = tile / down / heads;
      float s[KEYS / 2], o[CHANNELS / 2], most[2], total[2], fade[2];
      uint32 asked[STEPS][4], p[KEYS / 16][4], done, read;
      #pragma unroll
      for (int i = 0; i < 2; i++) {
        most[i] = __int_as_float(0xff800000);
        total[i] = 0.0f;
        const uint16* from = q + (long long)batch * q_batch + (long long)min(row + 8 * i, rows - 1) * q_row + head * CHANNELS + 2 * pair;
        #pragma unroll
        for (int j = 0; j < 2 * STEPS; j++) asked[j / 2][j % 2 * 2 + i] = j < CHANNELS / 8 ? __ldg((const uint32*)(from + 8 * j)) : 0;
      }
      if (tile + gridDim.x < tiles && pair == 0) {  // what is asked next comes nearer
        int next = tile + gridDim.x, at = next % down * (64 * WARPGROUPS) + mine;
        const uint16* from = q + (long long)(next / down / heads) * q_batch + next / down % heads * CHANNELS;
        asm volatile("prefetch.global.L2 [%0];" :: "l"(from + (long long)min(at, rows - 1) * q_row));
        asm volatile("prefetch.global.L2 [%0];" :: "l"(from + (long long)min(at + 8, rows - 1) * q_row));
      }
      uint32 at = ring.take(done);
      products_begin();
      scores_of(s, asked, at);
      products_commit();
      products_wait<0>();
      pin(s);
      if (first) barrier_arrive(done);
      weigh(s, most, total, fade, scale, keys, pair);
      pack(s, p);
      if (steps > 1) at = ring.take(done);
      for (int step = 1; step < steps; step++) {
#if ORDERED
        sync_some(1 + group, 256);
#endif
        products_begin();
        scores_of(s, asked, at);
        products_commit();
        at = ring.take(read);
        products_begin();
        add_values(o, p, at, step > 1);
        products_commit();
#if ORDERED
        asm volatile("bar.arrive %0, 256;" :: "r"(1 + (group + 1) % WARPGROUPS) : "memory");
#endif
        products_wait<1>();
        pin(s);
        if (first) barrier_arrive(done);
        weigh(s, most, total, fade, scale, keys - step * KEYS, pair);
        pin(s);
        if (step + 1 < steps) at = ring.take(done);  // here also because nothing moves past it: exponentials before the wait
        products_wait<0>();
        pin(o);
        if (first) barrier_arrive(read);
        #pragma unroll
        for (int i = 0; i < CHANNELS / 2; i++) o[i] *= fade[i / 2 % 2];
        pack(s, p);
      }
      at = ring.take(read);
      products_begin();
      add_values(o, p, at, steps > 1);
      products_commit();
      #pragma unroll
      for (int i = 0; i < 2; i++) {
        total[i] += __shfl_xor_sync(0xffffffff, total[i], 1);
        total[i] += __shfl_xor_sync(0xffffffff, total[i], 2);
        total[i] = 1.0f / total[i];
      }
      products_wait<0>();
      pin(o);
      if (first) barrier_arrive(read);
      #pragma unroll
      for (int i = 0; i < 2; i++) {
        uint16* to = y + ((long long)batch * rows + row + 8 * i) * inner + head * CHANNELS + 2 * pair;
        if (row + 8 * i < rows) {
          #pragma unroll
          for (int j = 0; j < CHANNELS / 8; j++) *(uint32*)(to + 8 * j) = packed(o[4 * j + 2 * i] * total[i], o[4 * j + 2 * i + 1] * total[i]);
        }
      }
    }
#if ORDERED
    if (group == 0) sync_some(1, 256);
#endif
  }
}
