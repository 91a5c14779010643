/* NVML's own struct layouts, by NVIDIA's public binding (nvidia-ml-py 13.615). */
#ifndef NVML_ABI_H
#define NVML_ABI_H
#include <stdint.h>

typedef struct { unsigned long long total, free, used; } nvmlMemory_t;
typedef struct {
    unsigned version;
    unsigned long long total, reserved, free, used;
} nvmlMemory_v2_t;
typedef struct { unsigned long long total, free, used; } nvmlBAR1Memory_t;
typedef struct { unsigned gpu, memory; } nvmlUtilization_t;
typedef struct { unsigned version, sensor; int temperature; } nvmlTemperature_t;
typedef struct { unsigned version; int margin; } nvmlMarginTemperature_t;
typedef struct { unsigned long long reference, violation; } nvmlViolationTime_t;
typedef struct { unsigned max, high, partial, low, none; } nvmlRowRemapperHistogram_t;
typedef struct { unsigned long long l1, l2, memory, registers; } nvmlEccErrorCounts_t;

typedef struct {
    char busIdLegacy[16];
    unsigned domain, bus, device, pciDeviceId, pciSubSystemId;
    char busId[32];
} nvmlPciInfo_t;

typedef struct {
    unsigned version, domain, bus, device, pciDeviceId, pciSubSystemId, baseClass, subClass;
    char busId[32];
} nvmlPciInfoExt_t;

typedef union {
    double d;
    unsigned ui;
    unsigned long long ull;
} nvmlValue_t;

enum { VALUE_DOUBLE = 0, VALUE_UINT = 1, VALUE_ULL = 3 };

typedef struct {
    unsigned fieldId, scopeId;
    long long timestamp, latencyUsec;
    unsigned valueType, nvmlReturn;
    nvmlValue_t value;
} nvmlFieldValue_t;

typedef struct { unsigned long long timeStamp; nvmlValue_t value; } nvmlSample_t;
typedef struct { unsigned pid; unsigned long long usedGpuMemory; } nvmlProcessInfo_v1_t;
typedef struct {
    unsigned pid;
    unsigned long long usedGpuMemory;
    unsigned gi, ci;
} nvmlProcessInfo_t;

typedef struct {
    unsigned pid;
    unsigned long long usedGpuMemory;
    unsigned gi, ci;
    unsigned long long usedGpuCcProtectedMemory;
} nvmlProcessDetail_t;
typedef struct { unsigned version, mode, n; nvmlProcessDetail_t *items; } nvmlProcessDetailList_t;

typedef struct {
    unsigned pid;
    unsigned long long timeStamp;
    unsigned smUtil, memUtil, encUtil, decUtil;
} nvmlProcessUtilizationSample_t;

typedef struct {
    unsigned sms, copyEngines, decoders, encoders, jpegs, ofas, giSlices, ciSlices;
    unsigned long long memorySizeMB;
} nvmlDeviceAttributes_t;

typedef struct {
    void *device;
    unsigned long long eventType, eventData;
    unsigned gi, ci;
} nvmlEventData_t;

typedef struct {
    unsigned metricId, nvmlReturn;
    double value;
    const char *shortName, *longName, *unit;
} nvmlGpmMetric_t;

typedef struct {
    unsigned version, numMetrics;
    void *sample1, *sample2;
    nvmlGpmMetric_t metrics[]; /* 98 to 477 of them, by the caller's header */
} nvmlGpmMetricsGet_t;

typedef struct { unsigned version, isSupportedDevice; } nvmlGpmSupport_t;
#endif
