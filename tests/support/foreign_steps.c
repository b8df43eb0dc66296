
/* Runs the steps of the file argv[1], written by foreign_steps.py, and writes what they compute to argv[2]. */
#include <stdio.h>
#include <stdlib.h>

enum { N_BLOCKS, N_MOVES, N_NAMES, N_TABLE, N_STEPS, N_ARENA, N_SCRATCH, N_TOGETHER, N_IMAGES, N_IMAGE_BYTES, N_INPUT,
       N_OUTPUT, N_BYTES, N_NUMBERS };

static void *room(uint64_t size)
{
    void *found = aligned_alloc(64, (size_t)(size / 64 + 1) * 64);
    if (found == NULL) {
        exit(3);
    }
    memset(found, 0, (size_t)(size / 64 + 1) * 64);
    return found;
}

static void get(void *to, uint64_t size, FILE *file)
{
    if (fread(to, 1, (size_t)size, file) != size) {
        exit(4);
    }
}

int main(int count, char **words)
{
    uint32_t traits[3];
    uint64_t n[N_NUMBERS], i;
    FILE *from, *to;
    if (count < 3) {
        caplet_host_traits(traits);
        return printf("%u %u %u\n", (unsigned)traits[0], (unsigned)traits[1], (unsigned)traits[2]) < 0;
    }
    from = fopen(words[1], "rb"), to = fopen(words[2], "wb");
    while (fread(n, sizeof *n, N_NUMBERS, from) == N_NUMBERS) {
        uint8_t **blocks = room(n[N_BLOCKS] * sizeof *blocks), *images, *found;
        caplet_host_memory memory = {room(n[N_TOGETHER] * n[N_ARENA] + n[N_SCRATCH]), n[N_ARENA], (uint32_t)n[N_TOGETHER], 1};
        for (i = 0; i < n[N_BLOCKS]; i++) {
            uint64_t size;
            get(&size, sizeof size, from);
            blocks[i] = room(size);
            get(blocks[i], size, from);
        }
        for (i = 0; i < n[N_MOVES]; i++) {
            uint64_t move[4];
            void *place;
            get(move, sizeof move, from);
            place = blocks[move[2]] + move[3];
            memcpy(blocks[move[0]] + move[1], &place, sizeof place);
        }
        for (i = 0; i < n[N_NAMES]; i++) {
            uint64_t at[2];
            char name[33] = "";
            void *place;
            get(at, sizeof at, from), get(name, 32, from);
            place = caplet_host_kernel(name);
            if (place == NULL) {
                return 5;
            }
            memcpy(blocks[at[0]] + at[1], &place, sizeof place);
        }
        images = room(n[N_IMAGES] * n[N_IMAGE_BYTES]), found = room(n[N_IMAGES] * n[N_BYTES]);
        get(images, n[N_IMAGES] * n[N_IMAGE_BYTES], from);
        caplet_host_run((caplet_host_step *)(void *)blocks[n[N_TABLE]], (uint32_t)n[N_STEPS], &memory, images, n[N_IMAGES],
                        n[N_IMAGE_BYTES], n[N_INPUT], n[N_OUTPUT], n[N_BYTES], found, n[N_OUTPUT], 0, found);
        fwrite(found, 1, (size_t)(n[N_IMAGES] * n[N_BYTES]), to);
        for (i = 0; i < n[N_BLOCKS]; i++) {
            free(blocks[i]);
        }
        free(blocks), free(images), free(found), free(memory.arenas);
    }
    return fclose(from) | fclose(to);
}
