/*
 * A plugin of QEMU (its API version 1) that counts how often each block of guest code runs. It declares what it uses
 * of QEMU's interface itself, so that it builds without QEMU's headers.
 *
 * Option: out=FILE. At the end FILE has a line for each block: address (hexadecimal), instructions, times run.
 */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint64_t plugin_id;
struct qemu_plugin_tb;

extern void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id, void (*)(plugin_id, struct qemu_plugin_tb *));
extern uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *);
extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
extern void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *, int operation, void *counter,
                                                     uint64_t value);
extern void qemu_plugin_register_atexit_cb(plugin_id, void (*)(plugin_id, void *), void *);

enum { ADD = 0, MOST_BLOCKS = 1 << 16 };

typedef struct {
    uint64_t address;
    uint64_t instructions;
    uint64_t times;
} block;

int qemu_plugin_version = 1;
static block blocks[MOST_BLOCKS];
static int used;
static const char *path = "counts.txt";

static void translated(plugin_id id, struct qemu_plugin_tb *code)
{
    block *one = &blocks[used++];
    (void)id;
    if (used == MOST_BLOCKS) {
        fprintf(stderr, "count_instructions: more than %d blocks of code\n", MOST_BLOCKS);
        exit(1);
    }
    one->address = qemu_plugin_tb_vaddr(code);
    one->instructions = qemu_plugin_tb_n_insns(code);
    qemu_plugin_register_vcpu_tb_exec_inline(code, ADD, &one->times, 1);
}

static void finished(plugin_id id, void *data)
{
    FILE *file = fopen(path, "w");
    int i;
    (void)id;
    (void)data;
    for (i = 0; file != NULL && i < used; i++) {
        if (blocks[i].times > 0) {
            fprintf(file, "%llx %llu %llu\n", (unsigned long long)blocks[i].address,
                    (unsigned long long)blocks[i].instructions, (unsigned long long)blocks[i].times);
        }
    }
    if (file != NULL) {
        fclose(file);
    }
}

int qemu_plugin_install(plugin_id id, const void *info, int count, char **options)
{
    (void)info;
    if (count > 0 && strncmp(options[0], "out=", 4) == 0) {
        path = strdup(options[0] + 4);
    }
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_atexit_cb(id, finished, NULL);
    return 0;
}
