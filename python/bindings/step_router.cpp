// StepRouter and StepOutputs.
#include "glimprouter/step_router.hpp"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "glimprouter/steps_on.hpp"
#include "index_list.hpp"
#include "router/sequence.hpp"
#include "step_router_docs.hpp"
#include "tensor_access.hpp"

namespace py = pybind11;

namespace glimprouter::bindings {
namespace {

constexpr std::int64_t kMinElementsToReleaseGil = 1 << 15;

Model model_of(const py::object& object) {
  if (PyUnicode_Check(object.ptr())) {
    if (PyUnicode_CompareWithASCIIString(object.ptr(), "small") == 0) return Model::kSmall;
    if (PyUnicode_CompareWithASCIIString(object.ptr(), "large") == 0) return Model::kLarge;
  }
  throw py::value_error("model must be \"small\" or \"large\", got " +
                        py::repr(object).cast<std::string>());
}

StepOutputs& outputs_of(const py::object& object) {
  if (!py::isinstance<StepOutputs>(object)) {
    throw py::type_error("out must come from router.outputs(n), got " +
                         std::string(Py_TYPE(object.ptr())->tp_name));
  }
  return object.cast<StepOutputs&>();
}

LogitsView logits_of(const StepRouter& router, const BorrowedTensor& tensor) {
  if (!router.reaches(tensor.device_type, tensor.device_id)) {
    throw_elsewhere(tensor, router.on_cpu() ? "the CPU" : router.device());
  }
  return logits_view(tensor, /*allow_vector=*/false, !router.on_cpu());
}

void step(StepRouter& router, const py::object& model, const py::object& logits,
          const py::object& rows, const py::object& out) {
  StepOutputs& outputs = outputs_of(out);
  const Model writer = model_of(model);
  const BorrowedTensor tensor(logits.ptr(), "logits");
  const LogitsView view = logits_of(router, tensor);
  const IndexList list(rows.ptr(), "rows");
  const DeviceStream stream = current_stream(logits.ptr(), tensor);
  if (router.on_cpu() && view.rows * view.width < kMinElementsToReleaseGil) {
    router.step(writer, view, list.span(), outputs);
    return;
  }
  const py::gil_scoped_release release;
  router.step(writer, view, list.span(), outputs, stream);
}

// What verify() and draft() take; the lists live as long as it.
struct DraftLists {
  IndexList rows;
  IndexList counts;
  IndexList tokens;

