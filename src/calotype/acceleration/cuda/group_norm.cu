// Group norm of a channels-last map, with an offset before and SiLU after: read once, written once. The map may be two whose
// channels follow each other.
//
// A cluster has some whole groups of a sample, each of its programs some of the pixels. A thread has the same eight channels
// of every pixel that is its own, and keeps what it copied near the processor until it writes: nobody else reads that.
// Means and squared deviations go from a thread's channels to its program's groups to the cluster's, combined as in Chan,
// Golub and LeVeque (1979); a channel's are of differences from the thread's first pixel, so a large mean costs no digits.
#include "hopper.cuh"

#define PARTS 4  // of a thread's pixels, looked at as they come
#define CLUSTER 8  // programs at most

struct Found { float mean, squares; };  // squares of deviations from the mean, summed
struct Norm { float mean, factor; };

__device__ __forceinline__ void unpack(float (&to)[8], uint4 v) {
  to[0] = low_of(v.x); to[1] = high_of(v.x); to[2] = low_of(v.y); to[3] = high_of(v.y);
  to[4] = low_of(v.z); to[5] = high_of(v.z); to[6] = low_of(v.w); to[7] = high_of(v.w);
}
// Of `LANES` neighbours, to each of them.
template <int LANES> __device__ __forceinline__ float sum_of(float v) {
  #pragma unroll
  for (int apart = LANES / 2; apart > 0; apart /= 2) v += __shfl_xor_sync(0xffffffff, v, apart);
  return v;
}

// x / (1 + exp(-x)) of two numbers with one inverse; the bound keeps the product of the two divisors finite.
__device__ __forceinline__ void silu(float& x, float& y) {
  float a = 1.0f + exp2_of(fminf(-1.4426950408889634f * x, 60.0f)), b = 1.0f + exp2_of(fminf(-1.4426950408889634f * y, 60.0f));
  float both = inverse_of(a * b);
  x *= b * both;
  y *= a * both;
}

// One group of the channels `from` to `to` of a thread's eight, each with the same number of pixels.
__device__ __forceinline__ Found joined(const float (&mean)[8], const float (&squares)[8], int from, int to, float pixels) {
  Found found = {0.0f, 0.0f};
  #pragma unroll
  for (int i = 0; i < 8; i++) if (i >= from && i < to) found.mean += mean[i];
  found.mean *= inverse_of(max(to - from, 1));
  #pragma unroll
  for (int i = 0; i < 8; i++) {
    float apart = mean[i] - found.mean;
    if (i >= from && i < to) found.squares += squares[i] + pixels * apart * apart;
  }
  return found;
}

