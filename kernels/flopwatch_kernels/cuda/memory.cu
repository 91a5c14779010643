// Memory bandwidth: copy, read and write of buffers far larger than the L2 cache, 16 bytes at a time.
//
// Four loads are in flight per thread, neighbours read neighbouring addresses, and the grid walks over the
// buffer together. `read` folds what it loads and stores only if the fold is a value that it is told not to
// expect, so the loads stay. `pattern` and `mismatches` fill a buffer with a function of the address and count
// what differs from it, in 32-bit words: they say whether `copy` copied.

typedef unsigned int u32;
typedef unsigned long long u64;

constexpr int IN_FLIGHT = 4;

__device__ u32 mixed(u64 index, u32 seed)
{
    const u32 x = ((u32)index ^ (u32)(index >> 32) ^ seed) * 2654435761u;
    return x ^ x >> 15;
}

__device__ uint4 mixed4(u64 i, u32 seed)
{
    return make_uint4(mixed(4 * i, seed), mixed(4 * i + 1, seed), mixed(4 * i + 2, seed), mixed(4 * i + 3, seed));
}

#define FOR_EACH(I, COUNT)                                                                                   \
    for (u64 I = (u64)blockIdx.x * blockDim.x + threadIdx.x; I < (COUNT); I += (u64)gridDim.x * blockDim.x)

extern "C" __global__ void pattern(uint4* to, u64 count, u32 seed)
{
    FOR_EACH(i, count) to[i] = mixed4(i, seed);
}

extern "C" __global__ void mismatches(const uint4* from, u64 count, u32 seed, u64* wrong)
{
    u64 found = 0;
    FOR_EACH(i, count)
    {
        const uint4 seen = from[i], wanted = mixed4(i, seed);
        found += (seen.x != wanted.x) + (seen.y != wanted.y) + (seen.z != wanted.z) + (seen.w != wanted.w);
    }
    if (found)
        atomicAdd(wrong, found);
}

// `count` is a multiple of IN_FLIGHT x the grid's threads in the kernels below: the caller cuts it so.

extern "C" __global__ void copy(const uint4* __restrict__ from, uint4* __restrict__ to, u64 count)
{
    const u64 stride = (u64)gridDim.x * blockDim.x;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += IN_FLIGHT * stride) {
        uint4 v[IN_FLIGHT];
        for (int j = 0; j < IN_FLIGHT; ++j)
            v[j] = from[i + j * stride];
        for (int j = 0; j < IN_FLIGHT; ++j)
            to[i + j * stride] = v[j];
    }
}

extern "C" __global__ void read(const uint4* __restrict__ from, u64 count, u32 unexpected, u32* never)
{
    const u64 stride = (u64)gridDim.x * blockDim.x;
    u32 fold = 0;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += IN_FLIGHT * stride) {
        uint4 v[IN_FLIGHT];
        for (int j = 0; j < IN_FLIGHT; ++j)
            v[j] = from[i + j * stride];
        for (int j = 0; j < IN_FLIGHT; ++j)
            fold = (fold * 31) ^ v[j].x ^ v[j].y ^ v[j].z ^ v[j].w;
    }
    if (fold == unexpected)
        *never = fold;
}

extern "C" __global__ void write(uint4* to, u64 count, u32 value)
{
    const u64 stride = (u64)gridDim.x * blockDim.x;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += IN_FLIGHT * stride)
        for (int j = 0; j < IN_FLIGHT; ++j)
            to[i + j * stride] = make_uint4(value, value, value, value);
}
