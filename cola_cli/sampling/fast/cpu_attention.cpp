// Attention of blocks over a cache of keys and values, for processors; see native.py for the shapes.
//
// What torch does in a dozen operations, each of them over the whole batch (norms and rotation of queries
// and keys, copies into the cache, attention), happens here for one block and head after the other, while
// they lie in the first caches. Vectors are the compiler's own, so that any instruction set will do.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

#if defined(__AVX512F__)
constexpr int WIDEST = 16, ACCUMULATORS = 16;
#elif defined(__AVX__)
constexpr int WIDEST = 8, ACCUMULATORS = 8;
#else
constexpr int WIDEST = 4, ACCUMULATORS = 8;
#endif

template <int W> struct Lanes;
template <> struct Lanes<16> {
  typedef float Float __attribute__((vector_size(64), aligned(4)));
  typedef int32_t Int __attribute__((vector_size(64), aligned(4)));
};
template <> struct Lanes<8> {
  typedef float Float __attribute__((vector_size(32), aligned(4)));
  typedef int32_t Int __attribute__((vector_size(32), aligned(4)));
};
template <> struct Lanes<4> {
  typedef float Float __attribute__((vector_size(16), aligned(4)));
  typedef int32_t Int __attribute__((vector_size(16), aligned(4)));
};

// A matrix whose element (i, j) is data[i * row + j * column].
struct Left {
  const float* data;
  int64_t row, column;
};

// R rows and C vectors of out = left (R, depth) right (depth, C W)
template <int W, int R, int C>
inline void tile(Left left, const float* right, int64_t right_row, float* out, int64_t out_row, int64_t depth) {
  typedef typename Lanes<W>::Float Float;
  Float sums[R][C] = {};
  for (int64_t k = 0; k < depth; k++)
    for (int c = 0; c < C; c++) {
      Float values = *(const Float*)(right + k * right_row + c * W);
      for (int r = 0; r < R; r++) sums[r][c] += left.data[r * left.row + k * left.column] * values;
    }
  for (int r = 0; r < R; r++)
    for (int c = 0; c < C; c++) *(Float*)(out + r * out_row + c * W) = sums[r][c];
}

template <int W, int C>
inline void columns(Left left, const float* right, int64_t right_row, float* out, int64_t out_row, int64_t rows, int64_t depth) {
  constexpr int MOST = ACCUMULATORS / C;
  int64_t r = 0;
  auto at = [&](int64_t row) { return Left{left.data + row * left.row, left.row, left.column}; };
  for (; r + MOST <= rows; r += MOST) tile<W, MOST, C>(at(r), right, right_row, out + r * out_row, out_row, depth);
  for (; r + 4 <= rows; r += 4) tile<W, 4, C>(at(r), right, right_row, out + r * out_row, out_row, depth);
  for (; r < rows; r++) tile<W, 1, C>(at(r), right, right_row, out + r * out_row, out_row, depth);
}

// out (rows, width) = left (rows, depth) right (depth, width); width is a multiple of W
template <int W>
void product(Left left, const float* right, int64_t right_row, float* out, int64_t out_row, int64_t rows, int64_t width, int64_t depth) {
  int64_t c = 0;
  for (; c + 2 * W <= width; c += 2 * W) columns<W, 2>(left, right + c, right_row, out + c, out_row, rows, depth);
  if (c < width) columns<W, 1>(left, right + c, right_row, out + c, out_row, rows, depth);
}

// e^x for x <= 0, to the last bit or two: 2^whole times a polynomial on [-ln 2 / 2, ln 2 / 2]
template <int W>
inline typename Lanes<W>::Float exponential(typename Lanes<W>::Float x) {
  typedef typename Lanes<W>::Float Float;
  typedef typename Lanes<W>::Int Int;
  x = x < -87.0f ? Float{} - 87.0f : x;
  const float round = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
  Float shifted = x * 1.44269504f + round;
  Float whole = shifted - round;
  Float rest = x - whole * 0.693359375f + whole * 2.12194440e-4f;  // ln 2 in two parts
  Float p = rest * (1.0f / 5040) + 1.0f / 720;
  p = p * rest + 1.0f / 120;
  p = p * rest + 1.0f / 24;
  p = p * rest + 1.0f / 6;
  p = p * rest + 0.5f;
  p = p * rest * rest + rest + 1.0f;
  return (Float)((Int)p + ((Int)shifted << 23));
}

// Scores (keys, n) to e^(score - most) in place; each query's 1 / sum. A vector is W queries.
template <int W>
void softmax(float* scores, int64_t keys, int64_t n, float* inverse) {
  typedef typename Lanes<W>::Float Float;
  for (int64_t i = 0; i < n; i += W) {
    Float most = *(Float*)(scores + i), sum = {};
    for (int64_t k = 1; k < keys; k++) {
      Float score = *(Float*)(scores + k * n + i);
      most = score > most ? score : most;
    }
    for (int64_t k = 0; k < keys; k++) {
      Float* score = (Float*)(scores + k * n + i);
      *score = exponential<W>(*score - most);
      sum += *score;
    }
    *(Float*)(inverse + i) = 1.0f / sum;
  }
}

