/* A runner: one model file in one runtime, driven over stdin and stdout by one JSON object a line.
 *
 *   {"do":"load","file":"...","threads":1}   -> {"load_ns":..,"runtime":"...",...}
 *   {"do":"load",...,"profile":1}            -> the same; from then on the kernels of every run are timed
 *   {"do":"run","inputs":["file",...]}       -> {"latency_ns":[..],"outputs":["base64",...],...}
 *   {"do":"time","count":8}                  -> {"latency_ns":[..],...}
 *   {"do":"time","count":1,"inputs":[...]}   -> {"latency_ns":[..],...}
 *   {"do":"count","count":3}                 -> {"instructions":[..],"loops":[..,..],...}
 *   {"do":"kernels"}                         -> {"kernels":[{"name":"..","delegated":true,"place":[0,3]},...],
 *                                                "runs":[[[place in kernels,ns],...],...],...}
 *
 * Every answer has peak_memory_kb; {"error":"..."} in place of an answer leaves the runner able to go on.
 * Tensors are raw bytes, row-major, little-endian. `time` without inputs repeats the last ones.
 */
#include "instructions.h"
#include "notes.h"
#include "runtime.h"

#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { MOST_RUNS = 100000 };

typedef struct {
    const char *verb, *file;
    const char *inputs[MOST_TENSORS];
    size_t input_count;
    long threads, count, profile;
} Command;

static FILE *answers;
static int is_loaded, is_profiled, has_inputs;

