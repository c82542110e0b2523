/* LiteRT's C interface, in libLiteRt.so of the package ai-edge-litert 2.3, which brings no headers. */
#include "runtime.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct Opaque *Handle;
typedef int Status;

/* Of LiteRT 2.3: element type, rank, at most 8 dimensions and strides; larger than any of its versions needs. */
typedef union {
    char bytes[256];
    long long alignment;
} TensorType;

enum { ON_CPU = 1, FOR_READING = 0, FOR_WRITING = 1 };
enum { STAGE = 1, OPERATOR = 2, DELEGATED_OPERATOR = 8, MOST_EVENTS = 100000 };

/* ProfiledEventData. where: the place of an operator in the file, or of an XNNPACK operator in its partition. */
typedef struct {
    const char *tag;
    int kind;
    uint64_t start_us, elapsed_us;
    size_t memory[6];
    uint64_t where, subgraph;
    int source;
} Event;

extern Status LiteRtCreateEnvironment(int count, const void *options, Handle *made);
extern Status LiteRtCreateModelFromFile(Handle environment, const char *file, Handle *made);
extern Status LiteRtCreateOptions(Handle *made);
extern Status LiteRtSetOptionsHardwareAccelerators(Handle options, int accelerators);
extern Status LiteRtCreateOpaqueOptions(const char *name, void *text, void (*release)(void *), Handle *made);
extern Status LiteRtAddOpaqueOptions(Handle options, Handle added);
extern Status LiteRtCreateCompiledModel(Handle environment, Handle model, Handle options, Handle *made);
extern Status LiteRtGetModelSubgraph(Handle model, size_t place, Handle *found);
extern Status LiteRtGetNumSubgraphInputs(Handle subgraph, size_t *count);
extern Status LiteRtGetNumSubgraphOutputs(Handle subgraph, size_t *count);
extern Status LiteRtGetSubgraphInput(Handle subgraph, size_t place, Handle *tensor);
extern Status LiteRtGetSubgraphOutput(Handle subgraph, size_t place, Handle *tensor);
extern Status LiteRtGetModelSignature(Handle model, size_t place, Handle *found);
extern Status LiteRtGetSignatureInputTensorByIndex(Handle signature, size_t place, Handle *tensor);
extern Status LiteRtGetSignatureOutputTensorByIndex(Handle signature, size_t place, Handle *tensor);
extern Status LiteRtGetRankedTensorType(Handle tensor, TensorType *type);
extern Status LiteRtGetCompiledModelInputBufferRequirements(Handle compiled, size_t signature, size_t place, Handle *);
extern Status LiteRtGetCompiledModelOutputBufferRequirements(Handle compiled, size_t signature, size_t place, Handle *);
extern Status LiteRtCreateManagedTensorBufferFromRequirements(Handle, const TensorType *, Handle required, Handle *);
extern Status LiteRtGetTensorBufferPackedSize(Handle buffer, size_t *size);
extern Status LiteRtLockTensorBuffer(Handle buffer, void **bytes, int mode);
extern Status LiteRtUnlockTensorBuffer(Handle buffer);
extern Status LiteRtCompiledModelGetProfiler(Handle compiled, Handle *profiler);
extern Status LiteRtResetProfiler(Handle profiler);
extern Status LiteRtStartProfiler(Handle profiler);
extern Status LiteRtStopProfiler(Handle profiler);
extern Status LiteRtGetNumProfilerEvents(Handle profiler, int *count);
extern Status LiteRtGetProfilerEvents(Handle profiler, int count, Event *events);
extern Status LiteRtRunCompiledModel(Handle, size_t signature, size_t inputs, Handle *, size_t outputs, Handle *);

/* Buffers are in the order of the signature, which runs; the places are those of the file, which callers know. */
typedef struct {
    size_t count;
    Handle buffers[MOST_TENSORS];
    size_t signature_place[MOST_TENSORS];
} Side;

typedef Status (*ByPlace)(Handle, size_t, Handle *);
typedef Status (*Requirements)(Handle, size_t, size_t, Handle *);

static Handle environment, model, compiled, subgraph, signature, profiler;
static Side inputs, outputs;
static void *copies[MOST_TENSORS];

const char *runtime_name(void) { return "LiteRT, C"; }
size_t runtime_inputs(void) { return inputs.count; }
size_t runtime_outputs(void) { return outputs.count; }

static const char *failed(const char *what, Status status) {
    return sentence("LiteRT could not %s: status %d", what, status);
}

static const char *make_side(Side *side, ByPlace in_file, ByPlace in_signature, Requirements requirements) {
    Handle of_file[MOST_TENSORS], tensor, required;
    Status status = 0;
    if (side->count > MOST_TENSORS) return sentence("the file has %zu tensors on one side", side->count);
    for (size_t i = 0; i < side->count; i++)
        if ((status = in_file(subgraph, i, &of_file[i]))) return failed("find a tensor", status);
    for (size_t i = 0; i < side->count; i++) {
        TensorType type;
        memset(&type, 0, sizeof type);
        if ((status = in_signature(signature, i, &tensor)) || (status = LiteRtGetRankedTensorType(tensor, &type)) ||
            (status = requirements(compiled, 0, i, &required)) ||
            (status = LiteRtCreateManagedTensorBufferFromRequirements(environment, &type, required, &side->buffers[i])))
            return failed("make a buffer", status);
        size_t place = 0;
        while (place < side->count && of_file[place] != tensor) place++;
        if (place == side->count) return "the signature names a tensor that the graph does not";
        side->signature_place[place] = i;
    }
    return NULL;
}

