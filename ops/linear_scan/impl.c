/// The CPU's implementation of linear_scan: what its kernels promise.
#include "ops/cpu/kernels.h"
#include "ops/graph/internal.h"
#include "ops/linear_scan/args.h"

KR_KERNEL_DECLARE(linear_scan)
KR_KERNEL_DECLARE(linear_scan_grad)

static const kr_stage forward_stages[] = {KR_STAGE(linear_scan)};
static const kr_stage backward_stages[] = {KR_STAGE(linear_scan_grad)};

KR_CPU(linear_scan, .rows_in = BIT(LINEAR_SCAN_A) | BIT(LINEAR_SCAN_B), .rows_out = BIT(LINEAR_SCAN_H),
       .skip_out = BIT(LINEAR_SCAN_LAST), .inplace = {BIT(LINEAR_SCAN_A) | BIT(LINEAR_SCAN_B)},
       KR_STAGES(forward_stages))

KR_CPU(linear_scan_grad, .rows_in = BIT(LINEAR_SCAN_GRAD_DH) | BIT(LINEAR_SCAN_GRAD_A) | BIT(LINEAR_SCAN_GRAD_H),
       .rows_out = BIT(LINEAR_SCAN_GRAD_DA) | BIT(LINEAR_SCAN_GRAD_DB),
       .skip_out = BIT(LINEAR_SCAN_GRAD_DA) | BIT(LINEAR_SCAN_GRAD_DB) | BIT(LINEAR_SCAN_GRAD_DH0),
       .inplace = {BIT(LINEAR_SCAN_GRAD_DH) | BIT(LINEAR_SCAN_GRAD_A) | BIT(LINEAR_SCAN_GRAD_H),
                   BIT(LINEAR_SCAN_GRAD_DH) | BIT(LINEAR_SCAN_GRAD_A)},
       KR_STAGES(backward_stages))
