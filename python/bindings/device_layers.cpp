// DeviceLayers: what stands between the matrix products of a layer, on a device. Each call is one
// launch on the stream of its tensors' framework, and nothing else.
#include <pybind11/pybind11.h>

#include <cmath>
#include <cstdint>
#include <optional>
#include <string>

#include "device/device_backend.hpp"
#include "tensor_access.hpp"

namespace py = pybind11;

namespace glimprouter::bindings {
namespace {

[[noreturn]] void refuse(const std::string& what) { throw py::value_error(what); }

// A tensor of a call, whose first tensor says the type.
class LayerTensor {
 public:
  LayerTensor(const Device& device, const py::object& object, const char* what)
      : tensor_(object.ptr(), what, StorageCheck::kSkipped), object_(object.ptr()), what_(what) {
    if (!lives_on(tensor_, device)) refuse(name() + " must be on " + device.name());
    type_ = float_type(tensor_, what);
    const int last = tensor_.dimensions - 1;
    if (last < 0 || (tensor_.shape[last] > 1 && tensor_.strides[last] != 1)) {
      refuse(name() + " must be contiguous along its last axis; call .contiguous() first");
    }
    if (reinterpret_cast<std::uintptr_t>(tensor_.data) % element_size(type_) != 0) {
      refuse(name() + " must be aligned to its elements; copy it first");
    }
    for (int axis = 0; axis <= last; ++axis) {
      if (tensor_.shape[axis] > INT32_MAX) refuse(name() + " is too large");
    }
  }
  LayerTensor(const Device& device, const py::object& object, const char* what, DataType type)
      : LayerTensor(device, object, what) {
    if (type_ != type) throw py::type_error(name() + " must have the type of the first tensor");
  }

  const BorrowedTensor& tensor() const { return tensor_; }
  DataType type() const { return type_; }
  std::byte* data() const { return static_cast<std::byte*>(tensor_.data); }
  std::int32_t size() const {
    return static_cast<std::int32_t>(tensor_.shape[tensor_.dimensions - 1]);
  }
  DeviceStream stream() const { return current_stream(object_, tensor_); }

  // The axes before the last; missing ones stand in front with a size of 1.
  LayerRows rows() const {
    LayerRows view{data(), {1, 1, 1}, {0, 0, 0}};
    const int leading = tensor_.dimensions - 1;
    for (int axis = 0; axis < leading; ++axis) {
      const int place = kRowAxes - leading + axis;
      view.shape[place] = static_cast<std::int32_t>(tensor_.shape[axis]);
      view.strides[place] = tensor_.strides[axis];
    }
    return view;
  }

  // One after another, [size].
  const std::byte* vector(std::int32_t size) const {
    if (tensor_.dimensions != 1 || tensor_.shape[0] != size) {
      refuse(name() + " must have one dimension of " + std::to_string(size) + " elements");
    }
    return data();
  }

  // Side by side in all axes, at a multiple of 16 bytes.
  std::byte* compact16() const {
    std::int64_t size = 1;
    bool compact = reinterpret_cast<std::uintptr_t>(data()) % 16 == 0;
    for (int axis = tensor_.dimensions - 1; axis >= 0; --axis) {
      compact = compact && (tensor_.shape[axis] <= 1 || tensor_.strides[axis] == size);
      size *= tensor_.shape[axis];
    }
    if (!compact) refuse(name() + " must be contiguous, at a multiple of 16 bytes");
    return data();
  }

  // Compact, of another's shape; written if need be.
  std::byte* like(const LayerTensor& other, bool written) const {
    std::int64_t size = 1;
    bool fits = tensor_.dimensions == other.tensor_.dimensions;
    for (int axis = tensor_.dimensions - 1; fits && axis >= 0; --axis) {
      fits = tensor_.shape[axis] == other.tensor_.shape[axis] &&
             (tensor_.shape[axis] <= 1 || tensor_.strides[axis] == size);
      size *= tensor_.shape[axis];
    }
    if (!fits) refuse(name() + " must be contiguous, of the shape of " + other.name());
    if (written && tensor_.read_only) refuse(name() + " is read-only");
    return data();
  }

 private:
  std::string name() const { return what_; }

