// Rows of logits on a device: the results go to memory that the caller's framework owns.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "device/attention_loads.hpp"
#include "device/device_evaluate.hpp"
#include "device/lost_codes.hpp"
#include "sampling_parameters.hpp"
#include "tensor_access.hpp"

#if defined(GLIMPROUTER_EMULATOR)
#include "cpu/cpu_backend.hpp"
#include "emulator/backend.hpp"
#include "emulator/row_backend.hpp"
#endif

namespace py = pybind11;

namespace glimprouter::bindings {
namespace {

using Keys = py::array_t<std::uint64_t, py::array::c_style>;
constexpr std::int64_t kResultWords = sizeof(RowResult) / 4;
static_assert(sizeof(RowResult) == 36);

// Compact memory on the logits' device, [rows, columns] of 32-bit elements.
void* device_words(const BorrowedTensor& tensor, const Device& device, std::int64_t rows,
                   std::int64_t columns, const char* what) {
  const bool compact = tensor.dimensions == 2 && tensor.shape[0] == rows &&
                       tensor.shape[1] == columns && tensor.bits == 32 &&
                       (columns < 2 || tensor.strides[1] == 1) &&
                       (rows < 2 || tensor.strides[0] == columns);
  if (!compact || !lives_on(tensor, device)) {
    throw py::value_error(std::string(what) + " must be a compact [" + std::to_string(rows) + ", " +
                          std::to_string(columns) + "] of 32-bit elements on " + device.name());
  }
  return tensor.data;
}

// One request a row where streams or positions differ.
std::vector<RowRequest> requests_of(const RowRequest& common, std::uint64_t seed,
                                    const Keys& streams, const Keys& positions,
                                    std::uint32_t purpose, std::int64_t rows) {
  std::vector<RowRequest> requests(static_cast<std::size_t>(rows), common);
  for (std::int64_t i = 0; i < rows; ++i) {
    requests[static_cast<std::size_t>(i)].random =
        RandomKey{seed, streams.data()[streams.size() == 1 ? 0 : i],
                  positions.data()[positions.size() == 1 ? 0 : i], purpose};
  }
  return requests;
}

void glimpse_on_device(const py::object& object, int entropy_top_k, bool varentropy,
                       const py::object& ids, const py::object& results, const py::object& logprobs,
                       const std::string& device_name) {
  const BorrowedTensor tensor(object.ptr(), "logits");
  const Device device = find_device(device_name);
  const LogitsView logits = logits_view(tensor, /*allow_vector=*/false, device);
  RowRequest request;
  request.entropy_top_k = entropy_top_k;
  request.want_varentropy = varentropy;
  const BorrowedTensor words(results.ptr(), "results");
  auto* const out =
      static_cast<RowResult*>(device_words(words, device, logits.rows, kResultWords, "results"));
  float* logprobs_out = nullptr;
  if (!ids.is_none()) {
    const BorrowedTensor id_tensor(ids.ptr(), "logprob_ids");
    const BorrowedTensor logprob_tensor(logprobs.ptr(), "logprobs");
    request.num_logprob_ids = static_cast<std::int32_t>(logprob_tensor.shape[1]);
    request.logprob_ids = static_cast<const std::int32_t*>(
        device_words(id_tensor, device, 1, request.num_logprob_ids, "logprob_ids"));
    logprobs_out = static_cast<float*>(
        device_words(logprob_tensor, device, logits.rows, request.num_logprob_ids, "logprobs"));
  }
  const DeviceStream stream = current_stream(object.ptr(), tensor);
  const py::gil_scoped_release release;
  evaluate_rows(device, logits, request, {}, out, logprobs_out, stream);
}

void sample_on_device(const py::object& object, float temperature, float top_p, int top_k,
                      float min_p, std::uint64_t seed, const Keys& streams, const Keys& positions,
                      std::uint32_t purpose, const py::object& results,
                      const std::string& device_name) {
  const BorrowedTensor tensor(object.ptr(), "logits");
  const Device device = find_device(device_name);
  const LogitsView logits = logits_view(tensor, /*allow_vector=*/false, device);
  RowRequest request;
  request.sampling = sampling_parameters(temperature, top_p, top_k, min_p);
  check_keys(streams.size(), positions.size(), logits.rows);
  const BorrowedTensor words(results.ptr(), "results");
  auto* const out =
      static_cast<RowResult*>(device_words(words, device, logits.rows, kResultWords, "results"));
  std::vector<RowRequest> requests;
  if (streams.size() == 1 && positions.size() == 1) {
    request.random = RandomKey{seed, streams.data()[0], positions.data()[0], purpose};
  } else {
    requests = requests_of(request, seed, streams, positions, purpose, logits.rows);
  }
  const DeviceStream stream = current_stream(object.ptr(), tensor);
  const py::gil_scoped_release release;
  evaluate_rows(device, logits, request, requests, out, nullptr, stream);
}

// Where each value of a row's result lies, in words of 32 bits.
py::dict result_fields() {
  py::dict fields;
  const auto add = [&](const char* name, std::size_t offset) { fields[name] = offset / 4; };
  add("status", offsetof(RowResult, status));
  add("argmax", offsetof(RowResult, argmax));
  add("token", offsetof(RowResult, token));
  add("entropy", offsetof(RowResult, entropy));
  add("logsumexp", offsetof(RowResult, logsumexp));
  add("max_prob", offsetof(RowResult, max_prob));
  add("margin", offsetof(RowResult, margin));
  add("logprob", offsetof(RowResult, logprob));
  add("varentropy", offsetof(RowResult, varentropy));
  return fields;
}

}  // namespace

py::tuple device_names() {
  py::list names;
  names.append("cpu");
  for (const DeviceBackend* backend : device_backends()) {
    std::string why;
    const int count = backend->device_count(&why);
    for (int i = 0; i < count; ++i) names.append(Device{backend, i}.name());
  }
  return py::tuple(names);
}

std::string_view change_attention_loads(std::string_view name) {
  const AttentionLoads before = attention_loads();
  set_attention_loads(name);
  return name_of(before);
}

void bind_device(py::module_& module) {
  attention_loads();  // a bad GLIMPROUTER_ATTENTION_LOADS is an error at import
#if defined(GLIMPROUTER_EMULATOR)
  add_device_backend(simt::backend());
  add_backend(simt::row_backend());
#endif
  py::register_exception<DeviceLost>(module, "DeviceLost", PyExc_RuntimeError);
  module.def("check_device_error", &device::throw_if_lost, py::arg("code"), py::arg("device"),
             py::arg("what"));
  module.def("set_attention_loads", &change_attention_loads, py::arg("loads"));
  module.attr("ROW_RESULT_WORDS") = kResultWords;
  module.attr("ROW_RESULT_FIELDS") = result_fields();
  module.def("glimpse_on_device", &glimpse_on_device, py::arg("logits"), py::arg("entropy_top_k"),
             py::arg("varentropy"), py::arg("logprob_ids"), py::arg("results"), py::arg("logprobs"),
             py::arg("device"));
  module.def("sample_on_device", &sample_on_device, py::arg("logits"), py::arg("temperature"),
             py::arg("top_p"), py::arg("top_k"), py::arg("min_p"), py::arg("seed"),
             py::arg("substream"), py::arg("position"), py::arg("purpose"), py::arg("results"),
             py::arg("device"));
}

}  // namespace glimprouter::bindings