// Programs take `share` pixels each, their threads every one of `rows` pixels at the channels of `vectors` · 16 bytes.
// `slots` pixels of a thread have room. A vector must not meet more than two groups: 4 or at least 8 channels in each.
// Channels from `first`, a multiple of 8, on are those of `other_map`, so a thread reads one map.
// With the bound a thread has 64 registers, so that three programs of 320 fit on a processor.
extern "C" __global__ __launch_bounds__(1024, 1) void group_norm(
    const uint16* x, const uint16* other_map, uint16* y, const uint16* shift, const uint16* offset, const uint16* weight,
    const uint16* bias, int size, int first, int channels, int width, int vectors, int share, int rows, int slots, int shift_row,
    int activated, float eps) {
  extern __shared__ __align__(128) uint8 memory[];
  int thread = threadIdx.x, row = thread / vectors, vector = thread - row * vectors;
  int rank = rank_in_cluster(), programs = programs_of_cluster(), groups = 8 * vectors / width;
  int begin = rank * share, own = max(min(size - begin, share), 0);
  int mine = row < rows && row < own ? (own - row + rows - 1) / rows : 0;
  int channel = (blockIdx.x / programs * vectors + vector) * 8;
  long long pixel = (long long)blockIdx.y * size + begin + row;
  uint32 step = rows * vectors * 16, kept = near(memory) + thread * 16;
  Found* threads = (Found*)(memory + slots * step);             // of a thread's first group, then of its second
  Found* totals = threads + 2 * blockDim.x;                     // of each program's groups
  Norm* norms = (Norm*)(totals + programs * groups);            // of each group
  uint32 barrier = near(norms + groups);                        // hears of the totals
  int quarter = (slots + PARTS - 1) / PARTS;
  if (thread == 0) {
    barrier_init(barrier, 1);
    barriers_are_known();
    barrier_expect(barrier, programs * groups * sizeof(Found));
  }
  __syncwarp();
  cluster_arrive_alone();
  wait_for_predecessor();
  let_successor_begin();

  {
    bool second = channel >= first;
    int its_channels = second ? channels - first : first;
    const uint16* from = (second ? other_map - first : x) + pixel * its_channels + channel;
    long long stride = (long long)rows * its_channels;
    uint32 to = kept;
    #pragma unroll
    for (int part = 0; part < PARTS; part++) {
      int count = min(mine - part * quarter, quarter);
      #pragma unroll 4
      for (int i = 0; i < count; i++) {
        copy_16(to, from);
        from += stride;
        to += step;
      }
      copies_commit();
    }
  }
  uint4 nothing = make_uint4(0, 0, 0, 0), one = nothing, other = nothing;
  if (mine > 0) {
    one = *(const uint4*)(shift + (long long)blockIdx.y * shift_row + channel);
    other = *(const uint4*)(offset + channel);
  }

  float pivot[8], mean[8] = {}, squares[8] = {};
  {
    uint32 from = kept;
    #pragma unroll
    for (int part = 0; part < PARTS; part++) {
      if (part == 0) copies_wait<3>();
      if (part == 1) copies_wait<2>();
      if (part == 2) copies_wait<1>();
      if (part == 3) copies_wait<0>();
      if (part == 0) unpack(pivot, mine > 0 ? read_16(kept) : nothing);
      int count = min(mine - part * quarter, quarter);
      #pragma unroll 2
      for (int i = 0; i < count; i++) {
        float value[8];
        unpack(value, read_16(from));
        #pragma unroll
        for (int c = 0; c < 8; c++) {
          float apart = value[c] - pivot[c];
          mean[c] += apart;
          squares[c] = fmaf(apart, apart, squares[c]);
        }
        from += step;
      }
    }
  }
  uint4 scales = nothing, biases = nothing;
  if (mine > 0) {
    scales = *(const uint4*)(weight + channel);
    biases = *(const uint4*)(bias + channel);
  }
  float added[8];
  {
    float more[8], inverse = inverse_of(max(mine, 1));
    unpack(added, one);
    unpack(more, other);
    #pragma unroll
    for (int c = 0; c < 8; c++) {
      added[c] += more[c];
      squares[c] = fmaxf(squares[c] - mean[c] * mean[c] * inverse, 0.0f);
      mean[c] = fmaf(mean[c], inverse, pivot[c]) + added[c];
    }
  }
  int group = 8 * vector / width, inside = min((group + 1) * width - 8 * vector, 8);  // the first one's channels
  threads[thread] = joined(mean, squares, 0, inside, mine);
  threads[blockDim.x + thread] = joined(mean, squares, inside, 8, mine);
  __syncthreads();
  cluster_wait();  // the others have begun, and their barriers are known

  int lane = thread % 32, least = own / rows, left = own - least * rows;
  for (int g = thread / 32; g < groups; g += blockDim.x / 32) {
    int low = g * width, high = low + width;
    Found found = {0.0f, 0.0f};
    for (int v = low / 8; 8 * v < high; v++) {
      const Found* of = threads + (8 * v < low ? blockDim.x : 0) + v;
      float width_here = min(8 * v + 8, high) - max(8 * v, low);
      #pragma unroll 4
      for (int r = lane; r < rows; r += 32) found.mean += width_here * (least + (r < left)) * of[r * vectors].mean;
    }
    found.mean = sum_of<32>(found.mean) * inverse_of(max(own * width, 1));
    for (int v = low / 8; 8 * v < high; v++) {
      const Found* of = threads + (8 * v < low ? blockDim.x : 0) + v;
      float width_here = min(8 * v + 8, high) - max(8 * v, low);
      #pragma unroll 4
      for (int r = lane; r < rows; r += 32) {
        Found its = of[r * vectors];
        float apart = its.mean - found.mean;
        found.squares += its.squares + width_here * (least + (r < left)) * apart * apart;
      }
    }
    found.squares = sum_of<32>(found.squares);
    if (lane < programs) send_beside(beside(near(totals + rank * groups + g), lane), beside(barrier, lane), found.mean, found.squares);
  }
  // from one lane for each program
  for (int i = thread; i / 32 * 32 < groups * CLUSTER; i += blockDim.x) {
    int g = i / CLUSTER, p = i % CLUSTER;
    barrier_wait_cluster(barrier, 0);
    Found its = {0.0f, 0.0f};
    if (g < groups && p < programs) its = totals[p * groups + g];
    float pixels = max(min(size - p * share, share), 0), mean = sum_of<CLUSTER>(pixels * its.mean) * inverse_of(size);
    float apart = its.mean - mean, squares = sum_of<CLUSTER>(p < programs ? its.squares + pixels * width * apart * apart : 0.0f);
    if (g < groups && p == 0) norms[g] = {mean, rsqrtf(squares * inverse_of((float)size * width) + eps)};
  }
  __syncthreads();  // also of those without pixels: nobody leaves while others write beside it
  if (mine == 0) return;

  float factor[8], summand[8];
  {
    Norm one = norms[group], other = inside < 8 ? norms[group + 1] : one;
    unpack(factor, scales);
    unpack(summand, biases);
    #pragma unroll
    for (int c = 0; c < 8; c++) {
      factor[c] *= c < inside ? one.factor : other.factor;
      summand[c] += (added[c] - (c < inside ? one.mean : other.mean)) * factor[c];
    }
  }
  uint16* to = y + pixel * channels + channel;
  long long stride = (long long)rows * channels;
  #pragma unroll 2
  for (int i = 0; i < mine; i++) {
    float value[8];
    unpack(value, read_16(kept));
    #pragma unroll
    for (int c = 0; c < 8; c++) value[c] = fmaf(value[c], factor[c], summand[c]);
    if (activated) {
      #pragma unroll
      for (int c = 0; c < 8; c += 2) silu(value[c], value[c + 1]);
    }
    *(uint4*)to = make_uint4(
        packed(value[0], value[1]), packed(value[2], value[3]), packed(value[4], value[5]), packed(value[6], value[7]));
    kept += step;
    to += stride;
  }
}