// LayerNorm of x (d), its pairs of channels turned by the angles whose cosines and sines `turns` holds
inline void normalised(const float* x, const float* weight, const float* bias, const float* turns, float eps, int64_t d, float* out) {
  float sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < d; i++) sum += x[i];
  const float mean = sum / d;
#pragma omp simd reduction(+ : squares)
  for (int64_t i = 0; i < d; i++) squares += (x[i] - mean) * (x[i] - mean);
  const float factor = 1.0f / std::sqrt(squares / d + eps);
#pragma omp simd
  for (int64_t i = 0; i < d; i += 2) {
    float even = (x[i] - mean) * factor * weight[i] + bias[i];
    float odd = (x[i + 1] - mean) * factor * weight[i + 1] + bias[i + 1];
    out[i] = even * turns[i] - odd * turns[i + 1];
    out[i + 1] = odd * turns[i] + even * turns[i + 1];
  }
}

struct Blocks {
  const float *qkv, *query_norm, *key_norm, *turns;
  float *keys, *values, *alone;
  const int64_t *slot, *fill;
  float* out;
  int64_t entries, n, heads, d, length, causal;
  float eps;
};

// Where the keys and values lie that an entry's head sees, and how many are there before its own.
struct Seen {
  float *keys, *values;
  int64_t before;
};

inline Seen seen(const Blocks& b, int64_t entry, int64_t head) {
  const int64_t slot = b.slot[entry], own = b.n * b.d;
  if (slot < 0) {
    float* alone = b.alone + ((-1 - slot) * b.heads + head) * 2 * own;
    return {alone, alone + own, 0};
  }
  const int64_t start = (slot * b.heads + head) * b.length * b.d;
  return {b.keys + start, b.values + start, b.fill[entry]};
}

template <int W>
void attend(const Blocks& b) {
  const int64_t width = b.heads * b.d, jobs = b.entries * b.heads;
  int64_t longest = 0;
  for (int64_t entry = 0; entry < b.entries; entry++) longest = b.fill[entry] > longest ? b.fill[entry] : longest;
#pragma omp parallel
  {
    std::vector<float> scratch(b.d + b.n * (b.d + 1 + longest + b.n));
    float *row = scratch.data(), *query = row + b.d, *inverse = query + b.n * b.d, *scores = inverse + b.n;
#pragma omp for schedule(dynamic, 4)
    for (int64_t job = 0; job < jobs; job++) {
      const int64_t entry = job / b.heads, head = job % b.heads;
      const Seen at = seen(b, entry, head);
      float *keys = at.keys + at.before * b.d, *values = at.values + at.before * b.d;
      for (int64_t i = 0; i < b.n; i++) {
        const int64_t place = entry * b.n + i;
        const float* key = b.qkv + (place * 3 + 1) * width + head * b.d;
        normalised(key, b.key_norm, b.key_norm + b.d, b.turns + place * b.d, b.eps, b.d, keys + i * b.d);
        std::memcpy(values + i * b.d, key + width, b.d * sizeof(float));
      }
    }
#pragma omp for schedule(dynamic, 4)
    for (int64_t job = 0; job < jobs; job++) {
      const int64_t entry = job / b.heads, head = job % b.heads;
      const Seen at = seen(b, entry, head);
      const int64_t count = at.before + b.n;
      const float scale = 1.0f / std::sqrt((float)b.d);
      for (int64_t i = 0; i < b.n; i++) {
        const int64_t place = entry * b.n + i;
        const float* raw = b.qkv + place * 3 * width + head * b.d;
        normalised(raw, b.query_norm, b.query_norm + b.d, b.turns + place * b.d, b.eps, b.d, row);
        for (int64_t j = 0; j < b.d; j++) query[j * b.n + i] = row[j] * scale;
      }
      product<W>(Left{at.keys, b.d, 1}, query, b.n, scores, b.n, count, b.n, b.d);
      if (entry < b.causal)  // far below any score, and finite
        for (int64_t k = 1; k < b.n; k++) std::fill_n(scores + (at.before + k) * b.n, k, -1e30f);
      softmax<W>(scores, count, b.n, inverse);
      float* out = b.out + entry * b.n * width + head * b.d;
      product<WIDEST>(Left{scores, 1, b.n}, at.values, b.d, out, width, b.n, b.d, count);
      for (int64_t i = 0; i < b.n; i++)
        for (int64_t j = 0; j < b.d; j++) out[i * width + j] *= inverse[i];
    }
  }
}

}  // namespace

extern "C" void cola_block_attention(
    const float* qkv, const float* query_norm, const float* key_norm, const float* turns,
    float* keys, float* values, float* alone,
    const int64_t* slot, const int64_t* fill, float* out,
    int64_t entries, int64_t n, int64_t heads, int64_t d, int64_t length, int64_t causal, float eps) {
  const Blocks blocks{qkv, query_norm, key_norm, turns, keys, values, alone, slot, fill, out,
                      entries, n, heads, d, length, causal, eps};
  if (WIDEST >= 16 && n % 16 == 0) attend<16>(blocks);
  else if (WIDEST >= 8 && n % 8 == 0) attend<8>(blocks);
  else attend<4>(blocks);
}
