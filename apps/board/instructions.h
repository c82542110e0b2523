/* Instructions that an inference takes, by the processor's own counter. */
#ifndef ACMIX_INSTRUCTIONS_H
#define ACMIX_INSTRUCTIONS_H

enum { MOST_COUNTED = 16 };

/* Of each inference, and of two loops of which it is known: 2,000,000 instructions each and those around them. */
typedef struct {
    long long runs[MOST_COUNTED], loops[2];
} Counts;

/* A loop, the inferences, the loop again. Returns NULL, or a sentence of what is wrong. */
const char *count_instructions(long runs, Counts *counts);

#endif
