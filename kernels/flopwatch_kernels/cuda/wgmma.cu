// Tensor-pipe peak by wgmma, Hopper's own instruction: compute capability 9.0 only, as sm_90a.
//
// Each block is one warpgroup (128 threads). It multiplies A[64, K] by B[256, K] transposed, `iterations`
// times, into D[64, 256], where K is what 128 bytes hold: 4 instructions of 32 bytes each, every one with
// its own part of A, from registers, and of B, from shared memory. Two blocks share an SM, so that
// one computes while the other waits for its group to end; for three the registers do not suffice.
// Operands, D, `clocks` and the check are as in mma.cu.
//
// Layouts, from the PTX ISA, "Asynchronous Warpgroup Level Matrix Instructions", w = warp, g = lane / 4,
// t = lane % 4: word r of A is row 16 w + g + 8 (r % 2), bytes 4 t + 16 (r / 2); number i of D is row
// 16 w + g + 8 (i / 2 % 2), column 8 (i / 4) + 2 t + i % 2. B is K-major without swizzle: core matrices of 8
// columns x 16 bytes, each 128 contiguous bytes; here neighbours along N are 128 bytes apart (the descriptor's
// stride offset) and neighbours along K 4096 bytes (its leading offset). A warp reads one without bank conflicts.

typedef unsigned int u32;
typedef unsigned long long u64;

constexpr int THREADS = 128;
constexpr int ROWS = 64, COLUMNS = 256, STEPS = 4;
constexpr int WORDS = 8 * STEPS;        // of a row of A: 128 bytes
constexpr int CHUNKS = 2 * STEPS;       // of 16 bytes in a column of B
constexpr u32 STRIDE_BYTES = 128;       // between core matrices along N
constexpr u32 LEADING_BYTES = COLUMNS / 8 * STRIDE_BYTES;  // and along K

__device__ u64 now_ns()
{
    u64 ns;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(ns));
    return ns;
}

// Matrix descriptor: bits 0-13 address, 16-29 leading offset, 32-45 stride offset, all in units of 16 bytes;
// 49-51 base offset 0; 62-63 swizzle: none.
__device__ u64 descriptor(u32 shared_address)
{
    return (u64)(shared_address >> 4 & 0x3fff) | (u64)(LEADING_BYTES >> 4) << 16 | (u64)(STRIDE_BYTES >> 4) << 32;
}

#define D128 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, " \
    "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
    "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, " \
    "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
    "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"

#define X4(C, D, I) C(D[I]), C(D[I + 1]), C(D[I + 2]), C(D[I + 3])
#define X16(C, D, I) X4(C, D, I), X4(C, D, I + 4), X4(C, D, I + 8), X4(C, D, I + 12)
#define X64(C, D, I) X16(C, D, I), X16(C, D, I + 16), X16(C, D, I + 32), X16(C, D, I + 48)
#define X128(C, D) X64(C, D, 0), X64(C, D, 64)

