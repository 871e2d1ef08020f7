// A decoder in one call, under the sanitizers: the same bits however its sequences are cut in
// passes, on any instruction set and number of threads, and what it refuses. What it computes is
// compared with models of transformers in Python.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/cpu_backend.hpp"
#include "glimprouter/arena_on.hpp"
#include "glimprouter/kv_cache.hpp"
#include "glimprouter/thread_pool.hpp"
#include "made_decoder.hpp"

namespace glimprouter {
namespace {

// Two sequences; logits of every token, in order, of one sequence behind the other.
using Lengths = std::vector<std::vector<std::int32_t>>;  // of the pieces of each pass
std::vector<float> logits_of(const MadeDecoder& model, const Lengths& passes) {
  HostDecoder decoder(model.parts, layout_of(256));
  const KvLayout layout = layout_of(16);  // attention sums page by page: others have other bits
  auto pool =
      std::make_shared<PagePool>(std::vector{layout}, 20 * layout.page_bytes(), arena_on("cpu"));
  KvCache cache(pool, 2);
  std::vector<std::int32_t> sequences;
  std::vector<std::vector<float>> found(2);
  std::vector<std::int32_t> done(2, 0);
  for (const std::vector<std::int32_t>& lengths : passes) {
    std::vector<std::int32_t> computed;
    std::vector<std::int32_t> owners;
    for (std::size_t i = 0; i < 2; ++i) {
      std::vector<std::int32_t> ids;
      for (std::int32_t k = 0; k < lengths[i]; ++k) {
        const auto place = static_cast<std::int32_t>(done[i]++);
        ids.push_back((place * 31 + 7 * static_cast<std::int32_t>(i)) % kVocabulary);
        owners.push_back(static_cast<std::int32_t>(i));
      }
      if (sequences.size() == i) {
        sequences.push_back(cache.open({ids}));
      } else {
        cache.append(0, sequences[i], ids);
      }
      if (!ids.empty()) computed.push_back(sequences[i]);
    }
    const RaggedBatch batch = cache.prepare(0, computed);
    std::vector<std::int32_t> rows(batch.ids.size());
    for (std::size_t row = 0; row < rows.size(); ++row) rows[row] = static_cast<std::int32_t>(row);
    std::vector<float> logits(rows.size() * kVocabulary);
    decoder.run(*pool, batch, model.angles, rows, logits.data());
    cache.complete(batch);
    for (std::size_t row = 0; row < rows.size(); ++row) {
      auto& own = found[static_cast<std::size_t>(owners[row])];
      own.insert(own.end(), logits.begin() + static_cast<std::ptrdiff_t>(row * kVocabulary),
                 logits.begin() + static_cast<std::ptrdiff_t>((row + 1) * kVocabulary));
    }
  }
  found[0].insert(found[0].end(), found[1].begin(), found[1].end());
  return found[0];
}

TEST(HostDecoder, TheSameBitsInAnyPassesOnAnyInstructionSetAndNumberOfThreads) {
  const MadeDecoder model;
  const std::string before(active_backend().name);
  const Lengths whole = {{60, 37}};
  set_active_backend("generic");
  const std::vector<float> want = logits_of(model, whole);
  EXPECT_FALSE(std::all_of(want.begin(), want.end(), [&](float x) { return x == want[0]; }));
  for (const CpuKernels* kernels : compiled_backends()) {
    if (!backend_supported(*kernels)) continue;
    set_active_backend(kernels->name);
    for (const int threads : {1, 3}) {
      set_num_threads(threads);
      EXPECT_EQ(logits_of(model, whole), want) << kernels->name;
      EXPECT_EQ(logits_of(model, {{41, 1}, {1, 30}, {17, 5}, {1, 1}}), want) << kernels->name;
      EXPECT_EQ(logits_of(model, {{1, 36}, {0, 1}, {59, 0}}), want) << kernels->name;
    }
  }
  set_num_threads(1);
  set_active_backend(before);
}

TEST(HostDecoder, RefusesWhatDoesNotFit) {
  const MadeDecoder model;
  DecoderWeights weights = model.parts;
  weights.layers.pop_back();
  EXPECT_THROW(HostDecoder(weights, layout_of(4)), std::invalid_argument);
  weights = model.parts;
  weights.layers[1].down.size = 440;
  EXPECT_THROW(HostDecoder(weights, layout_of(4)), std::invalid_argument);
  weights = model.parts;
  weights.layers[0].query.outputs = 5 * kHeadDim;
  EXPECT_THROW(HostDecoder(weights, layout_of(4)), std::invalid_argument);

  HostDecoder decoder(model.parts, layout_of(4));
  auto pool = std::make_shared<PagePool>(std::vector{layout_of(4)}, 40 * layout_of(4).page_bytes(),
                                         arena_on("cpu"));
  KvCache cache(pool, 1);
  const std::vector<std::int32_t> sequences = {cache.open({{3, 4, 5}})};
  RaggedBatch batch = cache.prepare(0, sequences);
  std::vector<float> logits(kVocabulary);
  const std::vector<std::int32_t> last = {2};
  const std::vector<std::int32_t> beyond = {3};
  EXPECT_THROW(decoder.run(*pool, batch, model.angles, beyond, logits.data()),
               std::invalid_argument);
  RotaryTables shorter = model.angles;
  shorter.positions = 2;
  EXPECT_THROW(decoder.run(*pool, batch, shorter, last, logits.data()), std::invalid_argument);
  batch.ids[1] = kVocabulary;
  EXPECT_THROW(decoder.run(*pool, batch, model.angles, last, logits.data()), std::invalid_argument);
  cache.abandon(batch);
}

}  // namespace
}  // namespace glimprouter
