/* SIMULATED libnvidia-ml.so.1: the functions of NVML that Moorage's agent calls, over a text file.
 *
 * $NVML_SIM_STATE names the file; it is read again on every call, so an edit is a change of the hardware:
 *
 *   driver VERSION                                      none of the lines below without it: the driver is gone
 *   gpu UUID TOTAL_MIB USED_MIB UTILIZATION NAME...     used: with the driver's reserve, as the first version counts
 *   mig INDEX PLACE UUID TOTAL_MIB USED_MIB             a MIG device: a part of a GPU, in one of seven places
 *   lost INDEX                                          the GPU fell off the bus
 *   health INDEX Unhealthy                              for the device plugin alone
 *
 * NVIDIA_VISIBLE_DEVICES=UUID,.. shows only these, as NVIDIA's container runtime does. Names, struct layouts and return
 * values as in nvml.h of driver 580. The reserve of 460 MiB is invented. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef unsigned int u32;
typedef unsigned long long u64;
typedef enum {
    SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6,
    INSUFFICIENT_SIZE = 7, DRIVER_NOT_LOADED = 9, GPU_IS_LOST = 15, VERSION_MISMATCH = 25
} result;

#define MOST 16
#define PLACES 7 /* MIG devices of one GPU, at most */
#define RESERVE (460ULL << 20)

static struct gpu { char uuid[96], name[96]; u64 total, used; u32 utilization; int lost, cut; } gpus[MOST];
static struct gpu parts[MOST][PLACES]; /* an empty place has no UUID */
static struct handle { int gpu, place; } handles[MOST], places[MOST][PLACES]; /* place -1: the whole GPU */
static int count, visible[MOST], shown, initialized;
static char driver[80];

static result load(void) {
    const char *path = getenv("NVML_SIM_STATE"), *wanted = getenv("NVIDIA_VISIBLE_DEVICES");
    FILE *file = path ? fopen(path, "r") : NULL;
    char line[512];
    int index, place;
    struct gpu part;
    if (!file) return DRIVER_NOT_LOADED;
    count = shown = 0;
    driver[0] = 0;
    memset(parts, 0, sizeof parts);
    memset(&part, 0, sizeof part);
    while (fgets(line, sizeof line, file)) {
        struct gpu *g = &gpus[count < MOST ? count : 0];
        if (sscanf(line, "driver %79s", driver) == 1) continue;
        if (count < MOST && sscanf(line, "gpu %95s %llu %llu %u %95[^\n]",
                                   g->uuid, &g->total, &g->used, &g->utilization, g->name) == 5) {
            g->lost = g->cut = 0;
            count++;
        } else if (sscanf(line, "mig %d %d %95s %llu %llu", &index, &place, part.uuid, &part.total, &part.used) == 5
                   && index >= 0 && index < count && place >= 0 && place < PLACES) {
            gpus[index].cut = 1;
            parts[index][place] = part;
        } else if (sscanf(line, "lost %d", &index) == 1 && index >= 0 && index < count) {
            gpus[index].lost = 1;
        }
    }
    fclose(file);
    for (int i = 0; i < count; i++)
        if (!wanted || !*wanted || !strcmp(wanted, "all") || strstr(wanted, gpus[i].uuid)) visible[shown++] = i;
    return driver[0] ? SUCCESS : DRIVER_NOT_LOADED;
}

static result enter(void) { return initialized ? load() : UNINITIALIZED; }

static result find(struct handle *device, struct gpu **found) {
    result r = enter();
    if (r) return r;
    if (!device || device->gpu >= count) return INVALID_ARGUMENT;
    *found = device->place < 0 ? &gpus[device->gpu] : &parts[device->gpu][device->place];
    if (!(*found)->uuid[0]) return NOT_FOUND; /* the part is no more */
    return gpus[device->gpu].lost ? GPU_IS_LOST : SUCCESS;
}

static result text(char *out, u32 size, const char *value) {
    if (strlen(value) + 1 > size) return INSUFFICIENT_SIZE;
    strcpy(out, value);
    return SUCCESS;
}

