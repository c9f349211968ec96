// SPDX-License-Identifier: Apache-2.0
#ifndef SLUICE_BUNDLES_H
#define SLUICE_BUNDLES_H

#include <stddef.h>

// The bytecode that scripts/build.ts links in (build/gen/bundles.c).
struct sluice_bundle {
    const char *name;
    const unsigned char *start, *end;
};

extern const struct sluice_bundle sluice_bundles[];
extern const size_t sluice_bundle_count;

#endif
