// SPDX-License-Identifier: Apache-2.0
#ifndef SLUICE_BULK_H
#define SLUICE_BULK_H

#include <quickjs.h>
#include <sys/types.h>

// Of bulk.c, for the table of the object `native` (sysmod.c).
JSValue sluice_json_end(JSContext *ctx, JSValueConst this_val, int argc, JSValueConst *argv);
JSValue sluice_json_parts(JSContext *ctx, JSValueConst this_val, int argc, JSValueConst *argv);
JSValue sluice_add_cached(JSContext *ctx, JSValueConst this_val, int argc, JSValueConst *argv);
JSValue sluice_sha256(JSContext *ctx, JSValueConst this_val, int argc, JSValueConst *argv);

// Of sysmod.c: a string argument without NUL, to be freed with JS_FreeCString; NULL with an exception pending.
const char *sluice_text_arg(JSContext *ctx, JSValueConst value);

// Of sysmod.c: a string of one character a byte.
JSValue sluice_byte_string(JSContext *ctx, const unsigned char *data, size_t size);

// Of sysmod.c: the bytes of such a string, whose UTF-8 `text` has, in its place. Their number, or -1 where a character is no
// byte.
ssize_t sluice_bytes_of(char *text, size_t length);

#endif
