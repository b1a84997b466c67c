// The C ABI: argument checks, exceptions turned into statuses, nothing else.
#include <algorithm>
#include <cstring>
#include <new>
#include <system_error>

#include "cpu.h"
#include "error.h"
#include "measure.h"
#include "model.h"
#include "pack.h"

namespace {

using herder::fail;

// Runs body and turns what it throws into a status: no exception crosses the ABI.
template <class Body>
hd_status guarded(hd_error* err, Body body) {
  try {
    return body();
  } catch (const std::bad_alloc&) {
    return fail(err, HD_ERR_MEMORY, "not enough memory");
  } catch (const std::system_error& e) {
    return fail(err, HD_ERR_MEMORY, "the system refused a thread: %s", e.what());
  } catch (const std::exception& e) {
    return fail(err, HD_ERR_INTERNAL, "%s", e.what());
  }
}

}  // namespace

extern "C" {

int32_t hd_abi_version(void) { return HD_ABI_VERSION; }

int32_t hd_layout_version(void) { return HD_LAYOUT_VERSION; }

int32_t hd_cpu_info(char* out, int32_t capacity) {
  const std::string json = herder::cpu_json();
  const auto size = static_cast<int32_t>(json.size()) + 1;
  if (out && capacity >= size) std::memcpy(out, json.c_str(), static_cast<size_t>(size));
  return size;
}

hd_status hd_model_create(const hd_config* config, const char* isa, hd_model** out, hd_error* err) {
  if (!config || !out) return fail(err, HD_ERR_ARGUMENT, "config and out must be given");
  *out = nullptr;
  const herder::Kernels* kernels = herder::select_kernels(isa);
  if (!kernels) return fail(err, HD_ERR_ARGUMENT, "isa is %.40s: not compiled in, or this CPU lacks it", isa);
  hd_config c = *config;
  if (c.threads == 0) c.threads = herder::usable_cores();
  return guarded(err, [&] { return herder::create_model(c, kernels, out, err); });
}

hd_status hd_model_tensor(hd_model* model, const hd_tensor* tensor, hd_error* err) {
  if (!model || !tensor) return fail(err, HD_ERR_ARGUMENT, "model and tensor must be given");
  return guarded(err, [&] { return herder::add_tensor(*model, *tensor, err); });
}

hd_status hd_model_finish(hd_model* model, hd_error* err) {
  if (!model) return fail(err, HD_ERR_ARGUMENT, "model must be given");
  return guarded(err, [&] { return herder::finish_model(*model, err); });
}

void hd_model_free(hd_model* model) { delete model; }

void hd_model_memory(const hd_model* model, int64_t* weights, int64_t* kv, int64_t* work) {
  if (weights) *weights = static_cast<int64_t>(model->weights.used() + model->experts.bytes());
  if (kv) *kv = static_cast<int64_t>(model->kv.memory.used() + model->kv_local.memory.used());
  if (work) *work = static_cast<int64_t>(model->work_bytes());
}

void hd_model_experts(const hd_model* model, int64_t* packed, int64_t* bytes, int64_t* packings) {
  if (packed) *packed = model->experts.packed();
  if (bytes) *bytes = static_cast<int64_t>(model->experts.bytes());
  if (packings) *packings = model->experts.packings();
}

hd_status hd_forward(hd_model* model, hd_chunk* chunks, int32_t n_chunks, hd_error* err) {
  if (!model) return fail(err, HD_ERR_ARGUMENT, "model must be given");
  return guarded(err, [&] { return herder::forward(*model, chunks, n_chunks, err); });
}

void hd_model_interrupt(hd_model* model) { model->interrupt.store(true, std::memory_order_relaxed); }

void hd_model_tap(hd_model* model, hd_tap tap, void* context) {
  model->tap = tap;
  model->tap_context = context;
}

hd_status hd_packed_bytes(int32_t format, int64_t rows, int64_t cols, int32_t compute, int64_t* bytes, hd_error* err) {
  if (!bytes) return fail(err, HD_ERR_ARGUMENT, "bytes must be given");
  herder::Matrix w;
  if (const hd_status s = herder::plan_checked(format, rows, cols, compute == HD_DTYPE_FLOAT32, &w, err)) return s;
  *bytes = static_cast<int64_t>(herder::packed_bytes(w));
  return HD_OK;
}

hd_status hd_pack(const hd_tensor* tensor, int32_t compute, int32_t threads, void* out, size_t bytes, hd_error* err) {
  if (!tensor || !out) return fail(err, HD_ERR_ARGUMENT, "tensor and out must be given");
  if (threads < 0 || threads > 1024)
    return fail(err, HD_ERR_ARGUMENT, "threads is %d: must be between 0 and 1024", threads);
  if (threads == 0) threads = herder::usable_cores();
  return guarded(err, [&] {
    return herder::pack_tensor(*tensor, compute == HD_DTYPE_FLOAT32, threads, static_cast<uint8_t*>(out), bytes, err);
  });
}

hd_status hd_measure(int32_t threads, size_t bytes, double seconds, const char* isa, double* bandwidth,
                     double* int8_ops, double* f32_flops, hd_error* err) {
  if (threads < 0 || threads > 1024)
    return fail(err, HD_ERR_ARGUMENT, "threads is %d: must be between 0 and 1024", threads);
  if (threads == 0) threads = herder::usable_cores();
  const herder::Kernels* kernels = herder::select_kernels(isa);
  if (!kernels) return fail(err, HD_ERR_ARGUMENT, "isa is %.40s: not compiled in, or this CPU lacks it", isa);
  return guarded(
      err, [&] { return herder::measure(*kernels, threads, bytes, seconds, bandwidth, int8_ops, f32_flops, err); });
}

}  // extern "C"
