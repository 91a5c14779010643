// A fake of the CUDA driver: enough of libcuda.so.1 for this project's probes, on a machine without a card.
//
// Memory is the host's. Kernels are not interpreted: the fake knows by name what each should do, from its own
// reading of the operands, and does that. Time is virtual: a launch takes what it would on an H100 at
// `clock_mhz`, at `efficiency` of its peak, so figures can be compared with what they must be. The variable
// FAKECUDA overrides the defaults below, as "key=value,key=value".

#define _GNU_SOURCE
#include <dlfcn.h>
#include <elf.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

typedef int CUresult;
typedef uint64_t CUdeviceptr;
enum { OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NO_DEVICE = 100, INVALID_DEVICE = 101, NOT_FOUND = 500, FAILED = 719 };

static double setting(const char *key, double value)
{
    const char *at = getenv("FAKECUDA");
    size_t length = strlen(key);
    for (; at && *at; at = strchr(at, ',') ? strchr(at, ',') + 1 : NULL)
        if (!strncmp(at, key, length) && at[length] == '=')
            return atof(at + length + 1);
    return value;
}

static double now_ns;  // virtual, of the one device timeline

struct context { int device; };
struct function { char name[64]; };
struct event { double ns; };
static struct context contexts[8];
static _Thread_local struct context *current;

static int capability(void) { return (int)setting("capability", 90); }
static int sm_count(void) { return (int)setting("sm_count", 132); }
static int resident(void) { return 2; }

CUresult cuInit(unsigned flags) { (void)flags; return setting("devices", 1) < 1 ? NO_DEVICE : OK; }

CUresult cuDeviceGet(int *device, int ordinal)
{
    *device = ordinal;
    return ordinal < setting("devices", 1) ? OK : INVALID_DEVICE;
}

CUresult cuDeviceGetName(char *name, int length, int device)
{
    (void)device;
    snprintf(name, length, "%s", "NVIDIA H100 80GB HBM3");
    return OK;
}

CUresult cuDeviceGetAttribute(int *value, int attribute, int device)
{
    (void)device;
    switch (attribute) {
    case 75: *value = capability() / 10; return OK;   // COMPUTE_CAPABILITY_MAJOR
    case 76: *value = capability() % 10; return OK;   // COMPUTE_CAPABILITY_MINOR
    case 16: *value = sm_count(); return OK;          // MULTIPROCESSOR_COUNT
    case 38: *value = 50 << 20; return OK;            // L2_CACHE_SIZE
    default: return INVALID_VALUE;
    }
}

CUresult cuDevicePrimaryCtxRetain(struct context **context, int device)
{
    contexts[device].device = device;
    *context = &contexts[device];
    return OK;
}

CUresult cuCtxSetCurrent(struct context *context) { current = context; return OK; }
CUresult cuCtxSynchronize(void) { return current ? OK : INVALID_VALUE; }

CUresult cuModuleLoadData(void **module, const void *image)
{
    const Elf64_Ehdr *header = image;
    if (setting("refuse_code", 0) || memcmp(header->e_ident, ELFMAG, SELFMAG))
        return 200;  // INVALID_IMAGE
    size_t size = header->e_shoff + (size_t)header->e_shnum * header->e_shentsize;
    size_t *kept = malloc(sizeof size + size);
    *kept = size;
    memcpy(kept + 1, image, size);
    *module = kept;
    return OK;
}

CUresult cuModuleGetFunction(struct function **function, void *module, const char *name)
{
    char section[80];
    snprintf(section, sizeof section, ".text.%s", name);
    const size_t *kept = module;
    if (!memmem(kept + 1, *kept, section, strlen(section) + 1))
        return NOT_FOUND;
    *function = calloc(1, sizeof **function);
    snprintf((*function)->name, sizeof (*function)->name, "%s", name);
    return OK;
}

CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, struct function *f, int threads, size_t shared)
{
    (void)f, (void)threads, (void)shared;
    *blocks = resident();
    return OK;
}

