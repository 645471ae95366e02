/* HailoRT's C interface as far as it is used: one network, one input and one output of three floats, y = 2 x. */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

struct params {
    char name[128];
    uint32_t type, order, flags, timeout_ms, queue_size, stats, element_stats;
};
_Static_assert(sizeof(struct params) == 156, "as in hailort.h");

enum { SUCCESS = 0, INVALID = 2, FLOAT32 = 3 };
static int device, hef, group, input, output, configured;
static float frame[3];

const char *hailo_get_status_message(uint32_t status) { return status ? "HAILO_INVALID_ARGUMENT" : "HAILO_SUCCESS"; }
uint32_t hailo_create_vdevice(void *params, void **vdevice) { (void)params; *vdevice = &device; return SUCCESS; }
uint32_t hailo_release_vdevice(void *vdevice) { return vdevice == &device ? SUCCESS : INVALID; }
uint32_t hailo_create_hef_buffer(void **out, const void *bytes, size_t size) {
    if (size < 4 || memcmp(bytes, "\001HEF", 4)) return INVALID;
    *out = &hef;
    return SUCCESS;
}
uint32_t hailo_release_hef(void *it) { return it == &hef ? SUCCESS : INVALID; }
uint32_t hailo_configure_vdevice(void *vdevice, void *it, void *params, void **groups, size_t *count) {
    if (vdevice != &device || it != &hef || params || *count < 1) return INVALID;
    groups[0] = &group;
    *count = 1;
    configured = 1;
    return SUCCESS;
}
static uint32_t fill(void *it, uint32_t type, struct params *params, size_t *count, const char *name) {
    if (it != &group || !configured || *count < 1) return INVALID;
    memset(params, 0, sizeof *params);
    strcpy(params->name, name);
    params->type = type;
    *count = 1;
    return SUCCESS;
}
uint32_t hailo_make_input_vstream_params(void *it, bool unused, uint32_t type, struct params *params, size_t *count) {
    (void)unused;
    return fill(it, type, params, count, "net/in");
}
uint32_t hailo_make_output_vstream_params(void *it, bool unused, uint32_t type, struct params *params, size_t *count) {
    (void)unused;
    return fill(it, type, params, count, "net/out");
}
uint32_t hailo_create_input_vstreams(void *it, const struct params *params, size_t count, void **streams) {
    if (it != &group || count != 1 || strcmp(params->name, "net/in") || params->type != FLOAT32) return INVALID;
    streams[0] = &input;
    return SUCCESS;
}
uint32_t hailo_create_output_vstreams(void *it, const struct params *params, size_t count, void **streams) {
    if (it != &group || count != 1 || strcmp(params->name, "net/out") || params->type != FLOAT32) return INVALID;
    streams[0] = &output;
    return SUCCESS;
}
uint32_t hailo_get_input_vstream_frame_size(void *it, size_t *size) { *size = sizeof frame; return it == &input ? SUCCESS : INVALID; }
uint32_t hailo_get_output_vstream_frame_size(void *it, size_t *size) { *size = sizeof frame; return it == &output ? SUCCESS : INVALID; }
uint32_t hailo_vstream_write_raw_buffer(void *it, const void *bytes, size_t size) {
    if (it != &input || size != sizeof frame) return INVALID;
    memcpy(frame, bytes, size);
    return SUCCESS;
}
uint32_t hailo_vstream_read_raw_buffer(void *it, void *bytes, size_t size) {
    if (it != &output || size != sizeof frame) return INVALID;
    for (int i = 0; i < 3; i++) ((float *)bytes)[i] = 2 * frame[i];
    return SUCCESS;
}
uint32_t hailo_release_input_vstreams(void *const *streams, size_t count) { return count == 1 && streams[0] == &input ? SUCCESS : INVALID; }
uint32_t hailo_release_output_vstreams(void *const *streams, size_t count) { return count == 1 && streams[0] == &output ? SUCCESS : INVALID; }