// TAIL: factors of A and B, and whether B is transposed, where the format has them. The predicate says: add.
#define WGMMA(NAME, ACCUMULATOR, CONSTRAINT, SHAPE_AND_TYPES, TAIL)                                          \
    struct NAME {                                                                                            \
        typedef ACCUMULATOR Accumulator;                                                                     \
        static __device__ void add(Accumulator (&d)[128], const u32 (&a)[4], u64 b)                          \
        {                                                                                                    \
            asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, 1, 0;\n"                                          \
                         "wgmma.mma_async.sync.aligned." SHAPE_AND_TYPES " {" D128 "}, "                     \
                         "{%128, %129, %130, %131}, %132, p" TAIL ";\n}"                                     \
                         : X128(CONSTRAINT, d)                                                               \
                         : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                              \
        }                                                                                                    \
        /* The sums are not to be read before, nor set after, this place. */                                 \
        static __device__ void hold(Accumulator (&d)[128])                                                   \
        {                                                                                                    \
            asm volatile("" : X128(CONSTRAINT, d) : : "memory");                                             \
        }                                                                                                    \
    }

WGMMA(Bf16, float, "+f", "m64n256k16.f32.bf16.bf16", ", 1, 1, 0");
WGMMA(Fp16, float, "+f", "m64n256k16.f32.f16.f16", ", 1, 1, 0");
WGMMA(Tf32, float, "+f", "m64n256k8.f32.tf32.tf32", ", 1, 1");
WGMMA(Fp8, float, "+f", "m64n256k32.f32.e4m3.e4m3", ", 1, 1");
WGMMA(Int8, int, "+r", "m64n256k32.s32.s8.s8", "");

template <class Op>
__device__ void multiply(
    const u32* a_rows, const uint4* b_columns, typename Op::Accumulator* d_blocks, u32 iterations, u64* clocks)
{
    __shared__ __align__(1024) uint4 b_shared[COLUMNS * CHUNKS];
    for (int i = threadIdx.x; i < COLUMNS * CHUNKS; i += THREADS) {
        const int column = i / CHUNKS, chunk = i % CHUNKS;
        b_shared[(chunk * LEADING_BYTES + column / 8 * STRIDE_BYTES) / 16 + column % 8] = b_columns[i];
    }
    // What was stored the ordinary way is to be seen by the instruction's own way of reading.
    asm volatile("fence.proxy.async.shared::cta;" : : : "memory");
    __syncthreads();

    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const u32 address = (u32)__cvta_generic_to_shared(b_shared);
    u32 a[STEPS][4];
    u64 b[STEPS];
    typename Op::Accumulator d[128];
    for (int step = 0; step < STEPS; ++step) {
        for (int r = 0; r < 4; ++r)
            a[step][r] = a_rows[(16 * warp + g + 8 * (r % 2)) * WORDS + 8 * step + t + 4 * (r / 2)];
        b[step] = descriptor(address + step * 2 * LEADING_BYTES);
    }
    for (int i = 0; i < 128; ++i)
        d[i] = 0;
    const u64 cycles = clock64(), ns = now_ns();
    Op::hold(d);
    for (u32 i = 0; i < iterations; ++i) {
        asm volatile("wgmma.fence.sync.aligned;" : : : "memory");
        for (int step = 0; step < STEPS; ++step)
            Op::add(d, a[step], b[step]);
        asm volatile("wgmma.commit_group.sync.aligned;" : : : "memory");
        asm volatile("wgmma.wait_group.sync.aligned 0;" : : : "memory");
    }
    Op::hold(d);
    if (blockIdx.x == 0 && threadIdx.x == 0) {
        clocks[0] = clock64() - cycles;
        clocks[1] = now_ns() - ns;
    }
    typename Op::Accumulator* block = d_blocks + (u64)blockIdx.x * ROWS * COLUMNS;
    for (int i = 0; i < 128; ++i)
        block[(16 * warp + g + 8 * (i / 2 % 2)) * COLUMNS + 8 * (i / 4) + 2 * t + i % 2] = d[i];
}

#define KERNEL(NAME, OP)                                                                                     \
    extern "C" __global__ void __launch_bounds__(THREADS, 2) NAME(                                           \
        const u32* a, const uint4* b, OP::Accumulator* d, u32 iterations, u64* clocks)                       \
    {                                                                                                        \
        multiply<OP>(a, b, d, iterations, clocks);                                                           \
    }

// They take a second each to compile: a probe that needs one asks for that one.
#if !defined(ONLY) || defined(ONLY_tensor_bf16)
KERNEL(tensor_bf16, Bf16)
#endif
#if !defined(ONLY) || defined(ONLY_tensor_fp16)
KERNEL(tensor_fp16, Fp16)
#endif
#if !defined(ONLY) || defined(ONLY_tensor_tf32)
KERNEL(tensor_tf32, Tf32)
#endif
#if !defined(ONLY) || defined(ONLY_tensor_fp8)
KERNEL(tensor_fp8, Fp8)
#endif
#if !defined(ONLY) || defined(ONLY_tensor_int8)
KERNEL(tensor_int8, Int8)
#endif