CUresult cuMemAlloc(CUdeviceptr *address, size_t size)
{
    // Reserved, not used: a gibibyte of which two ends are touched costs two pages.
    void *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (!current || at == MAP_FAILED || size > setting("free_bytes", 8e10))
        return OUT_OF_MEMORY;
    *address = (CUdeviceptr)(uintptr_t)at;
    return OK;
}

CUresult cuMemHostAlloc(void **address, size_t size, unsigned flags)
{
    (void)flags;
    return posix_memalign(address, 4096, size) ? OUT_OF_MEMORY : OK;
}

#define AT(ADDRESS) ((void *)(uintptr_t)(ADDRESS))

CUresult cuMemsetD8(CUdeviceptr to, unsigned char value, size_t count)
{
    if (value == 0 && to % 4096 == 0 && count >= 4096)
        return madvise(AT(to), count, MADV_DONTNEED) ? FAILED : OK;
    memset(AT(to), value, count);
    return OK;
}

static void moved(const void *from, void *to, size_t count, double bytes_per_second)
{
    memcpy(to, from, count);
    now_ns += count / bytes_per_second * 1e9;
}

CUresult cuMemcpyHtoD(CUdeviceptr to, const void *from, size_t n) { memcpy(AT(to), from, n); return OK; }
CUresult cuMemcpyDtoH(void *to, CUdeviceptr from, size_t n) { memcpy(to, AT(from), n); return OK; }

CUresult cuMemcpyHtoDAsync(CUdeviceptr to, const void *from, size_t n, void *stream)
{
    (void)stream;
    moved(from, AT(to), n, setting("h2d", 55e9));
    return OK;
}

CUresult cuMemcpyDtoHAsync(void *to, CUdeviceptr from, size_t n, void *stream)
{
    (void)stream;
    moved(AT(from), to, n, setting("d2h", 50e9));
    ((unsigned char *)to)[n / 2] ^= (unsigned char)setting("lost_bit", 0);
    return OK;
}

CUresult cuMemcpyPeerAsync(CUdeviceptr to, struct context *there, CUdeviceptr from, struct context *here, size_t n, void *stream)
{
    (void)stream;
    if (there == here)
        return INVALID_VALUE;
    moved(AT(from), AT(to), n, setting(here->device ? "from_peer" : "to_peer", 350e9));
    ((unsigned char *)AT(to))[n / 2] ^= (unsigned char)(here->device * setting("lost_bit", 0));
    return OK;
}

CUresult cuDeviceCanAccessPeer(int *can, int device, int peer) { *can = device != peer; return OK; }
CUresult cuCtxEnablePeerAccess(struct context *peer, unsigned flags) { return peer == current || flags ? INVALID_VALUE : OK; }

CUresult cuStreamCreate(void **stream, unsigned flags) { (void)flags; *stream = malloc(1); return OK; }
CUresult cuStreamSynchronize(void *stream) { (void)stream; return OK; }
CUresult cuEventCreate(struct event **event, unsigned flags) { (void)flags; *event = calloc(1, sizeof **event); return OK; }
CUresult cuEventRecord(struct event *event, void *stream) { (void)stream; event->ns = now_ns; return OK; }
CUresult cuEventSynchronize(struct event *event) { (void)event; return OK; }
CUresult cuEventDestroy(struct event *event) { free(event); return OK; }

CUresult cuEventElapsedTime(float *ms, struct event *start, struct event *end)
{
    *ms = (float)((end->ns - start->ns) / 1e6);
    return OK;
}

