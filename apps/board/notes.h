/* The kernels of profiled runs, as runner.c gives them away. */
#ifndef ACMIX_NOTES_H
#define ACMIX_NOTES_H

#include "runtime.h"

#include <stdio.h>

/* A run begins: the kernels that are noted from here on are its. */
const char *note_run(void);
/* "kernels":[...],"runs":[...] of all that was noted. */
void write_notes(FILE *to);
/* A JSON string. */
void write_text(FILE *to, const char *text);
/* What stands between the quotes of one. */
void write_base64(FILE *to, const unsigned char *bytes, size_t size);

#endif
