// StepRouter: the state of many sequences, and one call that turns logits into tokens and routes.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "glimprouter/row_op.hpp"
#include "glimprouter/step_boundary.hpp"
#include "glimprouter/thread_pool.hpp"
#include "glimprouter/types/device_stream.hpp"
#include "glimprouter/types/drafted_rows.hpp"
#include "glimprouter/types/step_outputs.hpp"
#include "glimprouter/types/step_types.hpp"

namespace glimprouter {

class StepDevice;
struct Sequence;
struct StepCall;
// Makes the device of a router: steps_on.hpp. Empty: the CPU.
using StepDeviceFactory = std::function<std::unique_ptr<StepDevice>(
    std::int32_t max_sequences, const StepBoundary& small, const StepBoundary& large)>;

// One router belongs to one thread: the first that uses it, until attach() is called by another.
//
// A router on a device keeps its sequences there; every call but step(), launch() and wait() then
// reads or writes the device's memory and waits for it.
//
// Errors: std::invalid_argument (a bad value), std::out_of_range (a row that is not open),
// std::runtime_error (out of rows, wrong thread, a row in the wrong phase). Nothing has changed
// after an exception.
class StepRouter {
 public:
  // large_boundary: of the large model's tokenizer where that differs; it must have the same
  // delimiters. Null: the same boundary for both.
  // device: where the logits live and the steps run; none: the CPU.
  StepRouter(std::shared_ptr<const StepBoundary> boundary,
             std::shared_ptr<const StepBoundary> large_boundary, std::int32_t max_sequences,
             const StepDeviceFactory& device = {});
  ~StepRouter();

  std::int32_t open(const SequenceOptions& options);
  void close(std::int32_t row);
  // A copy that goes on with its own random substream (default: derived from the parent's).
  std::int32_t fork(std::int32_t row, std::optional<std::uint64_t> substream);
  // Drops the last `count` generated tokens; at a step's start the row comes back undecided.
  void rewind(std::int32_t row, std::int32_t count);
  // Ends the thinking behind what is written, as a budget of so many tokens does, which the row has
  // from now on. Returns the closing ids that the caller appends.
  std::int32_t end_thinking(std::int32_t row);
  std::string save(std::int32_t row);
  std::int32_t load(std::string_view saved);

  // Open rows that wait for this model's logits, ascending.
  std::vector<std::int32_t> pending(Model model);
  std::vector<std::int32_t> rows();

  // The hot call. logits: one row per entry of `rows`, which must be distinct and wait for `model`.
  // A row whose logits are invalid is reported in outputs.status and unchanged; the others go on.
  // stream: of the device, which has the logits by then.
  void step(Model model, const LogitsView& logits, std::span<const std::int32_t> rows,
            StepOutputs& outputs, DeviceStream stream = nullptr);
  // For a router on a device: starts a step and returns; wait() fills the outputs. May be captured
  // into a graph and replayed. A row that does not wait for `model` is unchanged and reported as
  // kNotWaiting. device_rows: [logits.rows] distinct row numbers in device memory, instead of
  // `rows`.
  void launch(Model model, const LogitsView& logits, std::span<const std::int32_t> rows,
              const std::int32_t* device_rows, StepOutputs& outputs, DeviceStream stream);
  void wait(StepOutputs& outputs);
  // Device memory for the outputs ahead of the first launch.
  void attach_outputs(StepOutputs& outputs);
  // "cpu", or a device as "cuda:0".
  std::string device() const;
  // Whether logits on this device, by DLPack's type and number, are where the steps run.
  bool reaches(std::int32_t device_type, std::int32_t device_id) const;
  bool on_cpu() const { return on_device_ == nullptr; }
  // Many tokens of a row at once: what it drafted, checked by the model that it waits for. A draft
  // holds if it is the token that this model's logits give in its place, by the key of that place,
  // so drafts change no token.
  //
  // logits: drafts.counts[i] + 1 rows for each of drafts.rows, side by side: behind what the
  // sequence has, then behind each draft. The outputs have an entry for each; those behind a draft
  // that did not hold, or behind the end of what the model may write, are kNotReached. A row whose
  // logits are invalid ends what its sequence takes. Ids are of the model's vocabulary.
  void verify(Model model, const LogitsView& logits, const DraftedTokens& drafts,
              StepOutputs& outputs, DeviceStream stream = nullptr);
  // What the other model, which the rows wait for, would write if these were its logits behind the
  // drafts of each row: its key, the same filters. Nothing changes; the outputs are those of a step
  // at that place, and kNotReached where the drafts end what that model may write.
  //
  // model: who computed the logits, [rows]; the drafts are of its vocabulary.
  void draft(Model model, const LogitsView& logits, const DraftedTokens& drafts,
             StepOutputs& outputs, DeviceStream stream = nullptr);
  // Continues rows in kAwaitDecision: kSmall commits the candidate, kLarge discards it. kLarge also
  // takes rows of the manual route that have not been glimpsed, so that a step that was rewound is
  // written by the large model at once.
  void decide(Model model, std::span<const std::int32_t> rows, StepOutputs& outputs);

