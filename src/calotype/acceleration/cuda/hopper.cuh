// Hopper's instructions by names: copies by the copy engine, barriers beside a processor, products of warpgroups.
#pragma once
typedef unsigned char uint8;
typedef unsigned short uint16;
typedef unsigned int uint32;
typedef unsigned long long uint64;

struct alignas(64) Tiles { uint64 opaque[16]; };  // what the host encodes; passed as `const __grid_constant__ Tiles`

// -- addresses and programs of a cluster -----------------------------------------------------------------------------

__device__ __forceinline__ uint32 near(const void* p) { return (uint32)__cvta_generic_to_shared(p); }

__device__ __forceinline__ uint32 rank_in_cluster() { uint32 r; asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(r)); return r; }
__device__ __forceinline__ uint32 programs_of_cluster() { uint32 r; asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(r)); return r; }

// The address of the same place beside another program of the cluster.
__device__ __forceinline__ uint32 beside(uint32 address, uint32 rank) {
  uint32 r; asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(r) : "r"(address), "r"(rank)); return r;
}

__device__ __forceinline__ void cluster_arrive() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
// Without a word on what was written before, which would wait for all memory; enough after `barriers_are_known`.
__device__ __forceinline__ void cluster_arrive_alone() { asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory"); }
__device__ __forceinline__ void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }
__device__ __forceinline__ void cluster_sync() { cluster_arrive(); cluster_wait(); }
// The same where nothing that was written is read afterwards but barriers.
__device__ __forceinline__ void cluster_meet() { asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory"); asm volatile("barrier.cluster.wait.aligned;" ::: "memory"); }

__device__ __forceinline__ void write_beside(uint32 address, float a, float b, float c, float d) {
  asm volatile("st.shared::cluster.v4.f32 [%0], {%1, %2, %3, %4};" :: "r"(address), "f"(a), "f"(b), "f"(c), "f"(d) : "memory");
}
__device__ __forceinline__ float4 read_near(uint32 address) {
  float4 v; asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "r"(address) : "memory"); return v;
}

// Two numbers to a place beside another program, whose barrier hears of eight bytes.
__device__ __forceinline__ void send_beside(uint32 address, uint32 barrier, float v, float w) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%2, %3}, [%1];" :: "r"(address), "r"(barrier), "f"(v), "f"(w) : "memory");
}

// A barrier of some of a program's threads; 0 is __syncthreads.
__device__ __forceinline__ void sync_some(int barrier, int threads) { asm volatile("bar.sync %0, %1;" :: "r"(barrier), "r"(threads) : "memory"); }

// -- what the launch allows ------------------------------------------------------------------------------------------

// A kernel may be brought to the processors before the one before it has ended. Nothing that others write is read, and
// nothing is written, before this; weights are read earlier.
__device__ __forceinline__ void wait_for_predecessor() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
// From here on the next kernel may be brought to the processors where this one leaves room.
__device__ __forceinline__ void let_successor_begin() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }

// -- registers of warpgroups -------------------------------------------------------------------------------------------

template <int N> __device__ __forceinline__ void take_registers() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" :: "n"(N)); }
template <int N> __device__ __forceinline__ void give_registers() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" :: "n"(N)); }

// -- barriers --------------------------------------------------------------------------------------------------------

__device__ __forceinline__ void barrier_init(uint32 barrier, int arrivals) { asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" :: "r"(barrier), "r"(arrivals) : "memory"); }
__device__ __forceinline__ void barriers_are_known() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
__device__ __forceinline__ void barrier_expect(uint32 barrier, int bytes) { asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" :: "r"(barrier), "r"(bytes) : "memory"); }
__device__ __forceinline__ void barrier_arrive(uint32 barrier) { asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" :: "r"(barrier) : "memory"); }
// Arrives at a barrier beside another program, whose address `beside` gave; for what was read, not for what was written.
__device__ __forceinline__ void barrier_arrive_beside(uint32 barrier) { asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" :: "r"(barrier) : "memory"); }
// Waits for the end of the phase whose parity this is.
__device__ __forceinline__ void barrier_wait(uint32 barrier, int parity) {
  asm volatile("{\n.reg .pred p;\nAGAIN:\nmbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n@p bra DONE;\nbra AGAIN;\nDONE:\n}\n" :: "r"(barrier), "r"(parity) : "memory");
}
// The same, where programs of the cluster have arrived.
__device__ __forceinline__ void barrier_wait_cluster(uint32 barrier, int parity) {
  asm volatile("{\n.reg .pred p;\nAGAIN:\nmbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%0], %1;\n@p bra DONE;\nbra AGAIN;\nDONE:\n}\n" :: "r"(barrier), "r"(parity) : "memory");
}
__device__ __forceinline__ void fence_for_copies() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// -- the copy engine; coordinates begin with the last dimension --------------------------------------------------------

__device__ __forceinline__ void prefetch_tiles(const Tiles* t) { asm volatile("prefetch.tensormap [%0];" :: "l"(t) : "memory"); }
__device__ __forceinline__ void copy_2d(uint32 to, const Tiles* t, uint32 barrier, int x, int y) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];"
    :: "r"(to), "l"(t), "r"(barrier), "r"(x), "r"(y) : "memory");
}
__device__ __forceinline__ void copy_4d(uint32 to, const Tiles* t, uint32 barrier, int x, int y, int z, int w) {
  asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], [%2];"
    :: "r"(to), "l"(t), "r"(barrier), "r"(x), "r"(y), "r"(z), "r"(w) : "memory");
}
// To the same place beside each program in `mask`, whose barriers at the same place hear of it.
__device__ __forceinline__ void copy_2d_to(uint32 to, const Tiles* t, uint32 barrier, int x, int y, uint16 mask) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%4, %5}], [%2], %3;"
    :: "r"(to), "l"(t), "r"(barrier), "h"(mask), "r"(x), "r"(y) : "memory");
}

