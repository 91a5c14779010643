// Tensor-pipe peak by mma.sync, operands in registers: compute capability 8.0 and later.
//
// Each block of 4 warps multiplies A[32, K] by B[128, K] transposed, `iterations` times, into D[32, 128]:
// warp w takes columns 32w..32w+31 as 2 x 4 independent tiles, so that no instruction waits for another's
// sum. K is what 32 bytes hold (fp64: 4 or 16 numbers). Operands are stored row by row with K last; D
// row by row, one after the other for every block. D = iterations x A B^T, exactly, where every product and
// partial sum is a small integer: that is how it is checked. The inline assembly is volatile and its sums are
// stored, so the loop cannot be left out.
//
// `clocks` receives, from thread 0 of block 0, SM cycles and nanoseconds of the loop: its own clock.
//
// Fragments as in the PTX ISA, "Matrix Fragments for mma.m16n8k8, .m16n8k16 and .m16n8k32": with g = lane / 4
// and t = lane % 4, word r of A is row g + 8 (r % 2), bytes 4 t + 16 (r / 2); word r of B is column g, bytes
// 4 t + 16 r; number i of D is row g + 8 (i / 2), column 2 t + i % 2. In bytes all formats agree.

typedef unsigned int u32;
typedef unsigned long long u64;

// Hopper and the B cards have no such instruction: there it would become fp16 products.
#define FP8 (__CUDA_ARCH__ == 890 || __CUDA_ARCH__ >= 1200)

constexpr int WARPS = 4;
constexpr int ROWS = 32;

__device__ u64 now_ns()
{
    u64 ns;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(ns));
    return ns;
}

struct Stopwatch {
    u64 cycles = clock64();
    u64 ns = now_ns();

    __device__ void tell(u64* clocks) const
    {
        if (blockIdx.x == 0 && threadIdx.x == 0) {
            clocks[0] = clock64() - cycles;
            clocks[1] = now_ns() - ns;
        }
    }
};

