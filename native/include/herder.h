/* Herder's native core: the C ABI.
 *
 * The core knows numbers and nothing else: no file parser, no tokenizer, no HTTP. The caller hands it tensors in their
 * storage format (pointers into a mapped file are fine), the core repacks them into its compute layouts, and from then
 * on one call runs one batch: any number of sequences, any number of new tokens each, sampling included.
 *
 * Errors come back by value: every fallible function returns HD_OK or a code and fills the hd_error given to it.
 * No function throws, exits, prints, or touches the environment. All functions are safe to call without the GIL.
 * A model may be used by one thread at a time (a KV store belongs to its model).
 */
#ifndef HERDER_H
#define HERDER_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(_WIN32)
#define HD_API __declspec(dllexport)
#else
#define HD_API __attribute__((visibility("default")))
#endif

#define HD_ABI_VERSION 5
#define HD_LAYOUT_VERSION 2 /* of what hd_pack writes: results stored under another are not used */
#define HD_PAGE_TOKENS 32   /* tokens in one KV page; also the block over which attention reduces */

typedef enum hd_status {
  HD_OK = 0,
  HD_ERR_ARGUMENT = 1,   /* a value the caller passed is wrong: the message says which */
  HD_ERR_MEMORY = 2,     /* an allocation failed */
  HD_ERR_FORMAT = 3,     /* a storage format or shape this core does not hold */
  HD_ERR_NUMERIC = 4,    /* the forward pass produced NaN or infinity */
  HD_ERR_INTERNAL = 5,   /* a bug of ours */
  HD_ERR_INTERRUPTED = 6 /* hd_model_interrupt was called during hd_forward */
} hd_status;

typedef struct hd_error {
  int32_t code;
  char message[252];
} hd_error;

/* Storage formats, numbered as in GGUF (ggml_type), so that a reader passes its type id through. */
typedef enum hd_format {
  HD_F32 = 0,
  HD_F16 = 1,
  HD_Q4_0 = 2,
  HD_Q4_1 = 3,
  HD_Q5_0 = 6,
  HD_Q5_1 = 7,
  HD_Q8_0 = 8,
  HD_Q2_K = 10,
  HD_Q3_K = 11,
  HD_Q4_K = 12,
  HD_Q5_K = 13,
  HD_Q6_K = 14,
  HD_IQ4_NL = 20,
  HD_IQ4_XS = 23,
  HD_BF16 = 30,
  HD_MXFP4 = 39
} hd_format;

/* What a tensor is. Matrices are (rows = outputs, cols = inputs); vectors have rows = 1. */
typedef enum hd_role {
  HD_EMBED = 0,      /* (vocab, dim) */
  HD_HEAD = 1,       /* (vocab, dim); absent = tied to HD_EMBED */
  HD_FINAL_NORM = 2, /* (1, dim) */
  HD_ATTN_NORM = 3,  /* per layer from here on */
  HD_WQ = 4,         /* (n_heads * head_dim, dim), half-split RoPE order after row_map */
  HD_WK = 5,
  HD_WV = 6,
  HD_WO = 7, /* (dim, n_heads * head_dim) */
  HD_BQ = 8, /* optional biases, (1, rows of the matrix) */
  HD_BK = 9,
  HD_BV = 10,
  HD_BO = 11,
  HD_FFN_NORM = 12,
  HD_W_GATE = 13, /* (ffn_dim, dim) */
  HD_W_UP = 14,
  HD_W_DOWN = 15, /* (dim, ffn_dim) */
  HD_B_GATE = 16,
  HD_B_UP = 17,
  HD_B_DOWN = 18,
  /* Layers whose plan says experts have these in place of W_GATE..B_DOWN; the three EXPERT roles come once per expert
   * (hd_tensor.expert). */
  HD_ROUTER = 19,      /* (n_experts, dim) */
  HD_EXPERT_GATE = 20, /* (expert_ffn_dim, dim) */
  HD_EXPERT_UP = 21,
  HD_EXPERT_DOWN = 22, /* (dim, expert_ffn_dim) */
  HD_SHARED_GATE = 23, /* (shared_ffn_dim, dim); with shared_ffn_dim > 0 */
  HD_SHARED_UP = 24,
  HD_SHARED_DOWN = 25 /* (dim, shared_ffn_dim) */
} hd_role;

