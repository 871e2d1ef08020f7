// glimpse, sample, nucleus, threads and build information.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <chrono>
#include <optional>
#include <string>
#include <vector>

#include "cpu/cpu_backend.hpp"
#include "glimprouter/row_op.hpp"
#include "glimprouter/thread_pool.hpp"
#include "index_list.hpp"
#include "sampling_parameters.hpp"
#include "tensor_access.hpp"

namespace py = pybind11;

namespace glimprouter::bindings {

py::tuple device_names();  // device.cpp

namespace {

// Work below this many elements is done before another thread could make use of the GIL.
constexpr std::int64_t kMinElementsToReleaseGil = 1 << 15;

template <typename Value>
py::array_t<Value> new_array(std::int64_t size) {
  return py::array_t<Value>(static_cast<py::ssize_t>(size));
}

// Evaluates `count` rows with the GIL released when that is worth it.
template <typename Body>
void for_rows(const LogitsView& logits, Body&& body) {
  thread_local WorkspaceSet workspaces;
  workspaces.reserve(logits.width);
  std::optional<py::gil_scoped_release> release;
  if (logits.rows * logits.width >= kMinElementsToReleaseGil) release.emplace();
  parallel_rows(logits.rows, logits.width, workspaces, RowBody(body));
}

std::vector<std::int32_t> read_logprob_ids(const py::object& ids, std::int64_t vocabulary) {
  if (ids.is_none()) return {};
  const IndexList list(ids.ptr(), "logprob_ids");
  const std::vector<std::int32_t> result(list.span().begin(), list.span().end());
  for (const std::int32_t id : result) {
    if (id < 0 || id >= vocabulary) {
      throw py::value_error("logprob_ids holds " + std::to_string(id) +
                            ", outside the vocabulary of " + std::to_string(vocabulary));
    }
  }
  return result;
}

// The device's name when the logits live on one: glimpse_on_device is told where the results go.
py::object glimpse(const py::object& object, int entropy_top_k, bool varentropy,
                   const py::object& logprob_ids) {
  const BorrowedTensor tensor(object.ptr(), "logits");
  if (const auto device = device_of(tensor, "logits")) return py::str(device->name());
  const LogitsView logits = logits_view(tensor, /*allow_vector=*/false);
  if (entropy_top_k < 0) {
    throw py::value_error("entropy_top_k must be >= 1 or None, got " +
                          std::to_string(entropy_top_k));
  }
  const std::vector<std::int32_t> ids = read_logprob_ids(logprob_ids, logits.width);
  RowRequest request;
  request.entropy_top_k = entropy_top_k;
  request.want_varentropy = varentropy;
  request.logprob_ids = ids.data();
  request.num_logprob_ids = static_cast<std::int32_t>(ids.size());
  auto entropy = new_array<float>(logits.rows);
  auto logsumexp = new_array<float>(logits.rows);
  auto max_prob = new_array<float>(logits.rows);
  auto margin = new_array<float>(logits.rows);
  auto token = new_array<std::int32_t>(logits.rows);
  auto status = new_array<std::uint8_t>(logits.rows);
  py::object variance =
      py::none();  // arrays that nobody asked for would cost as much as the others
  py::object logprobs = py::none();
  float* variance_data = nullptr;
  float* logprobs_data = nullptr;
  if (varentropy) {
    auto array = new_array<float>(logits.rows);
    variance_data = array.mutable_data();
    variance = std::move(array);
  }
  if (!logprob_ids.is_none()) {
    py::array_t<float> array(
        {static_cast<py::ssize_t>(logits.rows), static_cast<py::ssize_t>(ids.size())});
    logprobs_data = array.mutable_data();
    logprobs = std::move(array);
  }
  struct {
    float *entropy, *logsumexp, *max_prob, *margin, *varentropy, *logprobs;
    std::int32_t* token;
    std::uint8_t* status;
  } out{entropy.mutable_data(),  logsumexp.mutable_data(),
        max_prob.mutable_data(), margin.mutable_data(),
        variance_data,           logprobs_data,
        token.mutable_data(),    status.mutable_data()};
  for_rows(logits, [&](std::int64_t i, RowWorkspace& workspace) noexcept {
    const RowResult result = evaluate_row(logits.row(i, logits.width), request, workspace,
                                          out.logprobs + i * request.num_logprob_ids);
    out.entropy[i] = result.entropy;
    out.logsumexp[i] = result.logsumexp;
    out.max_prob[i] = result.max_prob;
    out.margin[i] = result.margin;
    out.token[i] = result.argmax;
    out.status[i] = static_cast<std::uint8_t>(result.status);
    if (varentropy) out.varentropy[i] = result.varentropy;
  });
  return py::make_tuple(entropy, logsumexp, max_prob, margin, token, status, variance, logprobs);
}

using Keys = py::array_t<std::uint64_t, py::array::c_style>;

py::object sample(const py::object& object, float temperature, float top_p, int top_k, float min_p,
                  std::uint64_t seed, const Keys& streams, const Keys& positions,
                  std::uint32_t purpose) {
  const BorrowedTensor tensor(object.ptr(), "logits");
  if (const auto device = device_of(tensor, "logits")) return py::str(device->name());
  const LogitsView logits = logits_view(tensor, /*allow_vector=*/false);
  RowRequest request;
  request.sampling = sampling_parameters(temperature, top_p, top_k, min_p);
  check_keys(streams.size(), positions.size(), logits.rows);
  auto tokens = new_array<std::int32_t>(logits.rows);
  std::int32_t* const out = tokens.mutable_data();
  const std::uint64_t* const stream = streams.data();
  const std::uint64_t* const position = positions.data();
  const std::int64_t stream_step = streams.size() == 1 ? 0 : 1;
  const std::int64_t position_step = positions.size() == 1 ? 0 : 1;
  for_rows(logits, [&](std::int64_t i, RowWorkspace& workspace) noexcept {
    RowRequest own = request;
    own.random = RandomKey{seed, stream[i * stream_step], position[i * position_step], purpose};
    out[i] = evaluate_row(logits.row(i, logits.width), own, workspace, nullptr).token;
  });
  return tokens;
}

py::tuple nucleus_of(const py::object& object, float temperature, float top_p, int top_k,
                     float min_p) {
  const BorrowedTensor tensor(object.ptr(), "logits");
  const LogitsView logits = logits_view(tensor, /*allow_vector=*/true);
  if (logits.rows != 1) throw py::value_error("nucleus takes one row of logits");
  const SamplingParameters sampling = sampling_parameters(temperature, top_p, top_k, min_p);
  std::vector<std::int32_t> ids(static_cast<std::size_t>(logits.width));
  std::vector<float> probabilities(static_cast<std::size_t>(logits.width));
  RowWorkspace workspace(logits.width);
  const std::int64_t count =
      nucleus(logits.row(0, logits.width), sampling, workspace, ids.data(), probabilities.data());
  return py::make_tuple(py::array_t<std::int32_t>(count, ids.data()),
                        py::array_t<float>(count, probabilities.data()));
}

// Seconds a row, without Python in the loop.
double benchmark_row(const py::object& object, std::int64_t iterations, float temperature,
                     float top_p, int top_k, float min_p) {
  const BorrowedTensor tensor(object.ptr(), "logits");
  const LogitsView logits = logits_view(tensor, /*allow_vector=*/true);
  if (iterations < 1) throw py::value_error("iterations must be >= 1");
  RowRequest request;
  request.sampling = sampling_parameters(temperature, top_p, top_k, min_p);
  RowWorkspace workspace(logits.width);
  const RowView row = logits.row(0, logits.width);
  float checksum = evaluate_row(row, request, workspace, nullptr).entropy;  // warms caches
  const auto start = std::chrono::steady_clock::now();
  for (std::int64_t i = 0; i < iterations; ++i) {
    request.random.position = static_cast<std::uint64_t>(i);
    checksum += evaluate_row(row, request, workspace, nullptr).entropy;
  }
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
  volatile float sink = checksum;  // keeps the loop from being removed
  static_cast<void>(sink);
  return elapsed.count() / static_cast<double>(iterations);
}

py::dict build_info() {
  py::list compiled;
  py::list supported;
  for (const CpuKernels* kernels : compiled_backends()) {
    compiled.append(std::string(kernels->name));
    if (backend_supported(*kernels)) supported.append(std::string(kernels->name));
  }
  py::dict info;
  info["version"] = GLIMPROUTER_VERSION;
  info["instruction_set"] = std::string(active_backend().name);
  info["instruction_sets_compiled"] = compiled;
  info["instruction_sets_supported"] = supported;
  info["compiler"] = std::string(__VERSION__);
  info["devices"] = device_names();
#if defined(GLIMPROUTER_CUDA_ARCHITECTURES)
  info["cuda_architectures"] = std::string(GLIMPROUTER_CUDA_ARCHITECTURES);
#else
  info["cuda_architectures"] = std::string();
#endif
  return info;
}

}  // namespace

void bind_glimpse(py::module_& module) {
  active_backend();  // a bad GLIMPROUTER_ISA is an error at import, not in the first call
  module.def("glimpse", &glimpse, py::arg("logits"), py::arg("entropy_top_k"),
             py::arg("varentropy"), py::arg("logprob_ids"));
  module.def("sample", &sample, py::arg("logits"), py::arg("temperature"), py::arg("top_p"),
             py::arg("top_k"), py::arg("min_p"), py::arg("seed"), py::arg("substream"),
             py::arg("position"), py::arg("purpose") = 0);
  module.def("nucleus", &nucleus_of, py::arg("logits"), py::arg("temperature"),
             py::arg("top_p") = 1.0f, py::arg("top_k") = 0, py::arg("min_p") = 0.0f);
  module.def("benchmark_row", &benchmark_row, py::arg("logits"), py::arg("iterations"),
             py::arg("temperature") = 0.0f, py::arg("top_p") = 1.0f, py::arg("top_k") = 0,
             py::arg("min_p") = 0.0f);
  module.def("set_num_threads", &set_num_threads, py::arg("count"));
  module.def("get_num_threads", &num_threads);
  module.def("build_info", &build_info);
}

}  // namespace glimprouter::bindings