  BorrowedTensor tensor_;
  PyObject* object_;
  const char* what_;
  DataType type_;
};

NormForm norm_form(double epsilon, float offset, bool in_type) {
  if (!(epsilon >= 0.0) || std::isinf(epsilon)) refuse("epsilon must be >= 0");
  return {static_cast<float>(epsilon), offset, in_type};
}

Activation activation_named(const std::string& name) {
  if (name == "silu") return Activation::kSilu;
  if (name == "gelu_tanh") return Activation::kGeluTanh;
  refuse("activation must be \"silu\" or \"gelu_tanh\", got \"" + name + "\"");
}

// Strides of batch and token of angles [1 or batch, tokens, size].
void read_angles(const LayerTensor& angles, const LayerRows& heads, std::int32_t size,
                 std::int64_t (&strides)[2]) {
  const BorrowedTensor& tensor = angles.tensor();
  if (tensor.dimensions != 3 || angles.size() != size || tensor.shape[1] != heads.shape[2] ||
      (tensor.shape[0] != 1 && tensor.shape[0] != heads.shape[0])) {
    refuse(
        "cosine and sine must have the shape [1 or batch, tokens, size] for heads [batch, heads, "
        "tokens, size]");
  }
  strides[0] = tensor.shape[0] == 1 ? 0 : tensor.strides[0];
  strides[1] = tensor.strides[1];
}

class DeviceLayers {
 public:
  explicit DeviceLayers(const std::string& name) : device_(find_device(name)) {}

  void norm(const py::object& hidden, const py::object& weight, double epsilon, float offset,
            bool in_type, const py::object& out) const {
    norm_of(hidden, nullptr, nullptr, weight, epsilon, offset, in_type, out);
  }

  // The norm of sum = hidden + added, which is written, too.
  void add_norm(const py::object& hidden, const py::object& added, const py::object& weight,
                double epsilon, float offset, bool in_type, const py::object& sum,
                const py::object& out) const {
    const LayerTensor a(device_, added, "added");
    const LayerTensor s(device_, sum, "sum", a.type());
    norm_of(hidden, &a, &s, weight, epsilon, offset, in_type, out);
  }

  // norms: of queries and keys, (weight, epsilon, offset, in_type) each; None: they are not normed.
  void rotate(const py::object& queries, const py::object& keys, const py::object& cosine,
              const py::object& sine, const py::object& queries_out, const py::object& keys_out,
              const py::object& query_norm, const py::object& key_norm) const {
    const LayerTensor q(device_, queries, "queries");
    const LayerTensor k(device_, keys, "keys", q.type());
    const LayerTensor c(device_, cosine, "cosine", q.type());
    const LayerTensor s(device_, sine, "sine", q.type());
    const LayerTensor q_out(device_, queries_out, "queries_out", q.type());
    const LayerTensor k_out(device_, keys_out, "keys_out", q.type());
    RotaryArguments arguments{};
    arguments.size = q.size();
    arguments.dtype = q.type();
    arguments.queries = rotated(q, q_out, query_norm);
    arguments.keys = rotated(k, k_out, key_norm);
    const LayerRows& first = arguments.queries.source;
    const LayerRows& second = arguments.keys.source;
    if (k.size() != q.size() || first.shape[0] != second.shape[0] ||
        first.shape[2] != second.shape[2]) {
      refuse("queries and keys must agree in batch, tokens and size");
    }
    read_angles(c, first, q.size(), arguments.cosine_strides);
    read_angles(s, first, q.size(), arguments.sine_strides);
    arguments.cosine = c.data();
    arguments.sine = s.data();
    device_.backend->layers->rotate(device_.index, arguments, q.stream());
  }

  void activate(const py::object& gate, const py::object& up, const std::string& activation,
                const py::object& out) const {
    const LayerTensor g(device_, gate, "gate");
    const LayerTensor u(device_, up, "up", g.type());
    const LayerTensor o(device_, out, "out", g.type());
    const ActivationArguments arguments{g.like(g, false),
                                        u.like(g, false),
                                        o.like(g, true),
                                        g.tensor().elements(),
                                        activation_named(activation),
                                        g.type()};
    device_.backend->layers->activate(device_.index, arguments, g.stream());
  }