typedef enum hd_dtype { HD_DTYPE_AUTO = 0, HD_DTYPE_FLOAT32 = 1 } hd_dtype;

/* How a token chooses its experts among the router's float32 logits: the n_experts_used largest, of equal ones the
 * lower expert number. SOFTMAX (Mixtral): outputs are weighted with the softmax over the chosen logits, which is the
 * softmax over all of them renormalised. SIGMOID (Llama 4): an expert's input is multiplied by the sigmoid of its
 * logit. The outputs are added up, best expert first, then the shared expert's of the unscaled input. */
typedef enum hd_router { HD_ROUTER_SOFTMAX = 0, HD_ROUTER_SIGMOID = 1 } hd_router;

/* What differs between layers. At most one of window and chunk is set. q and k are rotated, then normed, then q is
 * scaled. */
typedef struct hd_layer_plan {
  int32_t rope;    /* 1: rotate q and k */
  int32_t window;  /* 0, or w of a sliding window: a key is visible iff q - w < k <= q */
  int32_t chunk;   /* 0, or c of chunked attention: a key is visible iff k <= q and k / c == q / c */
  int32_t qk_norm; /* 1: q and k of each head are divided by their root mean square (norm_eps inside the root) */
  int32_t
      temperature; /* 1: q *= 1 + temperature_scale * ln((position + 1) / temperature_floor + 1), a whole quotient */
  int32_t experts; /* 1: the feed-forward network is a mixture of experts */
  int32_t local;   /* 1: keys and values lie in the local store (hd_chunk.local_pages); needs window or chunk */
} hd_layer_plan;

typedef struct hd_config {
  int32_t n_layers, dim, n_heads, n_kv_heads, head_dim, ffn_dim, vocab;
  float norm_eps;
  int32_t context;             /* the longest position this model will be asked for, exclusive */
  const float* rope_inv_freq;  /* head_dim / 2 angular frequencies (radians per position), scaling already applied */
  float rope_attention_factor; /* multiplies cos and sin (YaRN, LongRoPE); 1 otherwise */
  const hd_layer_plan* layers; /* n_layers */
  /* hd_dtype: AUTO keeps quantized weights quantized (int8 activations); FLOAT32 expands every weight, activation and
   * KV entry to float32 */
  int32_t compute;
  int32_t threads;           /* 0: one per core this process may run on */
  int32_t kv_pages;          /* pages in the KV store, HD_PAGE_TOKENS tokens each */
  int32_t kv_local_pages;    /* pages in the store of the local layers; 0: no layer is local */
  int32_t temperature_floor; /* of layers whose plan says temperature */
  float temperature_scale;
  int32_t n_experts, n_experts_used; /* of layers whose plan says experts, as the five fields below */
  int32_t expert_ffn_dim;            /* of one expert; ffn_dim is that of dense layers, 0 where all have experts */
  int32_t shared_ffn_dim;            /* of the shared expert; 0: there is none */
  int32_t router;                    /* hd_router */
  int64_t expert_memory;             /* bytes that lazy experts may take once packed, 0: no limit; see hd_tensor.lazy */
} hd_config;

