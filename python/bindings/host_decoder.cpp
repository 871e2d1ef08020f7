// HostDecoder: all layers of a decoder over pages in host memory, in one call.
#include "ops/host_decoder.hpp"

#include <pybind11/pybind11.h>

#include <chrono>
#include <cmath>
#include <cstdint>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "cpu/product_task.hpp"
#include "heads_access.hpp"
#include "index_list.hpp"
#include "loop/passes_ahead.hpp"
#include "tensor_access.hpp"

namespace py = pybind11;

namespace glimprouter::bindings {
namespace {

// Float32 in host memory, side by side.
float* floats(const BorrowedTensor& tensor, const std::string& name, int dimensions) {
  if (tensor.device_type != kCpuDevice) throw py::value_error(name + " must be on the CPU");
  if (float_type(tensor, name.c_str()) != DataType::kFloat32) {
    throw py::type_error(name + " must be float32");
  }
  bool contiguous = tensor.dimensions == dimensions;
  std::int64_t size = 1;
  for (int axis = tensor.dimensions - 1; axis >= 0; --axis) {
    contiguous = contiguous && (tensor.shape[axis] <= 1 || tensor.strides[axis] == size);
    size *= tensor.shape[axis];
  }
  if (!contiguous || reinterpret_cast<std::uintptr_t>(tensor.data) % alignof(float) != 0) {
    throw py::value_error(name + " must be contiguous, of " + std::to_string(dimensions) +
                          " dimension(s)");
  }
  return static_cast<float*>(tensor.data);
}

// rows [count, size] times weight [outputs, size]; bias may be None.
void multiply(const py::object& rows, const py::object& weight, const py::object& bias,
              const py::object& out) {
  const BorrowedTensor r(rows.ptr(), "rows");
  const BorrowedTensor w(weight.ptr(), "weight");
  const BorrowedTensor o(out.ptr(), "out");
  const float* const source = floats(r, "rows", 2);
  Matrix matrix{floats(w, "weight", 2), nullptr, w.shape[0], w.shape[1]};
  float* const target = floats(o, "out", 2);
  std::optional<BorrowedTensor> b;
  if (!bias.is_none()) {
    matrix.bias = floats(b.emplace(bias.ptr(), "bias"), "bias", 1);
    if (b->shape[0] != matrix.outputs)
      throw py::value_error("bias must have a value for each row of weight");
  }
  if (matrix.size % kProductLanes != 0 || r.shape[1] != matrix.size) {
    throw py::value_error("rows and weight must have the same number of columns, a multiple of " +
                          std::to_string(kProductLanes) + "; got " + std::to_string(r.shape[1]) +
                          " and " + std::to_string(matrix.size));
  }
  if (o.read_only || o.shape[0] != r.shape[0] || o.shape[1] != matrix.outputs) {
    throw py::value_error("out must be [" + std::to_string(r.shape[0]) + ", " +
                          std::to_string(matrix.outputs) + "], and not read-only");
  }
  const py::gil_scoped_release release;
  ProductRows arranged;
  arranged.arrange(source, r.shape[0], matrix.size);
  multiply_rows(matrix, arranged, nullptr, target);
}

// Reads the parts of a decoder from tuples, and keeps their tensors alive.
class Parts {
 public:
  const float* vector(const py::handle& object, std::int64_t size, const char* name) {
    const BorrowedTensor tensor(object.ptr(), name);
    const float* const data = floats(tensor, name, 1);
    if (tensor.shape[0] != size) {
      throw py::value_error(std::string(name) + " must have " + std::to_string(size) +
                            " elements, got " + std::to_string(tensor.shape[0]));
    }
    keep(object);
    return data;
  }

  // (weight, bias or None)
  Matrix matrix(const py::handle& part, const char* name) {
    const auto pair = py::cast<py::tuple>(part);
    const BorrowedTensor tensor(py::object(pair[0]).ptr(), name);
    Matrix result{floats(tensor, name, 2), nullptr, tensor.shape[0], tensor.shape[1]};
    keep(py::object(pair[0]));
    const py::object bias = pair[1];
    if (!bias.is_none()) result.bias = vector(bias, result.outputs, "bias");
    return result;
  }

  // (weight, epsilon, offset), or None for no norm.
  RmsNorm norm(const py::handle& part, std::int64_t size, const char* name) {
    if (part.is_none()) return {nullptr};
    const auto [weight, epsilon, offset] = py::cast<std::tuple<py::object, double, float>>(part);
    if (!(epsilon >= 0.0) || std::isinf(epsilon)) throw py::value_error("epsilon must be >= 0");
    return {vector(weight, size, name), epsilon, offset};
  }