const char *sentence(const char *format, ...) {
    static char text[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    return text;
}

static int64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC_RAW, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static long peak_memory_kb(void) {
    char line[256];
    long kb = 0;
    FILE *status = fopen("/proc/self/status", "r");
    while (status && fgets(line, sizeof line, status))
        if (sscanf(line, "VmHWM: %ld", &kb) == 1) break;
    if (status) fclose(status);
    return kb;
}

/* JSON, as far as the commands need it: one flat object of strings, whole numbers and lists of strings. */

static char *skip_blanks(char *at) {
    while (*at == ' ' || *at == '\t' || *at == '\r' || *at == '\n') at++;
    return at;
}

static int is_ascii(const char *hex) {
    long code = strtol(hex, NULL, 16);
    return code > 0 && code < 0x80;
}

/* Reads a string in place, at its opening quote; *text gets it. Returns the place behind it, NULL when it is none. */
static char *read_string(char *at, const char **text) {
    if (*at != '"') return NULL;
    char *to = ++at;
    *text = to;
    while (*at != '"') {
        if (*at == '\0') return NULL;
        if (*at != '\\') {
            *to++ = *at++;
            continue;
        }
        static const char escapes[] = "\"\\/bfnrt", meant[] = "\"\\/\b\f\n\r\t";
        const char *known = at[1] ? strchr(escapes, at[1]) : NULL;
        char hex[5] = "";
        if (known) {
            *to++ = meant[known - escapes];
            at += 2;
        } else if (at[1] == 'u' && sscanf(at + 2, "%4[0-9a-fA-F]", hex) == 1 && strlen(hex) == 4 && is_ascii(hex)) {
            *to++ = (char)strtol(hex, NULL, 16); /* The sender writes everything else as UTF-8. */
            at += 6;
        } else {
            return NULL;
        }
    }
    at++;
    *to = '\0';
    return at;
}

static char *read_list(char *at, Command *command) {
    at = skip_blanks(at + 1);
    while (*at != ']') {
        if (command->input_count == MOST_TENSORS) return NULL;
        at = read_string(at, &command->inputs[command->input_count++]);
        if (!at) return NULL;
        at = skip_blanks(at);
        if (*at == ',') at = skip_blanks(at + 1);
        else if (*at != ']') return NULL;
    }
    return at + 1;
}

static char *read_member(char *at, Command *command) {
    const char *key, *text = NULL;
    long number = 0;
    at = read_string(at, &key);
    if (!at) return NULL;
    at = skip_blanks(at);
    if (*at != ':') return NULL;
    at = skip_blanks(at + 1);
    if (*at == '"') {
        at = read_string(at, &text);
    } else if (*at == '[') {
        at = strcmp(key, "inputs") ? NULL : read_list(at, command);
    } else {
        char *end;
        errno = 0;
        number = strtol(at, &end, 10);
        at = end == at || errno ? NULL : end;
    }
    if (!strcmp(key, "do")) command->verb = text;
    else if (!strcmp(key, "file")) command->file = text;
    else if (!strcmp(key, "threads")) command->threads = number;
    else if (!strcmp(key, "count")) command->count = number;
    else if (!strcmp(key, "profile")) command->profile = number;
    return at;
}

static int read_command(char *line, Command *command) {
    char *at = skip_blanks(line);
    if (*at != '{') return 0;
    at = skip_blanks(at + 1);
    while (*at == '"') {
        at = read_member(at, command);
        if (!at) return 0;
        at = skip_blanks(at);
        if (*at != ',') break;
        at = skip_blanks(at + 1);
    }
    return *at == '}' && *skip_blanks(at + 1) == '\0' && command->verb;
}

/* Answers */

static void answer_error(const char *what) {
    fputs("{\"error\":", answers);
    write_text(answers, what);
    fputs("}\n", answers);
}

static const char *load(const Command *command) {
    if (is_loaded) return "a file is loaded already";
    if (!command->file) return "load without a file";
    int64_t begin = now_ns();
    const char *wrong = runtime_load(command->file, command->threads > 0 ? (int)command->threads : 1,
                                     command->profile != 0);
    if (wrong) return wrong;
    int64_t took = now_ns() - begin;
    is_loaded = 1;
    is_profiled = command->profile != 0;
    fprintf(answers, "{\"load_ns\":%lld,\"runtime\":\"%s\",\"peak_memory_kb\":%ld}\n", (long long)took,
            runtime_name(), peak_memory_kb());
    return NULL;
}

static const char *set_input(size_t place, const char *path) {
    FILE *file = fopen(path, "rb");
    if (!file) return sentence("%s cannot be read: %s", path, strerror(errno));
    const char *wrong = NULL;
    long size = fseek(file, 0, SEEK_END) ? -1 : ftell(file);
    rewind(file);
    void *bytes = size >= 0 ? malloc(size ? (size_t)size : 1) : NULL;
    if (!bytes || fread(bytes, 1, (size_t)size, file) != (size_t)size) wrong = sentence("%s cannot be read", path);
    else wrong = runtime_set_input(place, bytes, (size_t)size);
    free(bytes);
    fclose(file);
    return wrong;
}

static const char *set_inputs(const Command *command) {
    if (!is_loaded) return sentence("%s came before load", command->verb);
    if (command->input_count != runtime_inputs())
        return sentence("the file has %zu inputs, %zu were given", runtime_inputs(), command->input_count);
    for (size_t i = 0; i < command->input_count; i++) {
        const char *wrong = set_input(i, command->inputs[i]);
        if (wrong) return wrong;
    }
    has_inputs = 1;
    return NULL;
}

static const char *run_once(int64_t *took) {
    int64_t begin = now_ns();
    const char *wrong = runtime_run();
    *took = now_ns() - begin;
    if (!wrong && is_profiled) wrong = note_run();
    return wrong || !is_profiled ? wrong : runtime_note_kernels();
}

static const char *run(const Command *command) {
    int64_t took;
    const char *wrong = set_inputs(command);
    if (!wrong) wrong = run_once(&took);
    if (wrong) return wrong;
    const void *bytes[MOST_TENSORS];
    size_t sizes[MOST_TENSORS];
    for (size_t i = 0; !wrong && i < runtime_outputs(); i++) wrong = runtime_get_output(i, &bytes[i], &sizes[i]);
    if (wrong) return wrong;
    fprintf(answers, "{\"latency_ns\":[%lld],\"peak_memory_kb\":%ld,\"outputs\":[", (long long)took, peak_memory_kb());
    for (size_t i = 0; i < runtime_outputs(); i++) {
        fputs(i ? ",\"" : "\"", answers);
        write_base64(answers, (const unsigned char *)bytes[i], sizes[i]);
        fputc('"', answers);
    }
    fputs("]}\n", answers);
    return NULL;
}

static const char *time_runs(const Command *command) {
    const char *wrong = command->input_count ? set_inputs(command) : NULL;
    if (wrong) return wrong;
    if (!has_inputs) return "time came before run";
    if (command->count < 1 || command->count > MOST_RUNS) return sentence("count is from 1 to %d", MOST_RUNS);
    int64_t *taken = (int64_t *)malloc(sizeof(int64_t) * (size_t)command->count);
    if (!taken) return "out of memory";
    for (long i = 0; !wrong && i < command->count; i++) wrong = run_once(&taken[i]);
    if (!wrong) {
        fprintf(answers, "{\"peak_memory_kb\":%ld,\"latency_ns\":[", peak_memory_kb());
        for (long i = 0; i < command->count; i++) fprintf(answers, i ? ",%lld" : "%lld", (long long)taken[i]);
        fputs("]}\n", answers);
    }
    free(taken);
    return wrong;
}

static const char *count_runs(const Command *command) {
    Counts counts;
    if (!has_inputs) return "count came before run";
    const char *wrong = count_instructions(command->count, &counts);
    if (wrong) return wrong;
    fprintf(answers, "{\"peak_memory_kb\":%ld,\"loops\":[%lld,%lld],\"instructions\":[", peak_memory_kb(),
            counts.loops[0], counts.loops[1]);
    for (long i = 0; i < command->count; i++) fprintf(answers, i ? ",%lld" : "%lld", counts.runs[i]);
    fputs("]}\n", answers);
    return NULL;
}

static const char *tell_kernels(void) {
    if (!is_profiled) return "no file is loaded with its kernels timed";
    fputc('{', answers);
    write_notes(answers);
    fprintf(answers, ",\"peak_memory_kb\":%ld}\n", peak_memory_kb());
    return NULL;
}

static const char *obey(const Command *command) {
    if (!strcmp(command->verb, "load")) return load(command);
    if (!strcmp(command->verb, "run")) return run(command);
    if (!strcmp(command->verb, "time")) return time_runs(command);
    if (!strcmp(command->verb, "kernels")) return tell_kernels();
    if (!strcmp(command->verb, "count")) return count_runs(command);
    return sentence("there is no %.40s; a runner can load, run and time, and tell kernels", command->verb);
}

int main(void) {
    char *line = NULL;
    size_t room = 0;
    /* Whatever a runtime prints on stdout goes to stderr: answers have a stream of their own. */
    answers = fdopen(dup(1), "w");
    if (!answers || dup2(2, 1) < 0) return 1;
    while (getline(&line, &room, stdin) > 0) {
        Command command = {0};
        command.threads = 1;
        const char *wrong = read_command(line, &command) ? obey(&command) : "the line is no command";
        if (wrong) answer_error(wrong);
        if (fflush(answers)) return 1;
    }
    free(line);
    /* Runtimes' own threads may outlive their destructors: leave without running those. */
    _exit(0);
}
