/* Instructions in user mode by perf_event_open(2). Of emulators, qemu-system has that counter with -icount alone. */
#include "instructions.h"
#include "runtime.h"

#include <errno.h>
#include <linux/perf_event.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { TURNS = 1000000 };

static int counter = -1;

static const char *open_counter(void) {
    struct perf_event_attr wanted;
    if (counter >= 0) return NULL;
    memset(&wanted, 0, sizeof wanted);
    wanted.size = sizeof wanted;
    wanted.type = PERF_TYPE_HARDWARE;
    wanted.config = PERF_COUNT_HW_INSTRUCTIONS;
    wanted.disabled = 1;
    wanted.exclude_kernel = 1;
    wanted.exclude_hv = 1;
    wanted.read_format = PERF_FORMAT_TOTAL_TIME_ENABLED | PERF_FORMAT_TOTAL_TIME_RUNNING;
    counter = (int)syscall(SYS_perf_event_open, &wanted, 0, -1, -1, PERF_FLAG_FD_CLOEXEC);
    return counter < 0 ? sentence("no counter of instructions: %s", strerror(errno)) : NULL;
}

/* Two instructions a turn. */
static const char *loop(void) {
#ifdef __aarch64__
    long turns = TURNS;
    __asm__ volatile("1: subs %0, %0, #1\n b.ne 1b" : "+r"(turns) : : "cc");
    return NULL;
#else
    return sentence("only a runner for arm64 counts instructions, in a loop of %d turns", TURNS);
#endif
}

static const char *count(const char *(*work)(void), long long *counted) {
    struct {
        uint64_t value, enabled, running;
    } told;
    ioctl(counter, PERF_EVENT_IOC_RESET, 0);
    ioctl(counter, PERF_EVENT_IOC_ENABLE, 0);
    const char *wrong = work();
    ioctl(counter, PERF_EVENT_IOC_DISABLE, 0);
    if (wrong) return wrong;
    if (read(counter, &told, sizeof told) != (ssize_t)sizeof told) return "the counter of instructions cannot be read";
    if (told.enabled != told.running) return "the counter of instructions was lent to somebody else meanwhile";
    *counted = (long long)told.value;
    return NULL;
}

const char *count_instructions(long runs, Counts *counts) {
    if (runs < 1 || runs > MOST_COUNTED) return sentence("count is from 1 to %d", MOST_COUNTED);
    const char *wrong = open_counter();
    if (!wrong) wrong = count(loop, &counts->loops[0]);
    for (long i = 0; !wrong && i < runs; i++) wrong = count(runtime_run, &counts->runs[i]);
    return wrong ? wrong : count(loop, &counts->loops[1]);
}
