// StepBoundary from Python objects.
#include "glimprouter/step_boundary.hpp"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <string>
#include <utility>

#include "router/transition.hpp"
#include "token_bytes.hpp"

namespace py = pybind11;

namespace glimprouter::bindings {
namespace {

std::shared_ptr<StepBoundary> make_boundary(const py::sequence& token_bytes,
                                            const std::vector<py::bytes>& delimiters,
                                            std::vector<std::int32_t> think_start_ids,
                                            std::vector<std::int32_t> think_end_ids,
                                            std::vector<std::int32_t> eos_ids,
                                            std::vector<std::int32_t> close_ids,
                                            std::vector<std::vector<std::int32_t>> start_markers,
                                            std::vector<std::vector<std::int32_t>> end_markers) {
  StepBoundary::Definition definition;
  definition.token_bytes = read_token_bytes(token_bytes);
  for (const py::bytes& delimiter : delimiters) definition.delimiters.emplace_back(delimiter);
  definition.think_start_ids = std::move(think_start_ids);
  definition.think_end_ids = std::move(think_end_ids);
  definition.eos_ids = std::move(eos_ids);
  definition.close_ids = std::move(close_ids);
  definition.think_start_markers = std::move(start_markers);
  definition.think_end_markers = std::move(end_markers);
  return std::make_shared<StepBoundary>(std::move(definition));
}

void check_token(const StepBoundary& boundary, std::int32_t token) {
  if (token < 0 || token >= boundary.vocabulary_size()) {
    throw py::value_error("token must lie in [0, " + std::to_string(boundary.vocabulary_size()) +
                          "), got " + std::to_string(token));
  }
}

TokenEffect checked_effect(const StepBoundary& boundary, std::int32_t token, int state) {
  if (state < 0 || state >= boundary.num_states()) {
    throw py::value_error("state must lie in [0, " + std::to_string(boundary.num_states()) +
                          "), got " + std::to_string(state));
  }
  check_token(boundary, token);
  return boundary.table().effect(static_cast<std::uint8_t>(state), token);
}

py::tuple effect(const StepBoundary& boundary, int state, std::int32_t token) {
  const TokenEffect result = checked_effect(boundary, token, state);
  return py::make_tuple(static_cast<int>(result.next_state()), result.has(TokenEffect::kHit));
}

py::tuple read_prompt(const StepBoundary& boundary, const std::vector<std::int32_t>& ids) {
  const SequenceStart start = boundary.read_prompt(ids);
  return py::make_tuple(start.answering, start.in_step, static_cast<int>(start.automaton));
}

bool before_step(const StepBoundary& boundary, std::int32_t token, int state) {
  return precedes_step(checked_effect(boundary, token, state));
}

bool ends_thinking(const StepBoundary& boundary, std::int32_t token, int state) {
  return checked_effect(boundary, token, state).has(TokenEffect::kThinkEnd);
}

}  // namespace

void bind_step_boundary(py::module_& module) {
  py::class_<StepBoundary, std::shared_ptr<StepBoundary>>(module, "StepBoundary")
      .def(py::init(&make_boundary), py::arg("token_bytes"), py::arg("delimiters"),
           py::arg("think_start_ids"), py::arg("think_end_ids"), py::arg("eos_ids"),
           py::arg("close_ids"), py::arg("think_start_markers"), py::arg("think_end_markers"))
      .def_property_readonly("vocab_size", &StepBoundary::vocabulary_size)
      .def_property_readonly("num_states", &StepBoundary::num_states)
      .def_property_readonly("think_start_ids",
                             [](const StepBoundary& b) { return b.definition().think_start_ids; })
      .def_property_readonly("think_end_ids",
                             [](const StepBoundary& b) { return b.definition().think_end_ids; })
      .def_property_readonly(
          "think_start_markers",
          [](const StepBoundary& b) { return b.definition().think_start_markers; })
      .def_property_readonly("think_end_markers",
                             [](const StepBoundary& b) { return b.definition().think_end_markers; })
      .def_property_readonly("eos_ids",
                             [](const StepBoundary& b) { return b.definition().eos_ids; })
      .def_property_readonly("close_ids",
                             [](const StepBoundary& b) { return b.definition().close_ids; })
      .def("effect", &effect, py::arg("state"), py::arg("token"))
      .def("_read_prompt", &read_prompt, py::arg("ids"))
      .def("precedes_step", &before_step, py::arg("token"), py::arg("state") = 0,
           "Whether a token at a step's start leaves it a start: white space, or think-start.")
      .def("ends_thinking", &ends_thinking, py::arg("token"), py::arg("state") = 0,
           "Whether thinking ends with a token, in a state of the automaton.");
}

}  // namespace glimprouter::bindings
