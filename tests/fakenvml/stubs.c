/* The rest of the ABI. The caller's further arguments are left alone, which the C calling
 * convention of 64-bit Linux allows. */
#include <string.h>

#include "fake.h"

static nvmlReturn_t refuse(const char *fn, void *first, nvmlReturn_t code) {
    subject_t *s;
    nvmlReturn_t entered =
        strncmp(fn, "nvmlDevice", 10) ? enter_system(fn) : enter(fn, first, &s);
    return entered ? entered : leave(code);
}

#define STUB(fn)                                                                                   \
    API fn(void *first) { return refuse(__func__, first, E_NOT_SUPPORTED); }
#define DENY(fn)                                                                                   \
    API fn(void *first) { return refuse(__func__, first, E_NO_PERMISSION); }
#include "stubs.def"
