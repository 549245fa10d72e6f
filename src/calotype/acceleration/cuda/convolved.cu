// A convolution of SIDE x SIDE pixels, stride 1, of a channels-last map, and what is added to it.
//
// It is a product of pixels with filters whose depth is taps times channels: the copy engine brings a box of 128 pixels,
// moved by a tap, as the left operand (zero outside the map), and some channels of some filters as the right one. PAIR (1
// or 2) programs that have neighbouring boxes bring their part of the filters to both. Where there are too few tiles for
// the device, SPLIT such pairs share the depth of one, and add what they found in each other's memory.
#include "hopper.cuh"
#include "products.cuh"

#define ROWS 128
#define DEPTH 64
#define LEFT (ROWS * DEPTH * 2)
#define RIGHT (COLUMNS * DEPTH * 2)
#define STAGE (LEFT + RIGHT)
#define COUNT (COLUMNS / 2)

extern "C" __global__ __launch_bounds__(384, 1) void convolved(
    const __grid_constant__ Tiles pixels, const __grid_constant__ Tiles filters, const uint16* bias, const uint16* other,
    uint16* y, int count, int height, int width, int channels, int out, int box_height, int box_width, int across,
    int down, int boxes, int columns) {
  extern __shared__ uint8 memory[];
  uint32 stages = (near(memory) + 1023) & ~1023u;
  uint32 full = stages + STAGES * STAGE, empty = full + 8 * STAGES;
  int group = threadIdx.x / 128;
  uint32 rank = rank_in_cluster(), mine = rank % PAIR, part = rank / PAIR;
  if (threadIdx.x == 0) {
    prefetch_tiles(&pixels);
    prefetch_tiles(&filters);
    for (int i = 0; i < STAGES; i++) {
      barrier_init(full + 8 * i, 1);
      barrier_init(empty + 8 * i, 2 * PAIR);
    }
    barriers_are_known();
  }
  cluster_meet();
  // tiles are pairs of boxes by columns; neighbours in the grid have the same boxes
  int tiles = (boxes + PAIR - 1) / PAIR * columns, clusters = gridDim.x / (PAIR * SPLIT), first = blockIdx.x / (PAIR * SPLIT);
  int steps = SIDE * SIDE * (channels / DEPTH), from = steps * part / SPLIT, until = steps * (part + 1) / SPLIT;
  int box_count = ROWS / (box_height * box_width);
  wait_for_predecessor();
  let_successor_begin();
  if (group == 0) {
    give_registers<56>();
    if (threadIdx.x == 0) {
      int stage = 0, phase = 0;
      for (int tile = first; tile < tiles; tile += clusters) {
        int box = tile / columns * PAIR + mine, column = tile % columns * COLUMNS + mine * (COLUMNS / PAIR);
        int left = box % across * box_width - SIDE / 2, top = box / across % down * box_height - SIDE / 2;
        int image = box / (across * down) * box_count;
        int channel = from % (channels / DEPTH) * DEPTH, tap = from / (channels / DEPTH);
        for (int step = from; step < until; step++) {
          uint32 at = stages + stage * STAGE, barrier = full + 8 * stage;
          barrier_wait(empty + 8 * stage, phase ^ 1);
          barrier_expect(barrier, STAGE);
          copy_4d(at, &pixels, barrier, channel, left + tap % SIDE, top + tap / SIDE, image);
          if (PAIR == 1) copy_2d(at + LEFT, &filters, barrier, tap * channels + channel, column);
          else copy_2d_to(at + LEFT + mine * (RIGHT / PAIR), &filters, barrier, tap * channels + channel, column, 3 << (part * PAIR));
          if ((channel += DEPTH) == channels) { channel = 0; tap++; }
          if (++stage == STAGES) { stage = 0; phase ^= 1; }
        }
      }
    }
    __syncwarp();
    if (SPLIT > 1) { cluster_sync(); cluster_sync(); }
  } else {
    take_registers<224>();
    int thread = threadIdx.x % 128, lane = thread % 32, stage = 0, phase = 0, warp = threadIdx.x / 32 - 4;
    uint32 rows_at = (group - 1) * 64 * DEPTH * 2;
    for (int tile = first; tile < tiles; tile += clusters) {
      float sums[COUNT];
      for (int step = from; step < until; step++) {
        uint32 at = stages + stage * STAGE;
        barrier_wait(full + 8 * stage, phase);
        uint64 a = described(at + rows_at), b = described(at + LEFT);
        products_begin();
        #pragma unroll
        for (int k = 0; k < DEPTH / 16; k++) NAMED(product_, COLUMNS)(sums, a + 2 * k, b + 2 * k, step > from || k > 0);
        products_commit();
        if (step > from) {
          products_wait<1>();
          int before = stage == 0 ? STAGES - 1 : stage - 1;
          if (thread < PAIR) barrier_arrive_beside(beside(empty + 8 * before, part * PAIR + thread));
        }
        if (++stage == STAGES) { stage = 0; phase ^= 1; }
      }
      int box = tile / columns * PAIR + mine, column = tile % columns * COLUMNS, pair = lane % 4;
      // where a thread's rows are in the map, and what is added to them; it comes while the last products are computed
      long long places[2];
      bool there[2];
      uint4 more[2][COLUMNS / 32 + 1];
      uint32 biases[COLUMNS / 8];
      auto bring = [&]() {
        #pragma unroll
        for (int half = 0; half < 2; half++) {
          int row = warp * 16 + lane / 4 + half * 8;
          int at_x = box % across * box_width + row % box_width;
          int at_y = box / across % down * box_height + row / box_width % box_height;
          int image = box / (across * down) * box_count + row / (box_width * box_height);
          there[half] = at_x < width && at_y < height && image < count;
          places[half] = (((long long)image * height + at_y) * width + at_x) * out + column + 8 * pair;
          if (other && there[half]) {
            #pragma unroll
            for (int j = 0; j < COLUMNS / 8; j += 4) {
              more[half][j / 4] = j + pair < COLUMNS / 8 ? *(const uint4*)(other + places[half] + 8 * j) : make_uint4(0, 0, 0, 0);
            }
          }
        }
        #pragma unroll
        for (int i = 0; i < COLUMNS / 8; i++) biases[i] = bias ? __ldg((const uint32*)(bias + column) + pair + 4 * i) : 0;
      };
      if (SPLIT == 1) bring();
      products_wait<0>();
      pin(sums);
      if (SPLIT == 1) {
        if (thread < PAIR) barrier_arrive_beside(beside(empty + 8 * (stage == 0 ? STAGES - 1 : stage - 1), part * PAIR + thread));
      } else {
        // the rows of a warp are finished by the program of one part, which all others tell what they found
        const int most = (8 + SPLIT - 1) / SPLIT;
        int owner = warp * SPLIT / 8, ordinal = warp - (owner * 8 + SPLIT - 1) / SPLIT;
        uint32 slot = stages + (ordinal * 32 + lane) * 16;
        cluster_sync();
        if (owner != part) {
          int place = part - (part > owner);
          uint32 to = beside(slot + place * (most * 32 * COUNT * 4), owner * PAIR + mine);
          #pragma unroll
          for (int i = 0; i < COUNT; i += 4) write_beside(to + i * (most * 32 * 4), sums[i], sums[i + 1], sums[i + 2], sums[i + 3]);
        }
        cluster_sync();
        if (owner != part) break;  // there is one tile
        for (int place = 0; place < SPLIT - 1; place++) {
          #pragma unroll
          for (int i = 0; i < COUNT; i += 4) {
            float4 more = read_near(slot + place * (most * 32 * COUNT * 4) + i * (most * 32 * 4));
            sums[i] += more.x; sums[i + 1] += more.y; sums[i + 2] += more.z; sums[i + 3] += more.w;
          }
        }
      }
      if (SPLIT > 1) bring();
      #pragma unroll
      for (int half = 0; half < 2; half++) {
        #pragma unroll
        for (int j = 0; j < COLUMNS / 8; j += 4) {
          uint32 found[4];
          #pragma unroll
          for (int i = 0; i < 4; i++) {
            if (j + i >= COLUMNS / 8) { found[i] = 0; continue; }
            float low = sums[4 * (j + i) + 2 * half], high = sums[4 * (j + i) + 2 * half + 1];
            if (bias) { low += low_of(biases[j + i]); high += high_of(biases[j + i]); }
            found[i] = packed(low, high);
          }
          gather(found, lane);
          if (!there[half] || j + pair >= COLUMNS / 8) continue;
          if (other) {
            uint4 v = more[half][j / 4];
            found[0] = added(found[0], v.x); found[1] = added(found[1], v.y);
            found[2] = added(found[2], v.z); found[3] = added(found[3], v.w);
          }
          *(uint4*)(y + places[half] + 8 * j) = make_uint4(found[0], found[1], found[2], found[3]);
        }
      }
    }
  }
  cluster_meet();  // nobody leaves while another may still write beside it
}