// One number of an operand, as the format has it.
static double number(const char *dtype, const void *data, size_t i)
{
    if (!strcmp(dtype, "int8"))
        return ((const int8_t *)data)[i];
    if (!strcmp(dtype, "fp64"))
        return ((const double *)data)[i];
    if (!strcmp(dtype, "fp16"))
        return (double)((const _Float16 *)data)[i];
    if (!strcmp(dtype, "fp8")) {
        unsigned code = ((const uint8_t *)data)[i], exponent = code >> 3 & 15;
        double value = exponent ? (1 + (code & 7) / 8.0) : (code & 7) / 8.0;
        for (int e = exponent ? (int)exponent : 1; e < 7; ++e)
            value /= 2;
        for (int e = 7; e < (int)exponent; ++e)
            value *= 2;
        return code & 128 ? -value : value;
    }
    uint32_t bits = !strcmp(dtype, "bf16") ? (uint32_t)((const uint16_t *)data)[i] << 16 : ((const uint32_t *)data)[i];
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static int flop_per_clock(const char *dtype)
{
    return !strcmp(dtype, "fp64") ? 256 : !strcmp(dtype, "tf32") ? 2048 : strstr(dtype, "8") ? 8192 : 4096;
}

static void took(double cycles, uint64_t *clocks)
{
    double mhz = setting("clock_mhz", 1755), ns = cycles / mhz * 1e3 / setting("efficiency", 0.97);
    clocks[0] = (uint64_t)(ns * mhz / 1e3);
    clocks[1] = (uint64_t)ns;
    now_ns += ns;
}

static void tensor(const char *dtype, unsigned blocks, void **p)
{
    const void *a = *(void **)p[0], *b = *(void **)p[1];
    char *d = *(char **)p[2];
    uint32_t iterations = *(uint32_t *)p[3];
    int fp64 = !strcmp(dtype, "fp64"), wgmma = capability() == 90 && !fp64;
    int size = fp64 ? 8 : !strcmp(dtype, "tf32") ? 4 : strstr(dtype, "8") ? 1 : 2;
    int rows = wgmma ? 64 : 32, columns = wgmma ? 256 : fp64 ? 64 : 128;
    int k = fp64 ? (capability() >= 90 ? 16 : 4) : (wgmma ? 128 : 32) / size, wide = fp64 ? 8 : 4;
    static char *done_for;
    static const void *done_with;
    static uint32_t done_iterations;
    double per_sm = (double)blocks / sm_count();
    took(per_sm * iterations * 2.0 * rows * columns * k / flop_per_clock(dtype), *(uint64_t **)p[4]);
    if (done_for == d && done_with == a && done_iterations == iterations)
        return;  // the same again: it is there
    done_for = d, done_with = a, done_iterations = iterations;
    for (int row = 0; row < rows; ++row)
        for (int column = 0; column < columns; ++column) {
            double sum = 0;
            for (int i = 0; i < k; ++i)
                sum += number(dtype, a, (size_t)row * k + i) * number(dtype, b, (size_t)column * k + i);
            sum *= setting("transposed", 0) ? -(double)iterations : iterations;
            void *at = d + ((size_t)row * columns + column) * wide;
            if (fp64)
                *(double *)at = sum;
            else if (!strcmp(dtype, "int8"))
                *(int32_t *)at = (int32_t)(int64_t)sum;
            else
                *(float *)at = (float)sum;
        }
    size_t tile = (size_t)rows * columns * wide;
    for (unsigned block = 1; block < blocks; ++block)
        memcpy(d + block * tile, d, tile);
    int corrupt = (int)setting("corrupt_block", -1);
    if (corrupt >= 0)
        d[corrupt * tile + 5 * wide] ^= 4;
}
static void chains(int fp64, unsigned threads_total, void **p)
{
    double a = fp64 ? *(double *)p[0] : *(float *)p[0], b = fp64 ? *(double *)p[1] : *(float *)p[1];
    void *sums = *(void **)p[2];
    uint32_t iterations = *(uint32_t *)p[3];
    took((double)threads_total / sm_count() * 16 * iterations * 2 / (fp64 ? 128 : 256), *(uint64_t **)p[4]);
    for (unsigned t = 0; iterations < 64 && t < threads_total; ++t) {
        double sum = 0;
        for (int c = 0; c < 16; ++c) {
            double x = t % 32 + c;
            for (uint32_t i = 0; i < iterations; ++i)
                x = a * x + b;
            sum += x;
        }
        if (fp64)
            ((double *)sums)[t] = sum;
        else
            ((float *)sums)[t] = (float)sum;
    }
}

#define ENDS 4096  // 16-byte vectors at either end of a buffer: the rest is taken for granted

static uint32_t mixed(uint64_t index, uint32_t seed)
{
    uint32_t x = ((uint32_t)index ^ (uint32_t)(index >> 32) ^ seed) * 2654435761u;
    return x ^ x >> 15;
}

static int memory(const char *name, unsigned threads_total, void **p)
{
    uint32_t *first = *(uint32_t **)p[0];
    if (!strcmp(name, "copy") || !strcmp(name, "read") || !strcmp(name, "write")) {
        uint64_t count = *(uint64_t *)p[!strcmp(name, "copy") ? 2 : 1];
        if (count % (4ull * threads_total))
            return FAILED;  // the kernels would run past the end
        if (!strcmp(name, "copy")) {
            char *to = *(char **)p[1], *from = (char *)first;
            memcpy(to, from, ENDS * 16);
            memcpy(to + (count - ENDS) * 16, from + (count - ENDS) * 16, ENDS * 16);
            if (setting("lost_bit", 0))
                to[100] ^= 1;
        }
        now_ns += count * 16.0 * (!strcmp(name, "copy") ? 2 : 1) / setting(name, 3.1e12) * 1e9;
        return OK;
    }
    uint64_t count = *(uint64_t *)p[1], wrong = 0;
    uint32_t seed = *(uint32_t *)p[2];
    for (int end = 0; end < 2; ++end)
        for (uint64_t i = 4 * (end ? count - ENDS : 0); i < 4 * (end ? count : ENDS); ++i)
            if (!strcmp(name, "pattern"))
                first[i] = mixed(i, seed);
            else
                wrong += first[i] != mixed(i, seed);
    if (!strcmp(name, "mismatches"))
        **(uint64_t **)p[3] += wrong;
    return OK;
}

CUresult cuLaunchKernel(
    struct function *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared,
    void *stream, void **params, void **extra)
{
    (void)stream, (void)shared;
    if (!current || gy * gz * by * bz != 1 || extra)
        return INVALID_VALUE;
    if (setting("launch_fails", 0))
        return FAILED;
    if (!strncmp(f->name, "tensor_", 7))
        tensor(f->name + 7, gx, params);
    else if (!strncmp(f->name, "fma_", 4))
        chains(!strcmp(f->name, "fma_fp64"), gx * bx, params);
    else if (!strcmp(f->name, "empty"))
        now_ns += 2000;
    else
        return memory(f->name, gx * bx, params);
    return OK;
}

CUresult cuGetErrorName(CUresult error, const char **text) { (void)error; *text = "CUDA_ERROR"; return OK; }
CUresult cuGetErrorString(CUresult error, const char **text) { (void)error; *text = "an error"; return OK; }
CUresult cuDriverGetVersion(int *version) { *version = 13000; return OK; }

// NVRTC asks for tables of the driver's own, and does without.
CUresult cuGetExportTable(const void **table, const void *id) { (void)id; *table = NULL; return NOT_FOUND; }

// How the binding finds everything else.
CUresult cuGetProcAddress_v2(const char *symbol, void **function, int version, uint64_t flags, int *status)
{
    (void)version, (void)flags;
    Dl_info self;
    dladdr((void *)cuInit, &self);
    void *library = dlopen(self.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
    *function = !strcmp(symbol, "cuGetProcAddress") ? (void *)cuGetProcAddress_v2 : dlsym(library, symbol);
    if (status)
        *status = *function ? 0 : 1;
    return *function ? OK : NOT_FOUND;
}
