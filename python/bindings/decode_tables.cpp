// DecodeTables over memory that a framework owns.
#include "device/decode_tables.hpp"

#include <pybind11/pybind11.h>

#include <memory>
#include <string>
#include <utility>

#include "decode_tables_docs.hpp"
#include "heads_access.hpp"
#include "tensor_access.hpp"

namespace py = pybind11;

namespace glimprouter::bindings {
namespace {

// Compact memory on the pool's device, of `count` elements of 4 or 8 bytes.
void* compact(const PagePool& pool, const BorrowedTensor& tensor, const char* what, int bits,
              std::int64_t count) {
  check_place(pool.arena(), tensor, what);
  if (tensor.dimensions != 1 || tensor.bits != bits || tensor.shape[0] < count ||
      (count > 1 && tensor.strides[0] != 1)) {
    throw py::value_error(std::string(what) + " must be compact, of one dimension, with at least " +
                          std::to_string(count) + " elements of " + std::to_string(bits) + " bits");
  }
  return tensor.data;
}

// The tables with the tensor that holds them: it lives as long, and tells the current stream.
class HeldTables {
 public:
  HeldTables(std::shared_ptr<PagePool> pool, const DecodeRoom& room, py::object memory)
      : memory_(std::move(memory)), tables_(make(std::move(pool), room, memory_)) {}

  void fill(const RaggedBatch& batch) { tables_.fill(batch, stream()); }

  void attend(std::int32_t layer, const py::object& queries, const py::object& keys,
              const py::object& values, const py::object& out, const py::object& scratch,
              float scale, std::int32_t window, float softcap, const py::object& sinks,
              std::int32_t chunk_size) {
    AttentionOptions options = attention_options(scale, window, softcap, chunk_size);
    const Arena& arena = tables_.pool().arena();
    const BorrowedSinks borrowed(arena, sinks);
    options.sinks = borrowed.view;
    const BorrowedTensor q(queries.ptr(), "queries");
    const BorrowedHeads k(arena, keys, "keys");
    const BorrowedHeads v(arena, values, "values");
    const BorrowedTensor o(out.ptr(), "out");
    const BorrowedTensor s(scratch.ptr(), "scratch");
    const HeadsView query = heads_view(arena, q, "queries", Axes::kHeadsFirst, false);
    const HeadsView target = heads_view(arena, o, "out", Axes::kTokensFirst, true);
    void* const floats = compact(tables_.pool(), s, "scratch", 32, tables_.scratch_size());
    const DeviceStream where = stream();
    if (!tables_.shares(layer))
      tables_.append(layer, k.view, tables_.latent(layer) ? HeadsView{} : v.view, where);
    tables_.attend(layer, options, query, target, static_cast<float*>(floats), where);
  }

  const DecodeTables& tables() const { return tables_; }

 private:
  static DecodeTables make(std::shared_ptr<PagePool> pool, const DecodeRoom& room,
                           const py::object& memory) {
    const std::int64_t words = DecodeTables::words(*pool, room);
    const BorrowedTensor tensor(memory.ptr(), "memory");
    auto* const data = static_cast<std::int64_t*>(compact(*pool, tensor, "memory", 64, words));
    return {std::move(pool), room, data};
  }

  DeviceStream stream() const {
    return current_stream(memory_.ptr(), BorrowedTensor(memory_.ptr(), "memory"));
  }

  py::object memory_;
  DecodeTables tables_;
};

}  // namespace

void bind_decode_tables(py::module_& module) {
  py::class_<HeldTables>(module, "DecodeTables", docs::kDecodeTables)
      .def(py::init([](std::shared_ptr<PagePool> pool, std::int32_t model, std::int32_t sequences,
                       std::int32_t pages, std::int32_t heads, py::object memory) {
             return std::make_unique<HeldTables>(
                 std::move(pool), DecodeRoom{model, sequences, pages, heads}, std::move(memory));
           }),
           py::arg("pool"), py::arg("model"), py::arg("sequences"), py::arg("pages"),
           py::arg("heads"), py::arg("memory"))
      .def_static(
          "words",
          [](const PagePool& pool, std::int32_t model, std::int32_t sequences, std::int32_t pages,
             std::int32_t heads) {
            return DecodeTables::words(pool, {model, sequences, pages, heads});
          },
          py::arg("pool"), py::arg("model"), py::arg("sequences"), py::arg("pages"),
          py::arg("heads"), "Elements of 64 bits that the memory must have.")
      .def_property_readonly(
          "scratch_size", [](const HeldTables& held) { return held.tables().scratch_size(); },
          "Elements of 32 bits that attend() needs.")
      .def("fill", &HeldTables::fill, py::arg("batch"), docs::kDecodeFill)
      .def("attend", &HeldTables::attend, py::arg("layer"), py::arg("queries"), py::arg("keys"),
           py::arg("values"), py::arg("out"), py::arg("scratch"), py::arg("scale"),
           py::arg("window") = 0, py::arg("softcap") = 0.0f, py::arg("sinks") = py::none(),
           py::arg("chunk_size") = 0, docs::kDecodeAttend);
}

}  // namespace glimprouter::bindings