#define FIND struct gpu *g; result r = find(device, &g); if (r) return r

result nvmlInitWithFlags(u32 flags) { (void)flags; result r = load(); if (!r) initialized++; return r; }
result nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
result nvmlShutdown(void) { if (!initialized) return UNINITIALIZED; initialized--; return SUCCESS; }
result nvmlSystemGetDriverVersion(char *out, u32 size) { result r = enter(); return r ? r : text(out, size, driver); }
result nvmlDeviceGetCount_v2(u32 *out) { result r = enter(); if (!r) *out = shown; return r; }

result nvmlDeviceGetHandleByIndex_v2(u32 index, struct handle **out) {
    result r = enter();
    if (r) return r;
    if ((int)index >= shown) return INVALID_ARGUMENT;
    *out = &handles[visible[index]];
    **out = (struct handle){visible[index], -1};
    return gpus[visible[index]].lost ? GPU_IS_LOST : SUCCESS;
}

result nvmlDeviceGetUUID(struct handle *device, char *out, u32 size) { FIND; return text(out, size, g->uuid); }
result nvmlDeviceGetName(struct handle *device, char *out, u32 size) { FIND; return text(out, size, g->name); }
result nvmlDeviceGetMinorNumber(struct handle *device, u32 *out) { FIND; *out = device->gpu; return SUCCESS; }

result nvmlDeviceGetMigMode(struct handle *device, u32 *now, u32 *next) {
    FIND;
    if (device->place >= 0) return INVALID_ARGUMENT;
    if (!g->cut) return NOT_SUPPORTED;
    *now = *next = 1;
    return SUCCESS;
}

result nvmlDeviceGetMaxMigDeviceCount(struct handle *device, u32 *out) { FIND; *out = g->cut ? PLACES : 0; return SUCCESS; }

result nvmlDeviceGetMigDeviceHandleByIndex(struct handle *device, u32 place, struct handle **out) {
    FIND;
    if (device->place >= 0 || place >= PLACES) return INVALID_ARGUMENT;
    if (!g->cut || !parts[device->gpu][place].uuid[0]) return NOT_FOUND;
    *out = &places[device->gpu][place];
    **out = (struct handle){device->gpu, (int)place};
    return SUCCESS;
}

struct memory { u64 total, free, used; };
result nvmlDeviceGetMemoryInfo(struct handle *device, struct memory *m) {
    FIND;
    m->total = g->total << 20;
    m->used = g->used << 20;
    m->free = m->total - m->used;
    return SUCCESS;
}

struct memory_v2 { u32 version; u64 total, reserved, free, used; };
result nvmlDeviceGetMemoryInfo_v2(struct handle *device, struct memory_v2 *m) {
    FIND;
    u64 used = g->used << 20, reserve = device->place < 0 ? RESERVE : 0;
    if (m->version != (u32)(sizeof *m | 2u << 24)) return VERSION_MISMATCH;
    m->total = g->total << 20;
    m->reserved = used < reserve ? used : reserve;
    m->used = used - m->reserved;
    m->free = m->total - used;
    return SUCCESS;
}

struct utilization { u32 gpu, memory; };
result nvmlDeviceGetUtilizationRates(struct handle *device, struct utilization *u) {
    FIND;
    if (g->cut || device->place >= 0) return NOT_SUPPORTED;
    u->gpu = u->memory = g->utilization;
    return SUCCESS;
}

const char *nvmlErrorString(result r) {
    switch (r) {
    case SUCCESS: return "Success";
    case UNINITIALIZED: return "Uninitialized";
    case INVALID_ARGUMENT: return "Invalid Argument";
    case NOT_SUPPORTED: return "Not Supported";
    case NOT_FOUND: return "Not Found";
    case INSUFFICIENT_SIZE: return "Insufficient Size";
    case DRIVER_NOT_LOADED: return "Driver Not Loaded";
    case GPU_IS_LOST: return "GPU is lost";
    case VERSION_MISMATCH: return "Argument version mismatch";
    }
    return "Unknown Error";
}
