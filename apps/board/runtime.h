/* What a runtime gives the runner. Every function returns NULL, or a sentence of what is wrong. */
#ifndef ACMIX_RUNTIME_H
#define ACMIX_RUNTIME_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { MOST_TENSORS = 64 };

/* Loads the file; its inputs and outputs are in the order of the file. profiled: each run's kernels are timed. */
const char *runtime_load(const char *file, int threads, int profiled);
size_t runtime_inputs(void);
size_t runtime_outputs(void);
/* The bytes of one input: row-major, little-endian, as many as the file's own tensor has. They are copied. */
const char *runtime_set_input(size_t place, const void *bytes, size_t size);
const char *runtime_run(void);
/* The bytes of one output after a run; they stay until the next call. */
const char *runtime_get_output(size_t place, const void **bytes, size_t *size);
const char *runtime_name(void);
/* After each run of a file that was loaded as profiled: passes the run's kernels to note_kernel, in order. */
const char *runtime_note_kernels(void);

/* One kernel that the last run ran. name: the runtime's own, copied; delegated: inside a delegate; chain and place:
 * which instruction, or which operator of the delegate's part. */
const char *note_kernel(const char *name, int delegated, long chain, long place, int64_t ns);

/* A sentence in a buffer of the runner's own, for the returns above. */
const char *sentence(const char *format, ...) __attribute__((format(printf, 1, 2)));

#ifdef __cplusplus
}
#endif
#endif
