// Peak of the vector pipes: fused multiply-adds on registers, fp32 and fp64.
//
// Each thread runs 16 independent chains x = a x + b, `iterations` times, and stores their sum. With a = 2,
// b = 1 and few iterations the result is the integer 2^n (x + 1) - 1 for every chain, exactly. a and b are
// arguments and x depends on the thread, so nothing can be computed in advance. `clocks` is as in mma.cu.

typedef unsigned int u32;
typedef unsigned long long u64;

constexpr int CHAINS = 16;

__device__ u64 now_ns()
{
    u64 ns;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(ns));
    return ns;
}

__device__ float multiply_add(float a, float x, float b) { return __fmaf_rn(a, x, b); }
__device__ double multiply_add(double a, double x, double b) { return __fma_rn(a, x, b); }

template <class Number>
__device__ void chains(Number a, Number b, Number* sums, u32 iterations, u64* clocks)
{
    Number x[CHAINS], sum = 0;
    for (int c = 0; c < CHAINS; ++c)
        x[c] = (Number)(threadIdx.x % 32 + c);
    const u64 cycles = clock64(), ns = now_ns();
#pragma unroll 8
    for (u32 i = 0; i < iterations; ++i)
        for (int c = 0; c < CHAINS; ++c)
            x[c] = multiply_add(a, x[c], b);
    for (int c = 0; c < CHAINS; ++c)
        sum += x[c];
    sums[(u64)blockIdx.x * blockDim.x + threadIdx.x] = sum;
    if (blockIdx.x == 0 && threadIdx.x == 0) {
        clocks[0] = clock64() - cycles;
        clocks[1] = now_ns() - ns;
    }
}

extern "C" __global__ void __launch_bounds__(256) fma_fp32(float a, float b, float* sums, u32 iterations, u64* clocks)
{
    chains<float>(a, b, sums, iterations, clocks);
}

extern "C" __global__ void __launch_bounds__(256) fma_fp64(double a, double b, double* sums, u32 iterations, u64* clocks)
{
    chains<double>(a, b, sums, iterations, clocks);
}
