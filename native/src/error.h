// Errors by value: every fallible function returns a status and fills the caller's hd_error, on one line.
#pragma once

#include <cstdarg>
#include <cstdio>

#include "herder.h"

namespace herder {

// Writes the message (cut at the capacity of hd_error) and returns the status, so that a check reads
// `if (bad) return fail(err, HD_ERR_ARGUMENT, "n_layers is %d: must be 1 or more", n);`. err may be null.
// `static`, not `inline`: of an inline function's copies the linker keeps any one, perhaps the one built for AVX-512.
[[maybe_unused, gnu::format(printf, 3, 4), gnu::cold, gnu::noinline]]
static hd_status fail(hd_error* err, hd_status status, const char* format, ...) {
  if (err != nullptr) {
    err->code = status;
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(err->message, sizeof err->message, format, arguments);
    va_end(arguments);
  }
  return status;
}

}  // namespace herder
