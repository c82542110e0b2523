/* What a runtime gives the runner. Every function returns NULL, or a sentence of what is wrong. */
#ifndef ACMIX_RUNTIME_H
#define ACMIX_RUNTIME_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { MOST_TENSORS = 64 };

/* Loads the file; its inputs and outputs are in the order of the file. */
const char *runtime_load(const char *file, int threads);
size_t runtime_inputs(void);
size_t runtime_outputs(void);
/* The bytes of one input: row-major, little-endian, as many as the file's own tensor has. They are copied. */
const char *runtime_set_input(size_t place, const void *bytes, size_t size);
const char *runtime_run(void);
/* The bytes of one output after a run; they stay until the next call. */
const char *runtime_get_output(size_t place, const void **bytes, size_t *size);
const char *runtime_name(void);

/* A sentence in a buffer of the runner's own, for the returns above. */
const char *sentence(const char *format, ...) __attribute__((format(printf, 1, 2)));

#ifdef __cplusplus
}
#endif
#endif
