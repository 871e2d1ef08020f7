// append_kv, paged_attention, gather_kv; the first two also on tensors that hold arena and tables.
#include "glimprouter/kv_ops.hpp"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "heads_access.hpp"
#include "index_list.hpp"
#include "ops/host_arena.hpp"
#include "ops/kv_checks.hpp"
#include "tensor_access.hpp"

namespace py = pybind11;

namespace glimprouter::bindings {
namespace {

// [layers, T, H, D] of the pages' layers.
HeadsView layers_view(const Arena& arena, const BorrowedTensor& tensor, const char* what,
                      std::int32_t layers, bool written) {
  if (tensor.dimensions != 4 || tensor.shape[0] != layers) {
    throw py::value_error(std::string(what) + " must have the shape [" + std::to_string(layers) +
                          " layers, tokens, heads, size]");
  }
  HeadsView view{};
  check_place(arena, tensor, what);
  view.dtype = float_type(tensor, what);
  if (written && tensor.read_only) throw py::value_error(std::string(what) + " is read-only");
  if (tensor.strides[3] != 1 && tensor.shape[3] > 1) {
    throw py::value_error(std::string(what) +
                          " must be contiguous along the head; call .contiguous() first");
  }
  view.data = tensor.data;
  view.tokens = tensor.shape[1];
  view.heads = static_cast<std::int32_t>(tensor.shape[2]);
  view.head_dim = static_cast<std::int32_t>(tensor.shape[3]);
  view.layer_stride = tensor.strides[0];
  view.token_stride = tensor.strides[1];
  view.head_stride = tensor.strides[2];
  return view;
}

// Work on a device goes where the tensors' framework works now (current_stream).
void append(PagePool& pool, std::int32_t layer, const RaggedBatch& batch, const py::object& keys,
            const py::object& values) {
  const BorrowedHeads k(pool.arena(), keys, "keys");
  const BorrowedHeads v(pool.arena(), values, "values");
  append_kv(pool, {layer}, batch, k.view, v.view, k.stream());
}

void attention(const PagePool& pool, std::int32_t layer, const RaggedBatch& batch,
               const py::object& queries, const py::object& out, float scale, std::int32_t window,
               float softcap, const py::object& sinks, std::int32_t chunk_size) {
  AttentionOptions options = attention_options(scale, window, softcap, chunk_size);
  const BorrowedSinks borrowed(pool.arena(), sinks);
  options.sinks = borrowed.view;
  const BorrowedTensor q(queries.ptr(), "queries");
  const BorrowedTensor o(out.ptr(), "out");
  const HeadsView query = heads_view(pool.arena(), q, "queries", Axes::kHeadsFirst, false);
  const HeadsView target = heads_view(pool.arena(), o, "out", Axes::kTokensFirst, true);
  const DeviceStream stream = current_stream(queries.ptr(), q);
  const py::gil_scoped_release release;
  paged_attention(pool, layer, batch, options, query, target, stream);
}

const KvLayout& layout_of(const PagePool& pool, std::int32_t model) {
  if (model < 0 || model >= pool.num_models()) throw py::value_error("no such model");
  return pool.layout(model);
}

void append_layers(PagePool& pool, const RaggedBatch& batch, const py::object& keys,
                   const py::object& values) {
  const LayerRange layers = all_layers(pool.layout(batch.model));
  const BorrowedTensor k(keys.ptr(), "keys");
  const BorrowedTensor v(values.ptr(), "values");
  const HeadsView key = layers_view(pool.arena(), k, "keys", layers.count, false);
  const HeadsView value = layers_view(pool.arena(), v, "values", layers.count, false);
  append_kv(pool, layers, batch, key, value, current_stream(keys.ptr(), k));
}

void gather_layers(const PagePool& pool, std::int32_t model, const py::object& pages,
                   const py::object& keys, const py::object& values) {
  const LayerRange layers = all_layers(layout_of(pool, model));
  const IndexList list(pages.ptr(), "pages");
  const BorrowedTensor k(keys.ptr(), "keys");
  const BorrowedTensor v(values.ptr(), "values");
  const HeadsView key = layers_view(pool.arena(), k, "keys", layers.count, true);
  const HeadsView value = layers_view(pool.arena(), v, "values", layers.count, true);
  gather_kv(pool, model, layers, list.span(), key, value, current_stream(keys.ptr(), k));
}

// like: a tensor of the pool's device, whose framework's current stream is meant.
void stage(const PagePool& pool, const RaggedBatch& batch, std::int32_t heads, std::int32_t window,
           const py::object& like) {
  const BorrowedTensor tensor(like.ptr(), "like");
  check_place(pool.arena(), tensor, "like");
  stage_batch(pool, batch, heads, window, current_stream(like.ptr(), tensor));
}

void gather(const PagePool& pool, std::int32_t model, std::int32_t layer, const py::object& pages,
            const py::object& keys, const py::object& values) {
  const IndexList list(pages.ptr(), "pages");
  const BorrowedHeads k(pool.arena(), keys, "keys", true);
  const BorrowedHeads v(pool.arena(), values, "values", true);
  gather_kv(pool, model, {layer}, list.span(), k.view, v.view, k.stream());
}

// Integers of one table, contiguous; a view.
template <typename Integer>
std::span<const Integer> integers(const BorrowedTensor& tensor, const char* what, int dimensions) {
  constexpr int kBits = 8 * sizeof(Integer);
  std::int64_t size = 1;
  bool contiguous = tensor.device_type == kCpuDevice;
  for (int axis = tensor.dimensions - 1; axis >= 0; --axis) {
    contiguous = contiguous && (tensor.shape[axis] <= 1 || tensor.strides[axis] == size);
    size *= tensor.shape[axis];
  }
  if (tensor.kind != ElementKind::kSigned || tensor.bits != kBits ||
      tensor.dimensions != dimensions || !contiguous) {
    throw py::value_error(std::string(what) + " must be a contiguous int" + std::to_string(kBits) +
                          " tensor of " + std::to_string(dimensions) + " dimension(s) on the CPU");
  }
  return {static_cast<const Integer*>(tensor.data), static_cast<std::size_t>(size)};
}

// Arena and tables of a forward pass that come as tensors; borrowed and checked.
class TensorPages {
 public:
  // tables: slot_mapping, block_table, cu_seqlens, seq_lens. numbers: KvLayout::numbers().
  TensorPages(const py::object& arena, const py::tuple& tables,
              const std::vector<std::int64_t>& numbers)
      : tensor_(arena.ptr(), "arena"),
        slot_mapping_(py::object(tables[0]).ptr(), "slot_mapping"),
        block_table_(py::object(tables[1]).ptr(), "block_table"),
        cu_seqlens_(py::object(tables[2]).ptr(), "cu_seqlens"),
        seq_lens_(py::object(tables[3]).ptr(), "seq_lens"),
        arena_(static_cast<std::byte*>(tensor_.data)) {
    const DataType dtype = float_type(tensor_, "arena");
    if (tensor_.device_type != kCpuDevice || tensor_.dimensions != 1 || tensor_.strides[0] != 1) {
      throw py::value_error("arena must be contiguous, of one dimension, on the CPU");
    }
    layout = KvLayout::of_numbers(numbers, dtype);
    view.block_table = integers<PageId>(block_table_, "block_table", 2);
    view.table_width = static_cast<std::int32_t>(block_table_.shape[1]);
    view.slot_mapping = integers<std::int64_t>(slot_mapping_, "slot_mapping", 1);
    view.cu_seqlens = integers<std::int32_t>(cu_seqlens_, "cu_seqlens", 1);
    view.seq_lens = integers<std::int32_t>(seq_lens_, "seq_lens", 1);
    check_tables(view, layout, tensor_.shape[0] * element_size(dtype));
  }

