/* What profiled runs ran: each kernel once in a table, each run as places in it with nanoseconds. */
#include "notes.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_KERNELS = 10000, MOST_NOTES = 1000000, MOST_NOTED_RUNS = 100000 };

typedef struct {
    char *name;
    int delegated;
    long chain, place;
} Kernel;

typedef struct {
    size_t kernel;
    int64_t ns;
} Note;

static Kernel *kernels;
static Note *notes;
static size_t *ends; /* Of each run, the place behind its last note. */
static size_t kernel_count, note_count, run_count;

/* Grows a list by doubling; size_t of its old count tells when. */
static const char *make_room(void **list, size_t count, size_t size) {
    if (count && (count & (count - 1))) return NULL;
    void *larger = realloc(*list, (count ? 2 * count : 1) * size);
    if (!larger) return "out of memory";
    *list = larger;
    return NULL;
}

static int is_same(const Kernel *one, const char *name, int delegated, long chain, long place) {
    return one->place == place && one->chain == chain && one->delegated == delegated && !strcmp(one->name, name);
}

/* Runs are alike: the kernel is most often the one behind the last one. */
static size_t find_kernel(const char *name, int delegated, long chain, long place) {
    size_t expected = note_count ? notes[note_count - 1].kernel + 1 : 0;
    for (size_t i = 0; i < kernel_count; i++) {
        size_t at = (expected + i) % kernel_count;
        if (is_same(&kernels[at], name, delegated, chain, place)) return at;
    }
    return kernel_count;
}

const char *note_run(void) {
    if (run_count == MOST_NOTED_RUNS) return sentence("a profile holds at most %d runs: profile fewer, --runs", MOST_NOTED_RUNS);
    const char *wrong = make_room((void **)&ends, run_count, sizeof *ends);
    if (wrong) return wrong;
    ends[run_count++] = note_count;
    return NULL;
}

const char *note_kernel(const char *name, int delegated, long chain, long place, int64_t ns) {
    const char *wrong;
    if (!run_count) return "a kernel came before every run";
    if (note_count == MOST_NOTES) return sentence("a profile holds at most %d kernels of all runs: profile fewer runs, --runs", MOST_NOTES);
    size_t found = find_kernel(name, delegated, chain, place);
    if (found == kernel_count) {
        if (kernel_count == MOST_KERNELS) return sentence("a profile holds at most %d kernels", MOST_KERNELS);
        if ((wrong = make_room((void **)&kernels, kernel_count, sizeof *kernels))) return wrong;
        Kernel made = {strdup(name), delegated, chain, place};
        if (!made.name) return "out of memory";
        kernels[kernel_count++] = made;
    }
    if ((wrong = make_room((void **)&notes, note_count, sizeof *notes))) return wrong;
    Note made = {found, ns};
    notes[note_count++] = made;
    ends[run_count - 1] = note_count;
    return NULL;
}

void write_text(FILE *to, const char *text) {
    fputc('"', to);
    for (; *text; text++) {
        unsigned char c = (unsigned char)*text;
        if (c == '"' || c == '\\') fprintf(to, "\\%c", c);
        else if (c < 0x20 || c > 0x7e) fprintf(to, "\\u%04x", c);
        else fputc(c, to);
    }
    fputc('"', to);
}

void write_notes(FILE *to) {
    fputs("\"kernels\":[", to);
    for (size_t i = 0; i < kernel_count; i++) {
        fputs(i ? ",{\"name\":" : "{\"name\":", to);
        write_text(to, kernels[i].name);
        fprintf(to, ",\"delegated\":%s,\"place\":[%ld,%ld]}", kernels[i].delegated ? "true" : "false",
                kernels[i].chain, kernels[i].place);
    }
    fputs("],\"runs\":[", to);
    for (size_t run = 0, at = 0; run < run_count; run++) {
        fputs(run ? ",[" : "[", to);
        for (int first = 1; at < ends[run]; at++, first = 0)
            fprintf(to, first ? "[%zu,%lld]" : ",[%zu,%lld]", notes[at].kernel, (long long)notes[at].ns);
        fputc(']', to);
    }
    fputc(']', to);
}

void write_base64(FILE *to, const unsigned char *bytes, size_t size) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (size_t at = 0; at < size; at += 3) {
        size_t left = size - at;
        uint32_t three = (uint32_t)bytes[at] << 16 | (left > 1 ? (uint32_t)bytes[at + 1] << 8 : 0) |
                         (left > 2 ? (uint32_t)bytes[at + 2] : 0);
        fputc(digits[three >> 18], to);
        fputc(digits[three >> 12 & 63], to);
        fputc(left > 1 ? digits[three >> 6 & 63] : '=', to);
        fputc(left > 2 ? digits[three & 63] : '=', to);
    }
}