typedef struct hd_tensor {
  int32_t role, layer;
  int32_t expert; /* of the three EXPERT roles */
  int32_t format;
  int64_t rows, cols;
  const void* data;
  size_t bytes;            /* must equal what (format, rows, cols) needs */
  const uint32_t* row_map; /* NULL, or rows entries: destination row r is source row row_map[r] */
  /* 0, or the matrix is stored as its transpose, (cols, rows), with this many values from one stored row to the next.
   * F32, F16 and BF16 only, without row_map. */
  int64_t turned;
  /* 1, EXPERT roles only and without row_map: data lies in a read-only mapping of a file that outlives the model.
   * Nothing is read now; the expert is packed when a token is first routed to it, and the mapping's pages are given
   * back to the system then (MADV_DONTNEED). When lazy experts exceed expert_memory, those used longest ago are
   * forgotten, to be packed again when needed; one expert is always held, whatever the limit. */
  int32_t lazy;
  /* 1, matrices only, without row_map, turned and lazy: data is what hd_pack made of the tensor, aligned to 64 bytes,
   * and `bytes` what hd_packed_bytes says of it. It is used where it lies, only read, and must outlive the model. */
  int32_t packed;
} hd_tensor;

typedef struct hd_model hd_model;

/* Sampling of one chunk's outputs. The order is fixed and documented in docs/numerics.md:
 * bias -> repetition, presence, frequency penalty -> mask -> temperature -> top-k -> top-p -> min-p -> draw. */
typedef struct hd_sampling {
  float temperature;        /* 0: greedy, the lowest id wins a tie */
  int32_t top_k;            /* 0: off */
  float top_p;              /* 1: off */
  float min_p;              /* 0: off */
  float repetition_penalty; /* 1: off */
  float presence_penalty;   /* 0: off */
  float frequency_penalty;  /* 0: off */
  uint64_t seed;            /* output i of a request draws from a counter-based generator at (seed, i) */
  int64_t step;             /* i of the first output of this chunk */
  int32_t n_bias;
  const int32_t* bias_ids;
  const float* bias_values;
  const uint32_t* mask;   /* NULL, or ceil(vocab / 32) words: bit set = token allowed. One row per output position. */
  const int32_t* history; /* tokens the penalties see (prompt and output so far); NULL when no penalty is on */
  int32_t n_history;
  int32_t n_prompt; /* the first n_prompt of history are prompt: repetition penalty sees them, the other two do not */
  int32_t top_logprobs; /* how many alternatives to report per output, 0..HD_MAX_TOP */
} hd_sampling;

#define HD_MAX_TOP 64

typedef enum hd_want {
  HD_WANT_TOKEN = 1,  /* sample a token at each output position */
  HD_WANT_LOGITS = 2, /* write the float32 logits of each output position */
  HD_WANT_SCORE = 4,  /* log-probability of targets[] at each output position */
  HD_WANT_HIDDEN = 8  /* the final-norm output (dim floats) of each output position */
} hd_want;

typedef struct hd_chunk {
  const int32_t* tokens; /* n_tokens new tokens of one sequence */
  int32_t n_tokens;
  int32_t start;        /* position of tokens[0] */
  const int32_t* pages; /* page numbers covering positions 0 .. start + n_tokens - 1 */
  /* with kv_local_pages: n_pages page numbers of the local store for the same positions, or -1 where no token of this
   * chunk sees a position of the page; such entries are never read */
  const int32_t* local_pages;
  int32_t n_pages;
  int32_t n_outputs; /* results are wanted at the last n_outputs positions, 0..n_tokens */
  int32_t want;      /* bits of hd_want */
  /* 1: products with quantized matrices round weights and activations of these tokens to bfloat16; 0: they quantize
   * activations to int8. Faster for many tokens where the processor has bfloat16 tiles. The head always takes int8. A
   * matter of the request, not of the batch: the two give different bits. Without meaning with HD_DTYPE_FLOAT32. */
  int32_t bf16;
  const hd_sampling* sampling; /* with HD_WANT_TOKEN */
  const int32_t* targets;      /* with HD_WANT_SCORE: n_outputs token ids */
  /* results, caller's memory; each required only if its want bit is set */
  int32_t* out_tokens;     /* n_outputs */
  float* out_logprobs;     /* n_outputs: log-probability of the sampled token (model distribution); may be NULL */
  int32_t* out_top_ids;    /* n_outputs * top_logprobs, most likely first */
  float* out_top_logprobs; /* n_outputs * top_logprobs */
  float* out_logits;       /* n_outputs * vocab */
  float* out_scores;       /* n_outputs */
  float* out_hidden;       /* n_outputs * dim */
} hd_chunk;