  // Where a row stands, up to date.
  Phase phase(std::int32_t row);
  // All of it; the type is internal (router/sequence.hpp).
  const Sequence& sequence(std::int32_t row);
  const StepBoundary& boundary(Model model) const {
    return model == Model::kLarge ? *large_boundary_ : *boundary_;
  }
  // The calling thread owns the router from now on. Throws std::runtime_error during a call of the
  // owner.
  void attach();

 private:
  // One call at a time; throws std::runtime_error during another.
  class Claim {
   public:
    explicit Claim(StepRouter& router);
    ~Claim();
    Claim(const Claim&) = delete;
    Claim& operator=(const Claim&) = delete;

   private:
    StepRouter& router_;
  };
  // One call by the owning thread; throws std::runtime_error for any other thread.
  class Use {
   public:
    explicit Use(StepRouter& router);

   private:
    Claim claim_;
  };

  Sequence& at(std::int32_t row);                     // up to date
  Sequence& slot(std::int32_t row);                   // on a device perhaps out of date
  void publish(std::int32_t row);                     // to the device
  void replace(std::int32_t row, Sequence sequence);  // there too; changes nothing if it fails
  // A copy that has written the first tokens only, so many or a few more.
  Sequence replayed(const Sequence& sequence, std::int32_t target) const;
  std::int32_t free_row() const;
  // entries: that the outputs get.
  void check_batch(std::span<const std::int32_t> rows, std::int64_t entries,
                   const StepOutputs& outputs);
  void check_drafts(Model model, const DraftedTokens& drafts) const;
  void check_waiting(Model writer, const DraftedTokens& drafts);
  std::int32_t room(std::int32_t row);
  void call(RowsOf kind, Model model, const LogitsView& logits, const DraftedTokens& drafts,
            StepOutputs& outputs, DeviceStream stream);
  void pack(RowsOf kind, const DraftedTokens& drafts);
  void evaluate(Model writer, const LogitsView& logits, StepOutputs& outputs);
  void take(Model model, const DraftedTokens& drafts, StepOutputs& outputs);
  void follow(Model model, Model writer, const DraftedTokens& drafts, StepOutputs& outputs);
  void check_logits(Model model, const LogitsView& logits, std::int64_t rows,
                    const StepOutputs& outputs) const;
  void start(StepCall call, StepOutputs& outputs, DeviceStream stream);
  void finish(RowsOf kind, StepOutputs& outputs);
  void note_standing(const StepOutputs& outputs);
  void mark_stale(const StepOutputs& outputs);

  std::shared_ptr<const StepBoundary> boundary_;
  std::shared_ptr<const StepBoundary> large_boundary_;
  std::vector<Sequence> sequences_;
  std::unique_ptr<StepDevice> on_device_;  // null: the CPU
  WorkspaceSet workspaces_;
  std::thread::id owner_;  // written under a claim only
  std::atomic<bool> in_use_{false};
  std::uint64_t calls_ = 0;
  // Of the last call, so that none allocates: its rows of logits, and what came of them.
  std::vector<DraftedRow> packed_;
  std::vector<RowResult> results_;
};

}  // namespace glimprouter
