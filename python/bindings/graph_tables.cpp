// GraphTables over memory that a framework owns.
#include "device/graph_tables.hpp"

#include <pybind11/pybind11.h>

#include <memory>
#include <string>
#include <utility>

#include "graph_tables_docs.hpp"
#include "heads_access.hpp"
#include "index_list.hpp"
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
  HeldTables(std::shared_ptr<PagePool> pool, const GraphRoom& room, py::object memory)
      : memory_(std::move(memory)), tables_(make(std::move(pool), room, memory_)) {}

  void fill(const RaggedBatch& batch, const py::object& wanted) {
    const IndexList list(wanted.ptr(), "wanted");
    tables_.fill(batch, list.span(), stream());
  }

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

  const GraphTables& tables() const { return tables_; }

 private:
  static GraphTables make(std::shared_ptr<PagePool> pool, const GraphRoom& room,
                          const py::object& memory) {
    const std::int64_t words = GraphTables::words(*pool, room);
    const BorrowedTensor tensor(memory.ptr(), "memory");
    auto* const data = static_cast<std::int64_t*>(compact(*pool, tensor, "memory", 64, words));
    return {std::move(pool), room, data};
  }

  DeviceStream stream() const {
    return current_stream(memory_.ptr(), BorrowedTensor(memory_.ptr(), "memory"));
  }

  py::object memory_;
  GraphTables tables_;
};

}  // namespace

void bind_graph_tables(py::module_& module) {
  using Count = std::int32_t;
  py::class_<HeldTables>(module, "GraphTables", docs::kGraphTables)
      .def(py::init([](std::shared_ptr<PagePool> pool, Count model, Count tokens, Count sequences,
                       Count pages, Count wanted, Count most_tokens, Count heads,
                       py::object memory) {
             const GraphRoom room{model, tokens, sequences, pages, wanted, most_tokens, heads};
             return std::make_unique<HeldTables>(std::move(pool), room, std::move(memory));
           }),
           py::arg("pool"), py::arg("model"), py::arg("tokens"), py::arg("sequences"),
           py::arg("pages"), py::arg("wanted"), py::arg("most_tokens"), py::arg("heads"),
           py::arg("memory"))
      .def_static(
          "words",
          [](const PagePool& pool, Count model, Count tokens, Count sequences, Count pages,
             Count wanted, Count most_tokens, Count heads) {
            return GraphTables::words(
                pool, {model, tokens, sequences, pages, wanted, most_tokens, heads});
          },
          py::arg("pool"), py::arg("model"), py::arg("tokens"), py::arg("sequences"),
          py::arg("pages"), py::arg("wanted"), py::arg("most_tokens"), py::arg("heads"),
          "Elements of 64 bits that the memory must have.")
      .def_property_readonly(
          "scratch_size", [](const HeldTables& held) { return held.tables().scratch_size(); },
          "Elements of 32 bits that attend() needs.")
      .def("fill", &HeldTables::fill, py::arg("batch"), py::arg("wanted"), docs::kGraphFill)
      .def("attend", &HeldTables::attend, py::arg("layer"), py::arg("queries"), py::arg("keys"),
           py::arg("values"), py::arg("out"), py::arg("scratch"), py::arg("scale"),
           py::arg("window") = 0, py::arg("softcap") = 0.0f, py::arg("sinks") = py::none(),
           py::arg("chunk_size") = 0, docs::kGraphAttend);
}

}  // namespace glimprouter::bindings
