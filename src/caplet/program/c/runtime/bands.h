/* Chains of ops that are computed in bands of rows. */
#ifndef CAPLET_BANDS_H
#define CAPLET_BANDS_H

#include "caplet.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Some rows of an op with `all` rows of output: out_rows of them, from in_rows rows of input below `top` of zeros. */
typedef struct {
    uint32_t all;
    uint32_t in_rows;
    uint32_t out_rows;
    uint32_t top;
} caplet_rows;

/* x, y: the first of these rows; other: of the second input, where there is one. Others as for the op's function. */
typedef void caplet_row_runner(const void *op, const caplet_rows *rows, const void *x, const void *other, void *y,
                               void *scratch);

caplet_row_runner caplet_input_quantize_rows, caplet_conv2d_rows, caplet_max_pool2d_rows, caplet_channel_affine_rows,
    caplet_leaky_relu_rows, caplet_squash_rows, caplet_add_rows;

enum {
    CAPLET_STAGES = 24, /* of a chain, at most */
    CAPLET_IMAGE = 1    /* place of the image, which lies outside the arena: other places are multiples of 8 */
};

/*
 * One op of a chain. input, other, output, scratch: places in the arena. kernel, stride, padding: of rows.
 * source, second: the stages that write input and other, counted from 1; 0 where these are whole. in_place: writes over
 * the rows of source. readers: stages that read what this one has written, counted from 1, without those that work in
 * place; 0 for none: the output is then whole.
 */
typedef struct caplet_stage {
    caplet_row_runner *run;
    const void *op;
    uint32_t input;
    uint32_t other;
    uint32_t output;
    uint32_t scratch;
    uint32_t in_row_bytes;
    uint32_t other_row_bytes;
    uint32_t out_row_bytes;
    uint32_t in_rows;
    uint32_t out_rows;
    uint8_t kernel;
    uint8_t stride;
    uint8_t padding;
    uint8_t in_place;
    uint8_t source;
    uint8_t second;
    uint8_t readers[2];
} caplet_stage;

/*
 * A chain of ops, `rows` rows of one at a time, as soon as there are the rows that they read. Of tensors between ops,
 * the arena holds but the rows that are still to be read, from the tensor's place on: they move there before more are
 * written. Nothing is computed twice. count: at most CAPLET_STAGES.
 */
void caplet_run_bands(const caplet_stage *stages, uint32_t count, uint32_t rows, uint8_t *memory, const uint8_t *image);

#ifdef __cplusplus
}
#endif

#endif