  DecoderLayer layer(const py::handle& part, std::int64_t hidden, std::int64_t head_dim) {
    const auto own = py::cast<py::tuple>(part);
    if (own.size() != 12) throw py::value_error("a layer has twelve parts");
    DecoderLayer layer;
    layer.attention_norm = norm(own[0], hidden, "attention_norm");
    layer.query = matrix(own[1], "query");
    layer.key = matrix(own[2], "key");
    layer.value = matrix(own[3], "value");
    layer.query_norm = norm(own[4], head_dim, "query_norm");
    layer.key_norm = norm(own[5], head_dim, "key_norm");
    layer.output = matrix(own[6], "output");
    layer.mlp_norm = norm(own[7], hidden, "mlp_norm");
    layer.gate = matrix(own[8], "gate");
    layer.up = matrix(own[9], "up");
    layer.down = matrix(own[10], "down");
    layer.attention = attention_options(py::cast<float>(own[11]), 0, 0.0f, 0);
    if (layer.attention_norm.weight == nullptr || layer.mlp_norm.weight == nullptr) {
      throw py::value_error("a layer needs both of its norms");
    }
    return layer;
  }

  void keep(const py::handle& object) {
    kept_.push_back(py::reinterpret_borrow<py::object>(object));
  }

 private:
  std::vector<py::object> kept_;
};

class Decoder {
 public:
  Decoder(const KvLayout& layout, const py::object& embedding, const py::list& layers,
          const py::tuple& norm, const py::tuple& head)
      : decoder_(weights(layout, embedding, layers, norm, head), layout) {}

  void run(PagePool& pool, const RaggedBatch& batch, const py::object& cosine,
           const py::object& sine, const py::object& rows, const py::object& logits) {
    const BorrowedTensor c(cosine.ptr(), "cosine");
    const BorrowedTensor s(sine.ptr(), "sine");
    const BorrowedTensor o(logits.ptr(), "logits");
    const IndexList wanted(rows.ptr(), "rows");
    const RotaryTables angles = angles_of(c, s);
    float* const out = floats(o, "logits", 2);
    const auto count = static_cast<std::int64_t>(wanted.span().size());
    if (o.read_only || o.shape[0] != count || o.shape[1] != decoder_.vocabulary()) {
      throw py::value_error("logits must be [" + std::to_string(count) + ", " +
                            std::to_string(decoder_.vocabulary()) + "], and not read-only");
    }
    const py::gil_scoped_release release;
    decoder_.run(pool, batch, angles, wanted.span(), out);
  }

  std::int32_t passes_ahead(KvCache& cache, StepRouter& router, std::int32_t model,
                            const py::object& sequences, const py::object& rows,
                            const py::object& cosine, const py::object& sine,
                            const StepOutputs& last, StepOutputs& ahead, double most_seconds) {
    const BorrowedTensor c(cosine.ptr(), "cosine");
    const BorrowedTensor s(sine.ptr(), "sine");
    const IndexList own(sequences.ptr(), "sequences");
    const IndexList list(rows.ptr(), "rows");
    if (model != 0 && model != 1) throw py::value_error("model must be 0 (small) or 1 (large)");
    const Writing writing{
        decoder_, angles_of(c, s), cache,      router, model == 0 ? Model::kSmall : Model::kLarge,
        model,    own.span(),      list.span()};
    const auto most = std::chrono::duration<double>(most_seconds);
    const py::gil_scoped_release release;
    return glimprouter::passes_ahead(writing, last, ahead,
                                     std::chrono::duration_cast<std::chrono::nanoseconds>(most));
  }

 private:
  RotaryTables angles_of(const BorrowedTensor& cosine, const BorrowedTensor& sine) const {
    const RotaryTables angles{floats(cosine, "cosine", 2), floats(sine, "sine", 2),
                              cosine.shape[0]};
    if (cosine.shape[1] != head_dim_ || sine.shape[0] != angles.positions ||
        sine.shape[1] != head_dim_) {
      throw py::value_error("cosine and sine must have the shape [positions, " +
                            std::to_string(head_dim_) + "]");
    }
    return angles;
  }

  DecoderWeights weights(const KvLayout& layout, const py::object& embedding,
                         const py::list& layers, const py::tuple& norm, const py::tuple& head) {
    if (layout.num_layers() == 0) throw py::value_error("the layout has no layers");
    head_dim_ = layout.shape(0).head_dim;
    DecoderWeights result;
    const BorrowedTensor table(embedding.ptr(), "embedding");
    result.embedding = floats(table, "embedding", 2);
    result.vocabulary = table.shape[0];
    result.hidden = table.shape[1];
    parts_.keep(embedding);
    for (const py::handle& layer : layers) {
      result.layers.push_back(parts_.layer(layer, result.hidden, head_dim_));
    }
    result.norm = parts_.norm(norm, result.hidden, "norm");
    result.head = parts_.matrix(head, "head");
    return result;
  }

  // Before the decoder, which borrows from them.
  Parts parts_;
  std::int64_t head_dim_ = 0;
  HostDecoder decoder_;
};

}  // namespace

void bind_host_decoder(py::module_& module) {
  py::class_<Decoder>(module, "HostDecoder")
      .def(py::init<const KvLayout&, const py::object&, const py::list&, const py::tuple&,
                    const py::tuple&>(),
           py::arg("layout"), py::arg("embedding"), py::arg("layers"), py::arg("norm"),
           py::arg("head"))
      // Positional only: they are called once a pass.
      .def("run", &Decoder::run)
      .def("passes_ahead", &Decoder::passes_ahead);
  module.def("multiply_rows", &multiply);
}

}  // namespace glimprouter::bindings