  // A product with each of some matrices [rows, size]; or, with an activation, that of the first
  // times the second, into one tensor. biases: None where there is none. added: to the first
  // result once it is rounded; None where nothing is.
  void multiply(const py::object& x, const py::tuple& weights, const py::tuple& biases,
                const std::string& activation, const py::object& added,
                const py::tuple& outs) const {
    const LayerTensor input(device_, x, "x");
    if (input.type() == DataType::kFloat32) throw py::type_error("x must be bfloat16 or float16");
    if (input.size() < 8 || input.size() % 8 != 0) {
      refuse("x must have rows of a multiple of 8 elements");
    }
    ProductArguments arguments{};
    arguments.x = input.compact16();
    arguments.size = input.size();
    arguments.dtype = input.type();
    arguments.count = product_rows(input);
    arguments.matrices = static_cast<std::int32_t>(weights.size());
    arguments.gated = !activation.empty();
    if (arguments.gated) arguments.activation = activation_named(activation);
    const std::size_t results = arguments.gated ? 1 : weights.size();
    if (weights.empty() || weights.size() > kMostMatrices || biases.size() != weights.size() ||
        outs.size() != results || (arguments.gated && weights.size() != 2)) {
      refuse(
          "there must be 1 to 3 weights (with an activation two), as many biases, and an out for "
          "each result");
    }
    std::optional<LayerTensor> other;
    if (!added.is_none()) other.emplace(device_, added, "added", input.type());
    for (std::size_t i = 0; i < weights.size(); ++i) {
      ProductMatrix& matrix = arguments.matrix[i];
      const LayerTensor weight(device_, weights[i], "a weight", input.type());
      if (weight.tensor().dimensions != 2 || weight.size() != input.size()) {
        refuse("a weight must be [rows, " + std::to_string(input.size()) + "]");
      }
      matrix.weight = weight.compact16();
      matrix.rows = static_cast<std::int32_t>(weight.tensor().shape[0]);
      if (arguments.gated && matrix.rows != arguments.matrix[0].rows) {
        refuse("a gate and what it lets through must have as many rows");
      }
      if (!py::object(biases[i]).is_none()) {
        matrix.bias = LayerTensor(device_, biases[i], "a bias", input.type()).vector(matrix.rows);
      }
      if (i >= results) continue;
      const LayerTensor out(device_, outs[i], "an out", input.type());
      if (out.size() != matrix.rows || product_rows(out) != arguments.count) {
        refuse("an out must have the rows of x, with an element for each row of its weight");
      }
      if (out.tensor().read_only) refuse("an out is read-only");
      matrix.out = out.like(out, true);
      if (other && i == 0) arguments.added = other->like(out, false);
    }
    device_.backend->layers->multiply(device_.index, arguments, input.stream());
  }

 private:
  static std::int32_t product_rows(const LayerTensor& tensor) {
    const std::int64_t rows = tensor.rows().count();
    if (rows > kMostProductRows) {
      refuse("x must have up to " + std::to_string(kMostProductRows) + " rows");
    }
    return static_cast<std::int32_t>(rows);
  }

  void norm_of(const py::object& hidden, const LayerTensor* added, const LayerTensor* sum,
               const py::object& weight, double epsilon, float offset, bool in_type,
               const py::object& out) const {
    const LayerTensor h(device_, hidden, "hidden");
    const LayerTensor w(device_, weight, "weight", h.type());
    const LayerTensor o(device_, out, "out", h.type());
    if (h.size() < 1 || h.size() > kMostNormSize) {
      refuse("hidden must have 1 to " + std::to_string(kMostNormSize) + " elements a row");
    }
    if (added != nullptr && added->type() != h.type()) {
      throw py::type_error("added must have the type of hidden");
    }
    NormArguments arguments{};
    arguments.source = h.rows();
    arguments.added = added == nullptr ? nullptr : added->like(h, false);
    arguments.sum = sum == nullptr ? nullptr : sum->like(h, true);
    arguments.weight = w.vector(h.size());
    arguments.out = o.like(h, true);
    arguments.size = h.size();
    arguments.dtype = h.type();
    arguments.form = norm_form(epsilon, offset, in_type);
    device_.backend->layers->norm(device_.index, arguments, h.stream());
  }

  RotatedHeads rotated(const LayerTensor& heads, const LayerTensor& out,
                       const py::object& norm) const {
    const std::int32_t size = heads.size();
    if (heads.tensor().dimensions != 4 || size % 2 != 0 || size < 2 || size > kMostRotarySize) {
      refuse("queries and keys must be [batch, heads, tokens, size] of an even size up to " +
             std::to_string(kMostRotarySize));
    }
    RotatedHeads view{heads.rows(), out.like(heads, true), nullptr, {}};
    if (norm.is_none()) return view;
    const auto parts = norm.cast<py::tuple>();
    if (parts.size() != 4) refuse("a norm must be (weight, epsilon, offset, in_type)");
    const LayerTensor weight(device_, parts[0], "the weight of a norm", heads.type());
    view.weight = weight.vector(size);
    view.form = norm_form(parts[1].cast<double>(), parts[2].cast<float>(), parts[3].cast<bool>());
    return view;
  }

  Device device_;
};

}  // namespace

void bind_device_layers(py::module_& module) {
  // Positional only: they are called several times a layer.
  py::class_<DeviceLayers>(
      module, "DeviceLayers",
      "What stands between the matrix products of a layer, on a device: one launch a call, on the "
      "stream of the tensors' framework. float32, bfloat16 and float16, the same of all tensors.")
      .def(py::init<const std::string&>(), py::arg("device"))
      .def("norm", &DeviceLayers::norm)
      .def("add_norm", &DeviceLayers::add_norm)
      .def("rotate", &DeviceLayers::rotate)
      .def("activate", &DeviceLayers::activate)
      .def("multiply", &DeviceLayers::multiply);
}

}  // namespace glimprouter::bindings