static const char *add_setting(Handle options, const char *name, const char *setting) {
    Handle added;
    char *text = strdup(setting);
    if (!text) return "out of memory";
    Status status = LiteRtCreateOpaqueOptions(name, text, free, &added);
    if (!status) status = LiteRtAddOpaqueOptions(options, added);
    return status ? failed("take its settings", status) : NULL;
}

static const char *start_profiler(void) {
    Status status = LiteRtResetProfiler(profiler);
    if (!status) status = LiteRtStartProfiler(profiler);
    return status ? failed("start its profiler", status) : NULL;
}

static const char *find_profiler(void) {
    Status status = LiteRtCompiledModelGetProfiler(compiled, &profiler);
    if (status) return failed("profile", status);
    return profiler ? start_profiler() : "this LiteRT gives no profiler";
}

const char *runtime_load(const char *file, int threads, int profiled) {
    Handle options;
    Status status;
    if ((status = LiteRtCreateEnvironment(0, NULL, &environment))) return failed("start", status);
    if ((status = LiteRtCreateModelFromFile(environment, file, &model))) return failed("read the file", status);
    if ((status = LiteRtCreateOptions(&options)) || (status = LiteRtSetOptionsHardwareAccelerators(options, ON_CPU)))
        return failed("choose the processor", status);
    char setting[64];
    snprintf(setting, sizeof setting, "num_threads = %d\n", threads);
    const char *wrong = add_setting(options, "xnnpack", setting);
    if (!wrong && profiled) wrong = add_setting(options, "runtime_options_string", "enable_profiling = true\n");
    if (wrong) return wrong;
    if ((status = LiteRtCreateCompiledModel(environment, model, options, &compiled)))
        return failed("prepare the file (XNNPACK needs a readable /sys)", status);
    if ((status = LiteRtGetModelSubgraph(model, 0, &subgraph)) ||
        (status = LiteRtGetModelSignature(model, 0, &signature)) ||
        (status = LiteRtGetNumSubgraphInputs(subgraph, &inputs.count)) ||
        (status = LiteRtGetNumSubgraphOutputs(subgraph, &outputs.count)))
        return failed("read the graph", status);
    wrong = make_side(&inputs, LiteRtGetSubgraphInput, LiteRtGetSignatureInputTensorByIndex,
                      LiteRtGetCompiledModelInputBufferRequirements);
    if (!wrong)
        wrong = make_side(&outputs, LiteRtGetSubgraphOutput, LiteRtGetSignatureOutputTensorByIndex,
                          LiteRtGetCompiledModelOutputBufferRequirements);
    return wrong || !profiled ? wrong : find_profiler();
}

const char *runtime_set_input(size_t place, const void *bytes, size_t size) {
    Handle buffer = inputs.buffers[inputs.signature_place[place]];
    size_t wanted;
    void *room;
    Status status = LiteRtGetTensorBufferPackedSize(buffer, &wanted);
    if (!status && wanted != size) return sentence("input %zu has %zu bytes, %zu were given", place, wanted, size);
    if (status || (status = LiteRtLockTensorBuffer(buffer, &room, FOR_WRITING))) return failed("take an input", status);
    memcpy(room, bytes, size);
    status = LiteRtUnlockTensorBuffer(buffer);
    return status ? failed("take an input", status) : NULL;
}

const char *runtime_run(void) {
    Status status = LiteRtRunCompiledModel(compiled, 0, inputs.count, inputs.buffers, outputs.count, outputs.buffers);
    return status ? failed("run", status) : NULL;
}

const char *runtime_get_output(size_t place, const void **bytes, size_t *size) {
    Handle buffer = outputs.buffers[outputs.signature_place[place]];
    void *found;
    Status status = LiteRtGetTensorBufferPackedSize(buffer, size);
    if (status || (status = LiteRtLockTensorBuffer(buffer, &found, FOR_READING))) return failed("give an output", status);
    void *copy = realloc(copies[place], *size ? *size : 1);
    if (copy) *bytes = memcpy(copies[place] = copy, found, *size);
    status = LiteRtUnlockTensorBuffer(buffer);
    if (!copy) return "out of memory";
    return status ? failed("give an output", status) : NULL;
}

static const char *note_events(const Event *events, int count) {
    int begun = 0;
    const char *wrong = NULL;
    for (int i = 0; !wrong && i < count; i++) {
        const char *tag = events[i].tag ? events[i].tag : "";
        int inside = events[i].kind == DELEGATED_OPERATOR;
        if (events[i].kind == STAGE && !strcmp(tag, "Invoke")) begun++;
        else if (begun && (inside || events[i].kind == OPERATOR))
            wrong = note_kernel(tag, inside, 0, (long)events[i].where, (int64_t)events[i].elapsed_us * 1000);
    }
    return wrong || begun == 1 ? wrong : sentence("LiteRT's profiler saw one run as %d", begun);
}

/* Emptied after each run, off the clock: its room is limited. */
const char *runtime_note_kernels(void) {
    int count = 0;
    Status status = LiteRtStopProfiler(profiler);
    if (!status) status = LiteRtGetNumProfilerEvents(profiler, &count);
    if (!status && (count < 1 || count > MOST_EVENTS)) return sentence("LiteRT's profiler saw %d events", count);
    Event *events = status ? NULL : (Event *)calloc((size_t)count, sizeof(Event));
    if (!status && !events) return "out of memory";
    if (!status) status = LiteRtGetProfilerEvents(profiler, count, events);
    const char *wrong = status ? failed("read its profiler", status) : note_events(events, count);
    free(events);
    return wrong ? wrong : start_profiler();
}
