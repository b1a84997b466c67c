// What comes out of a pass: final norm, head, and for each output position logits, scores, hidden states or a token.
#include <algorithm>
#include <cmath>

#include "error.h"
#include "pass.h"
#include "softmax.h"

namespace herder {

bool all_finite(const float* x, int64_t n) {
  for (int64_t i = 0; i < n; ++i)
    if (!std::isfinite(x[i])) return false;
  return true;
}

hd_status Pass::output_row(int thread, const OutputRow& row, const float* logits, const float* hidden, hd_error* err) {
  const Config& c = m.config;
  hd_chunk& k = chunks_[row.chunk];
  const auto i = static_cast<size_t>(row.index);
  if (!all_finite(hidden, c.dim))
    return fail(err, HD_ERR_NUMERIC, "the forward pass gave NaN or infinity: the weights are damaged");
  if (k.want & HD_WANT_HIDDEN) std::copy_n(hidden, c.dim, k.out_hidden + i * static_cast<size_t>(c.dim));
  if (k.want & HD_WANT_LOGITS) {
    if (!all_finite(logits, c.vocab))
      return fail(err, HD_ERR_NUMERIC, "the logits hold NaN or infinity: the weights are damaged");
    std::copy_n(logits, c.vocab, k.out_logits + i * static_cast<size_t>(c.vocab));
  }
  SampleScratch& scratch = m.sample_scratch[static_cast<size_t>(thread)];
  if (k.want & HD_WANT_SCORE) {
    if (!find_maxima(logits, c.vocab, &scratch.maxima)) return fail_non_finite(logits, c.vocab, err);
    k.out_scores[i] = log_softmax(logits, c.vocab, scratch.maxima)(logits[k.targets[i]]);
  }
  if (k.want & HD_WANT_TOKEN) {
    const size_t top = static_cast<size_t>(k.sampling->top_logprobs);
    SampleResult result{};
    result.token = k.out_tokens + i;
    result.logprob = k.out_logprobs ? k.out_logprobs + i : nullptr;
    result.top_ids = k.out_top_ids ? k.out_top_ids + i * top : nullptr;
    result.top_logprobs = k.out_top_logprobs ? k.out_top_logprobs + i * top : nullptr;
    const int32_t first_output = k.n_tokens - k.n_outputs;  // history ends with this token
    return sample(logits, c.vocab, *k.sampling, row.index, k.tokens + first_output + 1, row.index, &scratch, result,
                  err);
  }
  return HD_OK;
}

void Pass::outputs(int thread) {
  const Config& c = m.config;
  const Kernels& k = *m.kernels;
  const Matrix& head = m.head_matrix();
  const auto n = static_cast<int64_t>(output_rows_.size());
  hd_error& err = errors_[static_cast<size_t>(thread)];
  for (int64_t begin = 0; begin < n; begin += kOutputRows) {
    const int64_t rows = std::min<int64_t>(kOutputRows, n - begin);
    bool logits = false;
    for (int64_t r = 0; r < rows; ++r)
      logits |= (chunks_[output_rows_[static_cast<size_t>(begin + r)].chunk].want & ~HD_WANT_HIDDEN) != 0;
    const Inputs mine = inputs(thread, rows, c.dim);
    for (int64_t r = mine.first; r < mine.last; ++r) {
      const float* x = m.x.row(output_rows_[static_cast<size_t>(begin + r)].token);
      const float* row = norm_part(thread, x, m.final_norm, c.dim, mine, m.outputs.row(r));
      m.q_dim_in.prepare(k, row, mine.begin, mine.end, r, head.prepared());
    }
    wait();
    tap(thread, "final_norm", -1, m.outputs.data, rows, c.dim, m.outputs.stride);
    if (logits) {
      Activations a = m.q_dim_in.view();
      a.x = m.outputs.data;
      a.stride = m.outputs.stride;
      products(thread, a, rows, 0, {{&head, m.logits.data, m.logits.stride}}, Store::kSet);
      wait();
      tap(thread, "logits", -1, m.logits.data, rows, c.vocab, m.logits.stride);
    }
    for (int64_t r = thread; r < rows; r += m.team->size()) {
      hd_error now{};
      if (output_row(thread, output_rows_[static_cast<size_t>(begin + r)], m.logits.row(r), m.outputs.row(r), &now) &&
          err.code == HD_OK)
        err = now;
    }
    wait();
  }
}

}  // namespace herder
