/*
 * Products per nanosecond and core of the instruction that the host's convolutions spend their time in, from registers
 * alone, and the clock, from additions that wait for each other. x86 with AVX-512 VNNI; others say 0.
 * Prints JSON. Time is the thread's own, so that other processes do not count.
 */
#include <stdio.h>
#include <time.h>

#define FOUR(A) A A A A

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

int main(void)
{
    double products = 0, clock = 0;
#ifdef __AVX512VNNI__
    const long loops = 400000;
    int turn;
    for (turn = 0; turn < 40; turn++) {
        double start = now(), end, rate;
        long k;
        for (k = 0; k < loops; k++) {
#define DOT(N) "vpdpbusd %%zmm31, %%zmm30, %%zmm" #N "\n"
            __asm__ volatile(DOT(0) DOT(1) DOT(2) DOT(3) DOT(4) DOT(5) DOT(6) DOT(7) DOT(8) DOT(9) DOT(10) DOT(11)
                             ::: "zmm0", "zmm1", "zmm2", "zmm3", "zmm4", "zmm5", "zmm6", "zmm7", "zmm8", "zmm9",
                                 "zmm10", "zmm11");
        }
        end = now();
        rate = 1e-9 * 12 * 64 * (double)loops / (end - start);
        products = rate > products ? rate : products;
        start = now();
        for (k = 0; k < loops; k++) {
            __asm__ volatile(FOUR(FOUR("add %%rax, %%rax\n")) ::: "rax", "cc");
        }
        end = now();
        rate = 1e-9 * 16 * (double)loops / (end - start);
        clock = rate > clock ? rate : clock;
    }
#endif
    printf("{\"products_per_ns\": %.1f, \"clock_ghz\": %.2f}\n", products, clock);
    return 0;
}