#define MMA(NAME, ACCUMULATOR, CONSTRAINT, SHAPE_AND_TYPES)                                                  \
    struct NAME {                                                                                            \
        typedef ACCUMULATOR Accumulator;                                                                     \
        static __device__ void add(Accumulator (&d)[4], const u32 (&a)[4], const u32 (&b)[2])                \
        {                                                                                                    \
            asm volatile("mma.sync.aligned." SHAPE_AND_TYPES                                                 \
                         " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                  \
                         : CONSTRAINT(d[0]), CONSTRAINT(d[1]), CONSTRAINT(d[2]), CONSTRAINT(d[3])            \
                         : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));                \
        }                                                                                                    \
    }

MMA(Bf16, float, "+f", "m16n8k16.row.col.f32.bf16.bf16.f32");
MMA(Fp16, float, "+f", "m16n8k16.row.col.f32.f16.f16.f32");
MMA(Tf32, float, "+f", "m16n8k8.row.col.f32.tf32.tf32.f32");
MMA(Int8, int, "+r", "m16n8k32.row.col.s32.s8.s8.s32");
#if FP8
MMA(Fp8, float, "+f", "m16n8k32.row.col.f32.e4m3.e4m3.f32");
#endif

template <class Op>
__device__ void multiply(
    const u32* a_rows, const u32* b_columns, typename Op::Accumulator* d_blocks, u32 iterations, u64* clocks)
{
    constexpr int WORDS = 8;  // of a row or column: 32 bytes
    constexpr int COLUMNS = 32 * WARPS;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    u32 a[2][4], b[4][2];
    typename Op::Accumulator d[2][4][4] = {};
    for (int m = 0; m < 2; ++m)
        for (int r = 0; r < 4; ++r)
            a[m][r] = a_rows[(16 * m + g + 8 * (r % 2)) * WORDS + t + 4 * (r / 2)];
    for (int n = 0; n < 4; ++n)
        for (int r = 0; r < 2; ++r)
            b[n][r] = b_columns[(32 * warp + 8 * n + g) * WORDS + t + 4 * r];
    Stopwatch watch;
#pragma unroll 4
    for (u32 i = 0; i < iterations; ++i)
        for (int m = 0; m < 2; ++m)
            for (int n = 0; n < 4; ++n)
                Op::add(d[m][n], a[m], b[n]);
    watch.tell(clocks);
    typename Op::Accumulator* block = d_blocks + (u64)blockIdx.x * ROWS * COLUMNS;
    for (int m = 0; m < 2; ++m)
        for (int n = 0; n < 4; ++n)
            for (int i = 0; i < 4; ++i)
                block[(16 * m + g + 8 * (i / 2)) * COLUMNS + 32 * warp + 8 * n + 2 * t + i % 2] = d[m][n][i];
}

#define KERNEL(NAME, OP)                                                                                     \
    extern "C" __global__ void __launch_bounds__(32 * WARPS) NAME(                                           \
        const u32* a, const u32* b, OP::Accumulator* d, u32 iterations, u64* clocks)                         \
    {                                                                                                        \
        multiply<OP>(a, b, d, iterations, clocks);                                                           \
    }

KERNEL(tensor_bf16, Bf16)
KERNEL(tensor_fp16, Fp16)
KERNEL(tensor_tf32, Tf32)
KERNEL(tensor_int8, Int8)
#if FP8
KERNEL(tensor_fp8, Fp8)
#endif

// fp64: D[32, 64] of a block, 16 columns a warp. K is 16 from capability 9.0 on, which has a larger
// instruction and needs it for its full rate, else 4. Fragments: number v of A is row g (m16: + 8 (v % 2)),
// k = t + 4 (v / 2); number v of B is column g, k = t + 4 v; D as above, without rows g + 8 in m8.
#if __CUDA_ARCH__ >= 900
constexpr int FP64_K = 16, FP64_ROWS = 16, FP64_A = 8, FP64_B = 4, FP64_D = 4;

__device__ void add_fp64(double (&d)[4], const double (&a)[8], const double (&b)[4])
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f64.f64.f64.f64 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7, %8, %9, %10, %11}, {%12, %13, %14, %15}, {%0, %1, %2, %3};"
                 : "+d"(d[0]), "+d"(d[1]), "+d"(d[2]), "+d"(d[3])
                 : "d"(a[0]), "d"(a[1]), "d"(a[2]), "d"(a[3]), "d"(a[4]), "d"(a[5]), "d"(a[6]), "d"(a[7]),
                   "d"(b[0]), "d"(b[1]), "d"(b[2]), "d"(b[3]));
}
#else
constexpr int FP64_K = 4, FP64_ROWS = 8, FP64_A = 1, FP64_B = 1, FP64_D = 2;

__device__ void add_fp64(double (&d)[2], const double (&a)[1], const double (&b)[1])
{
    asm volatile("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0, %1}, {%2}, {%3}, {%0, %1};"
                 : "+d"(d[0]), "+d"(d[1])
                 : "d"(a[0]), "d"(b[0]));
}
#endif

extern "C" __global__ void __launch_bounds__(32 * WARPS) tensor_fp64(
    const double* a_rows, const double* b_columns, double* d_blocks, u32 iterations, u64* clocks)
{
    constexpr int COLUMNS = 16 * WARPS, TILES = ROWS / FP64_ROWS;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    double a[TILES][FP64_A], b[2][FP64_B], d[TILES][2][FP64_D] = {};
    for (int m = 0; m < TILES; ++m)
        for (int v = 0; v < FP64_A; ++v)
            a[m][v] = a_rows[(FP64_ROWS * m + g + 8 * (v % 2)) * FP64_K + t + 4 * (v / 2)];
    for (int n = 0; n < 2; ++n)
        for (int v = 0; v < FP64_B; ++v)
            b[n][v] = b_columns[(16 * warp + 8 * n + g) * FP64_K + t + 4 * v];
    Stopwatch watch;
#pragma unroll 4
    for (u32 i = 0; i < iterations; ++i)
        for (int m = 0; m < TILES; ++m)
            for (int n = 0; n < 2; ++n)
                add_fp64(d[m][n], a[m], b[n]);
    watch.tell(clocks);
    double* block = d_blocks + (u64)blockIdx.x * ROWS * COLUMNS;
    for (int m = 0; m < TILES; ++m)
        for (int n = 0; n < 2; ++n)
            for (int i = 0; i < FP64_D; ++i)
                block[(FP64_ROWS * m + g + 8 * (i / 2)) * COLUMNS + 16 * warp + 8 * n + 2 * t + i % 2] = d[m][n][i];
}