  PagedMemory memory(bool written) {
    if (written && tensor_.read_only) throw py::value_error("arena is read-only");
    return {arena_, layout};
  }

  KvLayout layout;
  PageTables view;

 private:
  BorrowedTensor tensor_, slot_mapping_, block_table_, cu_seqlens_, seq_lens_;
  HostArena arena_;
};

// The tensors of torch's operations, which are on the CPU.
const Arena& host() {
  static const HostArena arena(nullptr);
  return arena;
}
HeadsView host_view(const BorrowedTensor& tensor, const char* what, Axes axes, bool written) {
  return heads_view(host(), tensor, what, axes, written);
}

void append_to(const py::object& arena, const py::tuple& tables,
               const std::vector<std::int64_t>& numbers, std::int32_t layer, const py::object& keys,
               const py::object& values) {
  const BorrowedHeads k(host(), keys, "keys");
  const BorrowedHeads v(host(), values, "values");
  TensorPages pages(arena, tables, numbers);
  append_kv(pages.memory(true), {layer}, pages.view, k.view, v.view);
}

// Whether a layer reads another's keys and values, which are in the pages by now.
bool shares(const KvLayout& layout, std::int32_t layer) {
  return layer >= 0 && layer < layout.num_layers() && layout.shape(layer).shares >= 0;
}

// keys: None when they are in the pages by now. values: None for a layer that keeps them within its
// keys.
void attend(const py::object& arena, const py::tuple& tables,
            const std::vector<std::int64_t>& numbers, std::int32_t layer, const py::object& queries,
            const py::object& keys, const py::object& values, const py::object& out, float scale,
            std::int32_t window, float softcap, const py::object& sinks, std::int32_t chunk_size) {
  AttentionOptions options = attention_options(scale, window, softcap, chunk_size);
  const BorrowedSinks borrowed(host(), sinks);
  options.sinks = borrowed.view;
  const BorrowedTensor q(queries.ptr(), "queries");
  const BorrowedTensor o(out.ptr(), "out");
  const HeadsView query = host_view(q, "queries", Axes::kHeadsFirst, false);
  const HeadsView target = host_view(o, "out", Axes::kTokensFirst, true);
  TensorPages pages(arena, tables, numbers);
  if (!keys.is_none() && !shares(pages.layout, layer)) {
    // Before the pages change: attention that is refused leaves them as they were.
    check_attention(pages.layout, layer, pages.view.tokens(), options, query, target);
    const BorrowedHeads k(host(), keys, "keys");
    const BorrowedHeads v(host(), values, "values");
    const bool latent = pages.layout.shape(layer).latent;
    append_kv(pages.memory(true), {layer}, pages.view, k.view, latent ? HeadsView{} : v.view);
  }
  const py::gil_scoped_release release;
  paged_attention(pages.memory(false), layer, pages.view, options, query, target);
}

}  // namespace

void bind_kv_ops(py::module_& module) {
  // Positional only: they are called once a layer.
  module.def("append_kv", &append);
  module.def("paged_attention", &attention);
  module.def("gather_kv", &gather);
  module.def("append_kv_layers", &append_layers);
  module.def("gather_kv_layers", &gather_layers);
  module.def("stage_batch", &stage);
  module.def("append_kv_to", &append_to);
  module.def("attend_over", &attend);
}

}  // namespace glimprouter::bindings
