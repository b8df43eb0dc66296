/*
 * Running whole Programs on a PC: a batch entry point over steps that are described at run time, and kernels for the
 * vectors of its processor. Not part of an exported model; the integers are the same.
 */
#ifndef CAPLET_HOST_H
#define CAPLET_HOST_H

#include "caplet.h"

#if defined(_WIN32)
#define CAPLET_EXPORT __declspec(dllexport)
#else
#define CAPLET_EXPORT
#endif

/* How a convolution makes its sums of products. */
enum {
    CAPLET_BYTES = 0, /* of four bytes at once; weights are int8_t */
    CAPLET_PAIRS = 1  /* of two int16_t */
};

/*
 * Products of four bytes with int8_t that the processor sums at once: none, of uint8_t, of int8_t; or of uint8_t, two
 * sums of two products each, which must fit int16_t together with those of the next word.
 */
enum { CAPLET_NO_BYTES = 0, CAPLET_UNSIGNED_BYTES = 1, CAPLET_SIGNED_BYTES = 2, CAPLET_CHAINED_BYTES = 3 };

/*
 * A convolution by tiles of sums. The input is copied into a map (rows, columns, in_channels) with its border, of
 * map_bytes bytes; where `flipped`, with the top bit of each byte flipped: of uint8_t to int8_t, or the other way.
 * words: 32-bit words of a window, each of elements that are neighbours in the map, taps: their offsets in bytes, for
 * each panel panel_taps (0 or words) further.
 * weights: panels (words, lanes), one after the other: a lane holds a filter's elements of a word. Lanes are rounded up
 * to a vector's, elements beyond the filters are zero.
 * start: int32_t (lanes of all panels), where the sums start.
 */
typedef struct {
    caplet_conv_op conv;
    const void *weights;
    const int32_t *start;
    const uint32_t *taps;
    uint32_t words;
    uint32_t rows;
    uint32_t columns;
    uint32_t map_bytes;
    uint32_t panel_taps;
    uint8_t method;
    uint8_t flipped;
} caplet_host_conv;

/*
 * x, y: of the first of `images` images, which lie next_image bytes apart. row_bytes: of one input type's votes.
 * scratch: aligned to 64 bytes, images * map_bytes.
 */
void caplet_host_convolve(const caplet_host_conv *op, const void *x, void *y, uint64_t next_image, uint32_t images,
                          uint32_t row_bytes, void *scratch);

/* Dense votes by tiles of sums. weights: for each input capsule panels as above, over the votes. taps: 4 * k, words. */
typedef struct {
    caplet_dense_votes_op votes;
    const void *weights;
    const uint32_t *taps;
    uint32_t words; /* pairs of components */
    uint32_t inputs;
} caplet_host_votes;

/* scratch: aligned to 64 bytes, for the scales of all panels and inputs * images * words * 4. */
void caplet_host_dense_votes(const caplet_host_votes *op, const void *const *x, void *y, uint64_t next_image,
                             uint32_t images, uint32_t row_bytes, void *scratch);

/*
 * As caplet_routing with stored votes and a table of exponentials, where weigh is caplet_weigh_bytes, and update, if
 * any, one of caplet_update_bytes. memory->logits: NULL where nobody looks at them. scratch: aligned to 64 bytes, all
 * that the arrays of a routing_room take.
 */
void caplet_host_route(const caplet_routing_op *op, const int8_t *votes, const caplet_routing_memory *memory,
                       void *scratch);

/* The factor of a capsule: codes << left times multiplier, of which the upper 32 bits are rounded and shifted right. */
typedef struct {
    int32_t multiplier;
    uint8_t left;
    uint8_t right;
} caplet_squash_factor;

/* A squash by caplet_squash_bytes. factors: of squared lengths below `lengths`. */
typedef struct {
    caplet_squash_op squash;
    const caplet_squash_factor *factors;
    uint32_t lengths;
} caplet_host_squash;

void caplet_host_squash_bytes(const caplet_host_squash *op, const void *x, void *y);

enum {
    CAPLET_STEP_INPUT_QUANTIZE = 0,
    CAPLET_STEP_CONV2D = 1,
    CAPLET_STEP_CHANNEL_AFFINE = 2,
    CAPLET_STEP_SQUASH = 3,
    CAPLET_STEP_ADD = 4,
    CAPLET_STEP_DENSE_VOTES = 5,
    CAPLET_STEP_CONV_VOTES = 6,
    CAPLET_STEP_ROUTING = 7,
    CAPLET_STEP_LENGTHS = 8,
    CAPLET_STEP_MAX_POOL2D = 9,
    CAPLET_STEP_LEAKY_RELU = 10,
    CAPLET_STEP_LISTING = 11,
    CAPLET_STEP_HOST_CONV = 12, /* op is a caplet_host_conv */
    CAPLET_STEP_HOST_VOTES = 13, /* a caplet_host_votes */
    CAPLET_STEP_HOST_ROUTING = 14,
    CAPLET_STEP_HOST_SQUASH = 15 /* a caplet_host_squash */
};

enum { CAPLET_STEP_MEMORY = 5 };

/* Offset of a buffer that does not exist. */
#define CAPLET_NOWHERE UINT64_MAX

/*
 * One op of a Program. op: its descriptor. All others are offsets in bytes into an image's arena:
 * inputs: of the tensors it reads; output: of the one it writes;
 * memory: votes {room for one pointer per source, scratch}; convolutions {scratch}; routing {logits, preactivation,
 * coupling, acc, exponentials}, with the activation as output. row_bytes: of one input capsule's votes, or input
 * type's. count: of input capsules. input_count: of inputs.
 */
typedef struct {
    const void *op;
    const uint64_t *inputs;
    uint64_t memory[CAPLET_STEP_MEMORY];
    uint64_t output;
    uint32_t kind;
    uint32_t row_bytes;
    uint32_t count;
    uint32_t input_count;
} caplet_host_step;

/* The function of this name, NULL if there is none: the address of a kernel for a descriptor. */
CAPLET_EXPORT void *caplet_host_kernel(const char *name);

/*
 * 32-bit words of a vector; lanes of a full panel; CAPLET_NO_BYTES .. CAPLET_CHAINED_BYTES. All are 0 where no step may
 * be of a HOST kind.
 */
CAPLET_EXPORT void caplet_host_traits(uint32_t *traits);

/*
 * Where images lie: arenas of `arena_bytes` for `together` images that take each step together, then scratch that all
 * of them share. traced: every tensor is written to its place.
 */
typedef struct {
    void *arenas;
    uint64_t arena_bytes;
    uint32_t together;
    uint32_t traced;
} caplet_host_memory;

/*
 * Run `images` images, uint8_t (images, image_bytes) in the device's layout.
 * input, output, lengths: offsets of the image's place, of the class capsules and of their lengths in an arena.
 * capsules: out, (images, capsule_bytes); squared: out, (images, length_bytes).
 */
CAPLET_EXPORT void caplet_host_run(const caplet_host_step *steps, uint32_t count, const caplet_host_memory *memory,
                                   const uint8_t *images, uint64_t image_count, uint64_t image_bytes, uint64_t input,
                                   uint64_t output, uint64_t capsule_bytes, void *capsules, uint64_t lengths,
                                   uint64_t length_bytes, void *squared);

#endif