// From beside the processor; what is outside is left out. Threads that asked for such copies wait for them.
__device__ __forceinline__ void store_2d(const Tiles* t, uint32 from, int x, int y) {
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], [%1];" :: "l"(t), "r"(from), "r"(x), "r"(y) : "memory");
}
__device__ __forceinline__ void stores_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
// Until what they were asked to store has been read.
__device__ __forceinline__ void stores_wait() { asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory"); }

// -- copies of 16 bytes by each thread, which alone knows of them until a barrier; lines of 128 are fetched for its neighbours

__device__ __forceinline__ void copy_16(uint32 to, const void* from) { asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" :: "r"(to), "l"(from) : "memory"); }
__device__ __forceinline__ void copies_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until what was copied is there but for the last N groups.
template <int N> __device__ __forceinline__ void copies_wait() { asm volatile("cp.async.wait_group %0;" :: "n"(N) : "memory"); }
__device__ __forceinline__ uint4 read_16(uint32 address) {
  uint4 v; asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(address)); return v;
}

__device__ __forceinline__ void write_16(uint32 address, uint4 v) {
  asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" :: "r"(address), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
}

// Four matrices of 8 x 8 numbers of 16 bits, as products give them; their rows of 16 bytes are where the lanes say, eight
// lanes for each.
__device__ __forceinline__ void read_matrices(uint32 (&v)[4], uint32 address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
    : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3]) : "r"(address) : "memory");
}
__device__ __forceinline__ void write_matrices(uint32 address, const uint32 (&v)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};"
    :: "r"(address), "r"(v[0]), "r"(v[1]), "r"(v[2]), "r"(v[3]) : "memory");
}

// -- products of a warpgroup; NAMED(product_, COLUMNS) is that of a width that is a macro -------------------------------
#define JOINED(a, b) a##b
#define NAMED(a, b) JOINED(a, b)

// A tile beside the processor: rows of 128 bytes, swizzled, `stride` bytes from eight rows to the next eight. For a turned
// right operand (rows of the sum's dimension) `leading` is the distance of the next 64 columns.
__device__ __forceinline__ uint64 described(uint32 address, uint32 leading = 16, uint32 stride = 1024) {
  return (uint64)((address & 0x3ffff) >> 4) | ((uint64)(leading >> 4) << 16) | ((uint64)(stride >> 4) << 32) | (1ull << 62);
}
__device__ __forceinline__ void products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void products_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int N> __device__ __forceinline__ void products_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" :: "n"(N) : "memory"); }
// Keeps the compiler from moving what reads or writes the sums across this place.
template <int N> __device__ __forceinline__ void pin(float (&d)[N]) {
  #pragma unroll
  for (int i = 0; i < N; i++) asm volatile("" : "+f"(d[i]) :: "memory");
}

// Four threads that follow each other hold two numbers each of four runs of eight; afterwards each has the eight of one run.
__device__ __forceinline__ void gather(uint32 (&v)[4], int lane) {
  bool odd = lane & 1, upper = lane & 2;
  uint32 a = odd ? v[0] : v[1], b = odd ? v[2] : v[3];
  a = __shfl_xor_sync(0xffffffff, a, 1); b = __shfl_xor_sync(0xffffffff, b, 1);
  if (odd) { v[0] = a; v[2] = b; } else { v[1] = a; v[3] = b; }
  a = upper ? v[0] : v[2]; b = upper ? v[1] : v[3];
  a = __shfl_xor_sync(0xffffffff, a, 2); b = __shfl_xor_sync(0xffffffff, b, 2);
  if (upper) { v[0] = a; v[1] = b; } else { v[2] = a; v[3] = b; }
}

// -- numbers of 16 bits ------------------------------------------------------------------------------------------------

#ifdef HALF
__device__ __forceinline__ uint32 packed(float low, float high) { uint32 r; asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low)); return r; }
__device__ __forceinline__ float low_of(uint32 v) { float r; asm("{\n.reg .b16 l, h;\nmov.b32 {l, h}, %1;\ncvt.f32.f16 %0, l;\n}" : "=f"(r) : "r"(v)); return r; }
__device__ __forceinline__ float high_of(uint32 v) { float r; asm("{\n.reg .b16 l, h;\nmov.b32 {l, h}, %1;\ncvt.f32.f16 %0, h;\n}" : "=f"(r) : "r"(v)); return r; }
#else
__device__ __forceinline__ uint32 packed(float low, float high) { uint32 r; asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low)); return r; }
__device__ __forceinline__ float low_of(uint32 v) { return __uint_as_float(v << 16); }
__device__ __forceinline__ float high_of(uint32 v) { return __uint_as_float(v & 0xffff0000u); }
#endif
__device__ __forceinline__ uint32 added(uint32 a, uint32 b) { return packed(low_of(a) + low_of(b), high_of(a) + high_of(b)); }
__device__ __forceinline__ float exp2_of(float x) { float r; asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x)); return r; }
__device__ __forceinline__ float inverse_of(float x) { float r; asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x)); return r; }
