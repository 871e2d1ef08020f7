// An engine of one's own in C++: the router turns logits into tokens and routes, the cache keeps
// the keys and values of two models in step. The "models" here are a table of logits.
#include <cstdint>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "glimprouter/glimprouter.hpp"

namespace gr = glimprouter;

namespace {

const std::vector<std::optional<std::string>> kVocabulary = {"a", "b", "c", ".\n\n", std::nullopt};
constexpr std::int32_t kEndOfSequence = 4;
constexpr std::int32_t kDelimiter = 3;

// Logits of the token that follows: sure of itself, but for the first token of every third step.
std::vector<float> logits_after(std::int32_t position) {
  std::vector<float> logits(kVocabulary.size(), -8.0f);
  if (position >= 12) {
    logits[kEndOfSequence] = 8.0f;
  } else if (position % 3 == 2) {
    logits[kDelimiter] = 8.0f;
  } else if (position % 9 == 0) {
    logits = {1.0f, 1.0f, 1.0f, -8.0f, -8.0f};  // three tokens alike: an entropy of ln 3
  } else {
    logits[static_cast<std::size_t>(position % 3)] = 8.0f;
  }
  return logits;
}

}  // namespace

int main() {
  const auto boundary = std::make_shared<const gr::StepBoundary>(
      gr::StepBoundary::Definition{.token_bytes = kVocabulary,
                                   .delimiters = {"\n\n"},
                                   .think_start_ids = {},
                                   .think_end_ids = {},
                                   .eos_ids = {kEndOfSequence},
                                   .close_ids = {}});
  gr::StepRouter router(boundary, nullptr, /*max_sequences=*/1);
  gr::SequenceOptions options;
  options.limits.threshold = 1.0f;
  const std::int32_t row = router.open(options);
  gr::StepOutputs outputs(1, 0, {});

  // One arena for two models of one layer; pages go to whichever needs them.
  const auto layout = gr::KvLayout::make(/*num_layers=*/1, /*num_kv_heads=*/1, /*head_dim=*/16,
                                         /*page_size=*/4, gr::DataType::kFloat32);
  const auto pool = std::make_shared<gr::PagePool>(std::vector<gr::KvLayout>{layout, layout},
                                                   64 * layout.page_bytes(), gr::arena_on("cpu"));
  gr::KvCache cache(pool, 1);
  const std::int32_t sequence = cache.open({{0, 1}, {0, 1}});

  std::int32_t position = 0;
  while (router.phase(row) != gr::Phase::kDone) {
    for (const gr::Model model : {gr::Model::kSmall, gr::Model::kLarge}) {
      if (router.pending(model).empty()) continue;
      const auto index = static_cast<std::int32_t>(model);
      // The forward pass: exactly the tokens that this model has not seen, written to its pages.
      const gr::RaggedBatch batch = cache.prepare(index, std::vector<std::int32_t>{sequence});
      std::vector<float> heads(batch.ids.size() * 16, 1.0f);
      const gr::HeadsView view{heads.data(),
                               gr::DataType::kFloat32,
                               static_cast<std::int64_t>(batch.ids.size()),
                               1,
                               16,
                               16,
                               16};
      gr::append_kv(*pool, {0, 1}, batch, view, view);
      cache.complete(batch);

      const std::vector<float> logits = logits_after(position);
      const auto width = static_cast<std::int64_t>(logits.size());
      const gr::LogitsView seen{reinterpret_cast<const char*>(logits.data()),
                                gr::DataType::kFloat32, 1, width, width};
      router.step(model, seen, std::vector<std::int32_t>{row}, outputs);
      std::printf("%s model saw %zu tokens: H = %.3f, ", index == 0 ? "small" : "large",
                  batch.ids.size(), static_cast<double>(outputs.entropy[0]));
      if (outputs.token[0] < 0) {
        std::printf("the large model writes this step\n");
        continue;
      }
      std::printf("token %d\n", outputs.token[0]);
      cache.append(index, sequence, std::vector<std::int32_t>{outputs.token[0]});
      ++position;
    }
  }
  std::printf("done after %d tokens\n", position);
  return position == 13 ? 0 : 1;
}