  DraftLists(const py::object& row_list, const py::object& count_list, const py::object& drafts)
      : rows(row_list.ptr(), "rows"),
        counts(count_list.ptr(), "counts"),
        tokens(drafts.ptr(), "drafts") {}
  DraftedTokens view() const { return {rows.span(), counts.span(), tokens.span()}; }
};

using DraftCall = void (StepRouter::*)(Model, const LogitsView&, const DraftedTokens&, StepOutputs&,
                                       DeviceStream);

template <DraftCall kCall>
void call_drafted(StepRouter& router, const py::object& model, const py::object& logits,
                  const DraftLists& lists, const py::object& out) {
  StepOutputs& outputs = outputs_of(out);
  const Model computed = model_of(model);
  const BorrowedTensor tensor(logits.ptr(), "logits");
  const LogitsView view = logits_of(router, tensor);
  const DeviceStream stream = current_stream(logits.ptr(), tensor);
  const py::gil_scoped_release release;
  (router.*kCall)(computed, view, lists.view(), outputs, stream);
}

py::array_t<std::int32_t> verify(StepRouter& router, const py::object& model,
                                 const py::object& logits, const py::object& rows,
                                 const py::object& counts, const py::object& drafts,
                                 const py::object& out) {
  const DraftLists lists(rows, counts, drafts);
  call_drafted<&StepRouter::verify>(router, model, logits, lists, out);
  const StepOutputs& outputs = outputs_of(out);
  const std::span<const std::int32_t> drafted = lists.counts.span();
  py::array_t<std::int32_t> taken(static_cast<py::ssize_t>(drafted.size()));
  std::int32_t* const counted = taken.mutable_data();
  std::size_t entry = 0;
  for (std::size_t i = 0; i < drafted.size(); ++i) {
    counted[i] = 0;
    for (std::int32_t k = 0; k <= drafted[i]; ++k) counted[i] += outputs.token[entry++] >= 0;
  }
  return taken;
}

void draft(StepRouter& router, const py::object& model, const py::object& logits,
           const py::object& rows, const py::object& counts, const py::object& drafts,
           const py::object& out) {
  call_drafted<&StepRouter::draft>(router, model, logits, DraftLists(rows, counts, drafts), out);
}

// Row numbers in device memory are handed on; others are read here.
void launch(StepRouter& router, const py::object& model, const py::object& logits,
            const py::object& rows, const py::object& out) {
  StepOutputs& outputs = outputs_of(out);
  const Model writer = model_of(model);
  const BorrowedTensor tensor(logits.ptr(), "logits");
  const LogitsView view = logits_of(router, tensor);
  const DeviceStream stream = current_stream(logits.ptr(), tensor);
  const bool is_list = PySequence_Check(rows.ptr()) && !py::hasattr(rows, "__dlpack__");
  if (!is_list) {
    const BorrowedTensor numbers(rows.ptr(), "rows");
    if (numbers.device_type != kCpuDevice) {
      if (!router.reaches(numbers.device_type, numbers.device_id) || numbers.dimensions != 1 ||
          numbers.kind != ElementKind::kSigned || numbers.bits != 32 || numbers.strides[0] != 1 ||
          numbers.shape[0] != view.rows) {
        throw py::value_error(
            "rows in device memory must be a contiguous int32 [rows of the logits] on the "
            "router's device");
      }
      router.launch(writer, view, {}, static_cast<const std::int32_t*>(numbers.data), outputs,
                    stream);
      return;
    }
  }
  const IndexList list(rows.ptr(), "rows");
  router.launch(writer, view, list.span(), nullptr, outputs, stream);
}

void wait(StepRouter& router, const py::object& out) {
  StepOutputs& outputs = outputs_of(out);
  const py::gil_scoped_release release;
  router.wait(outputs);
}

void decide(StepRouter& router, const py::object& model, const py::object& rows,
            const py::object& out) {
  StepOutputs& outputs = outputs_of(out);
  const IndexList list(rows.ptr(), "rows");
  router.decide(model_of(model), list.span(), outputs);
}

py::array_t<std::int32_t> to_array(const std::vector<std::int32_t>& rows) {
  return py::array_t<std::int32_t>(static_cast<py::ssize_t>(rows.size()), rows.data());
}

// A view of one field; `owner` keeps the memory alive.
template <typename Value>
py::array field_view(std::vector<Value>& field, const py::object& owner) {
  return py::array_t<Value>(static_cast<py::ssize_t>(field.size()), field.data(), owner);
}

py::dict output_fields(const py::object& self) {
  auto& outputs = self.cast<StepOutputs&>();
  py::dict fields;
  const auto rows = static_cast<py::ssize_t>(outputs.capacity);
  const auto ids = static_cast<py::ssize_t>(outputs.logprob_ids.size());
  for_columns(outputs, outputs, [&](const char* name, std::uint32_t asked, auto& column, auto&) {
    if (asked == kByIds) {
      if (ids > 0) fields[name] = field_view(column, self).reshape({rows, ids});
    } else if (asked == 0 || (outputs.fields & asked) != 0) {
      fields[name] = field_view(column, self);
    }
  });
  return fields;
}

template <typename Enum>
Enum checked_enum(int value, int count, const char* what) {
  if (value < 0 || value >= count) {
    throw py::value_error(std::string(what) + " is out of range: " + std::to_string(value));
  }
  return static_cast<Enum>(value);
}

// The values have been validated by RouterConfig; `options` is its flat form.
std::int32_t open_sequence(StepRouter& router, std::uint64_t seed, std::uint64_t substream,
                           const py::dict& options,
                           const std::tuple<bool, bool, std::uint8_t>& start) {
  const auto number = [&](const char* key) { return options[key].cast<float>(); };
  const auto integer = [&](const char* key) { return options[key].cast<std::int32_t>(); };
  SequenceOptions result;
  result.seed = seed;
  result.substream = substream;
  result.entropy_top_k = integer("entropy_top_k");
  result.sampling =
      SamplingParameters{number("temperature"), number("top_p"), integer("top_k"), number("min_p")};
  SequenceLimits& limits = result.limits;
  limits.threshold = number("threshold");
  limits.comparison = checked_enum<Comparison>(integer("comparison"), 2, "comparison");
  limits.route = checked_enum<RouteMode>(integer("route"), 4, "route");
  limits.answer_model = checked_enum<Model>(integer("answer_model"), 2, "answer_model");
  limits.repetition_guard = options["repetition_guard"].cast<bool>();
  limits.max_step_tokens = integer("max_step_tokens");
  limits.max_think_tokens = integer("max_think_tokens");
  limits.max_answer_tokens = integer("max_answer_tokens");
  limits.first_steps_large = integer("first_steps_large");
  limits.large_tokens = integer("large_tokens");
  std::tie(result.start.answering, result.start.in_step, result.start.automaton) = start;
  return router.open(result);
}

py::dict state(StepRouter& router, std::int32_t row) {
  const Sequence& sequence = router.sequence(row);
  const SequenceState& state = sequence.state;
  py::dict result;
  result["phase"] = static_cast<int>(state.phase);
  result["position"] = state.position;
  result["step_index"] = state.step_index;
  result["room"] = room_of(state, sequence.options.limits);
  result["step_tokens"] = state.step_tokens;
  result["think_tokens"] = state.think_tokens;
  result["answer_tokens"] = state.answer_tokens;
  result["step_logprob"] = sequence.step_logprob;
  result["step_entropy"] = sequence.step_entropy;
  result["automaton"] = static_cast<int>(state.automaton);
  result["seed"] = sequence.options.seed;
  result["substream"] = sequence.options.substream;
  result["threshold"] = sequence.options.limits.threshold;
  return result;
}

void bind_outputs(py::module_& module) {
  py::class_<StepOutputs>(module, "StepOutputs")
      .def(py::init<std::int64_t, std::uint32_t, std::vector<std::int32_t>>(), py::arg("capacity"),
           py::arg("fields"), py::arg("logprob_ids"))
      .def_readonly("capacity", &StepOutputs::capacity)
      .def_static("views", &output_fields, py::arg("outputs"));
}

}  // namespace

void bind_step_router(py::module_& module) {
  bind_outputs(module);
  py::class_<StepRouter>(module, "StepRouter")
      .def(py::init([](std::shared_ptr<StepBoundary> boundary,
                       std::shared_ptr<StepBoundary> large_boundary, std::int32_t max_sequences,
                       const std::string& device) {
             return std::make_unique<StepRouter>(boundary, large_boundary, max_sequences,
                                                 steps_on(device));
           }),
           py::arg("boundary"), py::arg("large_boundary"), py::arg("max_sequences"),
           py::arg("device"))
      .def_property_readonly("device", &StepRouter::device,
                             "Where the sequences live, as \"cuda:0\".")
      .def("_attach_outputs", &StepRouter::attach_outputs, py::arg("out"))
      .def("_open", &open_sequence, py::arg("seed"), py::arg("substream"), py::arg("options"),
           py::arg("start"))
      .def("close", &StepRouter::close, py::arg("row"), docs::kClose)
      .def("fork", &StepRouter::fork, py::arg("row"), py::arg("substream") = std::nullopt,
           docs::kFork)
      .def("rewind", &StepRouter::rewind, py::arg("row"), py::arg("count"), docs::kRewind)
      .def("end_thinking", &StepRouter::end_thinking, py::arg("row"), docs::kEndThinking)
      .def(
          "save", [](StepRouter& router, std::int32_t row) { return py::bytes(router.save(row)); },
          py::arg("row"), docs::kSave)
      .def(
          "load",
          [](StepRouter& router, const py::bytes& saved) {
            return router.load(static_cast<std::string_view>(saved));
          },
          py::arg("state"), docs::kLoad)
      .def(
          "pending",
          [](StepRouter& router, const py::object& model) {
            return to_array(router.pending(model_of(model)));
          },
          py::arg("model"), docs::kPending)
      .def_property_readonly(
          "rows", [](StepRouter& router) { return to_array(router.rows()); },
          "Open rows, ascending, int32 [n].")
      // Positional only: keywords would cost more than the call.
      .def("step", &step, docs::kStep)
      .def("verify", &verify, docs::kVerify)
      .def("draft", &draft, docs::kDraft)
      .def("launch", &launch, docs::kLaunch)
      .def("wait", &wait, docs::kWait)
      .def("decide", &decide, docs::kDecide)
      .def("state", &state, py::arg("row"), docs::kState)
      .def("attach", &StepRouter::attach, docs::kAttach);
}

}  // namespace glimprouter::bindings