/* Reports rows x cols floats of an activation by name ("layers.3.attn.out"), to find where two runs first diverge. */
typedef void (*hd_tap)(void* context, const char* name, int64_t rows, int64_t cols, const float* data);

HD_API int32_t hd_abi_version(void);

/* A JSON object about this CPU: {"arch","isa","isas":[..],"cores","features":[..]}. Returns the length needed. */
HD_API int32_t hd_cpu_info(char* out, int32_t capacity);

/* isa: NULL picks the best; else one of hd_cpu_info's "isas". */
HD_API hd_status hd_model_create(const hd_config* config, const char* isa, hd_model** out, hd_error* err);
/* Repacks one tensor, using all threads; the source is not read after the call returns, unless it is lazy. */
HD_API hd_status hd_model_tensor(hd_model* model, const hd_tensor* tensor, hd_error* err);
/* Checks that nothing is missing; hd_forward may be called after it. */
HD_API hd_status hd_model_finish(hd_model* model, hd_error* err);
HD_API void hd_model_free(hd_model* model);
/* Bytes the model holds: packed weights, KV stores, work space. */
HD_API void hd_model_memory(const hd_model* model, int64_t* weights, int64_t* kv, int64_t* work);
/* Lazy experts: how many are packed now, the bytes they take (part of hd_model_memory's weights), and how many times
 * one was packed so far. */
HD_API void hd_model_experts(const hd_model* model, int64_t* packed, int64_t* bytes, int64_t* packings);

HD_API hd_status hd_forward(hd_model* model, hd_chunk* chunks, int32_t n_chunks, hd_error* err);
/* From any thread: makes the hd_forward now running return HD_ERR_INTERRUPTED at the next layer. */
HD_API void hd_model_interrupt(hd_model* model);
HD_API void hd_model_tap(hd_model* model, hd_tap tap, void* context);

/* Runs the sampler alone over one row of logits, as hd_forward does for output position 0. Results may be NULL. */
HD_API hd_status hd_sample(const float* logits, int32_t vocab, const hd_sampling* sampling, int32_t* token,
                           float* logprob, int32_t* top_ids, float* top_logprobs, hd_error* err);

/* Storage format -> float32, the truth of formats/ in C++: rows x cols values from data. */
HD_API hd_status hd_unpack(int32_t format, const void* data, size_t bytes, int64_t rows, int64_t cols, float* out,
                           hd_error* err);

/* Bytes that rows x cols values of a storage format take once packed (compute: hd_dtype), vectors apart. */
HD_API hd_status hd_packed_bytes(int32_t format, int64_t rows, int64_t cols, int32_t compute, int64_t* bytes,
                                 hd_error* err);

/* Packs a matrix as hd_model_tensor does, into caller's memory: hd_packed_bytes bytes, aligned to 64, the same on every
 * machine. Of the tensor, layer, expert and lazy are not looked at; a router takes float32. compute: hd_dtype. threads:
 * 0 = one per core this process may run on. */
HD_API hd_status hd_pack(const hd_tensor* tensor, int32_t compute, int32_t threads, void* out, size_t bytes,
                         hd_error* err);
HD_API int32_t hd_layout_version(void);

/* Measured limits of this machine: read bandwidth over `bytes` (bytes/s), peak int8 operations/s and float32 FLOP/s,
 * all with `threads` threads, each for about `seconds`. isa: of hd_model_create. */
HD_API hd_status hd_measure(int32_t threads, size_t bytes, double seconds, const char* isa, double* bandwidth,
                            double* int8_ops, double* f32_flops, hd_error* err);

#ifdef __cplusplus
}
#endif
#endif
