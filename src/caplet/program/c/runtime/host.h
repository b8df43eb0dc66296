/*
 * Running whole Programs on a PC: a batch entry point over steps that are described at run time, and a convolution that
 * trades memory for speed. Not part of an exported model; the integers are the same.
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
    CAPLET_AS_DEVICE = 0, /* by caplet_convolve */
    CAPLET_BYTES = 1,    /* uint8_t patches, int8_t weights */
    CAPLET_FLIPPED = 2,  /* int8_t input stored as uint8_t patches of code + 128, int8_t weights */
    CAPLET_WORDS = 3     /* int16_t patches and weights */
};

/*
 * A convolution over gathered patches.
 * weights: (out_channels rounded up to 4, patch), int8_t or int16_t, zero beyond the filters.
 * start: int32_t (out_channels rounded up to 16), where the sums start: -128 * the filter's sum for CAPLET_FLIPPED.
 * patch: elements of a patch, the filter's size rounded up to 64. positions: gathered at a time, a multiple of 4.
 */
typedef struct {
    caplet_conv_op conv;
    const void *weights;
    const int32_t *start;
    uint32_t patch;
    uint32_t positions;
    uint32_t method;
} caplet_host_conv;

/*
 * x, y, first_channel, element: as for caplet_convolve; device: its scratch. scratch: aligned to 64 bytes,
 * positions * patch elements and positions * 16 int32_t.
 */
void caplet_host_convolve(const caplet_host_conv *op, const void *x, uint32_t first_channel, void *y, uint32_t element,
                          void *device, void *scratch);

/*
 * As caplet_dense_votes, but with weights (inputs, in_dim, votes). acc: scratch, int32_t or int64_t (votes). weights:
 * scratch for min(in_dim, 4) * votes unpacked weights.
 */
void caplet_host_dense_votes(const caplet_dense_votes_op *op, const void *const *x, uint32_t input, void *row,
                             void *acc, void *weights);

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
    CAPLET_STEP_HOST_VOTES = 12
};

enum { CAPLET_STEP_MEMORY = 5 };

/* Offset of a buffer that does not exist. */
#define CAPLET_NOWHERE UINT64_MAX

/*
 * One op of a Program. op: its descriptor. All others are offsets in bytes into the arena:
 * inputs: of the tensors it reads; output: of the one it writes;
 * memory: votes {room for one pointer per source, scratch}, or {pointers, acc, weights} by caplet_host_dense_votes;
 * convolutions {scratch of the device, scratch of the host}; routing {logits,
 * preactivation, coupling, acc, exponentials}, with the activation as output. row_bytes: of one input capsule's votes.
 * count: of input capsules. input_count: of inputs.
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
 * Run `images` images, uint8_t (images, image_bytes) in the device's layout.
 * input, output, lengths: offsets of the image's place, of the class capsules and of their lengths in the arena.
 * capsules: out, (images, capsule_bytes); squared: out, (images, length_bytes).
 */
CAPLET_EXPORT void caplet_host_run(const caplet_host_step *steps, uint32_t count, void *arena, const uint8_t *images,
                                   uint64_t image_count, uint64_t image_bytes, uint64_t input, uint64_t output,
                                   uint64_t capsule_bytes, void *capsules, uint64_t lengths, uint64_t length_bytes,
                                   void *squared);

#endif
